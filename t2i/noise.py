"""Noise processes: how clean latents become noisy ones, and what the denoiser is asked to predict."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from torch import Tensor

from t2i.errors import ModelError

if TYPE_CHECKING:
    from diffusers import DDPMScheduler


class NoiseProcess(Protocol):
    """What objectives need to know about a family's noise."""

    def timesteps(self, uniform: Tensor) -> Tensor:
        """Map uniform draws in [0, 1), [B], to training timesteps as the denoiser takes them, [B]."""
        ...

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Noisy latents at the given timesteps. latents, noise: [B, ...]; timesteps: [B]."""
        ...

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """What the denoiser should predict for `add_noise(latents, noise, timesteps)`, [B, ...]."""
        ...


@dataclass(frozen=True)
class DDPM:
    """Variance-preserving discrete noise (Ho et al. 2020, arXiv:2006.11239, eq. 4).

    x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps.  Targets: `epsilon` is eps; `v_prediction` is
    sqrt(abar_t) eps - sqrt(1 - abar_t) x_0 (Salimans & Ho 2022, arXiv:2202.00512, section 4).
    """

    alphas_cumprod: Tensor
    """abar_t for t = 0 .. T-1, float32, [T], falling."""
    prediction_type: str

    @classmethod
    def from_scheduler(cls, scheduler: DDPMScheduler) -> DDPM:
        """Take the training noise from a diffusers scheduler, DDPM's or another's that holds the same.

        Raises ModelError for another kind of prediction.
        """
        prediction_type = scheduler.config["prediction_type"]
        if prediction_type not in ("epsilon", "v_prediction"):
            raise ModelError(
                f"{type(scheduler).__name__}: prediction_type is {prediction_type!r}; "
                "training knows 'epsilon' and 'v_prediction'."
            )
        return cls(scheduler.alphas_cumprod.float(), prediction_type)

    def timesteps(self, uniform: Tensor) -> Tensor:
        """Every timestep 0 .. T-1 with equal probability."""
        return (uniform * len(self.alphas_cumprod)).long().clamp(max=len(self.alphas_cumprod) - 1)

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        signal, sigma = self._coefficients(latents, timesteps)
        return signal * latents + sigma * noise

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        if self.prediction_type == "epsilon":
            return noise
        signal, sigma = self._coefficients(latents, timesteps)
        return signal * noise - sigma * latents

    def _coefficients(self, like: Tensor, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """sqrt(abar_t) and sqrt(1 - abar_t), shaped to broadcast over `like`."""
        alphas = self.alphas_cumprod.to(device=like.device)[timesteps].reshape(-1, *[1] * (like.ndim - 1))
        return alphas.sqrt().to(like.dtype), (1 - alphas).sqrt().to(like.dtype)
