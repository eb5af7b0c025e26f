"""Scorers of the embedded world: how many questions about the prompt a picture answers rightly, by either reader."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from importlib.metadata import version as installed_version
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from rewards.base import ImageLike, Scores1D, check_prompts, check_scores, open_batch
from rewards.errors import InputError, ModelError
from t2i.errors import ConfigError, DataError
from t2i.errors import ModelError as ToolkitModelError
from t2i.resources import hash_path, resolve_path
from t2i.shapes.captions import parse_caption
from t2i.shapes.judge import Reading, read_scene
from t2i.shapes.questions import CATEGORIES, faithfulness, faithfulness_by_category
from t2i.shapes.scenes import Scene

if TYPE_CHECKING:
    from t2i.shapes.reader import SceneReader

DEFAULT_READER = "pkg:t2i.shapes/assets/reader"
_SCALE = "share of TIFA-style questions answered rightly, 0 to 1"


class JudgeFaithfulness:
    """Faithfulness as the judge reads pictures; what it is unsure about counts as wrong.

    category: ask only such questions, `colour`, `counting`, `spatial` and so on; all if empty.
    """

    name = "judge"
    version = "1"
    scale = _SCALE
    needs_prompt = True
    differentiable = False
    higher_is_better = True

    def __init__(self, category: str = "") -> None:
        self._category = _checked_category(self.name, category)

    def score(self, images: Sequence[ImageLike], prompts: Sequence[str] | None = None) -> Scores1D:
        """Score B images against their B captions of the world. Returns [B] in [0, 1]. Errors as `Reward.score`, and
        InputError for a prompt outside the world's grammar, or without a question of the category."""
        return _faithfulness(self.name, self._category, read_scene, images, prompts)

    def fingerprint(self) -> dict[str, str]:
        """Name, version, category, and the libraries that the judge computes with."""
        return _fingerprint(self.name, self.version, "numpy", "pillow", "scipy") | _asked(self._category)


class ReaderFaithfulness:
    """Faithfulness as the second reader sees it, a small network; what it is unsure about counts as wrong.

    model: folder of a `SceneReader`, or `pkg:package/path`. It runs on the CPU, one image at a time, so that a score
    does not depend on the batch even in its last bit. The model is opened by the first `score`. category: as for
    `JudgeFaithfulness`.
    """

    name = "reader"
    version = "1"
    scale = _SCALE
    needs_prompt = True
    differentiable = False
    higher_is_better = True

    def __init__(self, model: str = DEFAULT_READER, category: str = "") -> None:
        self._model = model
        self._category = _checked_category(self.name, category)

    @cached_property
    def _reader(self) -> SceneReader:
        from t2i.shapes.reader import SceneReader

        try:
            return SceneReader.from_pretrained(resolve_path(self._model))
        except (ConfigError, ToolkitModelError) as error:
            raise ModelError(str(error)) from error

    def score(self, images: Sequence[ImageLike], prompts: Sequence[str] | None = None) -> Scores1D:
        """As `JudgeFaithfulness.score`, and ModelError when the model cannot be opened."""
        return _faithfulness(self.name, self._category, lambda image: self._reader.read(image), images, prompts)

    def fingerprint(self) -> dict[str, str]:
        """Name, version, libraries, and the hash of the model's files. Raises ModelError if there are none."""
        try:
            weights = hash_path(resolve_path(self._model))
        except (ConfigError, DataError) as error:
            raise ModelError(str(error)) from error
        own = _fingerprint(self.name, self.version, "numpy", "pillow", "torch")
        return own | {"weights": weights} | _asked(self._category)


class RecognisedRegions:
    """How well an image is painted, whatever it shows: share of its regions that the judge takes for an object.

    0 for an image in which the judge finds no region at all, or that is no picture of the world.
    """

    name = "recognised_regions"
    version = "1"
    scale = "share of painted regions recognised as an object, 0 to 1"
    needs_prompt = False
    differentiable = False
    higher_is_better = True

    def score(self, images: Sequence[ImageLike], prompts: Sequence[str] | None = None) -> Scores1D:
        """Score B images; prompts are ignored. Returns [B] in [0, 1]."""
        readings = [read_scene(image) for image in open_batch(images)]
        shares = [reading.recognised / max(1, reading.regions) for reading in readings]
        return check_scores(self.name, np.array(shares, dtype=np.float32), len(images))

    def fingerprint(self) -> dict[str, str]:
        """Name, version and the libraries that the judge computes with."""
        return _fingerprint(self.name, self.version, "numpy", "pillow", "scipy")


def _checked_category(name: str, category: str) -> str:
    if category and category not in CATEGORIES:
        raise InputError(f"{name}: category {category!r}; expected one of {', '.join(CATEGORIES)}.")
    return category


def _asked(category: str) -> dict[str, str]:
    return {"category": category} if category else {}


def _faithfulness(
    name: str,
    category: str,
    read: Callable[[Image.Image], Reading],
    images: Sequence[ImageLike],
    prompts: Sequence[str] | None,
) -> Scores1D:
    scenes = [_parse(name, prompt) for prompt in check_prompts(name, len(images), prompts)]
    opened = open_batch(images)
    shares = [
        _share(name, category, scene, read(image).scene, prompt)
        for scene, image, prompt in zip(scenes, opened, prompts or (), strict=True)
    ]
    return check_scores(name, np.array(shares, dtype=np.float32), len(images))


def _parse(name: str, prompt: str) -> Scene:
    scene = parse_caption(prompt)
    if scene is None:
        raise InputError(
            f"{name}: {prompt!r} is no caption of the shapes world; expected such as "
            "'a small red circle left of two large blue stars on a gray background'."
        )
    return scene


def _share(name: str, category: str, scene: Scene, observed: Scene | None, prompt: str) -> float:
    try:
        if not category:
            return faithfulness(scene, observed)
        shares = {str(key): value for key, value in faithfulness_by_category(scene, observed).items()}
    except DataError as error:
        raise InputError(
            f"{name}: {prompt!r} is too vague for a question; name a shape, color, size or more."
        ) from error
    if category not in shares:
        raise InputError(f"{name}: {prompt!r} gives no question of category {category}; ask about other prompts.")
    return shares[category]


def _fingerprint(name: str, version: str, *packages: str) -> dict[str, str]:
    return {"name": name, "version": version} | {package: installed_version(package) for package in packages}
