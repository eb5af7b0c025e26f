"""Noise processes: how clean latents become noisy ones, and what the denoiser is asked to predict."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, Protocol

import torch
from torch import Tensor

from t2i.errors import ConfigError, ModelError
from t2i.timesteps import TimestepSettings

if TYPE_CHECKING:
    from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler

PredictionType = Literal["epsilon", "v_prediction", "flow"]

UNIFORM = TimestepSettings(distribution="uniform", shift=1.0)
LOGIT_NORMAL = TimestepSettings(distribution="logit_normal", shift=1.0)


class NoiseProcess(Protocol):
    """What objectives need to know about a family's noise. A level is 0 for clean and 1 for pure noise."""

    @property
    def prediction_type(self) -> PredictionType:
        """What `target` is."""
        ...

    @property
    def default_timesteps(self) -> TimestepSettings:
        """The levels that training draws when the recipe does not say."""
        ...

    @property
    def patch_size(self) -> int | None:
        """Side, in latent positions, of what the denoiser takes as one token; None where it has no tokens."""
        ...

    def timesteps(self, levels: Tensor) -> Tensor:
        """Timesteps as the denoiser takes them, [B], of noise levels in [0, 1], [B]."""
        ...

    def levels(self, timesteps: Tensor) -> Tensor:
        """Noise levels of timesteps, float32 [B]; `timesteps(levels(t))` is t, up to rounding (by 1 for DDPM)."""
        ...

    def snr(self, timesteps: Tensor) -> Tensor:
        """Squared ratio of the latents' factor to the noise's, float32 [B]; 0 for pure noise, infinite without any."""
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
    prediction_type: Literal["epsilon", "v_prediction"]
    default_timesteps: TimestepSettings = UNIFORM
    """Every timestep alike."""
    patch_size: int | None = None

    @classmethod
    def from_scheduler(cls, scheduler: DDPMScheduler, patch_size: int | None = None) -> DDPM:
        """Take the training noise from a diffusers scheduler, DDPM's or another's that holds the same.

        Raises ModelError for another kind of prediction.
        """
        prediction_type = scheduler.config["prediction_type"]
        if prediction_type not in ("epsilon", "v_prediction"):
            raise ModelError(
                f"{type(scheduler).__name__}: prediction_type is {prediction_type!r}; "
                "training knows 'epsilon' and 'v_prediction'."
            )
        return cls(scheduler.alphas_cumprod.float(), prediction_type, patch_size=patch_size)

    def timesteps(self, levels: Tensor) -> Tensor:
        """Integers: floor(level * T), at most T-1."""
        return (levels * len(self.alphas_cumprod)).long().clamp(max=len(self.alphas_cumprod) - 1)

    def levels(self, timesteps: Tensor) -> Tensor:
        """t / T, the lowest level of each timestep."""
        return timesteps.float() / len(self.alphas_cumprod)

    def snr(self, timesteps: Tensor) -> Tensor:
        """abar_t / (1 - abar_t)."""
        alphas = self._alphas(timesteps, timesteps.device)
        return alphas / (1 - alphas)

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
        alphas = self._alphas(timesteps, like.device).reshape(-1, *[1] * (like.ndim - 1))
        return alphas.sqrt().to(like.dtype), (1 - alphas).sqrt().to(like.dtype)

    def _alphas(self, timesteps: Tensor, device: torch.device) -> Tensor:
        """abar_t of each timestep, without making the host wait for the device."""
        return self.alphas_cumprod.to(device=device, non_blocking=True)[timesteps]


