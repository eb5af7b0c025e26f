"""What a scorer is, what an image is to all of them, and the checks that every scorer shares.

A new scorer implements `Reward` and nothing else is required. `TextLimited`, `Fingerprinted` and `DifferentiableReward`
are further promises: counting of cut prompts, caching, and gradients.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeAlias, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from rewards.errors import InputError, ScoringError
from rewards.images import ImageLike, open_image

if TYPE_CHECKING:
    import torch

__all__ = [
    "DifferentiableReward",
    "Fingerprinted",
    "ImageLike",
    "Reward",
    "Scores1D",
    "TextLimited",
    "check_prompts",
    "check_scores",
    "open_batch",
    "open_image",
]

Scores1D: TypeAlias = NDArray[np.float32]


@runtime_checkable
class Reward(Protocol):
    """A scorer of images. Attributes may be plain class variables."""

    @property
    def name(self) -> str:
        """Key in tables and records; different for each published scale of the same score."""
        ...

    @property
    def version(self) -> str:
        """Changes whenever the same image and prompt would get another number."""
        ...

    @property
    def scale(self) -> str:
        """The number in words, with its range: "100 * cosine of CLIP embeddings, -100 to 100"."""
        ...

    @property
    def needs_prompt(self) -> bool:
        """Whether `score` needs prompts; if not, it ignores them."""
        ...

    @property
    def differentiable(self) -> bool:
        """Whether this is also a `DifferentiableReward`."""
        ...

    @property
    def higher_is_better(self) -> bool:
        """Direction; for a control without one, True means only that larger is counted as a win."""
        ...

    def score(self, images: Sequence[ImageLike], prompts: Sequence[str] | None = None) -> Scores1D:
        """Score B images against their B prompts. Returns [B] raw float32 in the published scale, all finite.

        A score depends on its own image and prompt only, never on the others of the batch. Raises ImageError naming an
        image that cannot be read, InputError when prompts are needed and missing or not as many as images.
        """
        ...


@runtime_checkable
class DifferentiableReward(Reward, Protocol):
    """A scorer through which a gradient flows to the pixels."""

    def score_tensor(self, pixels: torch.Tensor, prompts: Sequence[str] | None = None) -> torch.Tensor:
        """Score [B, 3, H, W] pixels in [0, 1] on the scorer's device. Returns [B] float32 with gradient."""
        ...


@runtime_checkable
class TextLimited(Protocol):
    """A scorer that reads only the first tokens of a prompt."""

    @property
    def token_limit(self) -> int:
        """Tokens it can read, special tokens included."""
        ...

    def count_truncated(self, prompts: Sequence[str]) -> int:
        """Number of the given prompts that are longer and lose their end."""
        ...


@runtime_checkable
class Fingerprinted(Protocol):
    """A scorer whose values may be cached."""

    def fingerprint(self) -> Mapping[str, str]:
        """Everything a value depends on beside image and prompt: name, version, weights' hash, options, libraries."""
        ...


def check_prompts(name: str, count: int, prompts: Sequence[str] | None) -> list[str]:
    """Prompts of `count` images as a list. Raises InputError when they are absent, of another number, or not text."""
    if prompts is None:
        raise InputError(f"{name} scores an image against a prompt; give one prompt per image.")
    if isinstance(prompts, str):
        raise InputError(f"{name}: prompts is one string; give a list with one prompt per image.")
    if len(prompts) != count:
        raise InputError(f"{name}: {len(prompts)} prompts for {count} images; expected one per image.")
    for position, prompt in enumerate(prompts):
        if not isinstance(prompt, str):
            raise InputError(f"{name}: prompts[{position}] is {type(prompt).__name__}, expected text.")
    return list(prompts)


def check_scores(name: str, values: NDArray[np.floating], count: int) -> Scores1D:
    """[count] float32 scores. Raises ScoringError for another shape, or a value that is not finite."""
    scores = np.asarray(values, dtype=np.float32)
    if scores.shape != (count,):
        raise ScoringError(f"{name} returned shape {scores.shape} for {count} images; expected ({count},).")
    if not np.isfinite(scores).all():
        position = int(np.argmin(np.isfinite(scores)))
        raise ScoringError(f"{name} returned {scores[position]} for image {position} of the batch; expected a number.")
    return scores


def open_batch(images: Sequence[ImageLike]) -> list[Image.Image]:
    """Open images with `open_image`, each named by its path or, without one, by its position in the list."""
    if isinstance(images, str | Path | Image.Image):
        raise InputError("images is a single image; give a list.")
    return [open_image(image, f"images[{position}]") for position, image in enumerate(images)]
