"""Which prompt belongs to which image of a folder."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

from rewards.errors import InputError
from rewards.images import OTHER_PICTURES, SUFFIXES


@dataclass(frozen=True)
class Pairing:
    """Images of a folder with their prompts (None: there is none), in order, and what could not be matched."""

    images: tuple[Path, ...]
    prompts: tuple[str | None, ...]
    missing_images: tuple[str, ...] = ()
    """Images that the prompt file names and the folder lacks."""
    categories: tuple[str, ...] = ()
    """Category of each image's prompt, empty for none; no entries where no prompt has one."""
    not_read: tuple[str, ...] = ()
    """Pictures below the folder of formats that no scorer is given."""


def find_images(folder: Path) -> list[Path]:
    """Image files below a folder, hidden ones left out, in natural order (2.png before 10.png).

    Raises InputError if it is no folder, or has none.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: there is no such folder.")
    found = _files(folder, SUFFIXES)
    if not found:
        others = pictures_not_read(folder)
        told = f" There are {len(others)} of formats that are not read: {others[0]}." if others else ""
        raise InputError(f"{folder}: no images; looked for {', '.join(sorted(SUFFIXES))}.{told}")
    return found


def pictures_not_read(folder: Path) -> tuple[str, ...]:
    """Pictures below a folder that `find_images` leaves out although they are pictures, by their ending."""
    return tuple(map(str, _files(folder, OTHER_PICTURES)))


def _files(folder: Path, endings: frozenset[str]) -> list[Path]:
    found = [
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in endings
        and path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    ]
    return sorted(found, key=lambda path: _natural(path.relative_to(folder).as_posix()))


def _natural(text: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"([0-9]+)", text)] + [(-1, text)]


def read_prompts(path: Path) -> list[str]:
    """The prompts of a .txt, one a line, or of a .jsonl with "prompt", empty ones left out.

    Raises InputError for another kind of file, or no prompt in it.
    """
    if path.suffix == ".txt":
        found = [line.strip() for line in _lines(path)]
    elif path.suffix == ".jsonl":
        found = [_prompt(line, f"{path}:{number}") for number, line in enumerate(_lines(path), 1) if line.strip()]
    else:
        raise InputError(f"{path}: expected a .txt with a prompt a line, or a .jsonl with prompt.")
    prompts = [prompt for prompt in found if prompt]
    if not prompts:
        raise InputError(f"{path}: there are no prompts in it.")
    return prompts


def _prompt(line: str, where: str) -> str:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise InputError(f"{where}: not JSON ({error}).") from error
    prompt = row.get("prompt") if isinstance(row, dict) else None
    if not isinstance(prompt, str):
        raise InputError(f'{where}: expected an object with "prompt", text.')
    return prompt.strip()


def pair_prompts(folder: Path, prompts: Path | None) -> Pairing:
    """Find a folder's images and their prompts.

    prompts: None; a .txt with one prompt per image in natural order of the file names (an empty line: none); or a
    .jsonl of {"image": ..., "prompt": ...} and optionally "category", paths relative to that file or to the folder.
    Raises InputError with file and line.
    """
    images = find_images(folder)
    if prompts is None:
        return Pairing(tuple(images), (None,) * len(images), not_read=pictures_not_read(folder))
    lines = _lines(prompts)
    if prompts.suffix == ".txt":
        if len(lines) != len(images):
            raise InputError(f"{prompts}: {len(lines)} lines for {len(images)} images in {folder}; expected one each.")
        texts = tuple(line.strip() or None for line in lines)
        return Pairing(tuple(images), texts, not_read=pictures_not_read(folder))
    if prompts.suffix != ".jsonl":
        raise InputError(f"{prompts}: expected a .jsonl of image and prompt, or a .txt with one prompt per image.")
    return _match_rows(images, folder, prompts, lines)


def _lines(path: Path) -> list[str]:
    try:
        # Not splitlines: it would also split at characters that a prompt may hold.
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}).") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start}).") from error
    return lines[:-1] if lines[-1] == "" else lines


def place_of(path: Path) -> Path:
    """A path without links to folders. A link to a file stays one: it is an image of its own, whatever it leads to."""
    return path.parent.resolve() / path.name


def _match_rows(images: list[Path], folder: Path, source: Path, lines: list[str]) -> Pairing:
    by_path = {place_of(path): path for path in images}
    found: dict[Path, tuple[str | None, str]] = {}
    missing = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        name, prompt, category = _row(line, f"{source}:{number}")
        places = {place_of(base / name) for base in (source.parent, folder)} & by_path.keys()
        if len(places) > 1:
            raise InputError(f"{source}:{number}: {name!r} is found beside the file and in {folder}; make it one.")
        if not places:
            missing.append(name)
            continue
        path = by_path[places.pop()]
        if path in found:
            raise InputError(f"{source}:{number}: image {name!r} is named twice; keep one prompt for it.")
        found[path] = prompt, category
    matched = [found.get(path, (None, "")) for path in images]
    prompts, categories = (tuple(part) for part in zip(*matched, strict=True))
    named = categories if any(categories) else ()
    return Pairing(tuple(images), prompts, tuple(missing), named, pictures_not_read(folder))


def _row(line: str, where: str) -> tuple[str, str | None, str]:
    """Image, prompt and category of a line."""
    try:
        row = json.loads(line)
    except ValueError as error:
        raise InputError(f"{where}: not JSON ({error}).") from error
    name = row.get("image") if isinstance(row, dict) else None
    if not isinstance(name, str):
        raise InputError(f'{where}: expected an object with "image" and "prompt", both text.')
    prompt = row.get("prompt")
    if not (prompt is None or isinstance(prompt, str)):
        raise InputError(f"{where}: the prompt of {name!r} is {type(prompt).__name__}, expected text.")
    category = row.get("category")
    return name, (prompt.strip() or None) if prompt else None, category if isinstance(category, str) else ""
