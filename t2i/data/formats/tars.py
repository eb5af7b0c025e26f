"""webdataset tars, img2dataset's output among them: files of one name up to its first dot are one sample."""

from __future__ import annotations

import io
import itertools
import json
import tarfile
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from pydantic import Field

from t2i.config import LocalPath
from t2i.data.formats.base import MAX_IMAGE_BYTES, BrokenRow, FormatSource, Once, Row
from t2i.data.formats.metadata import OWN, column_captions
from t2i.data.formats.texts import MAX_CAPTION_CHARS, decoded
from t2i.errors import DataError
from t2i.files import replacing
from t2i.records import CaptionedImage, ImageOrigin, record_from, record_values
from t2i.resources import resolve_path

PRIVATE = ("exif",)
"""Fields of img2dataset's JSON that are not read: EXIF tells of people and places."""
_Sample = dict[str, bytes]
"""Ending without its first dot -> bytes."""


class WebdatasetSource(FormatSource):
    """Uncompressed tar files with an image, and texts or JSON, for every sample."""

    type: Literal["webdataset"] = "webdataset"
    path: LocalPath
    """A tar file, or a folder of them, read in the order of their names."""
    captions: dict[str, str] = Field(default_factory=lambda: {"txt": "alt"})
    """Ending of a text file, or key of the JSON file, -> kind of the caption in it."""
    ignore: tuple[str, ...] = ()
    """Endings of further files, which are not read; others that are not known are errors."""

    def rows(self) -> Iterator[Row | BrokenRow]:
        once = Once()
        for path in _tars(resolve_path(self.path)):
            for key, sample in _samples(path, self.ignore):
                where = f"{path}, {key}"
                try:
                    once.check(key, where)
                    if isinstance(sample, DataError):
                        raise sample
                    yield self._row(where, sample)
                except DataError as error:
                    yield BrokenRow(where, str(error))

    def _row(self, where: str, sample: _Sample) -> Row:
        images = [end for end in sample if _is_image(end)]
        texts = [end for end in self.captions if end in sample and end not in images]
        unknown = sorted(sample.keys() - {*images, *texts, "json"})
        if len(images) != 1 or unknown:
            found = ", ".join(sorted(sample)) or "to ignore alone"
            raise DataError(
                f"{where}: the files {found}; expected one image, json and {', '.join(self.captions)}. A dot in the "
                "name of a sample cuts it in two; endings that do not matter go into `ignore`."
            )
        values = _json(sample["json"], where) if "json" in sample else {}
        if OWN in values:
            return _own_row(where, sample[images[0]], values[OWN])
        status = values.get("status", "success")
        if status != "success":
            raise DataError(f"{where}: img2dataset says {status!r}: {values.get('error_message')}.")
        written = {end: decoded(sample[end], f"{where}.{end}") for end in texts}
        columns = {column: kind for column, kind in self.captions.items() if column in {**values, **written}}
        captions = column_captions(values | written, columns, where)
        extra = {n: v for n, v in values.items() if n not in (*PRIVATE, *columns, "url", "status", "error_message")}
        origin = ImageOrigin(url=values["url"]) if isinstance(values.get("url"), str) else None
        return Row(where, sample[images[0]], captions, extra, origin)


def _own_row(where: str, image: bytes, values: Any) -> Row:
    try:
        record = record_from(values)
    except (TypeError, AttributeError) as error:
        raise DataError(f"{where}: {OWN} is no record ({error}).") from error
    return Row(where, image, record.captions, record.extra, record.origin, record.scores, record.checks)


def _json(data: bytes, where: str) -> dict[str, Any]:
    try:
        values = json.loads(decoded(data, f"{where}.json"))
    except json.JSONDecodeError as error:
        raise DataError(f"{where}.json: not JSON ({error.msg}).") from error
    if not isinstance(values, dict):
        raise DataError(f"{where}.json: {type(values).__name__} instead of a JSON object.")
    return values


def _tars(path: Path) -> list[Path]:
    found = sorted(path.glob("*.tar")) if path.is_dir() else [path]
    if not found or not all(one.is_file() for one in found):
        raise DataError(f"{path}: no tar file.")
    return found


