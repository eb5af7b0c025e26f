"""What the scorers on CLIP embeddings have in common: images in, one encoding, one number out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from rewards.base import ImageLike, Preprocessing, Scores1D, check_prompts, check_scores, open_batch
from rewards.clip_encoder import ClipEncoder
from rewards.devices import full_precision
from rewards.errors import InputError

if TYPE_CHECKING:
    import torch

UNKNOWN = "unknown: these are not the published weights"

CLIP_PREPROCESSING = Preprocessing(
    resize="short side to the checkpoint's size (224), bicubic",
    antialias=True,
    crop="centre, to the checkpoint's size (224); half a pixel is rounded down",
    normalise="mean and standard deviation of the checkpoint's preprocessor_config.json",
)


def published(value: str, model: str, default: str) -> str:
    """A fact of the published weights, or that these are others."""
    return value if model == default else UNKNOWN


class ClipHead:
    """A prompt-blind scorer on the image embeddings of a CLIP encoder. A subclass gives `_values`."""

    name: str
    scale: str
    version: ClassVar[str] = "1"
    needs_prompt: bool = False
    differentiable: ClassVar[bool] = True
    higher_is_better: ClassVar[bool] = True

    def __init__(self, encoder: ClipEncoder) -> None:
        self._encoder = encoder

    @property
    def encoder(self) -> ClipEncoder:
        """The encoder whose image embeddings `score_embeddings` takes."""
        return self._encoder

    def use_encoder(self, encoder: ClipEncoder) -> None:
        """Take another encoder object, equal to one's own. Raises InputError for one that is not."""
        if encoder.identity != self._encoder.identity:
            raise InputError(f"{self.name}: {encoder.source.label} is not its encoder, {self._encoder.source.label}.")
        self._encoder = encoder

    def fingerprint(self) -> dict[str, str]:
        """Everything a score depends on beside image and prompt. Hashes the weights, but does not open the model."""
        return {"name": self.name, "version": self.version, "scale": self.scale} | self._encoder.fingerprint()

    def score(self, images: Sequence[ImageLike], prompts: Sequence[str] | None = None) -> Scores1D:
        """Score B images, against their B prompts if it needs them. Returns [B] float32.

        Errors as `Reward.score`, and ModelError for weights that cannot be had.
        """
        texts = self._texts(len(images), prompts)
        opened = open_batch(images)
        if not opened:
            return np.zeros(0, dtype=np.float32)
        values = self._exact_values(self._encoder.encode_images(opened), texts)
        return check_scores(self.name, values.cpu().numpy(), len(opened))

    def score_tensor(self, pixels: torch.Tensor, prompts: Sequence[str] | None = None) -> torch.Tensor:
        """Score [B, 3, H, W] in [0, 1] on the scorer's device. Returns [B] float32 with gradient."""
        texts = self._texts(len(pixels), prompts)
        return self._exact_values(self._encoder.encode_pixels(pixels), texts)

    def score_embeddings(self, embeddings: torch.Tensor, prompts: Sequence[str] | None = None) -> torch.Tensor:
        """Score [B, D] image embeddings, of any length, on the scorer's device. Returns [B] float32 with gradient."""
        texts = self._texts(len(embeddings), prompts)
        return self._exact_values(self._encoder.check_embeddings(embeddings), texts)

    def _texts(self, count: int, prompts: Sequence[str] | None) -> list[str]:
        return check_prompts(self.name, count, prompts) if self.needs_prompt else []

    def _exact_values(self, embeddings: torch.Tensor, prompts: list[str]) -> torch.Tensor:
        """`_values`, of which the caller's autocast would round the products."""
        with full_precision(embeddings.device.type):
            return self._values(embeddings, prompts)

    def _values(self, embeddings: torch.Tensor, prompts: list[str]) -> torch.Tensor:
        """[B, D] unit vectors and B prompts (none if it needs none) -> [B] scores."""
        raise NotImplementedError


class PromptHead(ClipHead):
    """A scorer on the embeddings of image and prompt."""

    needs_prompt: bool = True
    _prefix: str = ""
    """Put before every prompt."""

    @property
    def token_limit(self) -> int:
        """Tokens of a prompt that are read, start and end token included."""
        return self._encoder.token_limit

    def count_truncated(self, prompts: Sequence[str]) -> int:
        """Number of prompts that, with the prefix if there is one, are longer than `token_limit`."""
        return self._encoder.count_truncated([self._prefix + prompt for prompt in prompts])

    def _cosine(self, embeddings: torch.Tensor, prompts: list[str]) -> torch.Tensor:
        texts = self._encoder.encode_prompts([self._prefix + prompt for prompt in prompts])
        if texts.shape[-1] != embeddings.shape[-1]:
            found, expected = embeddings.shape[-1], texts.shape[-1]
            raise InputError(f"{self.name}: embeddings have {found} numbers, its encoder's have {expected}.")
        return (embeddings * texts).sum(dim=-1)
