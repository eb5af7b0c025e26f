"""Facts about the renderer."""

from __future__ import annotations

import time

import numpy as np
import pytest

from t2i.errors import DataError
from t2i.shapes import BACKGROUNDS, COLOURS, SHAPES, Group, Scene, render, sample_scene


def _single(shape: str, size: str = "large") -> Scene:
    return Scene((Group(shape, "red", size, 1),), None, "gray", (((32.0, 32.0),),))


def test_an_image_is_64_by_64_rgb_and_always_the_same() -> None:
    scene = sample_scene(0, 0, "train")
    assert render(scene).size == (64, 64)
    assert render(scene).mode == "RGB"
    assert render(scene).tobytes() == render(scene).tobytes()


@pytest.mark.parametrize("shape", SHAPES)
def test_an_object_has_its_colour_inside_and_the_background_outside(shape: str) -> None:
    pixels = np.asarray(render(_single(shape)))
    assert tuple(pixels[32, 32]) == COLOURS["red"]
    assert tuple(pixels[0, 0]) == BACKGROUNDS["gray"]


def test_a_circle_covers_pi_r_squared() -> None:
    pixels = np.asarray(render(_single("circle")), dtype=np.float64)
    coverage = (pixels[..., 0] - BACKGROUNDS["gray"][0]) / (COLOURS["red"][0] - BACKGROUNDS["gray"][0])
    assert coverage.sum() == pytest.approx(np.pi * 11**2, rel=0.02)


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_are_symmetric_about_their_position(shape: str) -> None:
    pixels = np.asarray(render(_single(shape)), dtype=np.int64)
    assert np.abs(pixels - pixels[:, ::-1]).mean() < 0.5


def test_edges_are_smooth() -> None:
    assert len(np.unique(np.asarray(render(_single("circle")))[..., 0])) > 5


def test_an_image_takes_under_three_milliseconds() -> None:
    scenes = [sample_scene(0, index, "train") for index in range(100)]
    start = time.process_time()
    for scene in scenes:
        render(scene)
    assert (time.process_time() - start) / len(scenes) < 0.003


def test_a_partial_scene_is_refused() -> None:
    with pytest.raises(DataError, match="partial"):
        render(sample_scene(0, 0, "train").without_positions())
