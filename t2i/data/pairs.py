"""Preference pairs: where a recipe's come from, and what must hold for every one before anything is trained on them."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

from t2i.config import FrozenModel, LocalPath
from t2i.errors import DataError
from t2i.records import PreferencePair, read_jsonl, write_jsonl
from t2i.resources import resolve_path

PAIRS_FILE = "pairs.jsonl"


class PairsFile(FrozenModel):
    """A JSONL file of `{"prompt": ..., "chosen": ..., "rejected": ...}`, such as a pair stage has written."""

    type: Literal["pairs"] = "pairs"
    path: LocalPath
    """The file; image paths in it are relative to its folder."""

    def read(self, folder: Path, seed: int) -> Iterator[PreferencePair]:
        """The file's pairs, checked, with absolute image paths and the ids of their images. Raises DataError."""
        return iterate_pairs(resolve_path(self.path))


def iterate_pairs(path: Path) -> Iterator[PreferencePair]:
    """Pairs of a file with absolute image paths and the ids of their images.

    Raises DataError with file and line for a missing image, the same image twice, an id that is not that of the image,
    a preference outside 0.5 .. 1, a value that is not text, or a file without a pair.
    """
    folder = path.parent.resolve()
    ids = _ImageIds()
    number = 0
    for number, row in enumerate(read_jsonl(path, PreferencePair), 1):
        where = f"{path}, pair {number}"
        _check_values(row, where)
        paths = {side: os.path.normpath(folder / getattr(row, side)) for side in ("chosen", "rejected")}
        found = {f"{side}_id": ids.of(image, getattr(row, f"{side}_id"), where) for side, image in paths.items()}
        if found["chosen_id"] == found["rejected_id"]:
            raise DataError(
                f"{where}: {row.chosen!r} and {row.rejected!r} are the same image (id {found['chosen_id']}); "
                "nothing can be preferred to itself, so remove the pair."
            )
        yield dataclasses.replace(row, **paths, **found)
    if not number:
        raise DataError(f"{path}: no pair.")


def save_pairs(folder: Path, pairs: Iterable[PreferencePair]) -> Path:
    """Write `folder/pairs.jsonl`. Images of neighbouring stages are named relatively: a runs folder can be moved."""
    run, here = folder.parent.resolve(), folder.resolve()

    def named(image: str) -> str:
        path = here / image
        return os.path.relpath(path, here) if path.is_relative_to(run) else str(path)

    path = folder / PAIRS_FILE
    write_jsonl(path, (dataclasses.replace(p, chosen=named(p.chosen), rejected=named(p.rejected)) for p in pairs))
    return path


def _check_values(row: PreferencePair, where: str) -> None:
    for name in ("prompt", "chosen", "rejected", "prompt_id", "aspect", "source", "chosen_id", "rejected_id"):
        value = getattr(row, name)
        if not isinstance(value, str):
            raise DataError(f"{where}: {name} is {value!r}, expected text.")
    if (
        isinstance(row.preference, bool)
        or not isinstance(row.preference, int | float)
        or not 0.5 <= row.preference <= 1
    ):
        raise DataError(
            f"{where}: preference is {row.preference!r}, expected 0.5 (a tie) to 1; below 0.5, swap the two images."
        )


class _ImageIds:
    """Ids of image files, each file read once."""

    def __init__(self) -> None:
        self._known: dict[str, str] = {}

    def of(self, image: str, stated: str, where: str) -> str:
        """Id of a file's bytes. Raises DataError if there is no such file, or its id is not the stated one."""
        from t2i.data.images import content_id

        if image not in self._known:
            if not Path(image).is_file():
                raise DataError(f"{where}: there is no image {image}.")
            self._known[image] = content_id(Path(image))
        found = self._known[image]
        if stated not in ("", found):
            raise DataError(f"{where}: {image} has the id {found}, the pair says {stated}; make the pairs again.")
        return found