def _samples(path: Path, ignore: Collection[str]) -> Iterator[tuple[str, _Sample | DataError]]:
    """(key, its files but for those to ignore, which may be none) of neighbouring files of one key.

    A file that is too large makes its whole sample an error.
    """
    try:
        # "r:" and not "r": a compressed archive could unpack to any size.
        with tarfile.open(path, "r:") as archive:
            for key, members in itertools.groupby(_members(archive, path), lambda member: member[0]):
                yield key, _sample(archive, members, ignore, path)
    except (OSError, tarfile.TarError) as error:
        raise DataError(f"{path}: cannot be read as an uncompressed tar file ({error}).") from error


def _members(archive: tarfile.TarFile, path: Path) -> Iterator[tuple[str, str, tarfile.TarInfo]]:
    """(key, ending, file) of all but the folders. Raises DataError where they end otherwise than an archive does."""
    for member in archive:
        if not member.isdir():
            yield *_split(member, path), member
    # `tarfile` takes a header that is damaged or cut for the end too. At a true one there are zeros, or nothing: some
    # writers leave them out.
    with path.open("rb") as file:
        file.seek(archive.offset)
        if file.read(tarfile.BLOCKSIZE).strip(b"\0"):
            raise DataError(f"{path}: damaged or cut short at byte {archive.offset}; fetch it again.")


def _sample(
    archive: tarfile.TarFile, members: Iterable[tuple[str, str, tarfile.TarInfo]], ignore: Collection[str], path: Path
) -> _Sample | DataError:
    """The files of one key, or what is wrong with one of them."""
    sample = _Sample()
    for _, ending, member in members:
        if ending in ignore:
            continue
        if problem := _problem(member, ending, sample, path):
            return problem
        file = archive.extractfile(member)
        sample[ending] = file.read() if file else b""
    return sample


def _problem(member: tarfile.TarInfo, ending: str, sample: _Sample, path: Path) -> DataError | None:
    limit = MAX_IMAGE_BYTES if _is_image(ending) else 40 * MAX_CAPTION_CHARS
    if member.size > limit:
        return DataError(f"{path}, {member.name}: {member.size} bytes, at most {limit} are read.")
    return DataError(f"{path}, {member.name}: is there twice.") if ending in sample else None


def _is_image(ending: str) -> bool:
    from t2i.data.images import IMAGE_SUFFIXES

    return f".{ending.lower()}" in IMAGE_SUFFIXES


def _split(member: tarfile.TarInfo, path: Path) -> tuple[str, str]:
    """Key and ending of a file. Raises DataError for one that is no plain file inside the archive."""
    name = PurePosixPath(member.name)
    if name.is_absolute() or ".." in name.parts:
        raise DataError(f"{path}, {member.name}: the name leads out of the archive; it was not made by an honest tool.")
    if not member.isreg():
        raise DataError(f"{path}, {member.name}: a link or device, expected plain files.")
    stem, _, ending = name.name.partition(".")
    return (name.parent / stem).as_posix(), ending


def write_webdataset(folder: Path, records: Iterable[CaptionedImage], per_shard: int = 1000) -> list[Path]:
    """Write `folder/00000.tar`, ... with the image and the whole record of each as JSON, under its id.

    Equal records and images give equal bytes. Raises DataError for an image that cannot be read.
    """
    paths: list[Path] = []
    rows = iter(records)
    while part := list(itertools.islice(rows, per_shard)):
        paths.append(folder / f"{len(paths):05d}.tar")
        with replacing(paths[-1]) as temporary, tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT) as archive:
            for row in part:
                _add(archive, row)
    return paths


def _add(archive: tarfile.TarFile, row: CaptionedImage) -> None:
    path = Path(row.image)
    try:
        image = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}).") from error
    values = record_values(row) | {"image": f"{row.id}{path.suffix.lower()}"}
    text = json.dumps({OWN: values}, ensure_ascii=False, sort_keys=True).encode()
    for name, data in ((values["image"], image), (f"{row.id}.json", text)):
        member = tarfile.TarInfo(name)
        member.size = len(data)
        archive.addfile(member, io.BytesIO(data))
