"""Records that stay on disk: a data set of any length for a few bytes of memory a row."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np

from t2i.errors import DataError
from t2i.records import CaptionedImage, parse_row


class RecordTable(Sequence[CaptionedImage]):
    """The rows of a records.jsonl file, read from it when they are asked for; image paths come out absolute.

    Holds where each line begins and the size of each image: 12 bytes a row, 16 from 4 GiB on. The file must not
    change as long as the table is used.
    """

    def __init__(self, path: Path) -> None:
        """Read the file once. Raises DataError with file and line for what is no record."""
        self.path, self.folder = path, path.parent.resolve()
        starts, sizes = _scan(path)
        self.starts = starts
        self.sizes = sizes
        """Width and height of every image, int32 [n, 2]."""
        self._file: int | None = None

    def __getstate__(self) -> dict[str, Any]:
        """The open file stays behind when a data worker gets the table."""
        return {**self.__dict__, "_file": None}

    def __del__(self) -> None:
        if getattr(self, "_file", None) is not None:
            os.close(self._file)  # pyright: ignore[reportArgumentType]

    def __len__(self) -> int:
        return len(self.sizes)

    @overload
    def __getitem__(self, index: int) -> CaptionedImage: ...
    @overload
    def __getitem__(self, index: slice) -> list[CaptionedImage]: ...
    def __getitem__(self, index: int | slice) -> CaptionedImage | list[CaptionedImage]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        number = range(len(self))[index]
        if self._file is None:
            self._file = os.open(self.path, os.O_RDONLY)
        start, end = int(self.starts[number]), int(self.starts[number + 1])
        # pread, not seek and read: workers that were forked share the position in the file.
        row = parse_row(os.pread(self._file, end - start, start), CaptionedImage, f"{self.path}, record {number + 1}")
        return dataclasses.replace(row, image=str(self.folder / row.image))


class JoinedRecords(Sequence[CaptionedImage]):
    """Several tables one after the other."""

    def __init__(self, parts: Sequence[Sequence[CaptionedImage]]) -> None:
        self.parts = tuple(parts)
        self.starts = np.cumsum([0, *map(len, self.parts)])

    def __len__(self) -> int:
        return int(self.starts[-1])

    @overload
    def __getitem__(self, index: int) -> CaptionedImage: ...
    @overload
    def __getitem__(self, index: slice) -> list[CaptionedImage]: ...
    def __getitem__(self, index: int | slice) -> CaptionedImage | list[CaptionedImage]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        number = range(len(self))[index]
        part = self.part_of(number)
        return self.parts[part][number - int(self.starts[part])]

    def part_of(self, number: int) -> int:
        """Number of the table that holds a record."""
        return int(np.searchsorted(self.starts, number, side="right")) - 1


def image_sizes(records: Sequence[CaptionedImage]) -> np.ndarray:
    """Width and height of every image as seen, int32 [n, 2], without opening one."""
    if isinstance(records, RecordTable):
        return records.sizes
    if isinstance(records, JoinedRecords):
        return np.concatenate([image_sizes(part) for part in records.parts])
    return np.fromiter(_flat_sizes(records), np.int32, 2 * len(records)).reshape(-1, 2)


def _flat_sizes(records: Sequence[CaptionedImage]) -> Iterator[int]:
    for row in records:
        yield row.width
        yield row.height


def _scan(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Where each record begins (and the last one ends), and the sizes. A first pass counts, so nothing is copied."""
    try:
        with path.open("rb") as file:
            count = sum(not line.isspace() for line in file)
            file.seek(0)
            wide = os.fstat(file.fileno()).st_size >= 2**32
            starts = np.empty(count + 1, np.uint64 if wide else np.uint32)
            sizes = np.empty((count, 2), np.int32)
            place = number = 0
            for line_number, line in enumerate(file, 1):
                if not line.isspace():
                    row = parse_row(line, CaptionedImage, f"{path}:{line_number}")
                    starts[number] = place
                    sizes[number] = _checked_size(row, f"{path}:{line_number}")
                    number += 1
                place += len(line)
            starts[count] = place
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}).") from error
    return starts, sizes


def _checked_size(row: CaptionedImage, where: str) -> tuple[int, int]:
    if not (type(row.width) is type(row.height) is int and 0 < min(row.width, row.height) < 2**31):
        raise DataError(f"{where}: width {row.width!r} and height {row.height!r}; expected pixels, whole and above 0.")
    return row.width, row.height
