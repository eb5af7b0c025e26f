"""What a captioner is: something that says what is in an image, or why it cannot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from t2i.records import Caption, CaptionedImage


@dataclass(frozen=True)
class Refusal:
    """Why there is no caption for an image."""

    reason: str


class Captioner(Protocol):
    """A frozen recipe entry with a tag; holds no state between calls."""

    kind: str
    """Kind of the captions it writes."""

    def check(self, images: Sequence[Path]) -> None:
        """Look at the paths of all images before the first is captioned. Raises DataError for what cannot be meant."""
        ...

    def caption(self, records: Sequence[CaptionedImage]) -> list[Caption | Refusal]:
        """One answer per record, in order. Depends on the records of this call only."""
        ...
