"""Autoencoder: reconstruct images through a narrow, nearly normal latent."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from t2i.config import FrozenModel
from t2i.objectives.base import ImageBatch, LossOutput

if TYPE_CHECKING:
    from diffusers import AutoencoderKL
    from torch import Tensor


def reconstruction_loss(reconstruction: Tensor, pixels: Tensor) -> Tensor:
    """Mean absolute plus mean squared error per example. Both [B, 3, H, W] in [-1, 1]; returns [B]."""
    difference = (reconstruction.float() - pixels.float()).flatten(1)
    return difference.abs().mean(1) + difference.square().mean(1)


def kl_to_standard_normal(mean: Tensor, logvar: Tensor) -> Tensor:
    """KL(N(mean, exp logvar) || N(0, 1)), mean over latent elements, per example (Kingma & Welling, appendix B)."""
    return 0.5 * (mean.square() + logvar.exp() - 1 - logvar).flatten(1).mean(1)


class Autoencoder(FrozenModel):
    """Train an AutoencoderKL on images alone."""

    needs: ClassVar[str] = "images"

    type: Literal["autoencoder"] = "autoencoder"
    kl_weight: float = Field(default=1e-3, ge=0)
    """Weight of the KL term, taken per latent element; 1e-3 keeps latents near unit scale without blurring."""

    def __call__(self, vae: AutoencoderKL, batch: ImageBatch) -> LossOutput:
        """Per-example loss; `batch.noise` is the posterior draw, [B, C, h, w]."""
        posterior = vae.encode(batch.pixels, return_dict=False)[0]
        latents: Any = posterior.mean + posterior.std * batch.noise
        reconstruction = vae.decode(latents, return_dict=False)[0]
        error = reconstruction_loss(reconstruction, batch.pixels)
        kl = kl_to_standard_normal(posterior.mean, posterior.logvar)
        return LossOutput(error + self.kl_weight * kl, {"reconstruction": error.detach(), "kl": kl.detach()})
