"""CLIP score: how well an image fits its prompt, by the cosine of their CLIP embeddings.

The same name means several scales in the field; here the scale is an option and part of the scorer's name:

| scale | formula | prefix | used by |
|---|---|---|---|
| `cosine_x100` (default) | 100 * cos | none | torchmetrics and HEIM, ViT-L/14 |
| `cosine` | cos | none | T2I-CompBench, t2v_metrics 3.0 |
| `hessel` | 2.5 * max(cos, 0) | "A photo depicts " | Hessel et al. 2021 (arXiv:2104.08718), ViT-B/32 |
| `logit` | exp(logit_scale) * cos | none | imscore |
| `probability` | sigmoid(exp(logit_scale) * cos + logit_bias) | none | SigLIP (Zhai et al. 2023, arXiv:2303.15343) |

Numbers of different checkpoints are not comparable, whatever the scale.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rewards.base import ScorerCard
from rewards.clip_encoder import ClipEncoder
from rewards.clip_head import CLIP_PREPROCESSING, PromptHead, published
from rewards.clip_source import TransformersClip
from rewards.errors import InputError

if TYPE_CHECKING:
    import torch

DEFAULT_MODEL = "openai/clip-vit-large-patch14"


@dataclass(frozen=True)
class _Scale:
    name: str
    description: str
    low: float | None
    high: float | None
    factor: float | None
    """None for the factor that the model learned."""
    prefix: str = ""


_SCALES = {
    "cosine": _Scale("clip_score_cosine", "cosine of CLIP embeddings, -1 to 1", -1.0, 1.0, 1.0),
    "cosine_x100": _Scale(
        "clip_score",
        "100 * cosine of CLIP embeddings, -100 to 100; photographs about 20 to 35",
        -100.0,
        100.0,
        100.0,
    ),
    "hessel": _Scale(
        "clip_score_hessel",
        '2.5 * max(cosine of CLIP embeddings, 0), 0 to 2.5, prompts after "A photo depicts "',
        0.0,
        2.5,
        2.5,
        prefix="A photo depicts ",
    ),
    "logit": _Scale(
        "clip_score_logit",
        "learned factor (about 100) * cosine of CLIP embeddings, -100 to 100 or so",
        None,
        None,
        None,
    ),
    "probability": _Scale(
        "siglip_probability", "sigmoid of the SigLIP logit, 0 to 1; that image and prompt are a pair", 0.0, 1.0, None
    ),
}


class ClipScore(PromptHead):
    """CLIP score with any transformers CLIPModel (OpenAI, LAION, or your own) or SiglipModel.

    model: folder or hub id; revision: of a hub id (pin it for a number that is to last); scale: see the module; device:
    a torch device; batch_size: speed only. The model is opened by the first call that needs it. The scale `hessel` has
    no gradient where the cosine is negative.
    """

    def __init__(
        self,
        model: str = DEFAULT_MODEL,
        revision: str | None = None,
        scale: str = "cosine_x100",
        device: str = "cpu",
        batch_size: int = 32,
    ) -> None:
        if scale not in _SCALES:
            raise InputError(f"clip_score: unknown scale {scale!r}; expected one of {', '.join(sorted(_SCALES))}.")
        super().__init__(ClipEncoder(TransformersClip(str(model), revision), device, batch_size))
        self._scale = _SCALES[scale]
        self._prefix = self._scale.prefix
        self._model = str(model)
        self._revision = revision
        self.name = self._scale.name
        self.scale = self._scale.description

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
            low=self._scale.low,
            high=self._scale.high,
            token_limit=77 if self._model == DEFAULT_MODEL else None,
            preprocessing=CLIP_PREPROCESSING,
            needs_prompt=self.needs_prompt,
            differentiable=self.differentiable,
            higher_is_better=self.higher_is_better,
            trained_on=published("400 million image-text pairs of OpenAI, not published", self._model, DEFAULT_MODEL),
        )

    def _values(self, embeddings: torch.Tensor, prompts: list[str]) -> torch.Tensor:
        cosine = self._cosine(embeddings, prompts)
        factor = self._scale.factor if self._scale.factor is not None else self._encoder.logit_scale()
        if self._scale.name == "siglip_probability":
            return (factor * cosine + self._encoder.logit_bias()).sigmoid()
        return factor * (cosine.clamp_min(0.0) if self._scale.name == "clip_score_hessel" else cosine)
