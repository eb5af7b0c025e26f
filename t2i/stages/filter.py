"""Keep the images that are fit to train on; list every other one with its reason."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, JsonValue, field_validator, model_validator

from t2i.data.quality.concreteness import ConcretenessRule
from t2i.data.quality.texts import TextCheck
from t2i.data.sources import RECORDS_FILE, image_name, save_records
from t2i.files import write_parts
from t2i.records import CaptionedImage
from t2i.stages.base import InspectContext, Stage, StageContext
from t2i.stages.embedding_rules import EmbeddingRules
from t2i.stages.score import reward_errors
from t2i.stages.score_rules import ScoreKey, ScoreRule, id_of, with_score

if TYPE_CHECKING:
    from t2i.data.preview import Preview
    from t2i.data.quality.sieve import Check, Dropped

SCORES_FOLDER = "scores"
EMBEDDINGS_FOLDER = "embeddings"


class Filter(Stage):
    """Write the kept records to `records.jsonl` and the others to `dropped.jsonl`. Rules apply in the order below."""

    version: ClassVar[int] = 2
    produces: ClassVar[str] = "captioned_images"
    accepts: ClassVar[dict[str, tuple[str, ...]]] = {"data_from": ("captioned_images",)}

    type: Literal["filter"] = "filter"
    data_from: str
    """A caption or filter stage."""
    min_side: int | None = Field(default=None, gt=0)
    """Shorter side of the image in pixels, at least."""
    max_aspect: float | None = Field(default=None, ge=1)
    """Longer side over shorter side, at most."""
    require: tuple[str, ...] = ()
    """Caption kinds that an image must have. Of several captions of a kind each must pass, unless a rule says else."""
    min_words: int | None = Field(default=None, gt=0)
    """Words in every required caption, at least."""
    max_words: int | None = Field(default=None, gt=0)
    """Words in every required caption, at most."""
    drop_matching: str | None = None
    """Regular expression; images with a required caption that contains it are dropped."""
    unique_images: bool = True
    """Of images with the same bytes, keep the first."""
    text_checks: tuple[TextCheck, ...] = ()
    """What no required caption may be: `refusal`, `boilerplate`, `loop`, `truncated`, `private`, `file_name`."""
    concreteness: ConcretenessRule | None = None
    """How concrete the words of every required caption must be, by a list of ratings."""
    min_objects: int | None = Field(default=None, gt=0)
    """Objects that one caption of the first required kind names, at least: many objects teach where things are."""
    near_texts: float | None = Field(default=None, gt=0, lt=1)
    """Of images whose first required captions are this similar (0.8: four of five word triples), a few are kept."""
    near_texts_kept: int = Field(default=1, ge=1)
    """How many."""
    near_images: int | None = Field(default=None, ge=0, le=3)
    """Of images whose perceptual hashes differ in at most this many of 64 bits, the first is kept."""
    min_sharpness: float | None = Field(default=None, gt=0)
    """Variance of the image's Laplacian, at least; below about 50 a photograph is blurred."""
    embeddings: EmbeddingRules | None = None
    """Rules by image embeddings: near duplicates, and at most so many images of a concept."""
    scores: tuple[ScoreRule, ...] = ()
    """Rules by scorers, in order, each over what is left."""

    @field_validator("drop_matching")
    @classmethod
    def _is_regular_expression(cls, pattern: str | None) -> str | None:
        if pattern is not None:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"not a regular expression ({error})") from error
        return pattern

    @model_validator(mode="after")
    def _text_rules_have_captions(self) -> Filter:
        counts = ("min_words", "max_words", "min_objects")
        names = (*counts, "drop_matching", "text_checks", "concreteness", "near_texts")
        given = [name for name in names if getattr(self, name) not in (None, ())]
        if given and not self.require:
            raise ValueError(f"{', '.join(given)}: say in `require` which kinds of captions this is about")
        kinds = {rule.kind for rule in self.scores if rule.kind is not None}
        if not kinds <= set(self.require):
            raise ValueError(f"scores: add {', '.join(sorted(kinds - set(self.require)))} to `require`")
        return self

    @field_validator("scores")
    @classmethod
    def _labels_are_unique(cls, scores: tuple[ScoreRule, ...]) -> tuple[ScoreRule, ...]:
        if len({rule.label for rule in scores}) < len(scores):
            raise ValueError("labels repeat; give each scorer a `label` of its own")
        return scores

    def check(self) -> None:
        if self.embeddings is not None:
            self.embeddings.check()
        with reward_errors():
            for rule in self.scores:
                rule.check_scorer()

    def inspect(self, context: InspectContext) -> dict[str, JsonValue]:
        sorted_out = self._sorted_out(context)
        if sorted_out is None:
            return {}
        kept, dropped = sorted_out
        facts: dict[str, JsonValue] = {"images": len(kept.records)}
        if dropped:
            facts["dropped"] = list(dropped)
        return facts

    def preview(self, context: InspectContext) -> Preview | None:
        sorted_out = self._sorted_out(context)
        return None if sorted_out is None else sorted_out[0]

    def _sorted_out(self, context: InspectContext) -> tuple[Preview, list[str]] | None:
        """What is kept and what is not, by sizes, and by captions where they are known; repeats take a run to find."""
        [before] = context.previews["data_from"]
        if before is None:
            return None
        rules = self if before.has_captions else self.model_copy(update={"require": ()})
        reasons = [rules._reason(row) for row in before.records]
        kept = [row for row, reason in zip(before.records, reasons, strict=True) if reason is None]
        dropped = [f"{row.image} ({why})" for row, why in zip(before.records, reasons, strict=True) if why]
        return dataclasses.replace(before, records=kept), dropped

    def run(self, context: StageContext) -> dict[str, Any]:
        import shutil

        from t2i.data.quality.sieve import Sieve
        from t2i.data.rows import RecordTable
        from t2i.errors import DataError

        records = RecordTable(context.input("data_from") / RECORDS_FILE)
        sieve = Sieve(records, lambda row: image_name(context.folder, row.image))
        scores: dict[str, dict[ScoreKey, list[float]]] = {rule.label: {} for rule in self.scores}
        checks = self._checks(context, scores)
        write_parts(context.folder / "dropped.jsonl", (line for check in checks for line in sieve.apply(check)))
        reasons = dict(sieve.reasons)
        if not sieve.kept:
            raise DataError(
                f"all {len(records)} images were dropped: {reasons}; see {context.folder / 'dropped.jsonl'}."
            )
        save_records(context.folder, (self._scored(row, scores) for row in sieve.left))
        for waiting in (SCORES_FOLDER, EMBEDDINGS_FOLDER):
            shutil.rmtree(context.folder / waiting, ignore_errors=True)
        kept = len(sieve.kept)
        facts = {"images": len(records), "kept": kept, "dropped": len(records) - kept, "reasons": reasons}
        chosen_by = [id_of(rule.scorer) for rule in self.scores if rule.scorer is not None]
        return facts | ({"chosen_by": chosen_by} if chosen_by else {})

    def _checks(self, context: StageContext, scores: Mapping[str, dict[ScoreKey, list[float]]]) -> Iterator[Check]:
        """The rules that are set, the cheap ones first."""
        from t2i.data.quality.captions import few_objects, near_texts, text_problems
        from t2i.data.quality.images import blurred, near_images

        yield self._plain
        if self.text_checks:
            yield lambda rows: text_problems(rows, self.require, self.text_checks)
        if self.concreteness is not None:
            rule = self.concreteness
            yield lambda rows: rule.dropped(rows, self.require)
        if self.min_objects is not None:
            least = self.min_objects
            yield lambda rows: few_objects(rows, self.require[0], least)
        if self.near_texts is not None:
            similar = self.near_texts
            yield lambda rows: near_texts(rows, self.require[0], similar, self.near_texts_kept)
        if self.near_images is not None:
            distance = self.near_images
            yield lambda rows: near_images(rows, distance)
        if self.min_sharpness is not None:
            limit = self.min_sharpness
            yield lambda rows: blurred(rows, limit)
        if self.embeddings is not None:
            name, folder = (lambda row: image_name(context.folder, row.image)), context.folder / EMBEDDINGS_FOLDER
            yield from self.embeddings.checks(context.seed, name, folder)
        for number, score in enumerate(self.scores):
            yield score.check(context.folder / SCORES_FOLDER / f"{number:02d}", scores[score.label].__setitem__)

    def _plain(self, rows: Sequence[CaptionedImage]) -> Dropped:
        """Sizes, captions, and images with the same bytes as an earlier one that is kept."""
        from t2i.data.formats.base import Once

        once = Once()
        for place, row in enumerate(rows):
            reason = self._reason(row)
            if reason is None and self.unique_images and not once.is_new(row.id):
                reason = "same bytes as an earlier image"
            if reason is not None:
                yield place, reason

    def _scored(self, row: CaptionedImage, scores: Mapping[str, dict[ScoreKey, list[float]]]) -> CaptionedImage:
        for rule in self.scores:
            row = with_score(row, rule.kind, rule.label, scores[rule.label][rule.key(row)])
        return row

    def _reason(self, row: CaptionedImage) -> str | None:
        """Why the record is dropped, as `rule: detail`; None if it is kept."""
        shorter, longer = sorted((row.width, row.height))
        if self.min_side is not None and shorter < self.min_side:
            return f"min_side: {row.width}x{row.height}"
        if self.max_aspect is not None and longer / shorter > self.max_aspect:
            return f"max_aspect: {row.width}x{row.height}"
        for kind in self.require:
            texts = row.texts(kind)
            if not texts or not all(map(str.strip, texts)):
                return f"require {kind}"
            if reason := next(filter(None, map(self._text_reason, texts)), None):
                return reason
        return None

    def _text_reason(self, text: str) -> str | None:
        words = len(text.split())
        if self.min_words is not None and words < self.min_words:
            return f"min_words: {words}"
        if self.max_words is not None and words > self.max_words:
            return f"max_words: {words}"
        if self.drop_matching is not None and re.search(self.drop_matching, text):
            return f"drop_matching: {text[:80]}"
        return None
