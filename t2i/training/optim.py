"""Optimizers: parameters in groups by learning rate, and what each kind is made of."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from torch import nn
from torch.optim import AdamW, Optimizer

from t2i.errors import ConfigError
from t2i.training.extras import OPTIMIZER_PACKAGES, require_package
from t2i.training.settings import OptimizerSettings

_UNDECAYED = ".lora_magnitude_vector."
"""DoRA's magnitudes: decay pulls A and B towards the model as it was, but a magnitude towards an output of zero."""


def build_optimizer(
    parameters: Mapping[str, nn.Parameter],
    rates: Mapping[str, float],
    settings: OptimizerSettings,
    *,
    ratios: Mapping[str, float] | None = None,
) -> tuple[Optimizer, list[str]]:
    """The optimizer of named parameters, and their names in its order; each group's `lr` is its peak rate.

    rates: prefix of parameter names -> learning rate, the first that fits; the settings' where none does. ratios: part
    of a parameter's name -> factor on its rate, as LoRA+ has for B. Raises ConfigError if the optimizer cannot have
    several rates, MissingDependencyError if its package is not installed.
    """
    if settings.type in OPTIMIZER_PACKAGES:
        require_package(OPTIMIZER_PACKAGES[settings.type], f"optimizer.type: {settings.type}")
    by_kind: dict[tuple[float, float], list[str]] = {}
    for name in parameters:
        rate = learning_rate_of(name, rates, ratios or {}, settings.learning_rate)
        decay = 0.0 if _UNDECAYED in name else settings.weight_decay
        by_kind.setdefault((rate, decay), []).append(name)
    groups = [
        {"params": [parameters[name] for name in names], "lr": rate, "weight_decay": decay}
        for (rate, decay), names in by_kind.items()
    ]
    if settings.type == "prodigy" and len({rate for rate, _ in by_kind}) > 1:
        raise ConfigError(
            f"optimizer.type: prodigy has one learning rate for all, not {sorted(r for r, _ in by_kind)}."
        )
    return _make(settings, groups), [name for names in by_kind.values() for name in names]


def learning_rate_of(name: str, rates: Mapping[str, float], ratios: Mapping[str, float], default: float) -> float:
    """Peak learning rate of a parameter; see `build_optimizer`."""
    rate = next((value for prefix, value in rates.items() if name.startswith(prefix)), default)
    for part, ratio in ratios.items():
        if part in name:
            rate *= ratio
    return rate


def _make(settings: OptimizerSettings, groups: list[dict[str, Any]]) -> Optimizer:
    if settings.type == "adamw":
        return AdamW(groups, betas=settings.betas, eps=settings.epsilon, fused=True)
    package: Any = importlib.import_module(OPTIMIZER_PACKAGES[settings.type])
    if settings.type == "adamw_8bit":
        return package.optim.AdamW8bit(groups, betas=settings.betas, eps=settings.epsilon)
    # The safeguard takes the learning rate out of the estimate, which our warm-up would otherwise raise.
    return package.Prodigy(
        groups,
        betas=settings.betas,
        eps=settings.epsilon,
        decouple=True,
        use_bias_correction=True,
        safeguard_warmup=True,
    )
