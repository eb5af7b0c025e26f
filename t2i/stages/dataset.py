"""Write a data set that other tools read, with its images and a card."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator

from t2i.config import FrozenModel
from t2i.data.formats.texts import Dialect
from t2i.data.images import MASK_ENDING
from t2i.data.sources import RECORDS_FILE, save_records
from t2i.files import write_bytes, write_text
from t2i.records import CaptionedImage
from t2i.stages.base import Stage, StageContext

IMAGES = "images"
_JPEG_ENDINGS = {".jfif": ".jpg", ".jpe": ".jpg"}
"""Endings that other tools pass over."""


class ParquetFormat(FrozenModel):
    """`records.parquet`: whole records, to be read by `data: {type: records}` and any Parquet reader."""

    type: Literal["parquet"] = "parquet"
    note: ClassVar[str] = "records.parquet holds whole records."

    def write(self, folder: Path, records: Sequence[CaptionedImage], seed: int) -> None:
        """Image paths are relative to the file's folder."""
        from t2i.data.formats.parquet import write_parquet

        rows = (dataclasses.replace(row, image=f"{IMAGES}/{Path(row.image).name}") for row in records)
        write_parquet(folder / "records.parquet", rows)


class SidecarsFormat(FrozenModel):
    """A text file beside each image, of one kind of captions or a mix drawn once for each image."""

    type: Literal["sidecars"] = "sidecars"
    captions: dict[str, float] = Field(min_length=1)
    """Caption kind -> weight."""
    dialect: Dialect = "one_line"
    """What the tool that will read them makes of several lines."""
    extension: str = Field(default=".txt", pattern=r"^\.\w+$")
    """Ending of the files; `.caption` for kohya's default."""
    note: ClassVar[str] = "The text files hold texts alone: not their kind, model, scores or review."

    @field_validator("captions")
    @classmethod
    def _weights_are_positive(cls, captions: dict[str, float]) -> dict[str, float]:
        if any(weight <= 0 for weight in captions.values()):
            raise ValueError("every weight must be above 0; leave a kind out instead")
        return captions

    def write(self, folder: Path, records: Sequence[CaptionedImage], seed: int) -> None:
        """Beside the images."""
        from t2i.data.formats.sidecars import write_sidecars

        write_sidecars(records, self.captions, self.dialect, self.extension, seed)


class MetadataFormat(FrozenModel):
    """`metadata.jsonl` for ImageFolder."""

    type: Literal["metadata"] = "metadata"
    note: ClassVar[str] = "metadata.jsonl holds whole captions; own columns become columns of the table."

    def write(self, folder: Path, records: Sequence[CaptionedImage], seed: int) -> None:
        """Image paths are relative to the file's folder."""
        from t2i.data.formats.metadata import write_metadata

        write_metadata(folder, records)


class CaptionsJsonFormat(FrozenModel):
    """`images/captions.json` for diffusion-pipe."""

    type: Literal["captions_json"] = "captions_json"
    captions: tuple[str, ...] = Field(min_length=1)
    """Kinds of captions that go in."""
    note: ClassVar[str] = "captions.json holds texts alone, of all kinds in one list."

    def write(self, folder: Path, records: Sequence[CaptionedImage], seed: int) -> None:
        """Beside the images."""
        from t2i.data.formats.json_files import write_captions_json

        write_captions_json(folder / IMAGES, records, self.captions)


class KohyaFormat(FrozenModel):
    """`kohya.json`, kohya's fine-tuning metadata."""

    type: Literal["kohya"] = "kohya"
    caption_kind: str
    """Kind that goes under `caption`; several of an image become its variants."""
    tags_kind: str = "tags"
    """Kind that goes under `tags`."""
    note: ClassVar[str] = "kohya.json holds the texts of two kinds alone."

    def write(self, folder: Path, records: Sequence[CaptionedImage], seed: int) -> None:
        """Keys are the names of the images."""
        from t2i.data.formats.json_files import write_kohya

        write_kohya(folder / "kohya.json", folder / IMAGES, records, self.caption_kind, self.tags_kind)


