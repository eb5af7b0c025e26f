"""What readers of data sets share: rows that become records, or the reason why they do not."""

from __future__ import annotations

import hashlib
import json
import re
from abc import ABC, abstractmethod
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from t2i.config import FrozenModel
from t2i.errors import DataError
from t2i.files import write_bytes
from t2i.json_values import unwritable
from t2i.records import Caption, CaptionedImage, ImageOrigin, record_values

BROKEN_FILE = "broken.jsonl"
MAX_IMAGE_BYTES = 500_000_000
SHOWN = 10
"""Problems that an error message lists; the count tells the rest."""
_DRIVE = re.compile("[A-Za-z]:")
"""How Windows begins a path of another drive; further in, or behind more letters, a colon is part of a name."""


@dataclass(frozen=True)
class Row:
    """One row of a data set as it was read. where: file and row, for messages."""

    where: str
    image: Path | bytes
    captions: Sequence[Caption] = ()
    extra: Mapping[str, Any] = field(default_factory=dict)
    origin: ImageOrigin | None = None
    scores: Mapping[str, float] = field(default_factory=dict)
    checks: tuple[str, ...] = ()


@dataclass(frozen=True)
class BrokenRow:
    """A row that cannot be used."""

    where: str
    reason: str


class FormatSource(FrozenModel, ABC):
    """Common part of the sources that read a format: `rows` is all that differs."""

    broken: Literal["refuse", "drop"] = "refuse"
    """Rows that cannot be used are an error that names them, or are left out and listed in `broken.jsonl`."""

    @abstractmethod
    def rows(self) -> Iterator[Row | BrokenRow]:
        """The rows in order. Raises DataError for what makes the whole file unusable."""

    def count(self) -> int:
        """Number of rows, without opening an image where these are files of their own."""
        return sum(1 for _ in self.rows())

    def sizes(self) -> Iterator[tuple[str, int, int]]:
        """Name, width and height as seen of every image, from the headers. Raises DataError as `sized_rows`."""
        for found in self.sized_rows():
            if not isinstance(found, BrokenRow):
                row, width, height = found
                yield row.where, width, height

    def sized_rows(self) -> Iterator[tuple[Row, int, int] | BrokenRow]:
        """Every row with width and height of its image as seen, from the header.

        Raises DataError for an image without a readable header, if broken rows are not dropped.
        """
        for row in self.rows():
            yield row if isinstance(row, BrokenRow) else self._sized(row)

    def _sized(self, row: Row) -> tuple[Row, int, int] | BrokenRow:
        from t2i.data.images import seen_size, seen_size_of

        if problem := _unwritable(row):
            return BrokenRow(row.where, problem)
        try:
            size = seen_size_of(row.image, row.where) if isinstance(row.image, bytes) else seen_size(row.image)
        except DataError as error:
            if self.broken == "refuse":
                raise
            return BrokenRow(row.where, str(error))
        return row, *size

    def materialize(self, folder: Path, seed: int) -> list[CaptionedImage]:
        """As `read`, all at once."""
        return list(self.read(folder, seed))

    def read(self, folder: Path, seed: int) -> Iterator[CaptionedImage]:
        """One record a row; images that are no files of their own are written to `folder/images`.

        Raises DataError at the end, for all broken rows at once, or if there is no row left.
        """
        broken: list[BrokenRow] = []
        count = 0
        for row in self.rows():
            found = row if isinstance(row, BrokenRow) else _record(row, folder)
            if isinstance(found, BrokenRow):
                broken.append(found)
            else:
                count += 1
                yield found
        if broken and (self.broken == "refuse" or not count):
            lines = [f"{row.where}: {row.reason}" for row in broken[:SHOWN]]
            more = [f"... and {len(broken) - SHOWN} more"] if len(broken) > SHOWN else []
            raise DataError("\n".join([f"{len(broken)} of {count + len(broken)} rows cannot be used:", *lines, *more]))
        if not count:
            raise DataError(f"{getattr(self, 'path', self)}: no row.")
        lines = [json.dumps({"row": row.where, "reason": row.reason}, ensure_ascii=False) + "\n" for row in broken]
        # A name that is no UTF-8 is written with the escapes of JSON.
        write_bytes(folder / BROKEN_FILE, "".join(lines).encode(errors="backslashreplace"))


