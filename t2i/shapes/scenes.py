"""Scenes of the embedded world: one or two groups of identical objects, and how they are drawn by lot.

A scene that `sample_scene` returns is complete. A *partial* scene, parsed from a caption or read from a picture, has
None where nothing is known; one read from a picture may also hold more groups or objects than the world ever draws.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import numpy as np

from t2i.errors import ConfigError, DataError
from t2i.randomness import derive_key, generator

SHAPES = ("circle", "square", "triangle", "star")
SIZES = ("small", "large")
RELATIONS = ("left of", "right of", "above", "below")
COLOURS: Mapping[str, tuple[int, int, int]] = {
    "red": (220, 40, 40),
    "green": (40, 170, 60),
    "blue": (50, 80, 220),
    "yellow": (240, 210, 40),
    "purple": (150, 60, 190),
    "orange": (245, 140, 30),
    "cyan": (60, 200, 215),
    "white": (245, 245, 245),
}
BACKGROUNDS: Mapping[str, tuple[int, int, int]] = {"black": (15, 15, 18), "gray": (120, 120, 124), "navy": (25, 35, 90)}
IMAGE_SIZE_PX = 64
RADIUS_PX: Mapping[str, float] = {"small": 7.0, "large": 11.0}
MAX_OBJECTS = 4

Split = Literal["train", "heldout"]
Skill = Literal["colour", "counting", "spatial"]
Point = tuple[float, float]
Positions = tuple[tuple[Point, ...], ...]

TWO_GROUP_RATE = 0.7
HELD_OUT_ONE_IN = 8
_OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
# Around the centre of a 32 px cell: leaves 1.6 px to the border and 3.3 px between two large neighbours.
_CELL_JITTER_PX: Mapping[str, float] = {"small": 5.0, "large": 2.8}
# Of an object that has its half to itself, along the half: small enough that the relation stays the dominant direction.
_HALF_JITTER_PX = 6.0
_CENTRE_JITTER_PX = 8.0
# A relation must be clearly the main direction: one offset this many times the other.
_DOMINANCE = 1.2
_MAX_DRAWS = 10_000


@dataclass(frozen=True)
class Group:
    """`number` identical objects. None: not known, or, where a group serves as a description, any."""

    shape: str | None = None
    colour: str | None = None
    size: str | None = None
    number: int | None = None

    def __post_init__(self) -> None:
        _check("shape", self.shape, SHAPES)
        _check("colour", self.colour, tuple(COLOURS))
        _check("size", self.size, SIZES)
        if self.number is not None and self.number < 1:
            raise DataError(f"shapes group: number is {self.number}, expected 1 or more, or None.")

    @property
    def is_complete(self) -> bool:
        """Whether every attribute is known."""
        return None not in (self.shape, self.colour, self.size, self.number)


@dataclass(frozen=True)
class Scene:
    """What a picture shows. relation: from the first group to the second, None unless there are exactly two.

    positions: for each group the (x, y) centres of its objects in pixels of the 64x64 image, y downwards; empty when
    not known.
    """

    groups: tuple[Group, ...]
    relation: str | None = None
    background: str | None = None
    positions: Positions = ()

    def __post_init__(self) -> None:
        _check("relation", self.relation, RELATIONS)
        _check("background", self.background, tuple(BACKGROUNDS))
        if not self.groups:
            raise DataError("shapes scene: no groups, expected at least one.")
        if self.relation is not None and len(self.groups) != 2:
            raise DataError(f"shapes scene: {len(self.groups)} groups with a relation, which joins exactly two.")
        if self.positions and tuple(map(len, self.positions)) != tuple(group.number for group in self.groups):
            raise DataError("shapes scene: positions do not match the numbers of the groups, expected one per object.")

    @property
    def is_complete(self) -> bool:
        """Whether nothing but the positions can be unknown."""
        related = self.relation is not None or len(self.groups) == 1
        return related and self.background is not None and all(group.is_complete for group in self.groups)

    def without_positions(self) -> Scene:
        """The same scene as a dense caption could tell it."""
        return replace(self, positions=())

    def to_json(self) -> dict[str, Any]:
        """A dict of plain JSON values; `from_json` takes it back."""
        return {
            "groups": [{field.name: getattr(group, field.name) for field in fields(group)} for group in self.groups],
            "relation": self.relation,
            "background": self.background,
            "positions": [[list(point) for point in points] for points in self.positions],
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Scene:
        """Inverse of `to_json`. Raises DataError for missing or unknown keys and for values outside the world."""
        try:
            groups = tuple(Group(**group) for group in values["groups"])
            positions = tuple(tuple((float(x), float(y)) for x, y in points) for points in values["positions"])
            return cls(groups, values["relation"], values["background"], positions)
        except (KeyError, TypeError) as error:
            expected = "groups, relation, background, positions"
            raise DataError(f"shapes scene: not a scene ({error!r}); its keys are {expected}.") from error


def opposite(relation: str) -> str:
    """The relation seen from the other group: `left of` for `right of`."""
    return _OPPOSITE[relation]


def relation_between(first: Sequence[Point], second: Sequence[Point]) -> str | None:
    """Relation from the first objects to the second, given their centres; None where no direction is clear.

    Clear: along one axis the objects do not interleave, and the centroids differ there clearly more than across.
    """
    offsets = [_mean_of(second, axis) - _mean_of(first, axis) for axis in (0, 1)]
    axis = 0 if abs(offsets[0]) > abs(offsets[1]) else 1
    is_dominant = abs(offsets[axis]) > _DOMINANCE * abs(offsets[1 - axis])
    low, high = (first, second) if offsets[axis] > 0 else (second, first)
    if not is_dominant or max(point[axis] for point in low) >= min(point[axis] for point in high):
        return None
    relation = ("left of", "above")[axis]
    return relation if offsets[axis] > 0 else opposite(relation)


def assemble_scene(objects: Sequence[tuple[Group, Point]], background: str) -> Scene:
    """Join like objects to groups, ordered so that the relation of two groups is `left of` or `above`."""
    members: dict[Group, list[Point]] = {}
    for group, point in objects:
        members.setdefault(group, []).append(point)
    groups = [(replace(group, number=len(points)), tuple(points)) for group, points in members.items()]
    relation = relation_between(groups[0][1], groups[1][1]) if len(groups) == 2 else None
    if relation in ("right of", "below"):
        groups, relation = groups[::-1], opposite(relation)
    return Scene(tuple(group for group, _ in groups), relation, background, tuple(points for _, points in groups))


def composition_key(scene: Scene) -> tuple[str | int, ...]:
    """What a scene composes, the same for "A left of B" and "B right of A".

    One group: (colour, shape, size, number). Two: (colour, shape, relation, colour, shape), the relation `left of` or
    `above`. Raises DataError for a partial scene.
    """
    if not scene.is_complete:
        raise DataError(f"shapes scene: {scene} is partial, expected a complete one to compute its composition key.")
    first, *rest = scene.groups
    if not rest:
        return (str(first.colour), str(first.shape), str(first.size), int(first.number or 0))
    second, relation = rest[0], str(scene.relation)
    if relation in ("right of", "below"):
        first, second, relation = second, first, opposite(relation)
    return (str(first.colour), str(first.shape), relation, str(second.colour), str(second.shape))


def needs_skill(scene: Scene, skill: Skill) -> bool:
    """Whether a complete scene puts a skill to the test; it may test several.

    colour: two single objects of different shapes and colours, which can be mixed up. counting: a group of more than
    one. spatial: two groups. What a scene tests can be asked about.
    """
    numbers = [group.number for group in scene.groups]
    if skill == "colour":
        kinds = [{group.colour for group in scene.groups}, {group.shape for group in scene.groups}]
        return numbers == [1, 1] and all(len(kind) == 2 for kind in kinds)
    return len(numbers) == 2 if skill == "spatial" else max(number or 1 for number in numbers) > 1


def split_of(scene: Scene) -> Split:
    """Which split a complete scene belongs to: a fixed hash of its composition key holds out one key in eight."""
    return _split_of_key(composition_key(scene))


@functools.cache
def _split_of_key(key: tuple[str | int, ...]) -> Split:
    return "heldout" if derive_key(0, f"shapes/split/{key}") % HELD_OUT_ONE_IN == 0 else "train"


def sample_scene(seed: int, index: int, split: Split, max_objects: int = MAX_OBJECTS) -> Scene:
    """Scene number `index` of a split, a function of the arguments alone. max_objects: 1 to 4, both groups together."""
    if not 1 <= max_objects <= MAX_OBJECTS:
        raise ConfigError(f"max_objects: found {max_objects}, expected 1 to {MAX_OBJECTS}.")
    random = generator(seed, f"shapes/scene/{split}", index)
    for _ in range(_MAX_DRAWS):
        scene = _draw_scene(random, max_objects)
        if split_of(scene) == split:
            return replace(scene, positions=_draw_positions(random, scene))
    raise DataError(f"shapes: no scene of split '{split}' with max_objects={max_objects} in {_MAX_DRAWS} draws.")


def _check(name: str, value: str | None, known: tuple[str, ...]) -> None:
    if value is not None and value not in known:
        raise DataError(f"shapes {name}: found {value!r}, expected one of {', '.join(known)}.")


def _choose(random: np.random.Generator, values: tuple[str, ...]) -> str:
    return values[int(random.integers(len(values)))]


def _draw_group(random: np.random.Generator, max_number: int) -> Group:
    shape, colour, size = _choose(random, SHAPES), _choose(random, tuple(COLOURS)), _choose(random, SIZES)
    return Group(shape, colour, size, int(random.integers(1, max_number + 1)))


def _draw_scene(random: np.random.Generator, max_objects: int) -> Scene:
    """A scene of either split, without positions."""
    background = _choose(random, tuple(BACKGROUNDS))
    if max_objects == 1 or random.random() >= TWO_GROUP_RATE:
        return Scene((_draw_group(random, max_objects),), None, background)
    first = _draw_group(random, min(2, max_objects - 1))
    second = _draw_group(random, min(2, max_objects - (first.number or 1)))
    # Two groups alike in both could not be told apart by any question.
    while (second.shape, second.colour) == (first.shape, first.colour):
        second = replace(second, shape=_choose(random, SHAPES), colour=_choose(random, tuple(COLOURS)))
    return Scene((first, second), _choose(random, RELATIONS), background)


def _draw_positions(random: np.random.Generator, scene: Scene) -> Positions:
    if len(scene.groups) == 1:
        return (_draw_alone(random, scene.groups[0]),)
    first_low = scene.relation in ("left of", "above")
    is_horizontal = scene.relation in ("left of", "right of")
    halves = (16.0, 48.0) if first_low else (48.0, 16.0)
    return tuple(
        _draw_in_half(random, group, half, is_horizontal) for group, half in zip(scene.groups, halves, strict=True)
    )


def _draw_alone(random: np.random.Generator, group: Group) -> tuple[Point, ...]:
    """One object near the centre, or two to four in different quarters."""
    if group.number == 1:
        return (_jittered(random, 32.0, 32.0, _CENTRE_JITTER_PX, _CENTRE_JITTER_PX),)
    jitter = _CELL_JITTER_PX[str(group.size)]
    cells = sorted(random.permutation(4)[: group.number].tolist())
    return tuple(_jittered(random, 16.0 + 32 * (cell % 2), 16.0 + 32 * (cell // 2), jitter, jitter) for cell in cells)


def _draw_in_half(random: np.random.Generator, group: Group, half: float, is_horizontal: bool) -> tuple[Point, ...]:
    """Objects of one group in the half around `half` of the relation's axis, two of them stacked across it."""
    jitter = _CELL_JITTER_PX[str(group.size)]
    across = [(32.0, _HALF_JITTER_PX)] if group.number == 1 else [(16.0, jitter), (48.0, jitter)]
    points = [_jittered(random, half, centre, jitter, spread) for centre, spread in across]
    return tuple(points if is_horizontal else [(y, x) for x, y in points])


def _jittered(random: np.random.Generator, x: float, y: float, spread_x: float, spread_y: float) -> Point:
    shift_x, shift_y = random.uniform(-1, 1, size=2)
    return (round(x + float(shift_x) * spread_x, 2), round(y + float(shift_y) * spread_y, 2))


def _mean_of(points: Sequence[Point], axis: int) -> float:
    return sum(point[axis] for point in points) / len(points)
