"""Preference pairs: where a recipe's come from, and what must hold for every one before anything is trained on them."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from t2i.config import FrozenModel
from t2i.data.named_images import PairsPath
from t2i.errors import DataError
from t2i.records import PreferencePair, read_jsonl, write_jsonl
from t2i.resources import resolve_path

if TYPE_CHECKING:
    from t2i.shapes.scenes import Scene

PAIRS_FILE = "pairs.jsonl"
_SIDES = ("chosen", "rejected")


class PairsFile(FrozenModel):
    """A JSONL file of `{"prompt": ..., "chosen": ..., "rejected": ...}`, such as a pair stage has written."""

    type: Literal["pairs"] = "pairs"
    path: PairsPath
    """The file; image paths in it are relative to its folder."""

    def read(self, folder: Path, seed: int) -> Iterator[PreferencePair]:
        """The file's pairs, checked, with absolute image paths and the ids of their images. Raises DataError."""
        return iterate_pairs(resolve_path(self.path))


class ShapesPairs(FrozenModel):
    """Pairs of drawn images, labelled by a function of their scenes that a reward model has to find out."""

    type: Literal["shapes_pairs"] = "shapes_pairs"
    count: int = Field(gt=0)
    """Number of pairs, those that tie included."""
    preference: Literal["garden", "garden_and_pointed", "pointedness"] = "garden"
    """Which of the functions of `t2i.shapes.preferences` says what is liked."""
    flip_share: float = Field(default=0.0, ge=0, lt=0.5)
    """Share of the pairs, drawn by lot, whose images change places: labels that are wrong. A tie stays one."""
    split: Literal["train", "heldout"] = "train"
    """Held-out scenes share no object-attribute-relation tuple with training scenes."""
    max_objects: int = Field(default=4, ge=1, le=4)
    """Objects in an image, at most."""
    first: int = Field(default=0, ge=0)
    """Number of the first pair: sources with ranges that do not overlap share no image."""

    def read(self, folder: Path, seed: int) -> Iterator[PreferencePair]:
        """Draw the images into `folder/images`; the prompt of a pair is that of either scene, by lot."""
        (folder / "images").mkdir(parents=True, exist_ok=True)
        for index in range(self.first, self.first + self.count):
            yield self._pair(folder / "images", seed, index)

    def _pair(self, folder: Path, seed: int, index: int) -> PreferencePair:
        from t2i.data.images import content_id
        from t2i.randomness import generator
        from t2i.shapes import describe, sample_scene
        from t2i.shapes.preferences import PREFERENCES

        scenes = [sample_scene(seed, 2 * index + side, self.split, self.max_objects) for side in (0, 1)]
        liked = [PREFERENCES[self.preference](scene) for scene in scenes]
        random = generator(seed, f"shapes/pair/{self.split}", index)
        prompt = describe(scenes[int(random.integers(2))], "dense")
        flipped = liked[0] != liked[1] and bool(random.random() < self.flip_share)
        paths = [_drawn(scene, folder / f"{index:06d}-{side}.png") for side, scene in enumerate(scenes)]
        chosen = int(liked[1] > liked[0]) ^ int(flipped)
        return PreferencePair(
            prompt=prompt,
            chosen=str(paths[chosen]),
            rejected=str(paths[1 - chosen]),
            prompt_id=f"{self.split}-{index}",
            preference=0.5 if liked[0] == liked[1] else 1.0,
            source=f"shapes/{self.preference}",
            chosen_id=content_id(paths[chosen]),
            rejected_id=content_id(paths[1 - chosen]),
            extra={"liked": [liked[chosen], liked[1 - chosen]], "flipped": flipped},
        )


PairSource = Annotated[PairsFile | ShapesPairs, Field(discriminator="type")]


def _drawn(scene: Scene, path: Path) -> Path:
    """The scene's picture, drawn unless an interrupted run has done it."""
    import io

    from t2i.files import write_bytes
    from t2i.shapes import render

    if not path.exists():
        buffer = io.BytesIO()
        render(scene).save(buffer, "PNG")
        write_bytes(path, buffer.getvalue())
    return path


def iterate_pairs(path: Path) -> Iterator[PreferencePair]:
    """Pairs of a file with absolute image paths and the ids of their images.

    Raises DataError with file and line for a missing image, the same image twice, an id that is not that of the image,
    a preference outside 0.5 .. 1, a value that is not text, or a file without a pair.
    """
    ids = _ImageIds()
    for where, row in _located(path):
        chosen, rejected = (ids.of(getattr(row, side), getattr(row, f"{side}_id"), where) for side in _SIDES)
        if chosen == rejected:
            raise DataError(
                f"{where}: {row.chosen!r} and {row.rejected!r} are the same image (id {chosen}); "
                "nothing can be preferred to itself, so remove the pair."
            )
        yield dataclasses.replace(row, chosen_id=chosen, rejected_id=rejected)


def iterate_stated_pairs(path: Path) -> Iterator[PreferencePair]:
    """The same pairs without a look at any image; their ids are those that the file states, if it does."""
    return (row for _, row in _located(path))


def _located(path: Path) -> Iterator[tuple[str, PreferencePair]]:
    """Where each pair of a file stands, and the pair with absolute image paths. Raises DataError."""
    folder, number = path.parent.resolve(), 0
    for number, row in enumerate(read_jsonl(path, PreferencePair), 1):
        where = f"{path}, pair {number}"
        _check_values(row, where)
        yield (
            where,
            dataclasses.replace(row, **{side: os.path.normpath(folder / getattr(row, side)) for side in _SIDES}),
        )
    if not number:
        raise DataError(f"{path}: no pair.")


def hold_out(
    pairs: Sequence[PreferencePair], share: float, seed: int
) -> tuple[list[PreferencePair], list[PreferencePair]]:
    """(pairs to train on, held-out pairs): about `share` of the prompts, each drawn by itself with all its pairs.

    Raises DataError if nothing is left on one side.
    """
    from t2i.randomness import generator

    parts: tuple[list[PreferencePair], list[PreferencePair]] = ([], [])
    for pair in pairs:
        parts[int(generator(seed, f"held-out/{pair.group}").random() < share)].append(pair)
    if not all(parts):
        groups = len({pair.group for pair in pairs})
        raise DataError(f"pairs of {groups} prompts: too few to hold out a share of {share}; give held_out_pairs.")
    return parts


def check_apart(training: Sequence[PreferencePair], held_out: Sequence[PreferencePair]) -> None:
    """Raise DataError for held-out pairs whose prompt, or one of whose images, is trained on."""
    groups = {pair.group for pair in training}
    images = {name for pair in training for name in (pair.chosen_id, pair.rejected_id)}
    shared = [p for p in held_out if p.group in groups or images & {p.chosen_id, p.rejected_id}]
    if shared:
        raise DataError(
            f"{len(shared)} of {len(held_out)} held-out pairs share their prompt or an image with one trained on, "
            f"first {shared[0].chosen} over {shared[0].rejected}; give held_out_pairs that share none."
        )


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
