"""Which of an image's captions a training step sees."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Iterable
from dataclasses import dataclass

from t2i.errors import DataError
from t2i.randomness import generator
from t2i.records import CaptionedImage


@dataclass(frozen=True)
class CaptionMix:
    """Draws one caption kind per example by weight; with probability `dropout` the empty prompt instead."""

    weights: dict[str, float]
    dropout: float = 0.0
    trigger_words: str = ""
    """Put before every caption, with a comma between: `sks dog, a dog on a beach`. Not before the empty prompt."""

    def check(self, records: Iterable[CaptionedImage]) -> None:
        """Raise DataError unless every record has a non-empty caption of every kind in the mix."""
        lacking: dict[str, list[str]] = {kind: [] for kind in self.weights}
        count = 0
        for record in records:
            count += 1
            for kind in self.weights:
                if not (record.caption(kind) or "").strip():
                    lacking[kind].append(record.image)
        for kind, images in lacking.items():
            if images:
                shown = ", ".join(images[:5]) + (", ..." if len(images) > 5 else "")
                raise DataError(
                    f"{len(images)} of {count} images have no caption of kind {kind!r}: {shown}. "
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
        return self._with_trigger(record.caption(list(self.weights)[place]) or "")

    def texts(self, record: CaptionedImage) -> list[str]:
        """Everything that `draw` may give for a record, except the empty prompt."""
        return [self._with_trigger(record.caption(kind) or "") for kind in self.weights]

    def _with_trigger(self, text: str) -> str:
        return f"{self.trigger_words}, {text}" if self.trigger_words and text else text
