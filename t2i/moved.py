"""Images that stand elsewhere than when a stage named them. Their content is what it was, so nothing is done again: the
files that name them follow."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import JsonValue

from t2i.files import write_parts
from t2i.resources import resolve_path
from t2i.rundir import CONFIG, DONE, read_done, read_json, write_json

PLACES = "places"
"""Key of `config.json`: where the files that a stage names stood, and those of the stages it reads."""
_NAMING = ("records.jsonl", "pairs.jsonl")
"""Files of a stage's folder that name images of the user absolutely."""
_FIELDS = ("image", "chosen", "rejected")
"""Fields of their rows that do."""


def places(fingerprint: str, files: Mapping[str, Any], read: Iterable[Mapping[str, Any]]) -> dict[str, JsonValue]:
    """Absolute path of every file that a stage, or one that it reads, names, by "fingerprint.dotted field".

    files: {dotted field: {path, sha256}}; read: configs of the stages that it reads.
    """
    found: dict[str, JsonValue] = {}
    for config in read:
        found |= config[PLACES]
    return found | {f"{fingerprint}.{key}": os.path.abspath(resolve_path(file["path"])) for key, file in files.items()}


def moves(folder: Path, config: Mapping[str, Any]) -> dict[str, str]:
    """Old place -> new one, of what the files of a finished stage may name. config: the stage's as it is planned."""
    if not any((folder / name).is_file() for name in _NAMING):
        return {}
    recorded: Any = (read_json(folder / CONFIG) or {}).get(PLACES, {})
    now = config[PLACES]
    return {old: now[key] for key, old in recorded.items() if now.get(key, old) != old}


def was_cut_short(folder: Path) -> bool:
    """Whether `follow` was killed in this finished folder: only then does its marker not list `config.json`."""
    done = read_done(folder)
    return done is not None and CONFIG not in done.files


def follow(folder: Path, config: Mapping[str, Any]) -> None:
    """Write the new places into the files of a finished stage. An image that is not at its new place stays as it is."""
    moved = {Path(old): Path(new) for old, new in moves(folder, config).items()}
    # A file that was moved took along what it names relatively.
    roots = {old.parent if new.is_file() else old: new.parent if new.is_file() else new for old, new in moved.items()}
    done: Any = read_json(folder / DONE) or {}
    names = [name for name in _NAMING if (folder / name).is_file()]
    # A kill in between leaves a finished folder, which follows once more.
    listed = {name: size for name, size in done["files"].items() if name not in (*names, CONFIG)}
    write_json(folder / DONE, {**done, "files": listed})
    for name in names:
        write_parts(folder / name, _lines(folder / name, roots))
    write_json(folder / CONFIG, {**(read_json(folder / CONFIG) or {}), PLACES: config[PLACES]})
    sizes = {name: (folder / name).stat().st_size for name in (*names, CONFIG)}
    # Sizes are added, not replaced: one that was killed before has taken these names out of the list.
    write_json(folder / DONE, {**done, "files": dict(sorted((done["files"] | sizes).items()))})


def _lines(path: Path, roots: Mapping[Path, Path]) -> Iterator[bytes]:
    with path.open("rb") as file:
        for line in file:
            row = json.loads(line)
            named = {field: _moved(row[field], roots) for field in _FIELDS if field in row}
            is_same = all(row[field] == image for field, image in named.items())
            # As rows are written: see `t2i.records.write_jsonl`.
            yield line if is_same else (json.dumps(row | named, ensure_ascii=False, sort_keys=True) + "\n").encode()


def _moved(image: str, roots: Mapping[Path, Path]) -> str:
    for old, new in roots.items():
        if Path(image).is_relative_to(old) and (there := new / Path(image).relative_to(old)).is_file():
            return str(there)
    return image
