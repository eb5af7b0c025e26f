"""Which of an image's captions a training step sees, and how much of it."""

from __future__ import annotations

import bisect
import itertools
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from t2i.encoder_texts import EncoderPrompt, EncoderTexts
from t2i.errors import DataError
from t2i.randomness import generator
from t2i.records import CaptionedImage

Parts = Literal["whole", "first_sentences", "one_sentence"]
DROPPED = ""
"""Kind under which empty prompts are counted."""
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|(?<=[\u3002\uff01\uff1f])|\n+")


@dataclass(frozen=True)
class Phase:
    """Weights of the kinds from a step on."""

    from_step: int
    weights: Mapping[str, float]


@dataclass(frozen=True)
class CaptionMix:
    """Draws one caption kind per example by weight; with probability `dropout` the empty prompt instead.

    Of several captions of a kind each is as likely; encoders that are given the same kind are given the same one.
    """

    weights: dict[str, float]
    """Empty where `per_encoder` names every encoder."""
    dropout: float = 0.0
    trigger_words: str = ""
    """Put before every caption, with a comma between: `sks dog, a dog on a beach`. Not before the empty prompt."""
    schedule: tuple[Phase, ...] = ()
    """Other weights from later steps on, in their order; `weights` hold until the first."""
    parts: Parts = "whole"
    """How much of the drawn caption: all; its first 1 to n sentences, every number as likely; or one of them."""
    per_encoder: tuple[tuple[str, str], ...] = ()
    """(text encoder, kind): encoders that are given the image's caption of this kind, whole, whatever is drawn for the
    others. The empty prompt goes to all."""

    @property
    def kinds(self) -> tuple[str, ...]:
        """Every kind that an encoder may be given in some step."""
        drawn = [kind for phase in (self.weights, *self._later) for kind in phase]
        return tuple(dict.fromkeys([*drawn, *(kind for _, kind in self.per_encoder)]))

    @property
    def _later(self) -> tuple[Mapping[str, float], ...]:
        return tuple(phase.weights for phase in self.schedule)

    def check(self, records: Iterable[CaptionedImage]) -> None:
        """Raise DataError unless every record has captions of every kind in the mix, none of them empty."""
        lacking: dict[str, list[str]] = {kind: [] for kind in self.kinds}
        count = 0
        for record in records:
            count += 1
            for kind in lacking:
                texts = record.texts(kind)
                if not texts or not all(map(str.strip, texts)):
                    lacking[kind].append(record.image)
        for kind, images in lacking.items():
            if images:
                shown = ", ".join(images[:5]) + (", ..." if len(images) > 5 else "")
                raise DataError(
                    f"{len(images)} of {count} images have no caption of kind {kind!r}, or an empty one: {shown}. "
                    f"Drop them with a filter stage (require: [{kind}]) or caption them."
                )

    def kind_at(self, seed: int, step: int, position: int) -> str:
        """The kind drawn for one place in one step, `DROPPED` for the empty prompt. Needs no record, but weights."""
        is_dropped, chosen = self._luck(seed, step, position)
        if is_dropped:
            return DROPPED
        weights = self._weights_at(step)
        bounds = list(itertools.accumulate(weights.values()))
        # The last bound is left out: rounding must not push a draw past the last kind.
        return list(weights)[bisect.bisect_right(bounds[:-1], chosen * bounds[-1])]

    def labels_at(self, seed: int, step: int, position: int) -> tuple[str, ...]:
        """What one place in one step is counted under: `dropped`, or the drawn kind and `encoder: kind` for others."""
        if self._luck(seed, step, position)[0]:
            return ("dropped",)
        drawn = (self.kind_at(seed, step, position),) if self.weights else ()
        return (*drawn, *(f"{encoder}: {kind}" for encoder, kind in self.per_encoder))

    def draw(self, record: CaptionedImage, seed: int, step: int, position: int) -> EncoderPrompt:
        """The prompt for one place in one step: always the same for the same arguments."""
        if not self.per_encoder or self._luck(seed, step, position)[0]:
            return self.draw_one(record, seed, step, position)
        rest = self.draw_one(record, seed, step, position) if self.weights else ""
        named = ((encoder, self._one_of(record, kind, seed, step, position)) for encoder, kind in self.per_encoder)
        return EncoderTexts(rest, tuple((encoder, self._with_trigger(text)) for encoder, text in named))

    def draw_one(self, record: CaptionedImage, seed: int, step: int, position: int) -> str:
        """The caption that encoders are given which `per_encoder` does not name."""
        if self._luck(seed, step, position)[0]:
            return ""
        text = self._one_of(record, self.kind_at(seed, step, position), seed, step, position)
        if self.parts != "whole":
            text = part_of(text, self.parts, generator(seed, "caption part", step, position))
        return self._with_trigger(text)

    def texts(self, record: CaptionedImage) -> list[EncoderPrompt]:
        """Everything that `draw` may give, with whole captions; the empty prompt is left out.

        Of several captions of a kind that only some encoders are given, every combination.
        """
        drawn = dict.fromkeys(kind for phase in (self.weights, *self._later) for kind in phase)
        rest = [self._with_trigger(text) for kind in drawn for text in record.texts(kind)]
        if not self.per_encoder:
            return [*rest]
        names = [encoder for encoder, _ in self.per_encoder]
        choices = [[self._with_trigger(text) for text in record.texts(kind)] for _, kind in self.per_encoder]
        combined = itertools.product(rest if self.weights else [""], *choices)
        return [EncoderTexts(first, tuple(zip(names, others, strict=True))) for first, *others in combined]

    def _luck(self, seed: int, step: int, position: int) -> tuple[bool, float]:
        """Whether the prompt is the empty one, and the draw of the kind, in [0, 1)."""
        dropped, chosen = generator(seed, "caption", step, position).random(2)
        return bool(dropped < self.dropout), float(chosen)

    @staticmethod
    def _one_of(record: CaptionedImage, kind: str, seed: int, step: int, position: int) -> str:
        """One of the record's captions of a kind."""
        texts = record.texts(kind) or ("",)
        chosen = int(generator(seed, "caption of its kind", step, position).integers(len(texts))) if texts[1:] else 0
        return texts[chosen]

    def _weights_at(self, step: int) -> Mapping[str, float]:
        started = [phase.weights for phase in self.schedule if phase.from_step <= step]
        return started[-1] if started else self.weights

    def _with_trigger(self, text: str) -> str:
        return f"{self.trigger_words}, {text}" if self.trigger_words and text else text


def sentences(text: str) -> list[str]:
    """The sentences of a caption, with their ends; `Dr. Smith` counts as two, which does no harm here."""
    return [part.strip() for part in _SENTENCE_END.split(text) if part.strip()]


def part_of(text: str, parts: Parts, random: np.random.Generator) -> str:
    """The first 1 to n sentences of a caption, or one of them; a caption of one sentence stays whole."""
    found = sentences(text)
    if parts == "whole" or len(found) < 2:
        return text
    place = int(random.integers(len(found)))
    return found[place] if parts == "one_sentence" else " ".join(found[: place + 1])
