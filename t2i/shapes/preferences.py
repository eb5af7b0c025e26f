"""Hidden preferences of the embedded world: functions of a scene that a reward model has to find out from pairs.

Each says by a number how much a scene is liked. None can be told from brightness, saturation, sharpness, size of the
file or size and number of the objects: these predict the better of two scenes with an accuracy near one half.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from t2i.errors import DataError
from t2i.shapes.scenes import Group, Scene

# Of all halves of the palette, nearly the one that tells least about brightness, saturation and contrast.
GARDEN = frozenset({"green", "yellow", "orange", "purple"})
POINTED = frozenset({"triangle", "star"})


def garden(scene: Scene) -> float:
    """Share of the objects that have a color of leaves and flowers: green, yellow, orange or purple, 0 to 1."""
    return _share(scene, lambda group: group.colour in GARDEN)


def pointedness(scene: Scene) -> float:
    """Share of the objects that are triangles or stars, 0 to 1."""
    return _share(scene, lambda group: group.shape in POINTED)


def garden_and_pointed(scene: Scene) -> float:
    """Garden colors, and half as much pointedness, 0 to 1.5: color comes first, shape decides among equals."""
    return garden(scene) + pointedness(scene) / 2


PREFERENCES: Mapping[str, Callable[[Scene], float]] = {
    "garden": garden,
    "garden_and_pointed": garden_and_pointed,
    "pointedness": pointedness,
}
"""Name in a recipe -> preference."""


def _share(scene: Scene, is_liked: Callable[[Group], bool]) -> float:
    if not all(group.is_complete for group in scene.groups):
        raise DataError(f"shapes scene: {scene} is partial, expected a complete one to tell how it is liked.")
    numbers = [group.number or 0 for group in scene.groups]
    liked = [number for group, number in zip(scene.groups, numbers, strict=True) if is_liked(group)]
    return sum(liked) / sum(numbers)
