"""The hidden preferences, worked out by hand, and that nothing trivial predicts them."""

from __future__ import annotations

import numpy as np
import pytest

import rewards
from t2i.errors import DataError
from t2i.shapes import render, sample_scene
from t2i.shapes.preferences import PREFERENCES, garden, garden_and_pointed, pointedness
from t2i.shapes.scenes import RADIUS_PX, Group, Scene


def scene(*groups: Group) -> Scene:
    return Scene(groups, "above" if len(groups) == 2 else None, "black")


def test_shares_by_hand() -> None:
    three_of_four = scene(Group("star", "green", "small", 3), Group("circle", "blue", "large", 1))
    assert garden(three_of_four) == pytest.approx(3 / 4)
    assert pointedness(three_of_four) == pytest.approx(3 / 4)
    assert garden_and_pointed(three_of_four) == pytest.approx(3 / 4 + 3 / 8)
    assert garden_and_pointed(scene(Group("square", "yellow", "small", 2))) == 1.0
    assert garden_and_pointed(scene(Group("triangle", "white", "small", 2))) == 0.5


def test_a_partial_scene_is_liked_by_nobody() -> None:
    with pytest.raises(DataError, match="partial"):
        garden(scene(Group("circle", "green", None, 1)))


@pytest.mark.parametrize("name", PREFERENCES)
@pytest.mark.parametrize("split", ["train", "heldout"])
def test_no_trivial_property_predicts_a_preference(name: str, split: str) -> None:
    scenes = [sample_scene(11, number, split, max_objects=2) for number in range(1000)]  # pyright: ignore
    images = [render(one) for one in scenes]
    controls = ("brightness", "jpeg_size", "saturation", "sharpness")
    properties = {control: rewards.load(control).score(images) for control in controls}
    properties["number"] = np.array([sum(group.number or 0 for group in one.groups) for one in scenes])
    areas = [[(group.number or 0) * RADIUS_PX[str(group.size)] ** 2 for group in one.groups] for one in scenes]
    properties["area"] = np.array([sum(area) for area in areas])
    liked = np.array([PREFERENCES[name](one) for one in scenes])
    margin = np.sign(liked[0::2] - liked[1::2])
    for values in properties.values():
        hits = np.sign(values[0::2].astype(float) - values[1::2]) * margin
        accuracy = (hits[margin != 0] + 1).mean() / 2
        # Of either direction.
        assert abs(accuracy - 0.5) < 0.15
