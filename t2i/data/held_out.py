"""Images that are kept out of training, to measure on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import overload

import numpy as np

from t2i.errors import DataError
from t2i.randomness import derive_key
from t2i.records import CaptionedImage


class PickedRecords(Sequence[CaptionedImage]):
    """Some of the records, in their order; 4 bytes a record."""

    def __init__(self, records: Sequence[CaptionedImage], numbers: Sequence[int]) -> None:
        self.records, self.numbers = records, np.array(numbers, dtype=np.uint32)

    def __len__(self) -> int:
        return len(self.numbers)

    @overload
    def __getitem__(self, index: int) -> CaptionedImage: ...
    @overload
    def __getitem__(self, index: slice) -> list[CaptionedImage]: ...
    def __getitem__(self, index: int | slice) -> CaptionedImage | list[CaptionedImage]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        return self.records[int(self.numbers[index])]


Parts = list[Sequence[CaptionedImage]]


def hold_out(tables: Sequence[Sequence[CaptionedImage]], share: float, seed: int) -> tuple[Parts, Parts]:
    """(records to train on, records held out) of each table.

    Whether an image is held out depends on the seed and its id alone, so that equal files stay together and more images
    leave the old ones where they are. Raises DataError if a table has none left to train on, or none is held out at
    all.
    """
    kept, held = [], []
    for table in tables:
        is_held = [is_held_out(row, share, seed) for row in table]
        kept.append(PickedRecords(table, [number for number, out in enumerate(is_held) if not out]))
        held.append(PickedRecords(table, [number for number, out in enumerate(is_held) if out]))
    counts = f"{sum(map(len, held))} of {sum(map(len, tables))} images"
    if not any(map(len, held)) or not all(map(len, kept)):
        raise DataError(f"held_out.share: {share} holds out {counts}; change it so that some are, and some are left.")
    return kept, held


def is_held_out(row: CaptionedImage, share: float, seed: int) -> bool:
    """Whether a record is one of those held out."""
    return derive_key(seed, f"held out {row.id}") < share * 2.0**128
