"""Where a recipe's images come from."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Discriminator, Field, Tag

from t2i.config import FrozenModel, LocalPath
from t2i.data.formats.hub import HubSource
from t2i.data.formats.json_files import CaptionsJsonSource, KohyaSource
from t2i.data.formats.metadata import MetadataSource
from t2i.data.formats.tars import WebdatasetSource
from t2i.files import write_bytes
from t2i.records import Caption, CaptionedImage, read_jsonl, write_jsonl
from t2i.resources import resolve_path

RECORDS_FILE = "records.jsonl"


class FolderSource(FrozenModel):
    """Every image file below a folder. Captions come from a captioner."""

    type: Literal["folder"] = "folder"
    path: LocalPath
    """The folder; sub-folders are searched too."""

    def count(self) -> int:
        """Number of image files, without opening one."""
        from t2i.data.images import list_images

        return len(list_images(resolve_path(self.path)))

    def sizes(self) -> Iterator[tuple[str, int, int]]:
        """Name, width and height as seen of every image, from the headers."""
        from t2i.data.images import list_images, seen_size

        for path in list_images(resolve_path(self.path)):
            yield (str(path), *seen_size(path))

    def not_read(self) -> list[str]:
        """Pictures in the folder whose formats are not read."""
        from t2i.data.images import pictures_not_read

        return pictures_not_read(resolve_path(self.path))

    def materialize(self, folder: Path, seed: int) -> list[CaptionedImage]:
        """One record per image. Raises DataError that lists the unreadable ones."""
        return list(self.read(folder, seed))

    def read(self, folder: Path, seed: int) -> Iterator[CaptionedImage]:
        """As `materialize`, one record at a time; the error about unreadable images comes at the end."""
        from t2i.data.images import content_id, list_images, open_image
        from t2i.errors import DataError

        problems = []
        for path in list_images(resolve_path(self.path)):
            try:
                width, height = open_image(path).size
                # Not where a link leads: captions and masks lie beside the link.
                yield CaptionedImage(content_id(path), os.path.abspath(path), width, height)
            except DataError as error:
                problems.append(str(error))
        if problems:
            raise DataError("\n".join(problems))


class RecordsSource(FrozenModel):
    """A records.jsonl file, such as a stage of another recipe has written, or a .parquet file of a dataset stage."""

    type: Literal["records"] = "records"
    path: LocalPath
    """The file; image paths in it are relative to its folder."""

    def count(self) -> int:
        """Number of records."""
        return sum(1 for _ in iterate_records(resolve_path(self.path)))

    def sizes(self) -> Iterator[tuple[str, int, int]]:
        """Name, width and height as seen of every image, from the records."""
        for row in iterate_records(resolve_path(self.path)):
            yield row.image, row.width, row.height

    def materialize(self, folder: Path, seed: int) -> list[CaptionedImage]:
        """The file's records with absolute image paths. Raises DataError for missing images or an empty file."""
        return list(self.read(folder, seed))

    def read(self, folder: Path, seed: int) -> Iterator[CaptionedImage]:
        """As `materialize`, one record at a time; the error about missing images comes at the end."""
        from t2i.errors import DataError

        path = resolve_path(self.path)
        count, missing = 0, []
        for row in iterate_records(path):
            count += 1
            if not Path(row.image).is_file():
                missing.append(row.image)
            yield row
        if missing:
            raise DataError(f"{path}: {len(missing)} of {count} images are missing, the first is {missing[0]}.")
        if not count:
            raise DataError(f"{path}: no record.")


class ShapesSource(FrozenModel):
    """Images drawn by the embedded shapes world, with the captions it would have on the web."""

    type: Literal["shapes"] = "shapes"
    count: int = Field(gt=0)
    """Number of images."""
    split: Literal["train", "heldout"] = "train"
    """Held-out scenes share no object-attribute-relation tuple with training scenes."""
    max_objects: int = Field(default=4, ge=1, le=4)
    """Objects in an image, at most."""
    captions: tuple[Literal["alt", "short", "dense", "spatial"], ...] = ("alt",)
    """Kinds of captions to write."""
    first: int = Field(default=0, ge=0)
    """Number of the first scene: sources with ranges that do not overlap share no image."""

    def materialize(self, folder: Path, seed: int) -> list[CaptionedImage]:
        """Draw the images into `folder/images`."""
        return list(self.read(folder, seed))

    def read(self, folder: Path, seed: int) -> Iterator[CaptionedImage]:
        """As `materialize`, one record at a time."""
        import io

        from t2i.data.images import content_id
        from t2i.shapes import render, sample_scene, write_caption

        (folder / "images").mkdir(parents=True, exist_ok=True)
        for index in range(self.first, self.first + self.count):
            scene = sample_scene(seed, index, self.split, max_objects=self.max_objects)
            image, path = render(scene), folder / "images" / f"{index:06d}.png"
            if not path.exists():
                buffer = io.BytesIO()
                image.save(buffer, "PNG")
                write_bytes(path, buffer.getvalue())
            captions = tuple(Caption(kind, write_caption(scene, kind, seed, index), "shapes") for kind in self.captions)
            extra = {"scene": scene.to_json()}
            name = path.relative_to(folder).as_posix()
            yield CaptionedImage(content_id(path), name, image.width, image.height, captions, extra)


ImageSource = Annotated[
    CaptionsJsonSource
    | FolderSource
    | HubSource
    | KohyaSource
    | MetadataSource
    | RecordsSource
    | ShapesSource
    | WebdatasetSource,
    Field(discriminator="type"),
]


def _is_list(value: object) -> str:
    return "several" if isinstance(value, list | tuple) else "one"


ImageSources = Annotated[
    Annotated[ImageSource, Tag("one")] | Annotated[tuple[ImageSource, ...], Field(min_length=1), Tag("several")],
    Discriminator(_is_list),
]
"""One source, or a list of sources."""


def save_records(folder: Path, records: Iterable[CaptionedImage], name: str = RECORDS_FILE) -> Path:
    """Write `folder/records.jsonl`, or under another name.

    Images of neighbouring stages are named relatively: a runs folder can be moved.
    """
    path = folder / name
    write_jsonl(path, (dataclasses.replace(row, image=image_name(folder, row.image)) for row in records))
    return path


def image_name(folder: Path, image: str) -> str:
    """How a file in a stage's folder names an image: relatively if it is of the same run."""
    here = folder.resolve()
    return os.path.relpath(image, here) if Path(image).is_relative_to(here.parent) else image


def load_records(path: Path) -> list[CaptionedImage]:
    """Records of a file with absolute image paths. Training reads them from a `RecordTable` instead."""
    return list(iterate_records(path))


def iterate_records(path: Path) -> Iterator[CaptionedImage]:
    """As `load_records`, one at a time."""
    from t2i.data.formats.parquet import read_parquet

    folder = path.parent.resolve()
    rows = read_parquet(path) if path.suffix == ".parquet" else read_jsonl(path, CaptionedImage)
    return (dataclasses.replace(row, image=str(folder / row.image)) for row in rows)
