"""Which of an image's captions a training step sees."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from t2i.errors import DataError
from t2i.randomness import generator
from t2i.records import CaptionedImage


@dataclass(frozen=True)
class CaptionMix:
    """Draws one caption kind per example by weight; with probability `dropout` the empty prompt instead."""

    weights: dict[str, float]
    dropout: float = 0.0

    def check(self, records: Sequence[CaptionedImage]) -> None:
        """Raise DataError unless every record has a non-empty caption of every kind in the mix."""
        for kind in self.weights:
            lacking = [record.image for record in records if not (record.caption(kind) or "").strip()]
            if lacking:
                shown = ", ".join(lacking[:5]) + (", ..." if len(lacking) > 5 else "")
                raise DataError(
                    f"{len(lacking)} of {len(records)} images have no caption of kind {kind!r}: {shown}. "
                    f"Drop them with a filter stage (require: [{kind}]) or caption them."
                )

    def draw(self, record: CaptionedImage, seed: int, step: int, position: int) -> str:
        """The caption for one place in one step: always the same for the same arguments."""
        dropped, chosen = generator(seed, "caption", step, position).random(2)
        if dropped < self.dropout:
            return ""
        bounds = list(itertools.accumulate(self.weights.values()))
        # The last bound is left out: rounding must not push a draw past the last kind.
        place = bisect.bisect_right(bounds[:-1], chosen * bounds[-1])
        return record.caption(list(self.weights)[place]) or ""
