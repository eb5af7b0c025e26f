"""PickScore (Kirstain et al. 2023, arXiv:2305.01569): CLIP ViT-H/14 tuned on people's choices between two images."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rewards.base import ScorerCard
from rewards.clip_encoder import ClipEncoder
from rewards.clip_head import CLIP_PREPROCESSING, PromptHead, published
from rewards.clip_source import TransformersClip

if TYPE_CHECKING:
    import torch

DEFAULT_MODEL = "yuvalkirstain/PickScore_v1"


class PickScore(PromptHead):
    """exp(logit_scale) * cosine, as the authors publish it; other libraries leave the factor of about 100 out.

    The chance that image a is preferred to b for the same prompt is sigmoid(score(a) - score(b)). Scores of different
    prompts were never compared in training. model: folder or hub id; revision: of a hub id; device: a torch device;
    batch_size: speed only.
    """

    name: str = "pickscore"
    scale: str = "learned factor (about 100) * cosine of CLIP-H embeddings, -100 to 100; images about 20 to 23"

    def __init__(
        self, model: str = DEFAULT_MODEL, revision: str | None = None, device: str = "cpu", batch_size: int = 32
    ) -> None:
        super().__init__(ClipEncoder(TransformersClip(str(model), revision), device, batch_size))
        self._model = str(model)
        self._revision = revision

    @property
    def card(self) -> ScorerCard:
        """What the scorer is."""
        return ScorerCard(
            name=self.name,
            version=self.version,
            weights=self._model,
            revision=self._revision,
            licence=published("MIT (of the code; the weights name none)", self._model, DEFAULT_MODEL),
            scale=self.scale,
            low=-100.0 if self._model == DEFAULT_MODEL else None,
            high=100.0 if self._model == DEFAULT_MODEL else None,
            token_limit=77 if self._model == DEFAULT_MODEL else None,
            preprocessing=CLIP_PREPROCESSING,
            needs_prompt=self.needs_prompt,
            differentiable=self.differentiable,
            higher_is_better=self.higher_is_better,
            trained_on=published("Pick-a-Pic v1: people's choices of generated images", self._model, DEFAULT_MODEL),
        )

    def _values(self, embeddings: torch.Tensor, prompts: list[str]) -> torch.Tensor:
        return self._encoder.logit_scale() * self._cosine(embeddings, prompts)
