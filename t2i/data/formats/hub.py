"""Data sets of the hub, or folders of its layout, read row by row through `datasets`."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from t2i.config import ModelPath
from t2i.data.formats.base import MAX_IMAGE_BYTES, BrokenRow, FormatSource, Row
from t2i.data.formats.metadata import column_captions
from t2i.errors import DataError
from t2i.json_values import unwritable
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
        # Without `..`, as the names of its files will be; `absolute` would keep it.
        folder = Path(os.path.abspath(local)) if local.exists() else None
        commit = self.revision if folder else commit_of_data(self.path, self.revision)
        table = self._open(str(folder) if folder else self.path, commit)
        origin = ImageOrigin(dataset=f"{self.path}@{commit}" if commit else self.path, licence=self.licence)
        chosen = table.skip(self.first)
        chosen = chosen.take(self.limit) if self.limit is not None else chosen
        for number, values in enumerate(self._values(chosen), self.first):
            where = f"{self.path} [{self.split}], row {number}"
            self._check_columns(values)
            try:
                yield self._row(where, values, origin, folder or f"hf://datasets/{self.path}@{commit}/")
            except DataError as error:
                yield BrokenRow(where, str(error))

    def _values(self, table: Any) -> Iterator[Mapping[str, Any]]:
        """Rows as they come. Raises DataError for a file among them that is broken, or out of reach."""
        rows, number = iter(table), self.first
        while True:
            try:
                values = next(rows)
            except StopIteration:
                return
            except Exception as error:  # of the reader of the format, or of the way to the hub
                told = f"{self.path} [{self.split}], row {number}: cannot be read ({_first_line(error)})."
                raise DataError(told) from error
            yield values
            number += 1

    def _check_columns(self, columns: Collection[str]) -> None:
        missing = [name for name in (self.image, *self.captions) if name not in columns]
        if missing:
            raise DataError(f"{self.path}: no column {', '.join(missing)}; it has {', '.join(columns)}.")

    def _open(self, name: str, revision: str | None) -> Any:
        from datasets import Image, load_dataset
        from datasets.exceptions import DatasetsError

        try:
            table = load_dataset(name, self.config, split=self.split, revision=revision, streaming=True)
            if table.features is None:  # of a CSV or JSON file, in which images are names
                return table
            self._check_columns(table.features)
            # Bytes as they are: decoding and encoding again would change the image and its id.
            return table.cast_column(self.image, Image(decode=False))
        except DataError:
            raise
        except (OSError, ValueError, DatasetsError) as error:
            raise DataError(f"{self.path} [{self.split}]: cannot be opened ({_first_line(error)}).") from error

    def _row(self, where: str, values: Mapping[str, Any], origin: ImageOrigin, root: Path | str) -> Row:
        captions = column_captions(values, self.captions, where)
        known = {self.image, *self.captions}
        extra = {name: value for name, value in values.items() if name not in known and not unwritable(value)}
        return Row(where, _image_bytes(values[self.image], where, root), captions, extra, origin)


def _image_bytes(value: Any, where: str, root: Path | str) -> bytes:
    """The image in a row, or the file that the row names: of this data set, and nothing else of this machine.

    root: the data set's folder, or the beginning of every address in it.
    """
    if isinstance(value, Mapping) and value.get("bytes"):
        return bytes(value["bytes"])
    path = value.get("path") if isinstance(value, Mapping) else value
    if not isinstance(path, str) or not path:
        raise DataError(f"{where}: no image.")
    if isinstance(root, str) or "::" in path:
        return _file_at(path, str(root), where)
    # By name, not by where links lead: the files of the hub's cache are links.
    file = Path(os.path.normpath(root / path))
    if not file.is_relative_to(root):
        raise DataError(f"{where}: {path!r} leads out of {root}; expected a file of the data set.")
    if not file.is_file():
        raise DataError(f"{where}: no file {path!r}.")
    with file.open("rb") as opened:
        return opened.read(MAX_IMAGE_BYTES + 1)


def _file_at(path: str, root: str, where: str) -> bytes:
    """A file of the hub's repository, or one in a zip file: `zip://red.png::hf://datasets/owner/name@commit/a.zip`."""
    import fsspec

    inner, _, outer = path.rpartition("::")
    if "://" not in outer and not outer.startswith("/"):
        outer = root + outer
    is_plain = inner == "" or (inner.startswith("zip://") and "::" not in inner)
    if not is_plain or not outer.startswith(root) or ".." in outer.split("/"):
        raise DataError(f"{where}: {path!r} is no file of the data set.")
    try:
        with fsspec.open(f"{inner}::{outer}" if inner else outer, "rb") as file:
            return file.read(MAX_IMAGE_BYTES + 1)  # pyright: ignore[reportAttributeAccessIssue]
    except (OSError, KeyError, ValueError) as error:
        raise DataError(f"{where}: {path!r} cannot be read ({error}).") from error


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
