"""How much each noise level counts: weights of the per-example losses. Pure functions, and the names a recipe uses.

Nothing is normalised: a weighting also scales the learning rate. Where a formula of one prediction type is carried over
to another, it uses that the same error in the image has ||eps error||^2 = SNR/(SNR+1) ||v error||^2 under DDPM.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from t2i.config import FrozenModel
from t2i.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

    from t2i.noise import NoiseProcess
    from t2i.timesteps import TimestepSettings

VForm = Literal["inverse", "inverse_root", "equivalent"]

LARGEST_SNR = 1000.0
"""Debiased weights take a larger SNR as this one, as kohya does."""


def min_snr_weights(snr: Tensor, gamma: float, prediction_type: Literal["epsilon", "v_prediction"]) -> Tensor:
    """min(SNR, gamma) / SNR for epsilon, min(SNR, gamma) / (SNR + 1) for v (Hang et al. 2023, arXiv:2303.09556).

    snr: [B]. Both weigh the error in x_0 by min(SNR, gamma). At SNR 0 they are 1 and 0.
    """
    if prediction_type == "epsilon":
        return (gamma / snr).clamp(max=1)
    return snr.clamp(max=gamma) / (snr + 1)


def debiased_weights(snr: Tensor, form: VForm | Literal["epsilon"]) -> Tensor:
    """Weights of debiased estimation, [B] from an SNR above 0, [B] (Yu et al. 2023, arXiv:2310.08442).

    `epsilon`: 1 / sqrt(SNR), the paper's. For v: `inverse`: 1 / (SNR + 1), as kohya has it; `inverse_root`:
    1 / sqrt(SNR + 1), met in other trainers; `equivalent`: sqrt(SNR) / (SNR + 1), the paper's weight carried over.
    """
    snr = snr.clamp(max=LARGEST_SNR)
    if form == "epsilon":
        return snr.rsqrt()
    if form == "inverse":
        return 1 / (snr + 1)
    return (snr + 1).rsqrt() if form == "inverse_root" else snr.sqrt() / (snr + 1)


def sigma_sqrt_weights(levels: Tensor) -> Tensor:
    """level^-2, [B]: of rectified flow, as diffusers' scripts have it; without bound towards level 0."""
    return levels.square().reciprocal()


def cosmap_weights(levels: Tensor) -> Tensor:
    """2 / (pi (1 - 2 s + 2 s^2)), [B]: uniform levels count as if drawn by CosMap.

    CosMap is the distribution of levels whose log-SNR is that of the cosine schedule (Esser et al. 2024,
    arXiv:2403.03206, section 3.1). Between 2/pi at the ends and 4/pi at 1/2; its mean over uniform levels is 1.
    """
    return 2 / (math.pi * (1 - 2 * levels + 2 * levels.square()))


class MinSnr(FrozenModel):
    """Bound what nearly clean levels count: min-SNR-gamma, for DDPM."""

    type: Literal["min_snr"] = "min_snr"
    gamma: float = Field(default=5.0, gt=0)
    """SNR above which a level counts no more; the paper's 5 (1 to 20)."""

    def check(self, noise: NoiseProcess, timesteps: TimestepSettings) -> None:
        """Raise ConfigError for a model of flow."""
        _only(noise, ("epsilon", "v_prediction"), self.type)

    def weights(self, noise: NoiseProcess, timesteps: Tensor) -> Tensor:
        """[B] of timesteps [B]."""
        prediction_type = "epsilon" if noise.prediction_type == "epsilon" else "v_prediction"
        return min_snr_weights(noise.snr(timesteps), self.gamma, prediction_type)


class Debiased(FrozenModel):
    """Let noisy levels count more: debiased estimation, for DDPM."""

    type: Literal["debiased"] = "debiased"
    v_form: VForm | None = None
    """For v-prediction, and then required, since trainers differ: `inverse` 1/(SNR+1), `inverse_root` 1/sqrt(SNR+1), or
    `equivalent` sqrt(SNR)/(SNR+1), the same loss as with epsilon. For epsilon it is 1/sqrt(SNR) always."""

    def check(self, noise: NoiseProcess, timesteps: TimestepSettings) -> None:
        """Raise ConfigError for a model of flow, a form that does not fit, or epsilon with noise that ends in none."""
        import torch

        _only(noise, ("epsilon", "v_prediction"), self.type)
        predicts_v = noise.prediction_type == "v_prediction"
        if predicts_v and self.v_form is None:
            raise ConfigError("weighting.v_form: a v_prediction model needs one of inverse, inverse_root, equivalent.")
        if not predicts_v and self.v_form is not None:
            raise ConfigError(f"weighting.v_form: this model predicts {noise.prediction_type}; leave v_form out.")
        if not predicts_v and not float(noise.snr(noise.timesteps(torch.ones(1)))):
            raise ConfigError(
                "weighting: debiased grows without bound in pure noise, where this model's noise ends (zero terminal "
                "SNR with epsilon); use min_snr."
            )

    def weights(self, noise: NoiseProcess, timesteps: Tensor) -> Tensor:
        """[B] of timesteps [B]."""
        return debiased_weights(noise.snr(timesteps), self.v_form or "epsilon")


class SigmaSqrt(FrozenModel):
    """Let nearly clean levels count more: level^-2, for flow."""

    type: Literal["sigma_sqrt"] = "sigma_sqrt"

    def check(self, noise: NoiseProcess, timesteps: TimestepSettings) -> None:
        """Raise ConfigError for DDPM, or for levels that reach 0."""
        _only(noise, ("flow",), self.type)
        if timesteps.min_level == 0:
            raise ConfigError(
                "weighting: sigma_sqrt grows without bound towards level 0; set timesteps.min_level above 0 (0.001 is "
                "the lowest level of diffusers' scripts)."
            )

    def weights(self, noise: NoiseProcess, timesteps: Tensor) -> Tensor:
        """[B] of timesteps [B]."""
        return sigma_sqrt_weights(noise.levels(timesteps))


class Cosmap(FrozenModel):
    """Let the middle levels count a little more: CosMap, for flow; made for `distribution: uniform`."""

    type: Literal["cosmap"] = "cosmap"

    def check(self, noise: NoiseProcess, timesteps: TimestepSettings) -> None:
        """Raise ConfigError for DDPM."""
        _only(noise, ("flow",), self.type)

    def weights(self, noise: NoiseProcess, timesteps: Tensor) -> Tensor:
        """[B] of timesteps [B]."""
        return cosmap_weights(noise.levels(timesteps))


Weighting = Annotated[MinSnr | Debiased | SigmaSqrt | Cosmap, Field(discriminator="type")]


def _only(noise: NoiseProcess, prediction_types: tuple[str, ...], weighting: str) -> None:
    if noise.prediction_type not in prediction_types:
        raise ConfigError(
            f"weighting: {weighting} is defined for {' and '.join(prediction_types)}, but this model predicts "
            f"{noise.prediction_type}; leave it out or choose another."
        )
