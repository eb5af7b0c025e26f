"""Data sets of the hub, or folders of its layout, read row by row through `datasets`."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from t2i.config import ModelPath
from t2i.data.formats.base import MAX_IMAGE_BYTES, BrokenRow, FormatSource, Row
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
        """Every image says the commit that it is of, also where no revision was asked for."""
        local = resolve_path(self.path)
        folder = local.absolute() if local.exists() else None
        commit = self.revision if folder else commit_of_data(self.path, self.revision)
        table = self._open(str(folder) if folder else self.path, commit)
        columns = table.column_names
        missing = [name for name in (self.image, *self.captions) if columns is not None and name not in columns]
        if missing:
            raise DataError(f"{self.path}: no column {', '.join(missing)}; it has {', '.join(columns or ())}.")
        origin = ImageOrigin(dataset=f"{self.path}@{commit}" if commit else self.path, licence=self.licence)
        chosen = table.skip(self.first)
        chosen = chosen.take(self.limit) if self.limit is not None else chosen
        for number, values in enumerate(chosen, self.first):
            where = f"{self.path} [{self.split}], row {number}"
            try:
                yield self._row(where, values, origin, folder)
            except DataError as error:
                yield BrokenRow(where, str(error))

    def _open(self, name: str, revision: str | None) -> Any:
        from datasets import Image, load_dataset
        from datasets.exceptions import DatasetsError

        try:
            table = load_dataset(name, self.config, split=self.split, revision=revision, streaming=True)
            # Bytes as they are: decoding and encoding again would change the image and its id.
            return table.cast_column(self.image, Image(decode=False)) if _has(table, self.image) else table
        except (OSError, ValueError, DatasetsError) as error:
            raise DataError(f"{self.path} [{self.split}]: cannot be opened ({_first_line(error)}).") from error

    def _row(self, where: str, values: Mapping[str, Any], origin: ImageOrigin, folder: Path | None) -> Row:
        captions = column_captions(values, self.captions, where)
        known = {self.image, *self.captions}
        extra = {name: value for name, value in values.items() if name not in known and _is_plain(value)}
        return Row(where, self._image_bytes(values[self.image], where, folder), captions, extra, origin)

    def _image_bytes(self, value: Any, where: str, folder: Path | None) -> bytes:
        """The image in a row, or the file that the row names: of this data set, and nothing else of this machine."""
        if isinstance(value, Mapping) and value.get("bytes"):
            return bytes(value["bytes"])
        path = value.get("path") if isinstance(value, Mapping) else None
        if not path:
            raise DataError(f"{where}: no image.")
        if folder is None:
            return _remote_file(path, f"hf://datasets/{self.path}@", where)
        # By name, not by where links lead: the files of the hub's cache are links.
        file = Path(os.path.normpath(folder / path))
        if not file.is_relative_to(folder):
            raise DataError(f"{where}: {path!r} leads out of {folder}; expected a file of the data set.")
        if not file.is_file():
            raise DataError(f"{where}: no file {path!r}.")
        with file.open("rb") as opened:
            return opened.read(MAX_IMAGE_BYTES + 1)


def commit_of_data(name: str, revision: str | None) -> str:
    """The commit that a revision of a data set is now, by the hub. Raises DataError if it cannot be asked."""
    from huggingface_hub import HfApi

    try:
        return str(HfApi().dataset_info(name, revision=revision).sha)
    except Exception as error:  # of its HTTP client, whose errors are no OSError, as well as its own
        raise DataError(f"{name}: the hub does not say which commit it is ({_first_line(error)}).") from error


def _first_line(error: Exception) -> str:
    [line, *_] = str(error).strip().splitlines() or [type(error).__name__]
    return line


def _remote_file(path: str, prefix: str, where: str) -> bytes:
    """A file of the hub's repository, or of a zip file in it: `zip://red.png::hf://datasets/owner/name@commit/a.zip`."""
    import fsspec

    inner, _, outer = path.rpartition("::")
    if not outer.startswith(prefix) or not (inner.startswith("zip://") or not inner) or "::" in inner:
        raise DataError(f"{where}: {path!r} is no file of the data set.")
    try:
        with fsspec.open(path, "rb") as file:
            return file.read(MAX_IMAGE_BYTES + 1)  # pyright: ignore[reportAttributeAccessIssue]
    except (OSError, KeyError, ValueError) as error:
        raise DataError(f"{where}: {path!r} cannot be read ({error}).") from error


def _has(table: Any, column: str) -> bool:
    return table.column_names is None or column in table.column_names


def _is_plain(value: Any) -> bool:
    """Whether JSON can hold it."""
    if isinstance(value, dict):
        return all(_is_plain(inner) for inner in value.values())
    if isinstance(value, list):
        return all(_is_plain(inner) for inner in value)
    return value is None or isinstance(value, str | int | float | bool)
