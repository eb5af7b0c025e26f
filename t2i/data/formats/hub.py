"""Data sets of the hub, or folders of its layout, read row by row through `datasets`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from t2i.config import ModelPath
from t2i.data.formats.base import BrokenRow, FormatSource, Row
from t2i.data.formats.metadata import column_captions
from t2i.errors import DataError
from t2i.records import ImageOrigin
from t2i.resources import resolve_path


class HubSource(FormatSource):
    """Streamed: only the rows that are asked for are downloaded; their images are stored with the run."""

    type: Literal["hub"] = "hub"
    path: ModelPath
    """Hub id of a data set, or a folder of Parquet files or another layout that `datasets` reads."""
    revision: str | None = None
    """Commit or tag of the hub; without one, what the hub has that day."""
    config: str | None = None
    """Name of a configuration, where the data set has several."""
    split: str = "train"
    """Split to read."""
    image: str = "image"
    """Column of the image."""
    captions: dict[str, str]
    """Column -> kind of the captions in it. A list is several captions."""
    first: int = Field(default=0, ge=0)
    """Rows to leave out at the beginning."""
    limit: int | None = Field(default=None, gt=0)
    """Rows to read; all if absent."""
    licence: str = ""
    """Licence of the data set (SPDX), kept with every image."""

    def rows(self) -> Iterator[Row | BrokenRow]:
        table = self._open()
        columns = table.column_names
        missing = [name for name in (self.image, *self.captions) if columns is not None and name not in columns]
        if missing:
            raise DataError(f"{self.path}: no column {', '.join(missing)}; it has {', '.join(columns or ())}.")
        origin = ImageOrigin(
            dataset=f"{self.path}@{self.revision}" if self.revision else self.path, licence=self.licence
        )
        chosen = table.skip(self.first)
        chosen = chosen.take(self.limit) if self.limit is not None else chosen
        for number, values in enumerate(chosen, self.first):
            where = f"{self.path} [{self.split}], row {number}"
            try:
                yield self._row(where, values, origin)
            except DataError as error:
                yield BrokenRow(where, str(error))

    def _open(self) -> Any:
        from datasets import Image, load_dataset
        from datasets.exceptions import DatasetsError

        local = resolve_path(self.path)
        name = str(local) if local.exists() else self.path
        try:
            table = load_dataset(name, self.config, split=self.split, revision=self.revision, streaming=True)
            # Bytes as they are: decoding and encoding again would change the image and its id.
            return table.cast_column(self.image, Image(decode=False)) if _has(table, self.image) else table
        except (OSError, ValueError, DatasetsError) as error:
            [reason, *_] = str(error).strip().splitlines() or [type(error).__name__]
            raise DataError(f"{self.path} [{self.split}]: cannot be opened ({reason}).") from error

    def _row(self, where: str, values: Mapping[str, Any], origin: ImageOrigin) -> Row:
        captions = column_captions(values, self.captions, where)
        known = {self.image, *self.captions}
        extra = {name: value for name, value in values.items() if name not in known and _is_plain(value)}
        return Row(where, _image_bytes(values[self.image], where), captions, extra, origin)


def _has(table: Any, column: str) -> bool:
    return table.column_names is None or column in table.column_names


def _image_bytes(value: Any, where: str) -> bytes:
    if isinstance(value, Mapping) and value.get("bytes"):
        return bytes(value["bytes"])
    path = value.get("path") if isinstance(value, Mapping) else None
    if not path or not Path(path).is_file():
        raise DataError(f"{where}: no image.")
    return Path(path).read_bytes()


def _is_plain(value: Any) -> bool:
    """Whether JSON can hold it."""
    if isinstance(value, dict):
        return all(_is_plain(inner) for inner in value.values())
    if isinstance(value, list):
        return all(_is_plain(inner) for inner in value)
    return value is None or isinstance(value, str | int | float | bool)
