"""Collect images and give each a caption; alt text and earlier captions are kept beside the new one."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, JsonValue, model_validator

from t2i.captioners import AnyCaptioner, FilesCaptioner, Refusal
from t2i.data.sources import RECORDS_FILE, ImageSource, load_records, save_records
from t2i.records import Caption, CaptionedImage, write_text
from t2i.stages.base import InspectContext, Stage, StageContext

if TYPE_CHECKING:
    from t2i.data.preview import Preview

BATCH = 64
"""Images per captioner call and per shard: fixed, so that an interrupted run goes on at the same boundaries."""


class CaptionStage(Stage):
    """Write `records.jsonl`: every image with its captions. Images that get none are listed in `refused.jsonl`."""

    version: ClassVar[int] = 1
    produces: ClassVar[str] = "captioned_images"
    accepts: ClassVar[dict[str, tuple[str, ...]]] = {"data_from": ("captioned_images",)}

    type: Literal["caption"] = "caption"
    data: ImageSource | None = None
    """Where images come from, if not from a stage."""
    data_from: str | None = None
    """An earlier caption or filter stage."""
    captioner: AnyCaptioner
    """What writes the captions."""
    max_refused: float = Field(default=1.0, ge=0, le=1)
    """Largest share of images without a caption before the stage fails; 0 demands a caption for every image."""

    @model_validator(mode="after")
    def _one_source(self) -> CaptionStage:
        if (self.data is None) == (self.data_from is None):
            raise ValueError("give exactly one of `data` (a source of images) and `data_from` (a stage)")
        return self

    def inspect(self, context: InspectContext) -> dict[str, JsonValue]:
        before = self._images(context)
        if before is None:
            return {}
        facts: dict[str, JsonValue] = {"images": len(before.records)}
        if isinstance(self.captioner, FilesCaptioner):
            _, problems = self._from_files(self.captioner, before.records)
            self._check_refused(problems, len(before.records))
            facts |= {"without a caption": list(problems)} if problems else {}
        return facts

    def preview(self, context: InspectContext) -> Preview | None:
        before = self._images(context)
        if before is None or not isinstance(self.captioner, FilesCaptioner):
            return before and dataclasses.replace(before, has_captions=False)
        rows, _ = self._from_files(self.captioner, before.records)
        return dataclasses.replace(before, records=rows)

    def _images(self, context: InspectContext) -> Preview | None:
        from t2i.data.preview import preview_source

        return context.previews["data_from"][0] if self.data is None else preview_source(self.data)

    def _from_files(
        self, captioner: FilesCaptioner, rows: Sequence[CaptionedImage]
    ) -> tuple[list[CaptionedImage], list[str]]:
        """The rows with the captions that lie beside them, and what is wrong where there is none."""
        captioner.check([Path(row.image) for row in rows])
        pairs = list(zip(rows, captioner.caption(rows), strict=True))
        refused = [f"{row.image}: {answer.reason}" for row, answer in pairs if isinstance(answer, Refusal)]
        return [_with(row, answer) for row, answer in pairs], refused

    def run(self, context: StageContext) -> dict[str, Any]:
        if self.data is None:
            records = load_records(context.input("data_from") / RECORDS_FILE)
        else:
            records = self.data.materialize(context.folder, context.seed)
        self._check_alt(records)
        self.captioner.check([context.folder / row.image for row in records])
        answers = self._answers(context.folder, records)
        captioned = [_with(row, answer) for row, answer in zip(records, answers, strict=True)]
        refused = [(row, a) for row, a in zip(records, answers, strict=True) if isinstance(a, Refusal)]
        lines = [json.dumps({"image": row.image, "reason": a.reason}, ensure_ascii=False) + "\n" for row, a in refused]
        write_text(context.folder / "refused.jsonl", "".join(lines))
        self._check_refused([f"{row.image}: {a.reason}" for row, a in refused], len(records))
        save_records(context.folder, captioned)
        return {"images": len(records), "captioned": len(records) - len(refused), "refused": len(refused)}

    def _check_alt(self, records: list[CaptionedImage]) -> None:
        """Alt text is what a picture came with: every other caption can be made again, that cannot."""
        from t2i.errors import ConfigError

        having = next((row.image for row in records if self.captioner.kind == "alt" and row.caption("alt")), None)
        if having:
            raise ConfigError(f"captioner.kind: {having} has an alt text, which is never replaced; name another kind.")

    def _answers(self, folder: Path, records: list[CaptionedImage]) -> list[Caption | Refusal]:
        from t2i.training.progress import progress_bar

        answers: list[Caption | Refusal] = []
        with progress_bar("captioning", 0, len(records)) as advance:
            for start in range(0, len(records), BATCH):
                # Records of a source are relative to the stage's folder; captioners get paths they can open.
                rows = [
                    dataclasses.replace(row, image=str(folder / row.image)) for row in records[start : start + BATCH]
                ]
                answers += self.captioner.caption(rows)
                advance(min(start + BATCH, len(records)))
        return answers

    def _check_refused(self, problems: list[str], count: int) -> None:
        from t2i.errors import DataError

        if len(problems) > self.max_refused * count or len(problems) == count:
            shown = "\n  ".join(problems[:10]) + (
                f"\n  ... and {len(problems) - 10} more" if len(problems) > 10 else ""
            )
            raise DataError(f"{len(problems)} of {count} images got no caption:\n  {shown}")


def _with(row: CaptionedImage, answer: Caption | Refusal) -> CaptionedImage:
    """The record with the new caption; one of the same kind that was there before gives way."""
    if isinstance(answer, Refusal):
        return row
    kept = tuple(caption for caption in row.captions if caption.kind != answer.kind)
    return dataclasses.replace(row, captions=(*kept, answer))