def _record(row: Row, folder: Path) -> CaptionedImage | BrokenRow:
    from t2i.data.images import content_id, open_image

    if problem := _unwritable(row):
        return BrokenRow(row.where, problem)
    try:
        # Not where a link leads: masks lie beside the link.
        path = _stored(row.image, folder, row.where) if isinstance(row.image, bytes) else row.image.absolute()
        # Decoded as a whole: a truncated file has a sound header.
        width, height = open_image(path).size
    except DataError as error:
        return BrokenRow(row.where, str(error))
    # Images that were stored here are named by their content, beside the records.
    image = path.relative_to(folder).as_posix() if isinstance(row.image, bytes) else str(path)
    return CaptionedImage(content_id(path), image, width, height, *_own(row))


def _own(row: Row) -> tuple[Any, ...]:
    """All of a record but its image: captions, extra, origin, scores, checks."""
    return tuple(row.captions), dict(row.extra), row.origin, dict(row.scores), row.checks


def _unwritable(row: Row) -> str:
    """What of a row records.jsonl cannot hold, with its column; empty if it holds all."""
    record = CaptionedImage("", "", 1, 1, *_own(row))
    if isinstance(row.image, Path) and (problem := unwritable(str(row.image))):
        return f"the image is called {problem}; rename it."
    for name, value in (record_values(record) | {"extra": None} | record.extra).items():
        if problem := unwritable(name) or unwritable(value):
            return f"column {name!a} holds {problem}; write it as plain text, or leave the column out."
    return ""


def _stored(data: bytes, folder: Path, where: str) -> Path:
    """The bytes as a file under the name of their hash, with the ending of what they are."""
    from t2i.data.images import image_suffix

    if len(data) > MAX_IMAGE_BYTES:
        raise DataError(f"{where}: an image of {len(data)} bytes, at most {MAX_IMAGE_BYTES} are read.")
    name = hashlib.sha256(data).hexdigest()[:32]
    path = folder / "images" / f"{name}{image_suffix(data, where)}"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, data)
    return path


def inside(folder: Path, name: object, where: str) -> Path:
    """The file of a relative name in a folder. Raises DataError for a name that leads out of it, or is none."""
    if not isinstance(name, str) or not name:
        raise DataError(f"{where}: the name of the image is {name!r}, expected text.")
    pure = PurePosixPath(name.replace("\\", "/"))
    if not pure.parts:
        raise DataError(f"{where}: {name!r} is {folder} itself; expected the name of an image inside it.")
    if pure.is_absolute() or ".." in pure.parts or _DRIVE.match(pure.parts[0]):
        raise DataError(f"{where}: {name!r} leads out of {folder}; expected a name inside it.")
    return folder / pure


class Once:
    """Tells a name that was there before. Holds hashes of 64 bits, at most 24 bytes a name while it grows."""

    def __init__(self) -> None:
        self._table = array("Q", bytes(8 * 1024))
        self._count = 0

    def check(self, name: str, where: str) -> None:
        """Raise DataError for a name that was there before."""
        if not self.is_new(name):
            raise DataError(f"{where}: {name!r} is there twice; remove one.")

    def is_new(self, name: str) -> bool:
        """Whether a name comes for the first time; from now on it does not."""
        digest = hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest()
        return self._add(int.from_bytes(digest, "little") or 1)

    def _add(self, key: int) -> bool:
        """Open addressing, zero for a free place."""
        if 2 * (self._count + 1) > len(self._table):
            old, self._table, self._count = self._table, array("Q", bytes(16 * len(self._table))), 0
            for known in old:
                _ = known and self._add(known)
        table, mask = self._table, len(self._table) - 1
        place = key & mask
        while table[place]:
            if table[place] == key:
                return False
            place = (place + 1) & mask
        table[place] = key
        self._count += 1
        return True
