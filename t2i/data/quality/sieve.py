"""Checks one after the other over records that stay on disk; each sees what the ones before it have left."""

from __future__ import annotations

import json
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias, overload

from t2i.records import CaptionedImage

Dropped: TypeAlias = Iterator[tuple[int, str]]
"""(number of a record, why it is dropped, as `check: detail`)."""
Check: TypeAlias = Callable[[Sequence[CaptionedImage]], Dropped]
"""What is left -> the places in it that are dropped, each once."""


class Chosen(Sequence[CaptionedImage]):
    """Some of the records, by their numbers: 4 bytes each."""

    def __init__(self, records: Sequence[CaptionedImage], numbers: Sequence[int]) -> None:
        self.records, self.numbers = records, numbers

    def __len__(self) -> int:
        return len(self.numbers)

    @overload
    def __getitem__(self, index: int) -> CaptionedImage: ...
    @overload
    def __getitem__(self, index: slice) -> list[CaptionedImage]: ...
    def __getitem__(self, index: int | slice) -> CaptionedImage | list[CaptionedImage]:
        if isinstance(index, slice):
            return [self.records[number] for number in self.numbers[index]]
        return self.records[self.numbers[index]]


class Sieve:
    """What is left of the records, and how many each check has dropped."""

    def __init__(self, records: Sequence[CaptionedImage], name: Callable[[CaptionedImage], str]) -> None:
        """name: what the list of dropped records calls an image."""
        self.records = records
        self.kept = array("I", range(len(records)))
        self.reasons: Counter[str] = Counter()
        self._name = name

    @property
    def left(self) -> Chosen:
        """The records that no check has dropped so far."""
        return Chosen(self.records, self.kept)

    def apply(self, check: Check) -> Iterator[bytes]:
        """Run a check over what is left; yields a line of JSON for each record it drops."""
        left = self.left
        is_dropped = bytearray(len(left))
        for place, reason in check(left):
            is_dropped[place] = True
            self.reasons[reason.split(":")[0]] += 1
            line = json.dumps({"image": self._name(left[place]), "reason": reason}, ensure_ascii=False)
            yield (line + "\n").encode()
        self.kept = array("I", (number for number, gone in zip(self.kept, is_dropped, strict=True) if not gone))
