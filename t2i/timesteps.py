"""Which noise levels are trained, and how often: a map from uniform draws to levels.

A level lies in [0, 1]; 0 is the clean image and 1 pure noise, everywhere in this package. `NoiseProcess.timesteps`
turns levels into what a denoiser takes. Two other conventions are met in the field:
  diffusers' training scripts index a falling list of timesteps, so their draw u is 1 - level and their `logit_mean`
    has the opposite sign of ours; so does kohya's `timestep_sampling: sigma`;
  kohya's `uniform`, `sigmoid`, `shift` and `flux_shift`, and the papers cited below, use u as the level, like ours.

Every map is the inverse of the distribution's CDF, so it rises with the draw and keyed draws decide the levels. No
torch is imported with this module: recipes are read without it.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal, Self, TypeVar

from pydantic import Field, model_validator

from t2i.config import FrozenModel
from t2i.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

Level = TypeVar("Level", float, "Tensor")

LARGEST_MODE_SCALE = 2 / (math.pi - 2)
"""Above it (and below -1) the mode map does not rise everywhere (Esser et al. 2024, arXiv:2403.03206, section 3.1)."""

PARAMETERS = {
    "logit_mean": "distribution: logit_normal",
    "logit_std": "distribution: logit_normal",
    "mode_scale": "distribution: mode",
    "base_tokens": "shift: resolution",
    "max_tokens": "shift: resolution",
    "base_shift": "shift: resolution",
    "max_shift": "shift: resolution",
}
"""Fields that count with one choice only, and that choice."""


class TimestepSettings(FrozenModel):
    """A distribution of noise levels between 0, clean, and 1, pure noise: drawn, then shifted, then cut to a range."""

    distribution: Literal["uniform", "logit_normal", "mode"] | None = None
    """Before the shift: every level alike; a bell between the ends; or more weight in the middle but none lost at the
    ends. As the model was made for if absent: `uniform` for DDPM, `logit_normal` for flow."""
    logit_mean: float = 0.0
    """Mean of the logit of the level; above 0 trains on more noise. The sign is opposite in diffusers' scripts."""
    logit_std: float = Field(default=1.0, gt=0)
    """Standard deviation of the logit of the level."""
    mode_scale: float = Field(default=1.29, ge=-1, le=LARGEST_MODE_SCALE)
    """Above 0 favours the middle, below 0 the ends; 0 is uniform, 1.29 the best value of the paper."""
    shift: Literal["resolution"] | float | None = None
    """Factor of the noise-to-signal ratio: 1 leaves the levels, 3 moves them towards noise; above 0. `resolution`
    takes it from the number of image tokens, as Flux does. As the model was made for if absent: 1 for DDPM, that of
    the checkpoint's scheduler for flow."""
    base_tokens: int = Field(default=256, gt=0)
    """Image tokens at which the logarithm of the shift is `base_shift`."""
    max_tokens: int = Field(default=4096, gt=0)
    """Image tokens at which the logarithm of the shift is `max_shift`; the line goes on beyond both."""
    base_shift: float = 0.5
    """Logarithm of the shift at `base_tokens`."""
    max_shift: float = 1.15
    """Logarithm of the shift at `max_tokens`."""
    min_level: float = Field(default=0.0, ge=0, lt=1)
    """No level below this is drawn, after the shift; the distribution within the range keeps its form."""
    max_level: float = Field(default=1.0, gt=0, le=1)
    """No level above this is drawn, after the shift."""

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        if isinstance(self.shift, float) and self.shift <= 0:
            raise ValueError(f"shift must be above 0 (got {self.shift})")
        if self.min_level >= self.max_level:
            raise ValueError(f"min_level ({self.min_level}) must be below max_level ({self.max_level})")
        if self.base_tokens >= self.max_tokens:
            raise ValueError(f"base_tokens ({self.base_tokens}) must be below max_tokens ({self.max_tokens})")
        chosen = {f"distribution: {self.distribution}", f"shift: {self.shift}"}
        for name, choice in PARAMETERS.items():
            if choice not in chosen and getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{name} counts with `{choice}` only; set that, or leave {name} out")
        return self


