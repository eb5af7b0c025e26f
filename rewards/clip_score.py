"""CLIP score: how well an image fits its prompt, by the cosine of their CLIP embeddings.

The same name means four scales in the field; here the scale is an option and part of the scorer's name:

| scale | formula | prefix | used by |
|---|---|---|---|
| `cosine_x100` (default) | 100 * cos | none | torchmetrics and HEIM, ViT-L/14 |
| `cosine` | cos | none | T2I-CompBench, t2v_metrics 3.0 |
| `hessel` | 2.5 * max(cos, 0) | "A photo depicts " | Hessel et al. 2021 (arXiv:2104.08718), ViT-B/32 |

Numbers of different checkpoints are not comparable, whatever the scale.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from rewards.base import ImageLike, Scores1D, check_prompts, check_scores, open_batch
from rewards.clip_encoder import ClipEncoder
from rewards.errors import InputError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class _Scale:
    name: str
    description: str
    factor: float
    prefix: str = ""
    clips_negative: bool = False


_SCALES = {
    "cosine": _Scale("clip_score_cosine", "cosine of CLIP embeddings, -1 to 1", 1.0),
    "cosine_x100": _Scale(
        "clip_score", "100 * cosine of CLIP embeddings, -100 to 100; photographs about 20 to 35", 100.0
    ),
    "hessel": _Scale(
        "clip_score_hessel",
        '2.5 * max(cosine of CLIP embeddings, 0), 0 to 2.5, prompts after "A photo depicts "',
        2.5,
        prefix="A photo depicts ",
        clips_negative=True,
    ),
}


class ClipScore:
    """CLIP score with any transformers CLIPModel (OpenAI, LAION, or your own).

    model: folder or hub id; revision: of a hub id (pin it for a number that is to last); scale: see the module; device:
    a torch device; batch_size: speed only. The model is opened by the first call that needs it.
    """

    version: ClassVar[str] = "1"
    needs_prompt: ClassVar[bool] = True
    differentiable: ClassVar[bool] = True
    higher_is_better: ClassVar[bool] = True

    def __init__(
        self,
        model: str = "openai/clip-vit-large-patch14",
        revision: str | None = None,
        scale: str = "cosine_x100",
        device: str = "cpu",
        batch_size: int = 32,
    ) -> None:
        if scale not in _SCALES:
            raise InputError(f"clip_score: unknown scale {scale!r}; expected one of {', '.join(sorted(_SCALES))}.")
        self._scale = _SCALES[scale]
        self._encoder = ClipEncoder(model, revision, device, batch_size)
        self.name = self._scale.name
        self.scale = self._scale.description

    @property
    def token_limit(self) -> int:
        """Tokens of a prompt that are read, start and end token included."""
        return self._encoder.token_limit

    def count_truncated(self, prompts: Sequence[str]) -> int:
        """Number of prompts that, with the scale's prefix, are longer than `token_limit`."""
        return self._encoder.count_truncated([self._scale.prefix + prompt for prompt in prompts])

    def fingerprint(self) -> dict[str, str]:
        """Everything a score depends on beside image and prompt. Hashes the weights, but does not open the model."""
        return {"name": self.name, "version": self.version, "scale": self.scale} | self._encoder.fingerprint()

    def score(self, images: Sequence[ImageLike], prompts: Sequence[str] | None = None) -> Scores1D:
        """Score B images against their B prompts. Returns [B] float32. Errors as `Reward.score`, and ModelError."""
        texts = check_prompts(self.name, len(images), prompts)
        if not texts:
            return np.zeros(0, dtype=np.float32)
        embeddings = self._encoder.encode_images(open_batch(images))
        return check_scores(self.name, self._scores(embeddings, texts).cpu().numpy(), len(texts))

    def score_tensor(self, pixels: torch.Tensor, prompts: Sequence[str] | None = None) -> torch.Tensor:
        """Score [B, 3, H, W] in [0, 1] on the scorer's device. Returns [B] float32 with gradient.

        The scale `hessel` has no gradient where the cosine is negative.
        """
        texts = check_prompts(self.name, len(pixels), prompts)
        return self._scores(self._encoder.encode_pixels(pixels), texts)

    def _scores(self, image_embeddings: torch.Tensor, prompts: list[str]) -> torch.Tensor:
        text_embeddings = self._encoder.encode_prompts([self._scale.prefix + prompt for prompt in prompts])
        cosine = (image_embeddings * text_embeddings).sum(dim=-1)
        return self._scale.factor * (cosine.clamp_min(0.0) if self._scale.clips_negative else cosine)
