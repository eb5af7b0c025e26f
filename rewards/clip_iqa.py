"""CLIP-IQA (Wang et al. 2023, arXiv:2207.12396): is the image nearer to "Good photo." than to "Bad photo."?

The paper uses a ResNet-50 CLIP without its position embedding, which transformers does not have; with a vision
transformer the numbers are others than the paper's, and so is the ranking of images.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

from rewards.base import ScorerCard
from rewards.clip_encoder import ClipEncoder
from rewards.clip_head import CLIP_PREPROCESSING, ClipHead, published
from rewards.clip_source import TransformersClip
from rewards.errors import InputError

if TYPE_CHECKING:
    import torch

DEFAULT_MODEL = "openai/clip-vit-large-patch14"

ASPECTS = {
    "quality": ("Good photo.", "Bad photo."),
    "beauty": ("Beautiful photo.", "Ugly photo."),
    "brightness": ("Bright photo.", "Dark photo."),
    "colorfulness": ("Colorful photo.", "Dull photo."),
    "contrast": ("High contrast photo.", "Low contrast photo."),
    "noisiness": ("Clean photo.", "Noisy photo."),
    "sharpness": ("Sharp photo.", "Blurry photo."),
}
"""Aspect -> the two prompts it weighs against each other."""


class ClipIqa(ClipHead):
    """Softmax of 100 * cosine over an antonym pair: the chance of the better of the two prompts.

    aspect: which pair, a key of ASPECTS, part of the scorer's name unless it is `quality`; model: folder or hub id of a
    CLIPModel; revision: of a hub id; device: a torch device; batch_size: speed only.
    """

    def __init__(
        self,
        aspect: str = "quality",
        model: str = DEFAULT_MODEL,
        revision: str | None = None,
        device: str = "cpu",
        batch_size: int = 32,
    ) -> None:
        if aspect not in ASPECTS:
            raise InputError(f"clip_iqa: unknown aspect {aspect!r}; expected one of {', '.join(ASPECTS)}.")
        super().__init__(ClipEncoder(TransformersClip(str(model), revision), device, batch_size))
        self._pair = ASPECTS[aspect]
        self._model = str(model)
        self._revision = revision
        self.name = "clip_iqa" if aspect == "quality" else f"clip_iqa_{aspect}"
        self.scale = f'chance of "{self._pair[0]}" against "{self._pair[1]}", 0 to 1'

    @property
    def card(self) -> ScorerCard:
        """What the scorer is."""
        return ScorerCard(
            name=self.name,
            version=self.version,
            weights=self._model,
            revision=self._revision,
            licence=published("MIT", self._model, DEFAULT_MODEL),
            scale=self.scale,
            low=0.0,
            high=1.0,
            token_limit=None,
            preprocessing=CLIP_PREPROCESSING,
            needs_prompt=self.needs_prompt,
            differentiable=self.differentiable,
            higher_is_better=self.higher_is_better,
            trained_on=published("400 million image-text pairs of OpenAI, not published", self._model, DEFAULT_MODEL),
        )

    @cached_property
    def _pair_embeddings(self) -> torch.Tensor:
        """[2, D] unit vectors of the better and the worse prompt."""
        return self._encoder.encode_prompts(self._pair)

    def _values(self, embeddings: torch.Tensor, prompts: list[str]) -> torch.Tensor:
        if embeddings.shape[-1] != self._pair_embeddings.shape[-1]:
            found, expected = embeddings.shape[-1], self._pair_embeddings.shape[-1]
            raise InputError(f"{self.name}: embeddings have {found} numbers, its encoder's have {expected}.")
        better, worse = (embeddings @ self._pair_embeddings.T).unbind(-1)
        return (100.0 * (better - worse)).sigmoid()
