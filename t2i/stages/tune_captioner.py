"""Tune a captioner on a few captions that people wrote, before it describes all the images."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, JsonValue, model_validator

from t2i import processes
from t2i.captioners.describe import VlmCaptioner
from t2i.captioners.lessons import Example, Lesson
from t2i.captioners.tuning import CHECKPOINTS_FOLDER, CaptionerLora, Tuned, TuningLoop, tune
from t2i.data.sources import RECORDS_FILE, ImageSource, load_records, save_records
from t2i.errors import ConfigError
from t2i.files import write_text
from t2i.records import CaptionedImage
from t2i.stages.base import InspectContext, Stage, StageContext
from t2i.training.outputs import ADAPTER_FOLDER, read_outcome, write_outcome

if TYPE_CHECKING:
    from t2i.captioners.opened import OpenedModel

METRICS_FILE = "metrics.jsonl"


class TuneCaptioner(Stage):
    """Write `adapter/`, a LoRA in peft's layout that the `vlm` captioner of a later caption stage wears."""

    version: ClassVar[int] = 1
    produces: ClassVar[str] = "captioner"
    accepts: ClassVar[dict[str, tuple[str, ...]]] = {"data_from": ("captioned_images",)}

    type: Literal["tune_captioner"] = "tune_captioner"
    data: ImageSource | None = None
    """Where the images come from, if not from a stage."""
    data_from: str | None = None
    """An earlier caption or filter stage."""
    captions: str = Field(min_length=1)
    """Kind of the captions to learn; an image with several gives several examples."""
    captioner: VlmCaptioner
    """The model, and how it is asked: give the caption stage the same."""
    lora: CaptionerLora = CaptionerLora()
    """The adapter."""
    loop: TuningLoop
    """How long to tune."""
    held_out: float | None = Field(default=0.1, gt=0, lt=1)
    """Share of the images kept out, on which the loss before and after is measured; null keeps none out."""

    @model_validator(mode="after")
    def _consistent(self) -> TuneCaptioner:
        if (self.data is None) == (self.data_from is None):
            raise ValueError("give exactly one of `data` (a source of images) and `data_from` (a stage)")
        if self.captioner.adapter is not None:
            raise ValueError("captioner.adapter: tuning starts from the model itself; leave it out")
        if self.captions == "alt" and self.captioner.wording.show_alt:
            raise ValueError("captions: alt texts are shown to the model, so it would learn to copy them; hide them")
        return self

    def check(self) -> None:
        from t2i.training.extras import require_package

        require_package("trl", "tune_captioner")
        if processes.count() > 1:
            # The others wait for the first one, whose trainer would wait for them.
            raise ConfigError(
                f"{self.label}: found {processes.count()} processes, and a tune_captioner stage runs in one; run it "
                "without torchrun first, it is skipped then."
            )

    def inspect(self, context: InspectContext) -> dict[str, JsonValue]:
        return {"captions seen": self.loop.steps * self.loop.batch_size}

    def run(self, context: StageContext) -> dict[str, Any]:
        from t2i.captioners.opened import open_model
        from t2i.randomness import deterministic_kernels

        facts = read_outcome(context.folder)
        if facts is None:
            kept, held = self._split(self._records(context), context.seed)
            opened = open_model(self.captioner)
            lessons = [Lesson(opened, self.examples(rows)) for rows in (kept, held)]
            for lesson in lessons:
                lesson.check()
            with deterministic_kernels(strict=True):
                given = lessons[0], lessons[1] if held else None
                tuned = tune(*given, self.lora, self.loop, context.seed, context.folder)
            facts = self._write(context.folder, opened, tuned) | {
                "images": len(kept) + len(held),
                "captions": len(lessons[0].examples),
                "held_out_captions": len(lessons[1].examples),
            }
            write_outcome(context.folder, facts, [ADAPTER_FOLDER])
        shutil.rmtree(context.folder / CHECKPOINTS_FOLDER, ignore_errors=True)
        return facts

    def _records(self, context: StageContext) -> list[CaptionedImage]:
        """The images, each with a caption to learn. Raises DataError that names those without."""
        from t2i.data.captions import CaptionMix

        if self.data is not None:
            path = save_records(context.folder, self.data.read(context.folder, context.seed))
        else:
            path = context.input("data_from") / RECORDS_FILE
        records = load_records(path)
        CaptionMix({self.captions: 1.0}).check(records)
        return records

    def _split(
        self, records: Sequence[CaptionedImage], seed: int
    ) -> tuple[Sequence[CaptionedImage], Sequence[CaptionedImage]]:
        from t2i.data.held_out import hold_out

        if self.held_out is None:
            return records, []
        [kept], [held] = hold_out([records], self.held_out, seed)
        return kept, held

    def examples(self, records: Sequence[CaptionedImage]) -> list[Example]:
        """Requests as the captioner makes them; captions on one line, as those of a model are kept."""
        return [
            Example(self.captioner.wording.request(self.captioner.kind, row), " ".join(text.split()))
            for row in records
            for text in row.texts(self.captions)
        ]

    def _write(self, folder: Path, opened: OpenedModel, tuned: Tuned) -> dict[str, Any]:
        from rewards.faithfulness.loading import checkpoint_hash
        from t2i.captioners.adapters import adapter_hash, save_adapter

        note = {
            "model": self.captioner.model,
            "model_sha256": checkpoint_hash(opened.folder),
            "licence": self.captioner.licence,
            "request": self.captioner.asks,
            "captions": self.captions,
            "steps": self.loop.steps,
        }
        save_adapter(tuned.model, folder / ADAPTER_FOLDER, note)
        lines = [json.dumps({"step": step, "loss": loss}) + "\n" for step, loss in tuned.log]
        write_text(folder / METRICS_FILE, "".join(lines))
        facts: dict[str, Any] = {"adapter": ADAPTER_FOLDER, "adapter_sha256": adapter_hash(folder / ADAPTER_FOLDER)}
        if tuned.before is None or tuned.after is None:
            return facts
        losses = {"held_out_loss_before": tuned.before, "held_out_loss_after": tuned.after}
        return facts | losses | {"summary": [_summary(tuned.before, tuned.after)]}


def _summary(before: float, after: float) -> str:
    line = f"loss per token of held-out captions: {before:.3f} before, {after:.3f} after"
    return line if after < before else f"{line}: it did not fall; fewer steps or a lower learning rate may help"
