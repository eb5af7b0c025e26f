"""Adapters in a model that is no diffusion pipeline, and merging them into its weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from t2i.errors import ConfigError
from t2i.lora.adapters import add_adapter
from t2i.lora.targets import denoiser_adapters
from t2i.randomness import seeded_global

if TYPE_CHECKING:
    from t2i.training.settings import LoraSettings


def inject_module(
    module: nn.Module, name: str, targets: tuple[str, ...], settings: LoraSettings, seed: int, number: int = 0
) -> None:
    """Add a fresh float32 adapter to the layers that the settings, or else `targets`, name.

    name: of the module in errors; number: tells apart the modules of one model, which draw different weights. Raises
    ConfigError for targets that do not fit, or what only denoisers take.
    """
    if settings.base_bits is not None or any(rule.learning_rate for rule in settings.modules):
        raise ConfigError("trained: base_bits and learning rates of single modules are for denoisers; leave them out.")
    with seeded_global(seed, "lora", number):
        add_adapter(module, name, denoiser_adapters(module, name, targets, settings), settings)


def merge_adapters(module: nn.Module) -> None:
    """Add every adapter to the weights it stands on and take it out: the module computes the same, to rounding."""
    from peft.tuners.lora import LoraLayer

    for path, layer in list(module.named_modules()):
        if isinstance(layer, LoraLayer):
            layer.merge()  # pyright: ignore[reportCallIssue]
            parent, _, name = path.rpartition(".")
            setattr(module.get_submodule(parent), name, layer.get_base_layer())
    vars(module).pop("peft_config", None)
