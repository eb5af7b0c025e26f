"""Short prompts of the shapes world written out as dense captions: what they leave open is drawn by lot."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import replace

import numpy as np

from t2i.randomness import generator
from t2i.shapes.captions import describe, parse_caption
from t2i.shapes.scenes import BACKGROUNDS, COLOURS, RELATIONS, SHAPES, SIZES, Group, Scene

_MAX_DRAWS = 100


def write_out(prompt: str, seed: int) -> str | None:
    """The prompt as a dense caption: what it says stays, and sizes, colours, shapes, a relation and a background are
    added where it is silent. A group without a number keeps none.

    The draw depends on the seed and the prompt's text alone. None for a prompt outside the grammar of captions.
    """
    scene = parse_caption(prompt)
    if scene is None:
        return None
    number = int.from_bytes(hashlib.sha256(prompt.encode()).digest()[:8], "little")
    random = generator(seed, "shapes/write_out", number)
    return describe(_complete(scene, random), "dense")


def _complete(scene: Scene, random: np.random.Generator) -> Scene:
    # Two like groups would be one to whoever looks at the picture, so they are told apart where the prompt allows it.
    draws = (tuple(_fill(group, random) for group in scene.groups) for _ in range(_MAX_DRAWS))
    groups = next((groups for groups in draws if _are_unlike(groups)), scene.groups)
    groups = tuple(_fill(group, random) for group in groups)
    relation = scene.relation or (_draw(RELATIONS, random) if len(groups) == 2 else None)
    return replace(scene, groups=groups, relation=relation, background=scene.background or _draw(BACKGROUNDS, random))


def _are_unlike(groups: Sequence[Group]) -> bool:
    return len({(group.shape, group.colour, group.size) for group in groups}) == len(groups)


def _fill(group: Group, random: np.random.Generator) -> Group:
    return Group(
        group.shape or _draw(SHAPES, random),
        group.colour or _draw(COLOURS, random),
        group.size or _draw(SIZES, random),
        group.number,
    )


def _draw(words: Collection[str], random: np.random.Generator) -> str:
    known = tuple(words)
    return known[int(random.integers(len(known)))]
