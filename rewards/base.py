"""What a scorer is, what an image is to all of them, and the checks that every scorer shares.

A new scorer implements `Reward` and nothing else is required. `TextLimited`, `Fingerprinted`, `DifferentiableReward`,
`Described` and `EmbeddingReward` are further promises: counting of cut prompts, caching, gradients, a card that says
what the numbers are, and an image encoding that several scorers can share.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol, TypeAlias, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from rewards.errors import InputError, ScoringError
from rewards.images import ImageLike, open_image

if TYPE_CHECKING:
    import torch

    from rewards.clip_encoder import ClipEncoder

__all__ = [
    "Described",
    "DifferentiableReward",
    "EmbeddingReward",
    "Fingerprinted",
    "ImageLike",
    "Preprocessing",
    "Reward",
    "ScorerCard",
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


@dataclass(frozen=True)
class Preprocessing:
    """What happens to an upright 8-bit RGB image before a model sees it."""

    resize: str
    """Which side to which size, and by which filter."""
    antialias: bool
    crop: str
    """What is cut off or padded, and how half a pixel is rounded."""
    normalise: str
    backend: Literal["PIL", "torch"] = "PIL"
    """What resizes: pinned, since backends differ by some levels per pixel."""
    dtype: str = "float32"


@dataclass(frozen=True)
class ScorerCard:
    """What a scorer's numbers are and where they come from. Everything that depends on weights is about `weights`."""

    name: str
    version: str
    weights: str | None
    """Hub id, file or folder; None for a formula."""
    revision: str | None
    """Commit or hash of `weights`; None for a local folder or one that is not pinned."""
    licence: str
    """Of the weights; "unknown" for weights that are not the published ones."""
    scale: str
    low: float | None
    """Smallest value that is possible; None if there is no bound."""
    high: float | None
    token_limit: int | None
    """Tokens of a prompt that are read, special tokens included; None where no prompt is read or by other weights."""
    preprocessing: Preprocessing | None
    """None for a formula on the pixels as they are."""
    needs_prompt: bool
    differentiable: bool
    higher_is_better: bool
    trained_on: str
    key_map: Literal["none", "verified", "unverified"] = "none"
    """Whether weights are renamed for transformers, and whether that was checked on the published file's key list."""


@runtime_checkable
class Described(Protocol):
    """A scorer with a card. Reading it opens and downloads nothing."""

    @property
    def card(self) -> ScorerCard:
        """What the scorer is."""
        ...


@runtime_checkable
class EmbeddingReward(Reward, Protocol):
    """A head on the image embeddings of a CLIP encoder, which other heads may use as well."""

    @property
    def encoder(self) -> ClipEncoder:
        """The encoder whose image embeddings `score_embeddings` takes."""
        ...

    def use_encoder(self, encoder: ClipEncoder) -> None:
        """Take another encoder object, equal to one's own, so that the model is opened once. Changes no score."""
        ...

    def score_embeddings(self, embeddings: torch.Tensor, prompts: Sequence[str] | None = None) -> torch.Tensor:
        """Score [B, D] image embeddings, of any length, on the scorer's device. Returns [B] float32 with gradient."""
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
    """[count] float32 scores. Raises ScoringError for no numbers, another shape, or a value that is not finite."""
    try:
        scores = np.asarray(values, dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise ScoringError(f"{name} returned what is not a list of numbers ({error}).") from error
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
