"""Packages that only some settings need, and whether they are there. No torch here: recipes are checked without it."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING

from t2i.errors import MissingDependencyError

if TYPE_CHECKING:
    from t2i.training.settings import FullSettings, LoraSettings, OptimizerSettings, TrackingSettings

EXTRAS = {
    "bitsandbytes": "bitsandbytes",
    "prodigyopt": "prodigy",
    "tensorboard": "tensorboard",
    "trl": "trl",
    "wandb": "wandb",
    "xformers": "xformers",
}
"""Package -> extra of ours that installs it."""
OPTIMIZER_PACKAGES = {"adamw_8bit": "bitsandbytes", "prodigy": "prodigyopt"}
"""Type of optimizer -> package it comes from; torch's have none."""


def require_package(package: str, field: str) -> None:
    """Raise MissingDependencyError, with the command that installs it, unless a package is there."""
    if importlib.util.find_spec(package) is None:
        extra = EXTRAS[package]
        raise MissingDependencyError(
            f"{field} needs the package {package!r}, which is not installed: pip install 't2i-toolkit[{extra}]'"
        )


def check_packages(
    trained: LoraSettings | FullSettings, optimizer: OptimizerSettings, tracking: TrackingSettings | None = None
) -> None:
    """Raise MissingDependencyError for the first package that these settings need and that is not installed."""
    from t2i.training.settings import LoraSettings

    if isinstance(trained, LoraSettings) and trained.base_bits in (4, 8):
        require_package("bitsandbytes", f"trained.base_bits: {trained.base_bits}")
    if optimizer.type in OPTIMIZER_PACKAGES:
        require_package(OPTIMIZER_PACKAGES[optimizer.type], f"optimizer.type: {optimizer.type}")
    for name in tracking.to if tracking is not None else ():
        require_package(name, f"tracking.to: {name}")
