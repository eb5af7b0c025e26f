"""A tiny random CLIP checkpoint and images that differ, built in code."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tiny_scorers
from PIL import Image

WORDS = ("a", "photo", "of", "red", "blue", "cat", "dog", "big")


@pytest.fixture(scope="session")
def tiny_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a CLIPModel with random weights: 32 px images, 16 tokens."""
    return tiny_scorers.write_clip(tmp_path_factory.mktemp("tiny_clip"))


@pytest.fixture(scope="session")
def make_image() -> Callable[..., Image.Image]:
    """make_image(number, width, height): a smooth gradient under some noise, different for each number."""

    def make(number: int, width: int = 40, height: int = 40) -> Image.Image:
        random = np.random.default_rng(number)
        x, y = np.linspace(0, 1, width)[None, :, None], np.linspace(0, 1, height)[:, None, None]
        smooth = random.random(3) * x + random.random(3) * y
        noisy = smooth / 2 + 0.2 * random.random((height, width, 3))
        return Image.fromarray((np.clip(noisy, 0, 1) * 255).astype(np.uint8))

    return make


@pytest.fixture(scope="session")
def images(make_image: Callable[..., Image.Image]) -> list[Image.Image]:
    """Seven images of several sizes and proportions."""
    sizes = [(40, 40), (32, 32), (64, 33), (33, 64), (20, 24), (1, 1), (100, 80)]
    return [make_image(number, *size) for number, size in enumerate(sizes)]


@pytest.fixture(scope="session")
def prompts() -> list[str]:
    """A prompt for each of `images`; the fourth is longer than 16 tokens."""
    return ["a cat", "a dog", "red", "a big red photo of a dog and of a cat", "blue", "", "a cat"]


@pytest.fixture(scope="session")
def tiny_siglip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a SiglipModel with random weights: 32 px images, 12 tokens, one a letter."""
    return tiny_scorers.write_siglip(tmp_path_factory.mktemp("tiny_siglip"))


@pytest.fixture(scope="session")
def scorer_options(tiny_clip: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, object]]:
    """Registered name -> options that make the scorer with a tiny random checkpoint; only scorers that have weights."""
    return tiny_scorers.options(tmp_path_factory.mktemp("tiny_scorers"), tiny_clip)
