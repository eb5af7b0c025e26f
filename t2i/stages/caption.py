"""Collect images and give each a caption; alt text and earlier captions are kept beside the new one."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import JsonValue, model_validator

from t2i.captioners import AnyCaptioner, Captioner, FilesCaptioner, FuseCaptioner, Refusal, VlmCaptioner
from t2i.captioners.chat import EndpointModel
from t2i.captioners.work import CaptionTask, answer_from, with_answer
from t2i.config import speed_only
from t2i.data.generated import generated_records
from t2i.data.sources import RECORDS_FILE, FolderSource, ImageSource, RecordsSource, image_name, save_records
from t2i.errors import ConfigError, DataError
from t2i.files import write_parts
from t2i.records import CaptionedImage
from t2i.stages.base import InspectContext, Stage, StageContext
from t2i.stages.filter import Filter

if TYPE_CHECKING:
    from t2i.data.preview import Preview
    from t2i.data.rows import RecordTable
    from t2i.data.shards import Shards

COLLECTED_FILE = "collected.jsonl"
"""The images before they have captions; removed at the end."""
SHARDS_FOLDER = "shards"
REFUSED_FILE = "refused.jsonl"
SHOWN = 10
"""Images without a caption that an error names."""
_UNWATCHED = (
    "files beside the images of a `records` source are not watched; read their folder with `data: {type: folder}`"
)
"""The file of records is hashed, what lies beside its images is not: an edited caption would not be seen."""
SHARD_SIZE = 256
"""Images of a shard: fixed, so that an interrupted run goes on at the same boundaries."""


class CaptionStage(Stage):
    """Write `records.jsonl`: every image with its captions. Images that get none are listed in `refused.jsonl`."""

    version: ClassVar[int] = 2
    produces: ClassVar[str] = "captioned_images"
    accepts: ClassVar[dict[str, tuple[str, ...]]] = {
        "data_from": ("captioned_images",),
        "generations_from": ("generations", "scores"),
        "adapter_from": ("captioner",),
    }

    type: Literal["caption"] = "caption"
    data: ImageSource | None = None
    """Where images come from, if not from a stage."""
    data_from: str | None = None
    """An earlier caption or filter stage."""
    generations_from: str | None = None
    """An earlier generate, score or best_of stage: the model's own images, each with its prompt as a caption of kind
    `prompt` that carries the scores of the image."""
    captioner: AnyCaptioner | None = None
    """What writes the captions; without one the images are collected with those they have."""
    adapter_from: str | None = None
    """A tune_captioner stage, whose adapter the `vlm` captioner wears."""
    max_refused: float = speed_only(1.0, ge=0, le=1)
    """Largest share of images without a caption before the stage fails; 0 demands a caption for every image. What was
    finished with more is not finished any more."""
    workers: int = speed_only(1, ge=1, le=64)
    """Processes that caption side by side, each with a captioner of its own."""

    @model_validator(mode="after")
    def _one_source(self) -> CaptionStage:
        if [self.data, self.data_from, self.generations_from].count(None) != 2:
            raise ValueError(
                "give exactly one of `data` (a source of images), `data_from` and `generations_from` (a stage)"
            )
        if self.captioner is None and self.data_from is not None:
            raise ValueError("captioner: without one there is nothing to do with the records of a stage")
        if isinstance(self.captioner, FilesCaptioner) and isinstance(self.data, RecordsSource):
            raise ValueError(f"captioner: {_UNWATCHED}")
        if self.adapter_from is not None:
            if not isinstance(self.captioner, VlmCaptioner):
                raise ValueError("adapter_from: only a captioner of type vlm can wear an adapter")
            if self.captioner.adapter is not None:
                raise ValueError("give `adapter_from` (a stage) or `captioner.adapter` (a folder), not both")
        return self

    @model_validator(mode="after")
    def _one_rate_limit(self) -> CaptionStage:
        asked = self.captioner.model if isinstance(self.captioner, FuseCaptioner) else self.captioner
        if self.workers > 1 and isinstance(asked, EndpointModel) and asked.requests_per_minute is not None:
            limit = f"each of {self.workers} processes would send its own requests_per_minute"
            raise ValueError(f"workers: {limit} ({asked.requests_per_minute}); leave `workers` out and set `parallel`")
        return self

    def misfit(self, earlier: Mapping[str, Stage]) -> tuple[str, str]:
        source: Stage | None = self
        # A data set stage copies its images; what it writes beside them is its own.
        while isinstance(source, CaptionStage | Filter) and source.data_from is not None:
            source = earlier.get(source.data_from)
        if not isinstance(self.captioner, FilesCaptioner) or not isinstance(source, CaptionStage):
            return "", ""
        return ("captioner", _UNWATCHED) if isinstance(source.data, RecordsSource) else ("", "")

    def unmet(self, facts: Mapping[str, JsonValue]) -> str:
        images, refused = facts.get("images"), facts.get("refused", 0)
        if not isinstance(images, int) or not isinstance(refused, int) or refused <= self.max_refused * images:
            return ""
        return f"{refused} of {images} images got no caption, and max_refused is {self.max_refused:g}"

    def inspect(self, context: InspectContext) -> dict[str, JsonValue]:
        before = self._images(context)
        if before is None:
            return {}
        facts: dict[str, JsonValue] = {"images": len(before.records)}
        if self.data is not None and before.not_read:
            facts["not read"] = list(before.not_read)
        if isinstance(self.captioner, FilesCaptioner):
            _, problems = self._from_files(self.captioner, before.records)
            self._check_refused(problems, len(problems), len(before.records))
            facts |= {"without a caption": list(problems)} if problems else {}
        return facts

    def preview(self, context: InspectContext) -> Preview | None:
        before = self._images(context)
        if before is None or self.captioner is None:
            return before
        if not isinstance(self.captioner, FilesCaptioner):
            return dataclasses.replace(before, has_captions=False)
        rows, _ = self._from_files(self.captioner, before.records)
        return dataclasses.replace(before, records=rows)

    def _images(self, context: InspectContext) -> Preview | None:
        from t2i.data.preview import preview_source

        if self.data is not None:
            return preview_source(self.data)
        return context.previews["data_from"][0] if self.data_from is not None else None

    def _from_files(
        self, captioner: FilesCaptioner, rows: Sequence[CaptionedImage]
    ) -> tuple[list[CaptionedImage], list[str]]:
        """The rows with the captions that lie beside them, and what is wrong where there is none."""
        captioner.check([Path(row.image) for row in rows])
        answers = [answer for _, answer in captioner.caption(rows)]
        pairs = list(zip(rows, answers, strict=True))
        refused = [f"{row.image}: {answer.reason}" for row, answer in pairs if isinstance(answer, Refusal)]
        return [with_answer(row, answer) for row, answer in pairs], refused

    def run(self, context: StageContext) -> dict[str, Any]:
        captioner = self._captioner(context)
        if captioner is None:
            return {"images": len(self._records(context, RECORDS_FILE)), **self._summary()}
        records = self._records(context, COLLECTED_FILE)
        _check_alt(captioner, records)
        captioner.check(Path(row.image) for row in records)
        shards = self._captioned(captioner, context.folder, records)
        refused = self._list_refused(context.folder, records, shards)
        rows = zip(records, shards.answers(), strict=True)
        save_records(context.folder, (with_answer(row, answer_from(values)) for row, values in rows))
        shutil.rmtree(context.folder / SHARDS_FOLDER)
        (context.folder / COLLECTED_FILE).unlink(missing_ok=True)
        return {"images": len(records), "captioned": len(records) - refused, "refused": refused, **self._summary()}

    def _summary(self) -> dict[str, list[str]]:
        """What the screen shows of pictures in the folder that were left out."""
        from t2i.data.images import told_not_read

        told = told_not_read(self.data.not_read()) if isinstance(self.data, FolderSource) else ""
        return {"summary": [told]} if told else {}

    def _captioner(self, context: StageContext) -> AnyCaptioner | None:
        """The captioner, wearing the adapter of a stage if one is named."""
        if self.adapter_from is None or not isinstance(self.captioner, VlmCaptioner):
            return self.captioner
        from t2i.training.outputs import ADAPTER_FOLDER

        return self.captioner.model_copy(update={"adapter": str(context.input("adapter_from") / ADAPTER_FOLDER)})

    def _records(self, context: StageContext, name: str) -> RecordTable:
        """Rows that stay on disk, with absolute image paths. name: of the file that holds those of a source."""
        if self.data_from is not None:
            return _table(context.input("data_from") / RECORDS_FILE)
        if self.data is None:
            return _table(save_records(context.folder, generated_records(context.input("generations_from")), name))
        return _table(save_records(context.folder, self.data.read(context.folder, context.seed), name))

    def _captioned(self, captioner: Captioner, folder: Path, records: RecordTable) -> Shards[CaptionedImage]:
        from t2i.data.shards import Shards
        from t2i.training.progress import progress_bar

        task = CaptionTask(captioner)
        shards = Shards(folder / SHARDS_FOLDER, records, SHARD_SIZE, task)
        # Files cost nothing to read again, and may have been mended.
        if not isinstance(captioner, FilesCaptioner) and (written := _written(folder, len(records))):
            shards.seed(lambda number: task.answer_in(written[number], records[number]))
        with progress_bar("captioning", 0, len(records)) as advance:
            shards.run(self.workers, advance)
        return shards

    def _list_refused(self, folder: Path, records: RecordTable, shards: Shards[CaptionedImage]) -> int:
        """Write refused.jsonl; returns how many are in it. Raises DataError if they are too many."""
        count, problems = 0, []

        def lines() -> Iterator[bytes]:
            nonlocal count
            for row, values in zip(records, shards.answers(), strict=True):
                answer = answer_from(values)
                if isinstance(answer, Refusal):
                    count += 1
                    problems.extend([f"{row.image}: {answer.reason}"] if count <= SHOWN else [])
                    yield _refused_line(image_name(folder, row.image), answer)

        write_parts(folder / REFUSED_FILE, lines())
        try:
            self._check_refused(problems, count, len(records))
        except DataError:
            # What made them fail may be mended: the next run asks again for these, and for no others.
            shards.reopen(lambda values: not isinstance(answer_from(values), Refusal))
            raise
        return count

    def _check_refused(self, problems: Sequence[str], refused: int, count: int) -> None:
        """problems: the first of them."""
        if refused > self.max_refused * count or refused == count:
            more = [f"... and {refused - SHOWN} more"] if refused > SHOWN else []
            shown = "\n  ".join([*problems[:SHOWN], *more])
            raise DataError(f"{refused} of {count} images got no caption:\n  {shown}")


def _table(path: Path) -> RecordTable:
    from t2i.data.rows import RecordTable

    return RecordTable(path)


def _written(folder: Path, count: int) -> Sequence[CaptionedImage]:
    """The records of a stage that was finished once, or whose marker was still to come; none if they do not fit."""
    try:
        rows = _table(folder / RECORDS_FILE)
    except DataError:  # no such file, or it is broken: all is asked again
        return ()
    return rows if len(rows) == count else ()


def _refused_line(image: str, answer: Refusal) -> bytes:
    values = {"image": image, "reason": answer.reason} | ({"text": answer.text} if answer.text else {})
    return (json.dumps(values, ensure_ascii=False) + "\n").encode()


def _check_alt(captioner: Captioner, records: Sequence[CaptionedImage]) -> None:
    """Alt text is what a picture came with: every other caption can be made again, that cannot."""
    having = next((row.image for row in records if captioner.kind == "alt" and row.caption("alt")), None)
    if having:
        raise ConfigError(f"captioner.kind: {having} has an alt text, which is never replaced; name another kind.")
