"""The second reader: exact labels, an exact way back, and a network that has learned to see and to doubt."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from t2i.errors import DataError, ModelError
from t2i.objectives import classification
from t2i.randomness import generator, seeded_global
from t2i.records import CaptionedImage
from t2i.resources import resolve_path
from t2i.shapes import BACKGROUNDS, CATEGORIES, COLOURS, Group, Scene, composition_key, graded, render, sample_scene
from t2i.shapes.reader import IGNORE, SceneReader, decode, pixels_of, scene_labels
from t2i.shapes.scorers import DEFAULT_READER
from t2i.shapes.wear import NOISE_SHAPE, wear

TWO = Scene(
    (Group("circle", "red", "small", 1), Group("star", "blue", "large", 1)),
    "left of",
    "gray",
    (((13.9, 22.0),), ((48.0, 30.25),)),
)


def _record(scene: Scene) -> CaptionedImage:
    return CaptionedImage("0", "0.png", 64, 64, extra={"scene": scene.to_json()})


def _logits(scene: Scene, strength: float = 20.0) -> dict[str, torch.Tensor]:
    """What a perfect reader would say, and nothing where it need not."""
    sizes = {"object": 2, "shape": 4, "colour": 8, "size": 2, "background": 3}
    labels = {name: torch.from_numpy(label)[None] for name, label in scene_labels(scene).items()}
    one_hot = {n: functional.one_hot(label.clamp(min=0), sizes[n]).movedim(-1, 1) for n, label in labels.items()}
    return {name: strength * hot.float() for name, hot in one_hot.items()}


def _untrained() -> SceneReader:
    with seeded_global(0, "test/reader"):
        return SceneReader()


def _batch(count: int, first: int = 0) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    scenes = [sample_scene(5, index, "train") for index in range(first, first + count)]
    labels = [SceneReader.labels(_record(scene)) for scene in scenes]
    stacked = {name: torch.from_numpy(np.stack([each[name] for each in labels])) for name in labels[0]}
    return torch.stack([pixels_of(render(scene)) for scene in scenes]), stacked


def _noise(count: int) -> torch.Tensor:
    return torch.from_numpy(generator(0, "test/wear").standard_normal((count, *NOISE_SHAPE), dtype=np.float32))


def test_label_maps_of_two_objects_are_as_worked_out_by_hand() -> None:
    labels = SceneReader.labels(_record(TWO))
    # (13.9, 22.0) lies in column 3, row 5 of 4 px cells, and 1.5 px around it all is in that cell.
    # (48.0, 30.25): column 12, row 7, with column 11 nearer than 1.5 px.
    assert np.argwhere(labels["object"] == 1).tolist() == [[5, 3], [7, 12]]
    assert np.argwhere(labels["object"] == IGNORE).tolist() == [[7, 11]]
    expected = {"shape": (0, 3), "colour": (0, 2), "size": (0, 1)}
    for name, (first, second) in expected.items():
        assert (labels[name][5, 3], labels[name][7, 11], labels[name][7, 12]) == (first, second, second)
        assert (labels[name] != IGNORE).sum() == 3
    assert labels["background"] == 1
    assert {label.dtype for label in labels.values()} == {np.dtype(np.int64)}


def test_a_record_without_a_scene_is_an_error() -> None:
    with pytest.raises(DataError, match="no scene"):
        SceneReader.labels(CaptionedImage("0", "0.png", 64, 64))


def test_ignored_places_are_those_of_the_objective() -> None:
    assert IGNORE == classification.IGNORE


def test_perfect_logits_decode_to_the_scene() -> None:
    for index in range(200):
        scene = sample_scene(5, index, "train")
        [reading] = decode(_logits(scene))
        assert reading.scene is not None
        assert composition_key(reading.scene) == composition_key(scene)
        assert all(is_right for _, is_right in graded(scene, reading.scene))
        assert reading.regions == reading.recognised == sum(map(len, scene.positions))


def test_weak_logits_are_unsure() -> None:
    [reading] = decode(_logits(TWO, strength=0.5))
    assert reading.scene is None


def test_an_attribute_below_the_threshold_stays_unknown() -> None:
    logits = _logits(TWO)
    # A tie between two shapes, for the first object only.
    logits["shape"][0, :2, 5, 3] = 20.0
    [reading] = decode(logits)
    assert reading.scene is not None
    assert set(reading.scene.groups) == {Group(None, "red", "small", 1), TWO.groups[1]}
    assert (reading.regions, reading.recognised) == (2, 1)


def test_a_centre_that_two_cells_claim_is_one_object_between_them() -> None:
    scene = Scene((Group("square", "green", "large", 1),), None, "black", (((30.0, 30.0),),))
    logits = _logits(scene)
    logits["object"][0, :, 7, 8] = logits["object"][0, :, 7, 7]
    for name in ("shape", "colour", "size"):
        logits[name][0, :, 7, 8] = logits[name][0, :, 7, 7]
    [reading] = decode(logits)
    assert reading.scene is not None
    assert reading.scene.groups == scene.groups
    assert reading.scene.positions[0][0] == pytest.approx((32.0, 30.0), abs=0.01)


def test_saving_and_loading_keeps_the_weights_and_computes_in_float32(tmp_path: Path) -> None:
    reader, pixels = _untrained(), _batch(2)[0]
    reader.save_pretrained(tmp_path / "whole")
    reader.save_pretrained(tmp_path / "half", torch.float16)
    whole, half = (SceneReader.from_pretrained(tmp_path / name) for name in ("whole", "half"))
    for name, logits in reader(pixels).items():
        assert torch.equal(whole(pixels)[name], logits)
        torch.testing.assert_close(half(pixels)[name], logits, atol=0.02, rtol=0.02)
    assert {value.dtype for value in half.state_dict().values()} == {torch.float32}
    assert (tmp_path / "half/model.safetensors").stat().st_size <= 600_000


def test_a_folder_without_a_reader_is_one_readable_error(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no scene reader") as error:
        SceneReader.from_pretrained(tmp_path)
    assert "\n" not in str(error.value)


def test_loss_falls_within_30_steps_on_16_pictures() -> None:
    reader, (pixels, labels) = _untrained(), _batch(16)
    objective = classification.Classification(reader="t2i.shapes.reader:SceneReader")
    optimizer = torch.optim.AdamW(reader.parameters(), lr=3e-3)
    losses = []
    for _ in range(30):
        loss = objective(reader(pixels), labels).loss.mean()
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.5 * losses[0]


def test_worn_pictures_follow_from_the_noise_of_each_alone() -> None:
    (pixels, labels), noise = _batch(16), _noise(16)
    worn, worn_labels = SceneReader.augment(pixels, labels, noise)
    alone, alone_labels = SceneReader.augment(pixels[3:4], {n: v[3:4] for n, v in labels.items()}, noise[3:4])
    torch.testing.assert_close(worn[3:4], alone)
    assert all(torch.equal(worn_labels[name][3:4], alone_labels[name]) for name in labels)
    assert worn.shape == pixels.shape
    assert worn.abs().max() <= 1


def test_an_emptied_picture_has_no_object_and_nothing_else_to_learn() -> None:
    (pixels, labels), noise = _batch(64), _noise(64)
    _, is_emptied = wear(pixels, noise)
    _, worn = SceneReader.augment(pixels, labels, noise)
    assert 5 <= is_emptied.sum() <= 25
    assert not worn["object"][is_emptied].any()
    assert all(worn[name][is_emptied].eq(IGNORE).all() for name in ("shape", "colour", "size", "background"))
    assert all(torch.equal(worn[name][~is_emptied], labels[name][~is_emptied]) for name in labels)


@pytest.fixture(scope="module")
def trained() -> SceneReader:
    folder = resolve_path(DEFAULT_READER)
    if not folder.is_dir():
        pytest.skip(f"no {folder}: train it with recipes/tiny_pretrain.yaml")
    return SceneReader.from_pretrained(folder)


def _unsure_share(reader: SceneReader, images: list[np.ndarray]) -> float:
    readings = reader.read_batch(torch.stack([pixels_of(image) for image in images]))
    return float(np.mean([reading.scene is None for reading in readings]))


def test_held_out_pictures_are_read_rightly_in_every_category(trained: SceneReader) -> None:
    grades: dict[str, list[bool]] = defaultdict(list)
    scenes = [sample_scene(11, index, "heldout") for index in range(300)]
    for chunk in (scenes[start : start + 50] for start in range(0, 300, 50)):
        readings = trained.read_batch(torch.stack([pixels_of(render(scene)) for scene in chunk]))
        for scene, reading in zip(chunk, readings, strict=True):
            for question, is_right in graded(scene, reading.scene):
                grades[question.category].append(is_right)
    assert set(grades) == set(CATEGORIES)
    shares = {category: float(np.mean(each)) for category, each in grades.items()}
    assert min(shares.values()) >= 0.97, shares
    assert np.mean([is_right for each in grades.values() for is_right in each]) >= 0.98


def test_noise_is_unsure(trained: SceneReader) -> None:
    random, grounds = generator(0, "test/noise"), [(128, 128, 128), *BACKGROUNDS.values()]
    uniform = [random.integers(0, 256, (64, 64, 3)).astype(np.uint8) for _ in range(20)]
    gaussian = [
        np.clip(np.array(ground) + random.normal(0, sigma, (64, 64, 3)), 0, 255).astype(np.uint8)
        for ground in grounds
        for sigma in (5, 10, 20, 40, 80)
        for _ in range(2)
    ]
    assert _unsure_share(trained, uniform) >= 0.95
    assert _unsure_share(trained, gaussian) >= 0.95


def test_one_colour_alone_is_unsure(trained: SceneReader) -> None:
    random = generator(0, "test/blank")
    colours = [*BACKGROUNDS.values(), *COLOURS.values(), *random.integers(0, 256, (30, 3)).tolist()]
    assert _unsure_share(trained, [np.full((64, 64, 3), colour, np.uint8) for colour in colours]) >= 0.95


def test_a_reading_does_not_depend_on_the_batch_or_the_size_of_the_picture(trained: SceneReader) -> None:
    images = [render(sample_scene(12, index, "heldout")) for index in range(32)]
    together = trained.read_batch(torch.stack([pixels_of(image) for image in images]))
    for image, reading in zip(images, together, strict=True):
        alone, large = trained.read(image), trained.read(image.resize((256, 256), 0))
        assert alone == large
        # Convolutions of another batch size may differ in the last bit, which moves centres by less than this.
        assert alone.scene is not None
        assert reading.scene is not None
        assert alone.scene.without_positions() == reading.scene.without_positions()
        assert np.allclose(np.concatenate(alone.scene.positions), np.concatenate(reading.scene.positions), atol=1e-3)