def completed(settings: TimestepSettings | None, default: TimestepSettings) -> TimestepSettings:
    """The settings with what they leave open taken from `default`, each choice with its own parameters."""
    if settings is None:
        return default
    open_choices = {name for name in ("distribution", "shift") if getattr(settings, name) is None}
    taken = {name: getattr(default, name) for name in open_choices}
    for name, choice in PARAMETERS.items():
        if choice.partition(":")[0] in open_choices:
            taken[name] = getattr(default, name)
    return TimestepSettings.model_validate(settings.model_dump() | taken)


def noise_levels(uniform: Tensor, settings: TimestepSettings, tokens: float | None = None) -> Tensor:
    """Map uniform draws [B] in [0, 1] to noise levels [B] in [min_level, max_level], of the draws' dtype.

    Open choices count as uniform without a shift; `completed` fills them by a model's. tokens: image tokens of an
    example; None where the denoiser has none, which `shift: resolution` refuses with
    ConfigError. The range is cut from the shifted distribution, so it is that distribution given the range.
    """
    shift = shift_factor(settings, tokens)
    if settings.min_level > 0 or settings.max_level < 1:
        lower, upper = (_cdf(shifted(level, 1 / shift), settings) for level in (settings.min_level, settings.max_level))
        uniform = lower + (upper - lower) * uniform
    return shifted(_quantile(uniform, settings), shift).clamp(settings.min_level, settings.max_level)


def shift_factor(settings: TimestepSettings, tokens: float | None = None) -> float:
    """The shift itself; with `resolution` e^mu, mu linear in the number of image tokens (as Flux' pipelines do)."""
    if settings.shift != "resolution":
        return 1.0 if settings.shift is None else settings.shift
    if tokens is None:
        raise ConfigError(
            "timesteps.shift: 'resolution' needs a denoiser that cuts images into tokens, and this model's does not; "
            "set a number."
        )
    slope = (settings.max_shift - settings.base_shift) / (settings.max_tokens - settings.base_tokens)
    return math.exp(settings.base_shift + slope * (tokens - settings.base_tokens))


def shifted(levels: Level, shift: float) -> Level:
    """s x / (1 + (s - 1) x): multiplies x / (1 - x) by s (Esser et al. 2024, arXiv:2403.03206, eq. 23).

    With s = e^mu it is e^mu / (e^mu + 1/x - 1). The inverse is the shift by 1/s; 0 and 1 stay.
    """
    return shift * levels / (1 + (shift - 1) * levels)


def logit_normal(uniform: Tensor, mean: float, std: float) -> Tensor:
    """Levels whose logit is normal (Esser et al. 2024, arXiv:2403.03206, eq. 19), [B]; draws 0 and 1 give 0 and 1."""
    import torch

    return torch.sigmoid(mean + std * torch.special.ndtri(uniform))


def mode(uniform: Tensor, scale: float) -> Tensor:
    """Levels of the mode distribution, [B]: u - k (sin^2(pi u / 2) - u).

    It is the paper's 1 - u - k (cos^2(pi u / 2) - 1 + u) at 1 - u, hence rising; the two have the same distribution,
    symmetric about 1/2 (Esser et al. 2024, arXiv:2403.03206, eq. 20).
    """
    import torch

    return uniform - scale * (torch.sin(math.pi / 2 * uniform).square() - uniform)


def _quantile(uniform: Tensor, settings: TimestepSettings) -> Tensor:
    """Levels before the shift."""
    if settings.distribution == "logit_normal":
        return logit_normal(uniform, settings.logit_mean, settings.logit_std)
    return mode(uniform, settings.mode_scale) if settings.distribution == "mode" else uniform


def _cdf(level: float, settings: TimestepSettings) -> float:
    """Probability of a level below `level` before the shift: the inverse of `_quantile`."""
    if level in (0.0, 1.0) or settings.distribution in ("uniform", None):
        return level
    if settings.distribution == "logit_normal":
        normal = (math.log(level / (1 - level)) - settings.logit_mean) / settings.logit_std
        return math.erfc(-normal / math.sqrt(2)) / 2
    return _mode_cdf(level, settings.mode_scale)


def _mode_cdf(level: float, scale: float) -> float:
    """Inverse of `mode`, by bisection to the last bit."""
    low, high = 0.0, 1.0
    while (middle := (low + high) / 2) not in (low, high):
        below = middle - scale * (math.sin(math.pi / 2 * middle) ** 2 - middle) < level
        low, high = (middle, high) if below else (low, middle)
    return high
