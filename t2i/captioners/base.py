"""What a captioner is: something that says what is in an image, or why it cannot."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeAlias

from t2i.records import Caption, CaptionedImage


@dataclass(frozen=True)
class Refusal:
    """Why there is no caption for an image. text: what was written instead of one, if anything was."""

    reason: str
    text: str = ""


Answer: TypeAlias = tuple[Caption, ...] | Refusal
"""At least one caption, or the reason why there is none."""


Describe: TypeAlias = Callable[[Sequence[CaptionedImage]], Iterator[tuple[int, Answer]]]
"""Records -> (number of a record, its answer), each number once, as answers come; depends on these records only."""


class Captioner(Protocol):
    """A frozen recipe entry with a tag; holds no state."""

    @property
    def kind(self) -> str:
        """Kind of the captions it writes."""
        ...

    def check(self, images: Iterable[Path]) -> None:
        """Look at the paths of all images before the first is captioned. Raises DataError for what cannot be meant."""
        ...

    def load(self) -> Describe:
        """Open what it needs, once for many calls."""
        ...
