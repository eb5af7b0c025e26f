"""ImageFolder: a folder of images with metadata.csv, .jsonl or .parquet that names them in a column `file_name`."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from t2i.config import LocalPath
from t2i.data.formats.base import BrokenRow, FormatSource, Once, Row, inside
from t2i.data.formats.tables import read_table
from t2i.data.formats.texts import checked_texts
from t2i.errors import DataError
from t2i.files import write_parts
from t2i.records import Caption, CaptionedImage, record_from, record_values
from t2i.resources import resolve_path

OWN = "t2i_record"
"""Key under which formats that know no such thing keep what a record says about its image."""
NAMES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")


class MetadataSource(FormatSource):
    """Images in a folder with a table beside them. A column `captions` of structs (kind, text, ...) is read as such."""

    type: Literal["metadata"] = "metadata"
    path: LocalPath
    """The folder, which holds one of metadata.csv, metadata.jsonl, metadata.parquet."""
    captions: dict[str, str] = Field(default_factory=dict)
    """Column -> kind of the captions in it; `{text: alt}`. A list is several captions. Other columns are carried."""

    def rows(self) -> Iterator[Row | BrokenRow]:
        folder = resolve_path(self.path)
        once = Once()
        for row in read_table(_table(folder), ("file_name", *self.captions)):
            if isinstance(row, BrokenRow):
                yield row
                continue
            where, values = row
            try:
                image = inside(folder, values["file_name"], where)
                once.check(str(image), where)
                yield _row(where, image, values, self.captions)
            except DataError as error:
                yield BrokenRow(where, str(error))


def _row(where: str, image: Path, values: Mapping[str, Any], kinds: Mapping[str, str]) -> Row:
    nested = values.get("captions") if "captions" not in kinds else None
    own = own_record(nested if isinstance(nested, list) else [], values.get(OWN) or {}, where)
    read = column_captions(values, kinds, where)
    known = {"file_name", OWN, *kinds, *(("captions",) if isinstance(nested, list) else ())}
    extra = {name: value for name, value in values.items() if name not in known}
    return Row(where, image, (*own.captions, *read), extra, own.origin, own.scores, own.checks)


def column_captions(values: Mapping[str, Any], kinds: Mapping[str, str], where: str) -> list[Caption]:
    """The captions in the columns of a row. Raises DataError for one that is no caption."""
    return [
        Caption(kind, text, f"column:{column}")
        for column, kind in kinds.items()
        for text in checked_texts(values.get(column), f"{where}, column {column}")
    ]


def own_record(captions: Sequence[Any], about: Mapping[str, Any], where: str) -> CaptionedImage:
    """Captions, and what stands under `OWN`, as a record without an image. Raises DataError."""
    try:
        bare = {"id": "", "image": "", "width": 1, "height": 1, "captions": captions}
        found = record_from({**bare, **about})
    except (TypeError, AttributeError) as error:
        raise DataError(f"{where}, columns captions and {OWN}: {error}.") from error
    for caption in found.captions:
        checked_texts(caption.text, f"{where}, column captions")
    return found


def _table(folder: Path) -> Path:
    found = [folder / name for name in NAMES if (folder / name).is_file()]
    if len(found) != 1:
        present = ", ".join(path.name for path in found) or "none of them"
        raise DataError(f"{folder}: expected one of {', '.join(NAMES)}; it has {present}.")
    return found[0]


def write_metadata(folder: Path, records: Iterable[CaptionedImage]) -> None:
    """Write `folder/metadata.jsonl` for images that lie inside the folder; it holds whole records but for their id.

    Raises DataError for a record whose own columns have the names of these.
    """
    write_parts(folder / "metadata.jsonl", (_line(folder, record) for record in records))


def _line(folder: Path, record: CaptionedImage) -> bytes:
    taken = sorted({"file_name", "captions", OWN} & record.extra.keys())
    if taken:
        raise DataError(f"{record.image}: its own column {taken[0]!r} has a name that metadata.jsonl needs; rename it.")
    values = record_values(record)
    name = os.path.relpath(record.image, folder).replace(os.sep, "/")
    row = record.extra | {"file_name": name, "captions": values["captions"]}
    about = {name: values[name] for name in ("origin", "scores", "checks") if name in values}
    return (json.dumps(row | ({OWN: about} if about else {}), ensure_ascii=False, sort_keys=True) + "\n").encode()
