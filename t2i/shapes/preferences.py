"""Hidden preferences of the embedded world: functions of a scene that a reward model has to find out from pairs.

Each says by a number how much a scene is liked. None can be told from brightness, from the size of the file or from the
size and number of the objects: these predict the better of two scenes with an accuracy near one half.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from t2i.errors import DataError
from t2i.shapes.scenes import Group, Scene

WARM = frozenset({"red", "orange", "yellow", "purple"})
POINTED = frozenset({"triangle", "star"})


def warmth(scene: Scene) -> float:
    """Share of the objects whose color is warm, 0 to 1."""
    return _share(scene, lambda group: group.colour in WARM)


def pointedness(scene: Scene) -> float:
    """Share of the objects that are triangles or stars, 0 to 1."""
    return _share(scene, lambda group: group.shape in POINTED)


def warm_and_pointed(scene: Scene) -> float:
    """Warmth, and half as much pointedness, 0 to 1.5: color comes first, shape decides among equals."""
    return warmth(scene) + pointedness(scene) / 2


PREFERENCES: Mapping[str, Callable[[Scene], float]] = {
    "pointedness": pointedness,
    "warm_and_pointed": warm_and_pointed,
    "warmth": warmth,
}
"""Name in a recipe -> preference."""


def _share(scene: Scene, is_liked: Callable[[Group], bool]) -> float:
    if not all(group.is_complete for group in scene.groups):
        raise DataError(f"shapes scene: {scene} is partial, expected a complete one to tell how it is liked.")
    numbers = [group.number or 0 for group in scene.groups]
    liked = [number for group, number in zip(scene.groups, numbers, strict=True) if is_liked(group)]
    return sum(liked) / sum(numbers)
