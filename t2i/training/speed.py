"""Switches of the denoiser that change speed and memory, and whether they are really set."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from t2i.errors import ConfigError, ModelError
from t2i.training.extras import require_package

if TYPE_CHECKING:
    from t2i.families.base import ModelFamily
    from t2i.training.settings import SpeedSettings

_KEPT = frozenset(
    {
        torch.ops.aten.mm.default,
        torch.ops.aten.addmm.default,
        torch.ops.aten.bmm.default,
        torch.ops.aten.convolution.default,
        torch.ops.aten._scaled_dot_product_flash_attention.default,
        torch.ops.aten._scaled_dot_product_efficient_attention.default,
        torch.ops.aten._scaled_dot_product_cudnn_attention.default,
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
    }
)
"""Operations whose results selective checkpointing keeps: what takes the time of a forward pass."""

_BLOCK_LISTS = ("transformer_blocks", "single_transformer_blocks")
"""What diffusers calls lists of blocks; some of its models do not say themselves which blocks repeat."""


def check_speed(family: ModelFamily, settings: SpeedSettings) -> None:
    """Raise ConfigError for a setting that does not fit the family, MissingDependencyError for an absent package."""
    if settings.attention == "xformers":
        require_package("xformers", "speed.attention: xformers")
    if settings.channels_last and family.facts.denoiser != "unet":
        raise ConfigError(
            f"speed.channels_last: for U-Nets alone; the denoiser of {family.facts.name} is a transformer."
        )


def apply_speed(family: ModelFamily, settings: SpeedSettings) -> None:
    """Set the denoiser up, adapters included; the last thing before training. Raises as `check_speed`, and ConfigError
    for xformers without a GPU."""
    check_speed(family, settings)
    denoiser: Any = family.denoiser
    if settings.attention == "xformers":
        use_xformers(family)
    if settings.gradient_checkpointing:
        selective = settings.gradient_checkpointing == "selective"
        denoiser.enable_gradient_checkpointing(_selective_checkpoint if selective else None)
    if settings.channels_last:
        denoiser.to(memory_format=torch.channels_last)
    if settings.compile:
        for block in repeated_blocks(denoiser):
            block.compile()


def use_xformers(family: ModelFamily) -> None:
    """Let xformers compute the denoiser's attention. Raises ConfigError without a GPU, ModelError if a layer keeps
    another processor: what diffusers offers for this leaves some models as they were, without a word."""
    if not torch.cuda.is_available():
        raise ConfigError("speed.attention: xformers computes on a GPU, and there is none; use sdpa.")
    denoiser: Any = family.denoiser
    is_set: Callable[[Any], bool]
    if family.facts.dispatches_attention:
        from diffusers.models.attention_dispatch import AttentionBackendName, attention_backend

        with attention_backend("native"):  # the choice would else hold for every model of the process
            denoiser.set_attention_backend("xformers")
        is_set = lambda processor: processor._attention_backend == AttentionBackendName.XFORMERS  # noqa: E731
    else:
        denoiser.enable_xformers_memory_efficient_attention()
        is_set = lambda processor: "XFormers" in type(processor).__name__  # noqa: E731
    processors = attention_processors(denoiser)
    done = sum(is_set(processor) for processor in processors)
    if done != len(processors) or not done:
        raise ModelError(
            f"speed.attention: {done} of {len(processors)} attention layers of this {family.facts.name} use xformers."
        )


def repeated_blocks(denoiser: nn.Module) -> list[nn.Module]:
    """The transformer blocks, of which a denoiser has many alike: each kind is compiled once (regional compilation)."""
    lists = [module for path, module in denoiser.named_modules() if path.rpartition(".")[2] in _BLOCK_LISTS]
    return [block for blocks in lists for block in blocks.children()]


def attention_processors(denoiser: nn.Module) -> list[Any]:
    """What computes attention in each layer that has some."""
    modules: list[Any] = [module for module in denoiser.modules() if hasattr(module, "processor")]
    return [module.processor for module in modules]


def _selective_checkpoint(module: nn.Module, *arguments: Any) -> Any:
    contexts = partial(create_selective_checkpoint_contexts, _policy)
    return checkpoint(module.__call__, *arguments, use_reentrant=False, context_fn=contexts)


def _policy(context: Any, operation: Any, *arguments: Any, **options: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if operation in _KEPT else CheckpointPolicy.PREFER_RECOMPUTE
