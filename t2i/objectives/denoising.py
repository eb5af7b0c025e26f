"""Denoising: the ordinary diffusion loss, for any prediction type."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from t2i.config import FrozenModel
from t2i.objectives.base import Denoiser, DiffusionBatch, LossOutput

if TYPE_CHECKING:
    from torch import Tensor

    from t2i.noise import NoiseProcess


def denoising_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean squared error per example in fp32 (Ho et al. 2020, arXiv:2006.11239, eq. 14). [B, ...] each; gives [B]."""
    return (prediction.float() - target.float()).square().flatten(1).mean(1)


class Denoising(FrozenModel):
    """Learn to undo the noise on captioned images."""

    needs: ClassVar[str] = "captioned_images"

    type: Literal["denoising"] = "denoising"

    def __call__(self, denoiser: Denoiser, noise: NoiseProcess, batch: DiffusionBatch) -> LossOutput:
        """Per-example loss of one batch."""
        timesteps = noise.timesteps(batch.uniform)
        noisy = noise.add_noise(batch.latents, batch.noise, timesteps)
        prediction = denoiser(noisy, timesteps, denoiser.encode(batch.prompts))
        return LossOutput(denoising_loss(prediction, noise.target(batch.latents, batch.noise, timesteps)))
