"""Keep the images that are fit to train on; list every other one with its reason."""

from __future__ import annotations

import dataclasses
import json
import re
from collections import Counter
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, JsonValue, field_validator, model_validator

from t2i.data.sources import RECORDS_FILE, load_records, save_records
from t2i.records import CaptionedImage, write_text
from t2i.stages.base import InspectContext, Stage, StageContext

if TYPE_CHECKING:
    from t2i.data.preview import Preview


class Filter(Stage):
    """Write the kept records to `records.jsonl` and the others to `dropped.jsonl`. Rules apply in the order below."""

    version: ClassVar[int] = 1
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
    """Caption kinds that an image must have."""
    min_words: int | None = Field(default=None, gt=0)
    """Words in every required caption, at least."""
    max_words: int | None = Field(default=None, gt=0)
    """Words in every required caption, at most."""
    drop_matching: str | None = None
    """Regular expression; images with a required caption that contains it are dropped."""
    unique_images: bool = True
    """Of images with the same bytes, keep the first."""

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
        rules = {"min_words": self.min_words, "max_words": self.max_words, "drop_matching": self.drop_matching}
        given = [name for name, value in rules.items() if value is not None]
        if given and not self.require:
            raise ValueError(f"{', '.join(given)}: say in `require` which kinds of captions this is about")
        return self

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
        from t2i.errors import DataError

        records = load_records(context.input("data_from") / RECORDS_FILE)
        kept: list[CaptionedImage] = []
        dropped: list[tuple[CaptionedImage, str]] = []
        seen: set[str] = set()
        for row in records:
            reason = self._reason(row) or ("same bytes as an earlier image" if self._repeats(row, seen) else None)
            if reason is None:
                kept.append(row)
                seen.add(row.id)
            else:
                dropped.append((row, reason))
        lines = [
            json.dumps({"image": row.image, "reason": reason}, ensure_ascii=False) + "\n" for row, reason in dropped
        ]
        write_text(context.folder / "dropped.jsonl", "".join(lines))
        reasons = Counter(reason.split(":")[0] for _, reason in dropped)
        if not kept:
            raise DataError(
                f"all {len(records)} images were dropped: {dict(reasons)}; see {context.folder / 'dropped.jsonl'}."
            )
        save_records(context.folder, kept)
        return {"images": len(records), "kept": len(kept), "dropped": len(dropped), "reasons": dict(reasons)}

    def _repeats(self, row: CaptionedImage, seen: set[str]) -> bool:
        return self.unique_images and row.id in seen

    def _reason(self, row: CaptionedImage) -> str | None:
        """Why the record is dropped, as `rule: detail`; None if it is kept."""
        shorter, longer = sorted((row.width, row.height))
        if self.min_side is not None and shorter < self.min_side:
            return f"min_side: {row.width}x{row.height}"
        if self.max_aspect is not None and longer / shorter > self.max_aspect:
            return f"max_aspect: {row.width}x{row.height}"
        for kind in self.require:
            text = row.caption(kind)
            if text is None or not text.strip():
                return f"require {kind}"
            if reason := self._text_reason(text):
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
