"""The second reader: a small network that finds scenes in pictures, as unlike the judge as can be.

Each cell of a 16x16 grid tells whether the centre of an object lies in it, and if so of what shape, colour and size
(CenterNet, Zhou et al. 2019, arXiv:1904.07850, with plain cross-entropies). It learns from the world's own pictures,
worn as in `t2i.shapes.wear`, and shares no line of image analysis with the judge: where both agree, neither's habits
are to blame.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn
from torch.nn import functional

from t2i.errors import DataError, ModelError
from t2i.files import write_bytes, write_text
from t2i.records import CaptionedImage
from t2i.shapes.judge import Reading
from t2i.shapes.render import as_array
from t2i.shapes.scenes import (
    BACKGROUNDS,
    COLOURS,
    IMAGE_SIZE_PX,
    SHAPES,
    SIZES,
    Group,
    Point,
    Scene,
    assemble_scene,
)
from t2i.shapes.wear import NOISE_SHAPE, wear

CELL_PX = 4
GRID = IMAGE_SIZE_PX // CELL_PX
IGNORE = -100
"""Label of places that do not count, as in the classification objective."""
MARGIN_PX = 1.5
"""A centre this close to a cell is not held against it. Without, no cell dares to claim a centre near its corner."""
SUSPECTED = 0.2
"""Least probability of a centre for a peak to count as a painted region."""
SURE = 0.7
"""Least probability with which an object, its attributes and the background are told; below it they are unsure."""
NEIGHBOURHOOD = 2
"""Cells around a peak in which there is no other: centres of objects that do not overlap are further apart."""
MAX_OBJECTS_READ = 8

_ATTRIBUTES = {"shape": SHAPES, "colour": tuple(COLOURS), "size": SIZES}
_CLASSES = {"object": 2} | {name: len(values) for name, values in _ATTRIBUTES.items()}
_WEIGHTS, _CONFIG = "model.safetensors", "config.json"
_CENTRE_PRIOR = 0.01
"""About the share of cells that hold a centre: the object head starts there, as Lin et al. 2017 (arXiv:1708.02002)."""


class SceneReader(nn.Module):
    """Reads 64x64 pictures. width: channels of the trunk, a multiple of 8; blocks: residual blocks of the trunk."""

    image_size: ClassVar[int] = IMAGE_SIZE_PX
    noise_shape: ClassVar[tuple[int, ...]] = NOISE_SHAPE

    def __init__(self, width: int = 64, blocks: int = 3) -> None:
        super().__init__()
        self.config = {"width": width, "blocks": blocks}
        # Without a norm at first: it would take away how bright the picture is.
        self.stem = nn.Sequential(
            nn.Conv2d(3, width // 2, 3, stride=2, padding=1),
            nn.SiLU(),
            nn.Conv2d(width // 2, width, 3, stride=2, padding=1),
        )
        self.blocks = nn.Sequential(*(_Block(width) for _ in range(blocks)))
        self.norm = nn.GroupNorm(8, width)
        self.cell_heads = nn.Conv2d(width, sum(_CLASSES.values()), 1)
        self.background_head = nn.Linear(width, len(BACKGROUNDS))
        with torch.no_grad():
            assert self.cell_heads.bias is not None
            self.cell_heads.bias[:2] = torch.tensor([1 - _CENTRE_PRIOR, _CENTRE_PRIOR]).log()

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        """pixels: [B, 3, 64, 64] in [-1, 1]. Returns logits: object, shape, colour, size [B, classes, 16, 16] and
        background [B, 3]."""
        features = functional.silu(self.norm(self.blocks(self.stem(pixels))))
        cells = self.cell_heads(features).split(list(_CLASSES.values()), dim=1)
        background = self.background_head(features.mean(dim=(2, 3)))
        return dict(zip(_CLASSES, cells, strict=True)) | {"background": background}

    @staticmethod
    def labels(record: CaptionedImage) -> dict[str, np.ndarray]:
        """Label maps of a record that carries its scene. Raises DataError if it does not."""
        if "scene" not in record.extra:
            raise DataError(f"{record.image}: the record has no scene; the reader learns from a `shapes` source only.")
        return scene_labels(Scene.from_json(record.extra["scene"]))

    @staticmethod
    def augment(pixels: Tensor, labels: dict[str, Tensor], noise: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """What the reader sees in training instead of clean pictures. noise: [B, *noise_shape], standard normal."""
        worn, is_emptied = wear(pixels, noise)
        emptied = {name: torch.where(_like(is_emptied, label), IGNORE, label) for name, label in labels.items()}
        emptied["object"] = torch.where(_like(is_emptied, labels["object"]), 0, labels["object"])
        return worn, emptied

    def read(self, image: Image.Image | np.ndarray) -> Reading:
        """Read one image: PIL of any mode, or uint8 [H, W, 3]; sizes other than 64x64 are box-resampled first."""
        return self.read_batch(pixels_of(image)[None])[0]

    @torch.inference_mode()
    def read_batch(self, pixels: Tensor) -> list[Reading]:
        """Read [B, 3, 64, 64] in [-1, 1], on the reader's device."""
        return decode({name: logits.float().cpu() for name, logits in self(pixels).items()})

    def save_pretrained(self, folder: Path, dtype: torch.dtype = torch.float32) -> None:
        """Write config.json and model.safetensors. dtype: of the weights in the file."""
        folder.mkdir(parents=True, exist_ok=True)
        weights = {name: value.detach().to("cpu", dtype).contiguous() for name, value in self.state_dict().items()}
        write_bytes(folder / _WEIGHTS, save(weights))
        write_text(folder / _CONFIG, json.dumps(self.config, indent=2, sort_keys=True) + "\n")

    @classmethod
    def from_pretrained(cls, folder: Path) -> SceneReader:
        """The reader of a folder, in float32 on the CPU whatever the file holds. Raises ModelError if it is none."""
        try:
            reader = cls(**json.loads((folder / _CONFIG).read_text(encoding="utf-8")))
            reader.load_state_dict(load((folder / _WEIGHTS).read_bytes()))
        except (OSError, ValueError, TypeError, RuntimeError, SafetensorError) as error:
            reason = " ".join(str(error).split())
            raise ModelError(
                f"{folder}: no scene reader ({reason}); expected {_CONFIG} and {_WEIGHTS} of one."
            ) from error
        return reader.eval().requires_grad_(False)


