"""The judge: nearly always right on the world's own pictures, also softened ones, and unsure about everything else."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw
from scipy import ndimage

from t2i.errors import DataError
from t2i.randomness import generator
from t2i.shapes import (
    BACKGROUNDS,
    COLOURS,
    Group,
    Reading,
    Scene,
    composition_key,
    graded,
    read_scene,
    render,
    sample_scene,
)

SCENES = [sample_scene(7, index, "train") for index in range(1000)]
PHOTOGRAPHS = [
    "astronaut.png",
    "camera.png",
    "chelsea.png",
    "coffee.png",
    "coins.png",
    "rocket.jpg",
    "hubble_deep_field.jpg",
]


def _soften(image: Image.Image, index: int, blur_px: float = 0.6, noise: float = 5.0) -> np.ndarray:
    """As a small autoencoder does: a little blur and colour noise."""
    pixels = ndimage.gaussian_filter(np.asarray(image, dtype=np.float64), (blur_px, blur_px, 0))
    pixels += generator(0, "test/soften", index).normal(0, noise, pixels.shape)
    return np.clip(np.round(pixels), 0, 255).astype(np.uint8)


def _shares(images: Iterable[Image.Image | np.ndarray]) -> dict[str, float]:
    """Share of questions answered rightly, by category and over "all"."""
    grades: dict[str, list[bool]] = defaultdict(list)
    for scene, image in zip(SCENES, images, strict=False):
        for question, is_right in graded(scene, read_scene(image).scene):
            grades[question.category].append(is_right)
            grades["all"].append(is_right)
    return {category: float(np.mean(each)) for category, each in grades.items()}


def _unsure_share(images: list[np.ndarray]) -> float:
    return float(np.mean([read_scene(image).scene is None for image in images]))


def _as_image(pixels: np.ndarray) -> np.ndarray:
    return np.clip(pixels, 0, 255).astype(np.uint8)


def test_own_pictures_are_read_rightly_in_every_category() -> None:
    shares = _shares(render(scene) for scene in SCENES)
    assert len(shares) == 8
    assert shares["all"] >= 0.995
    assert min(shares.values()) >= 0.98


def test_softened_pictures_are_still_read() -> None:
    shares = _shares(_soften(render(scene), index) for index, scene in enumerate(SCENES[:400]))
    assert min(shares.values()) >= 0.97


@pytest.mark.parametrize("change", [lambda x: x.resize((256, 256)), lambda x: x.convert("RGBA"), np.asarray])
def test_size_mode_and_type_of_the_image_do_not_matter(
    change: Callable[[Image.Image], Image.Image | np.ndarray],
) -> None:
    assert _shares(change(render(scene)) for scene in SCENES[:100])["all"] >= 0.98


def test_a_reading_recovers_scene_and_positions() -> None:
    for scene in SCENES[:200]:
        reading = read_scene(render(scene))
        assert reading.scene is not None
        assert composition_key(reading.scene) == composition_key(scene)
        assert reading.regions == reading.recognised == sum(map(len, scene.positions))
        true, read = (np.concatenate(each.positions) for each in (scene, reading.scene))
        distances = np.linalg.norm(true[:, None] - read[None], axis=2)
        assert distances.min(axis=1).max() < 0.5


def _photograph(name: str) -> Image.Image:
    skimage = pytest.importorskip("skimage", reason="scikit-image is not installed")
    path = Path(skimage.__file__).parent / "data" / name
    if not path.exists():
        pytest.skip(f"scikit-image does not ship {name}")
    return Image.open(path).convert("RGB")


@pytest.mark.parametrize("name", PHOTOGRAPHS)
def test_photographs_are_unsure(name: str) -> None:
    photograph, random, crops = _photograph(name), generator(0, "test/crops"), []
    for _ in range(50):
        side = int(random.integers(64, min(photograph.size) + 1))
        left, top = (int(random.integers(0, length - side + 1)) for length in photograph.size)
        crops.append(np.asarray(photograph.crop((left, top, left + side, top + side))))
    assert _unsure_share(crops) >= 0.95


def test_noise_is_unsure() -> None:
    random, grounds = generator(0, "test/noise"), [(128, 128, 128), *BACKGROUNDS.values()]
    uniform = [random.integers(0, 256, (64, 64, 3)).astype(np.uint8) for _ in range(100)]
    gaussian = [
        _as_image(np.array(ground) + random.normal(0, sigma, (64, 64, 3)))
        for ground in grounds
        for sigma in (5, 10, 20, 40, 80)
        for _ in range(10)
    ]
    assert _unsure_share(uniform) >= 0.95
    assert _unsure_share(gaussian) >= 0.95


def test_smooth_blobs_are_unsure() -> None:
    random, blobs = generator(0, "test/blobs"), []
    for ground in [(128, 128, 128), *BACKGROUNDS.values()]:
        for scale, strength in [(2, 40), (4, 40), (4, 90), (8, 40), (8, 90), (12, 90)] * 8:
            smooth = ndimage.gaussian_filter(random.normal(size=(64, 64, 3)), (scale, scale, 0))
            blobs.append(_as_image(np.array(ground) + strength * smooth / smooth.std()))
    assert _unsure_share(blobs) >= 0.95


def test_hard_blobs_in_the_colours_of_the_world_are_unsure() -> None:
    random, blobs, colours = generator(0, "test/hard blobs"), [], list(COLOURS.values())
    for ground in BACKGROUNDS.values():
        for scale in (2, 3, 4, 6, 8) * 10:
            smooth = ndimage.gaussian_filter(random.normal(size=(64, 64)), scale)
            colour = np.array(colours[int(random.integers(len(colours)))])
            blobs.append(_as_image(np.where((smooth > 1.2 * smooth.std())[..., None], colour, np.array(ground))))
    assert _unsure_share(blobs) >= 0.95


def test_one_colour_alone_is_unsure() -> None:
    random = generator(0, "test/blank")
    colours = [*BACKGROUNDS.values(), *COLOURS.values(), *random.integers(0, 256, (50, 3)).tolist()]
    readings = [read_scene(np.full((64, 64, 3), colour, np.uint8)) for colour in colours]
    assert all(reading.scene is None for reading in readings)
    assert readings[0] == Reading(None, 0, 0, "nothing but background")


def _paint(*boxes: tuple[tuple[int, int, int, int], tuple[int, int, int]]) -> Image.Image:
    image = render(Scene((Group("circle", "red", "large", 1),), None, "black", (((16.0, 16.0),),)))
    for box, colour in boxes:
        ImageDraw.Draw(image).rectangle(box, fill=colour)
    return image


@pytest.mark.parametrize(
    ("box", "colour", "expected"),
    [
        ((50, 40, 63, 52), COLOURS["blue"], Group(None, "blue", None, 1)),
        ((36, 50, 61, 54), COLOURS["blue"], Group(None, "blue", None, 1)),
        ((40, 40, 51, 51), (255, 0, 255), Group("square", None, "small", 1)),
    ],
    ids=["cut by the border", "a bar", "a foreign color"],
)
def test_a_region_that_is_no_object_is_known_only_in_part(
    box: tuple[int, int, int, int], colour: tuple[int, int, int], expected: Group
) -> None:
    reading = read_scene(_paint((box, colour)))
    assert reading.scene is not None
    assert (reading.regions, reading.recognised) == (2, 1)
    unknown = next(group for group in reading.scene.groups if group.colour != "red")
    assert (unknown.shape, unknown.colour) == (expected.shape, expected.colour)


def test_two_objects_painted_over_each_other_are_not_one() -> None:
    reading = read_scene(_paint(((16, 10, 34, 28), COLOURS["blue"]), ((40, 40, 51, 51), COLOURS["green"])))
    assert (reading.regions, reading.recognised) == (2, 1)


def test_too_many_regions_are_unsure() -> None:
    boxes = [((x, y, x + 4, y + 4), COLOURS["green"]) for x in (30, 40, 50) for y in (30, 40, 50)]
    assert read_scene(_paint(*boxes)).reason == "10 regions: too many"


def test_other_arrays_are_refused() -> None:
    with pytest.raises(DataError, match=r"found an array float64 \(64, 64, 3\), expected uint8"):
        read_scene(np.zeros((64, 64, 3)))
    with pytest.raises(DataError, match=r"uint8 \(64, 64\)"):
        read_scene(np.zeros((64, 64), np.uint8))
