"""Captions of a folder of images in one JSON file: captions.json (diffusion-pipe), and kohya's metadata."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from t2i.config import LocalPath
from t2i.data.formats.base import BrokenRow, FormatSource, Row, inside
from t2i.data.formats.texts import checked_text, checked_texts, decoded
from t2i.errors import DataError
from t2i.files import write_text
from t2i.records import Caption, CaptionedImage
from t2i.resources import resolve_path

SOURCE_NAMES = {"captions_json": "captions.json", "kohya": "kohya metadata"}

_Pictures = Mapping[str, Sequence[Path]]
"""Name without its ending -> images of it in one folder."""


class CaptionsJsonSource(FormatSource):
    """A folder with captions.json: `{"picture.jpg": ["a caption", "another one"]}`."""

    type: Literal["captions_json"] = "captions_json"
    path: LocalPath
    """The folder."""
    kind: str = "caption"
    """Kind of the captions."""

    def rows(self) -> Iterator[Row | BrokenRow]:
        folder = resolve_path(self.path)
        for name, value in _object(folder / "captions.json").items():
            where = f"{folder / 'captions.json'}, {name}"
            try:
                if not isinstance(value, list):
                    raise DataError(f"{where}: {type(value).__name__} instead of a list of captions.")
                captions = [Caption(self.kind, text, "captions.json") for text in checked_texts(value, where)]
                yield Row(where, inside(folder, name, where), captions)
            except DataError as error:
                yield BrokenRow(where, str(error))


class KohyaSource(FormatSource):
    """kohya's metadata: `{"picture": {"caption": "...", "tags": "..."}}`; each line of a caption is one of its own."""

    type: Literal["kohya"] = "kohya"
    path: LocalPath
    """The JSON file."""
    images: LocalPath
    """Folder of the images; keys are names in it, with or without their ending, or paths of files in it."""
    caption_kind: str = "caption"
    """Kind of what stands under `caption`."""
    tags_kind: str = "tags"
    """Kind of what stands under `tags`."""

    def rows(self) -> Iterator[Row | BrokenRow]:
        path, folder = resolve_path(self.path), resolve_path(self.images)
        # Each folder is listed once.
        pictures = functools.cache(_pictures)
        for name, value in _object(path).items():
            where = f"{path}, {name}"
            try:
                image = _kohya_image(folder, name, where, pictures)
                yield Row(where, image, self._captions(value, where), _rest(value))
            except DataError as error:
                yield BrokenRow(where, str(error))

    def _captions(self, value: Any, where: str) -> list[Caption]:
        if not isinstance(value, dict) or not {"caption", "tags"} & value.keys():
            raise DataError(f"{where}: expected an object with `caption`, `tags` or both.")
        lines = (checked_text(value.get("caption"), where) or "").split("\n")
        tags = checked_text(value.get("tags"), where)
        captions = [Caption(self.caption_kind, line.strip(), "kohya metadata") for line in lines if line.strip()]
        return captions + ([Caption(self.tags_kind, tags, "kohya metadata")] if tags else [])


def _rest(value: dict[str, Any]) -> dict[str, Any]:
    return {name: inner for name, inner in value.items() if name not in ("caption", "tags")}


def _kohya_image(folder: Path, name: str, where: str, pictures: Callable[[Path], _Pictures]) -> Path:
    """kohya names images by a path of the machine that wrote the file, or by their name without its ending."""
    if Path(name).is_absolute() and Path(name).is_relative_to(folder.resolve()):
        name = Path(name).relative_to(folder.resolve()).as_posix()
    path = inside(folder, name, where)
    found = [path] if path.is_file() else pictures(path.parent).get(path.name, [])
    if len(found) != 1:
        raise DataError(f"{where}: {len(found)} images of that name in {folder}; expected one.")
    return found[0]


def _pictures(folder: Path) -> _Pictures:
    """The images in a folder. Their endings are told in any case: cameras write `IMG_0001.JPG`."""
    from t2i.data.images import IMAGE_SUFFIXES

    found: dict[str, list[Path]] = {}
    try:
        for path in sorted(folder.iterdir()) if folder.is_dir() else ():
            if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file():
                found.setdefault(path.stem, []).append(path)
    except OSError as error:
        raise DataError(f"{folder}: cannot be read ({error.strerror}).") from error
    return found


def _object(path: Path) -> dict[str, Any]:
    repeated: list[str] = []

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, value in pairs:
            repeated.extend([name] if name in found else [])
            found[name] = value
        return found

    try:
        values = json.loads(decoded(path.read_bytes(), str(path)), object_pairs_hook=unique)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}).") from error
    except json.JSONDecodeError as error:
        raise DataError(f"{path}:{error.lineno}: not JSON ({error.msg}).") from error
    if not isinstance(values, dict):
        raise DataError(f"{path}: {type(values).__name__} instead of an object with a key for every image.")
    if repeated:
        raise DataError(f"{path}: {repeated[0]!r} is there twice; remove one.")
    return values


def write_captions_json(folder: Path, records: Iterable[CaptionedImage], kinds: Sequence[str]) -> None:
    """Write `folder/captions.json` with the captions of these kinds, which it cannot tell apart; nothing else fits."""
    found: dict[str, list[str]] = {}
    for record in records:
        texts = [c.text for c in record.captions if c.kind in kinds]
        _check_has(record, texts, kinds)
        found[Path(record.image).relative_to(folder).as_posix()] = texts
    write_text(folder / "captions.json", json.dumps(found, ensure_ascii=False, indent=1) + "\n")


def _check_has(record: CaptionedImage, texts: Sequence[str], kinds: Sequence[str]) -> None:
    """Raise DataError for a record that would be written without a caption, as where a kind is misspelt."""
    if not texts:
        has = ", ".join(dict.fromkeys(caption.kind for caption in record.captions)) or "none"
        raise DataError(
            f"{record.image}: no caption of kind {' or '.join(kinds)}, it has {has}; name another, or filter such "
            "images out with `require`."
        )


def write_kohya(path: Path, images: Path, records: Iterable[CaptionedImage], caption_kind: str, tags_kind: str) -> None:
    """Write kohya's metadata. Raises DataError for a caption of several lines, which it would take for several."""
    found: dict[str, dict[str, str]] = {}
    for record in records:
        texts = {kind: [c.text for c in record.captions if c.kind == kind] for kind in (caption_kind, tags_kind)}
        _check_has(record, [*texts[caption_kind], *texts[tags_kind]], (caption_kind, tags_kind))
        if any("\n" in text for text in texts[caption_kind]):
            raise DataError(f"{record.image}: a caption of several lines would become several in {path.name}.")
        if len(texts[tags_kind]) > 1:
            raise DataError(f"{record.image}: {len(texts[tags_kind])} captions of tags; {path.name} holds one.")
        row = {"caption": "\n".join(texts[caption_kind]), "tags": "".join(texts[tags_kind])}
        found[Path(record.image).relative_to(images).as_posix()] = {name: text for name, text in row.items() if text}
    write_text(path, json.dumps(found, ensure_ascii=False, indent=1) + "\n")