class WebdatasetFormat(FrozenModel):
    """`webdataset/00000.tar`, ...: images with their whole records as JSON."""

    type: Literal["webdataset"] = "webdataset"
    per_shard: int = Field(default=1000, gt=0)
    """Images in a tar file."""
    note: ClassVar[str] = "The tar files hold whole records, as JSON under `t2i_record`."

    def write(self, folder: Path, records: Sequence[CaptionedImage], seed: int) -> None:
        """Named by the images' ids."""
        from t2i.data.formats.tars import write_webdataset

        (folder / "webdataset").mkdir(exist_ok=True)
        write_webdataset(folder / "webdataset", records, self.per_shard)


DatasetFormat = Annotated[
    CaptionsJsonFormat | KohyaFormat | MetadataFormat | ParquetFormat | SidecarsFormat | WebdatasetFormat,
    Field(discriminator="type"),
]


class DatasetStage(Stage):
    """Write `images/`, with the masks that lie beside them, one file or folder a format, and `README.md`: the card."""

    version: ClassVar[int] = 1
    produces: ClassVar[str] = "captioned_images"
    accepts: ClassVar[dict[str, tuple[str, ...]]] = {"data_from": ("captioned_images",)}

    type: Literal["dataset"] = "dataset"
    data_from: str
    """A caption or filter stage."""
    formats: tuple[DatasetFormat, ...] = Field(min_length=1)
    """What to write; each needs the images only once."""
    strip_metadata: bool = True
    """Leave out Exif, XMP, IPTC and comments, which tell of people and places; pixels stay as they are bit for bit."""
    title: str = "Captioned images"
    """Headline of the card."""

    def run(self, context: StageContext) -> dict[str, Any]:
        from t2i.data.formats.card import count_records, dataset_card
        from t2i.data.rows import RecordTable

        (context.folder / IMAGES).mkdir(exist_ok=True)
        rows = RecordTable(context.input("data_from") / RECORDS_FILE)
        records = RecordTable(save_records(context.folder, self._with_images(context.folder, rows)))
        for entry in self.formats:
            entry.write(context.folder.resolve(), records, context.seed)
        counts = count_records(records)
        kinds = [entry.type for entry in self.formats]
        card = dataset_card(counts, self.title, kinds, dict.fromkeys(entry.note for entry in self.formats))
        write_text(context.folder / "README.md", card)
        return {"images": counts.images, "captions": sum(counts.captions.values()), "formats": kinds}

    def _with_images(self, folder: Path, rows: Sequence[CaptionedImage]) -> Iterator[CaptionedImage]:
        """The records with their images in `folder/images`, each under its id, which is of the bytes as they are there.

        Raises DataError for records of the same image, as formats name captions by their image, and for a mask that
        could be of two images.
        """
        from t2i.data.formats.base import Once
        from t2i.data.formats.exif import without_metadata
        from t2i.data.masks import check_mask_names
        from t2i.errors import DataError

        check_mask_names(row.image for row in rows)
        once = Once()
        # Records name images absolutely; a stage's folder may be named from the working directory.
        images = folder.resolve() / IMAGES
        for row in rows:
            source = Path(row.image)
            try:
                data = source.read_bytes()
            except OSError as error:
                raise DataError(f"{source}: cannot be read ({error.strerror}).") from error
            if self.strip_metadata:
                data = without_metadata(data, source.suffix, str(source))
            name = hashlib.sha256(data).hexdigest()[:32]
            once.check(name, str(source))
            path = images / f"{name}{_JPEG_ENDINGS.get(source.suffix.lower(), source.suffix.lower())}"
            if not path.exists():
                write_bytes(path, data)
            mask = source.with_name(source.stem + MASK_ENDING)
            if mask.is_file():
                write_bytes(path.with_name(name + MASK_ENDING), mask.read_bytes())
            yield dataclasses.replace(row, id=name, image=str(path))
