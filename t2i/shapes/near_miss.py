"""Descriptions that are wrong in one thing: what a picture must not be mistaken for.

An image painted from one and scored by the true prompt is a hard negative, as the swapped captions of Yuksekgonul et
al. (2023, arXiv:2210.01936) are for CLIP.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import TypeVar

import numpy as np

from t2i.randomness import generator
from t2i.shapes.captions import describe, parse_caption
from t2i.shapes.scenes import BACKGROUNDS, COLOURS, MAX_OBJECTS, SHAPES, SIZES, Group, Scene, opposite, split_of

Item = TypeVar("Item")


def near_miss(prompt: str, seed: int) -> str | None:
    """The prompt with one thing changed that it says: a shape, colour, size, number, the relation or the background.

    Each thing is as likely, and so is each other value of it; a relation becomes its opposite, a number its neighbour.
    A complete scene stays on its side of the split, so that held-out scenes are not painted for training. The draw
    depends on the seed and the prompt's text alone. None for a prompt outside the grammar of captions, or one that
    says nothing that could be changed.
    """
    scene = parse_caption(prompt)
    if scene is None:
        return None
    number = int.from_bytes(hashlib.sha256(prompt.encode()).digest()[:8], "little")
    random = generator(seed, "shapes/near_miss", number)
    in_lots_order = (
        changed for changes in _shuffled(_changes(scene), random) for changed in _shuffled(changes, random)
    )
    sound = (changed for changed in in_lots_order if _is_sound(changed, scene))
    return next((describe(changed, "dense") for changed in sound), None)


def _shuffled(items: Iterable[Item], random: np.random.Generator) -> list[Item]:
    known = list(items)
    return [known[int(place)] for place in random.permutation(len(known))]


def _changes(scene: Scene) -> Iterator[list[Scene]]:
    """For each thing that the scene tells, all scenes with another value of it."""
    for place, group in enumerate(scene.groups):
        for others in _group_changes(group):
            yield [_with_group(scene, place, other) for other in others]
    if scene.relation is not None:
        yield [replace(scene, relation=opposite(scene.relation))]
    if scene.background is not None:
        yield [replace(scene, background=other) for other in BACKGROUNDS if other != scene.background]


def _group_changes(group: Group) -> Iterator[list[Group]]:
    if group.shape is not None:
        yield [replace(group, shape=other) for other in SHAPES if other != group.shape]
    if group.colour is not None:
        yield [replace(group, colour=other) for other in COLOURS if other != group.colour]
    if group.size is not None:
        yield [replace(group, size=other) for other in SIZES if other != group.size]
    if group.number is not None:
        yield [replace(group, number=other) for other in (group.number - 1, group.number + 1) if other >= 1]


def _with_group(scene: Scene, place: int, group: Group) -> Scene:
    return replace(scene, groups=(*scene.groups[:place], group, *scene.groups[place + 1 :]))


def _is_sound(scene: Scene, original: Scene) -> bool:
    """Whether the world could draw it, its groups can be told apart, and it is on the original's side of the split."""
    groups = scene.groups
    if len({(group.shape, group.colour, group.size) for group in groups}) < len(groups):
        return False
    if sum(group.number or 1 for group in groups) > max(
        MAX_OBJECTS, sum(group.number or 1 for group in original.groups)
    ):
        return False
    return not original.is_complete or split_of(scene) == split_of(original)