@dataclass(frozen=True)
class RectifiedFlow:
    """Straight lines between image and noise (Liu et al. 2022, arXiv:2209.03003; Esser et al. 2024, arXiv:2403.03206).

    x_s = (1 - s) x_0 + s eps at level s in [0, 1]; the target is the velocity eps - x_0. Timesteps are s T, float32,
    not rounded.
    """

    default_timesteps: TimestepSettings = LOGIT_NORMAL
    """The levels that the checkpoint was made for: logit-normal, with the shift that its scheduler samples with."""
    patch_size: int | None = 2
    num_train_timesteps: int = 1000
    """T: the timestep of pure noise."""

    @property
    def prediction_type(self) -> Literal["flow"]:
        return "flow"

    @classmethod
    def from_scheduler(cls, scheduler: FlowMatchEulerDiscreteScheduler, patch_size: int = 2) -> RectifiedFlow:
        """Take the shift of the levels from the scheduler that the checkpoint samples with.

        A fixed shift stays fixed; dynamic shifting becomes `shift: resolution` with the scheduler's numbers. Raises
        ModelError for a scheduler of another kind or direction.
        """
        config, name = scheduler.config, type(scheduler).__name__
        if config.get("shift") is None:
            raise ModelError(f"{name}: it has no shift; expected a scheduler of rectified flow, as FlowMatchEuler is.")
        if config.get("invert_sigmas", False):
            raise ModelError(f"{name}: invert_sigmas is on (level 0 is noise); training knows level 1 as noise.")
        if not config.get("use_dynamic_shifting", False):
            settings = TimestepSettings(distribution="logit_normal", shift=float(config["shift"]))
        elif config.get("time_shift_type", "exponential") != "exponential":
            raise ModelError(f"{name}: time_shift_type is {config['time_shift_type']!r}; training knows 'exponential'.")
        else:
            settings = TimestepSettings(
                distribution="logit_normal",
                shift="resolution",
                base_tokens=config["base_image_seq_len"],
                max_tokens=config["max_image_seq_len"],
                base_shift=float(config["base_shift"]),
                max_shift=float(config["max_shift"]),
            )
        return cls(settings, patch_size, config["num_train_timesteps"])

    def timesteps(self, levels: Tensor) -> Tensor:
        """s T."""
        return levels.float() * self.num_train_timesteps

    def levels(self, timesteps: Tensor) -> Tensor:
        """t / T."""
        return timesteps.float() / self.num_train_timesteps

    def snr(self, timesteps: Tensor) -> Tensor:
        """((1 - s) / s)^2."""
        levels = self.levels(timesteps)
        return ((1 - levels) / levels).square()

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        # In fp32 also for half-precision latents: bf16 has 3 digits for a level that the denoiser is told with 7.
        levels = self.levels(timesteps).reshape(-1, *[1] * (latents.ndim - 1))
        return ((1 - levels) * latents + levels * noise).to(latents.dtype)

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        return noise - latents


def zero_terminal_snr(alphas_cumprod: Tensor) -> Tensor:
    """Rescale abar so that the last timestep is pure noise (Lin et al. 2023, arXiv:2305.08891, algorithm 1).

    sqrt(abar_t) <- (sqrt(abar_t) - sqrt(abar_T)) sqrt(abar_1) / (sqrt(abar_1) - sqrt(abar_T)). alphas_cumprod: [T],
    falling. The first stays, the last becomes 0 exactly; applied twice it changes nothing more.
    """
    roots = alphas_cumprod.double().sqrt()
    first, last = roots[0], roots[-1]
    rescaled = ((roots - last) * first / (first - last)).square()
    # The first one went through a division and must not move.
    return torch.cat([alphas_cumprod[:1], rescaled[1:].to(alphas_cumprod.dtype)])


def with_zero_terminal_snr(noise: NoiseProcess) -> DDPM:
    """The same process, ending in pure noise.

    Its samplers must be built alike: `rescale_betas_zero_snr=True` and `timestep_spacing="trailing"`. Raises
    ConfigError for epsilon-prediction, which says nothing about the image where there is only noise, and for flow.
    """
    if not isinstance(noise, DDPM):
        raise ConfigError(
            "zero_terminal_snr: this model's noise ends in pure noise already; leave zero_terminal_snr out."
        )
    if noise.prediction_type != "v_prediction":
        raise ConfigError(
            f"zero_terminal_snr: the model predicts {noise.prediction_type}, which is undefined in pure noise; it "
            "needs a v_prediction checkpoint."
        )
    return replace(noise, alphas_cumprod=zero_terminal_snr(noise.alphas_cumprod))