class _Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.first_norm, self.second_norm = nn.GroupNorm(8, width), nn.GroupNorm(8, width)
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, features: Tensor) -> Tensor:
        inner = self.first(functional.silu(self.first_norm(features)))
        return features + self.second(functional.silu(self.second_norm(inner)))


def scene_labels(scene: Scene) -> dict[str, np.ndarray]:
    """int64 maps [16, 16] of object, shape, colour and size, and background [].

    object: 1 in the cell of a centre, IGNORE where a centre is within `MARGIN_PX` of the cell, else 0. shape, colour,
    size: at all those cells, IGNORE elsewhere. Raises DataError for a partial scene or one without positions.
    """
    if not scene.is_complete or not scene.positions:
        raise DataError(f"shapes scene: {scene} is partial, expected a complete one with positions to learn from.")
    maps = {name: np.full((GRID, GRID), IGNORE, dtype=np.int64) for name in _ATTRIBUTES}
    maps["object"] = np.zeros((GRID, GRID), dtype=np.int64)
    for group, points in zip(scene.groups, scene.positions, strict=True):
        for x, y in points:
            near = (_near(y), _near(x))
            for name, values in _ATTRIBUTES.items():
                maps[name][near] = values.index(getattr(group, name))
            maps["object"][near] = IGNORE
            maps["object"][int(y // CELL_PX), int(x // CELL_PX)] = 1
    return maps | {"background": np.array(list(BACKGROUNDS).index(str(scene.background)), dtype=np.int64)}


def _near(place: float) -> slice:
    """Cells along one axis that are within the margin of a place in pixels."""
    return slice(max(0, int((place - MARGIN_PX) // CELL_PX)), int((place + MARGIN_PX) // CELL_PX) + 1)


def decode(logits: dict[str, Tensor]) -> list[Reading]:
    """What the logits of a batch say, one reading per picture; see `SceneReader.forward` for the shapes."""
    chances = {name: values.softmax(dim=1).numpy() for name, values in logits.items()}
    return [
        _decode_one({name: values[index] for name, values in chances.items()})
        for index in range(len(chances["object"]))
    ]


def _decode_one(chances: dict[str, np.ndarray]) -> Reading:
    """chances: head -> probabilities [classes, ...] of one picture."""
    objects = [_read_object(chances, peak) for peak in _peaks(chances["object"][1])]
    recognised = sum(group.is_complete for group, _ in objects)
    background = _told(tuple(BACKGROUNDS), chances["background"])
    if background is None:
        return Reading(None, len(objects), recognised, "the background is unclear")
    if not objects:
        return Reading(None, 0, 0, "no object")
    if len(objects) > MAX_OBJECTS_READ:
        return Reading(None, len(objects), 0, f"{len(objects)} objects: too many")
    if 2 * recognised < len(objects):
        return Reading(None, len(objects), recognised, "most of what was found is unclear")
    return Reading(assemble_scene(objects, background), len(objects), recognised)


def _peaks(chance: np.ndarray) -> list[tuple[int, int]]:
    """Cells (row, column) of suspected centres, from top to bottom. chance: of a centre, [16, 16]."""
    peaks: list[tuple[int, int]] = []
    for place in np.argsort(-chance, axis=None, kind="stable").tolist():
        row, column = divmod(place, GRID)
        is_apart = all(max(abs(row - r), abs(column - c)) > NEIGHBOURHOOD for r, c in peaks)
        if is_apart and chance[row, column] >= SUSPECTED:
            peaks.append((row, column))
    # In an order that does not hang on the last bits of the probabilities.
    return sorted(peaks)


def _around(row: int, column: int) -> tuple[slice, slice]:
    return slice(max(0, row - 1), min(row + 2, GRID)), slice(max(0, column - 1), min(column + 2, GRID))


def _read_object(chances: dict[str, np.ndarray], peak: tuple[int, int]) -> tuple[Group, Point]:
    """What the peak's cell tells. The place is the centroid of the cells around it, which share a centre at an edge."""
    window = _around(*peak)
    near = chances["object"][1][window].astype(np.float64)
    rows, columns = np.mgrid[window]
    total = float(near.sum())
    point = tuple(float(((place + 0.5) * near).sum() / total) * CELL_PX for place in (columns, rows))
    if chances["object"][1][peak] < SURE:
        return Group(number=1), (point[0], point[1])
    told = {name: _told(values, chances[name][:, *peak]) for name, values in _ATTRIBUTES.items()}
    return Group(**told, number=1), (point[0], point[1])


def _told(values: tuple[str, ...], chances: np.ndarray) -> str | None:
    best = int(chances.argmax())
    return values[best] if chances[best] >= SURE else None


def _like(flags: Tensor, label: Tensor) -> Tensor:
    return flags.reshape(-1, *[1] * (label.ndim - 1))


def pixels_of(image: Image.Image | np.ndarray) -> Tensor:
    """What the reader sees of an image, as `SceneReader.read` takes it: float32 [3, 64, 64] in [-1, 1]."""
    values = as_array(image).astype(np.float32) / 127.5 - 1
    return torch.from_numpy(np.ascontiguousarray(values.transpose(2, 0, 1)))
