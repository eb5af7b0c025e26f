"""Adapters in memory: freeze the model, put them in, switch them off."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from t2i.errors import ConfigError, ModelError
from t2i.export.reading import changes_base
from t2i.families.base import FamilyFacts, ModelFamily
from t2i.lora.patterns import rank_and_alpha_options
from t2i.lora.quantize import quantize_linears
from t2i.lora.targets import AdapterShape, carries, denoiser_adapters, rule_of, text_encoder_adapters
from t2i.randomness import seeded_global

if TYPE_CHECKING:
    from t2i.training.settings import LoraSettings

NAME = "default"
"""What peft calls the adapter."""


def freeze(family: ModelFamily) -> None:
    """No parameter of any component asks for a gradient; all are in evaluation mode."""
    for component in family.pipeline.components.values():
        if isinstance(component, nn.Module):
            component.requires_grad_(False).eval()


def inject(family: ModelFamily, settings: LoraSettings, seed: int) -> dict[str, nn.Module]:
    """Freeze the model, hold its denoiser in fewer bits if asked to, and add one fresh adapter per trained component.

    Returns the components that carry one, denoiser first. The adapters' parameters are float32 whatever the model's.
    Raises ConfigError for targets that do not fit the model, MissingDependencyError if the quantizer is not installed.
    """
    freeze(family)
    shapes = _plan(family, settings)
    if settings.base_bits == 16:
        # Not by its own `to`, which logs a line.
        nn.Module.to(family.denoiser, torch.bfloat16)
    elif settings.base_bits is not None:
        quantize_linears(family.denoiser, settings.base_bits)
    for number, (name, layers) in enumerate(shapes.items()):
        if layers:
            with seeded_global(seed, "lora", number):
                add_adapter(getattr(family.pipeline, name), name, layers, settings)
    return {name: getattr(family.pipeline, name) for name, layers in shapes.items() if layers}


def adapter_components(facts: FamilyFacts, *, text_encoders: bool) -> dict[str, tuple[str, ...]]:
    """Pipeline attribute -> default targets, denoiser first."""
    components = {facts.denoiser: facts.lora_targets}
    if text_encoders:
        components |= dict.fromkeys(facts.text_encoders, facts.text_encoder_lora_targets)
    return components


def learning_rates(modules: dict[str, nn.Module], facts: FamilyFacts, settings: LoraSettings) -> dict[str, float]:
    """`<component>.` or `<component>.<module path>.` -> learning rate, for adapters with a rate of their own."""
    from peft.tuners.lora import LoraLayer

    rates: dict[str, float] = {}
    for name, module in modules.items():
        if name != facts.denoiser:
            if settings.text_encoder_learning_rate is not None:
                rates[f"{name}."] = settings.text_encoder_learning_rate
            continue
        for path, layer in module.named_modules():
            rule = rule_of(path, settings.modules) if isinstance(layer, LoraLayer) else None
            if rule is not None and rule.learning_rate is not None:
                rates[f"{name}.{path}."] = rule.learning_rate
    return rates


def _plan(family: ModelFamily, settings: LoraSettings) -> dict[str, dict[str, AdapterShape]]:
    """Component -> module path -> shape of its adapter."""
    facts = family.facts
    plan = {facts.denoiser: denoiser_adapters(family.denoiser, facts.denoiser, facts.lora_targets, settings)}
    if settings.text_encoder:
        targets = facts.text_encoder_lora_targets
        encoders = {name: getattr(family.pipeline, name) for name in facts.text_encoders}
        # Readers of LoRA files know CLIP's layers; a T5 beside it has others and stays as it is.
        encoders = {name: value for name, value in encoders.items() if value is not None and carries(value, targets)}
        if not encoders:
            raise ConfigError(f"trained.text_encoder: no text encoder of this {facts.name} model can carry a LoRA.")
        plan |= {name: text_encoder_adapters(value, name, targets, settings) for name, value in encoders.items()}
    if not any(plan.values()):
        raise ConfigError("trained: no targets, no modules and no text encoder: there is nothing to adapt.")
    return plan


def add_adapter(module: nn.Module, name: str, shapes: dict[str, AdapterShape], settings: LoraSettings) -> None:
    """Put one adapter into a module; shapes: path of a layer -> its rank and alpha."""
    from peft import LoraConfig, inject_adapter_in_model
    from peft.tuners.lora import LoraLayer

    config = LoraConfig(
        # One expression, for peft takes a listed path as a suffix too: `proj_out` would be that of every block.
        target_modules="|".join(re.escape(path) for path in shapes),
        **rank_and_alpha_options({path: (shape.rank, shape.alpha) for path, shape in shapes.items()}),
        use_rslora=settings.variant == "rslora",
        use_dora=settings.variant == "dora",
    )
    inject_adapter_in_model(config, module, NAME)
    layers = {path: layer for path, layer in module.named_modules() if isinstance(layer, LoraLayer)}
    if layers.keys() != shapes.keys():
        raise ModelError(f"{name}: peft adapted {len(layers)} layers where {len(shapes)} were meant.")
    for path, layer in layers.items():
        _prepare_layer(layer, f"{name}.{path}")


def _prepare_layer(layer: Any, path: str) -> None:
    """Parameters in float32, and the magnitudes of DoRA from norms that are computed so, as each forward pass does."""
    down, up = layer.lora_A[NAME], layer.lora_B[NAME]
    for factor in (down, up):
        factor.weight.data = factor.weight.data.float()
    if NAME in layer.lora_magnitude_vector:
        dora = layer.lora_magnitude_vector[NAME]
        with torch.no_grad():
            dora.update_layer(
                base_layer=layer.get_base_layer(), lora_A=down.weight, lora_B=up.weight, scaling=layer.scaling[NAME]
            )
        if not dora.weight.is_meta and not (dora.weight > 0).all():
            raise ModelError(f"{path}: has rows of zeros, whose direction DoRA cannot train; leave this layer out.")


@contextlib.contextmanager
def adapters_off(modules: dict[str, nn.Module]) -> Iterator[None]:
    """Run the block with every adapter switched off, then restore both the adapters and who asks for a gradient."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [layer for module in modules.values() for layer in module.modules() if isinstance(layer, BaseTunerLayer)]
    were_on = [not layer.disable_adapters for layer in layers]
    parameters = [parameter for module in modules.values() for parameter in module.parameters()]
    trained = [parameter.requires_grad for parameter in parameters]
    try:
        for layer in layers:
            layer.enable_adapters(False)
        yield
    finally:
        for layer, was_on in zip(layers, were_on, strict=True):
            layer.enable_adapters(was_on)
        # peft also switches the gradients of its parameters; a forward pass taken before this block still needs them.
        for parameter, wants_gradient in zip(parameters, trained, strict=True):
            parameter.requires_grad_(wants_gradient)


def check_restorable(modules: dict[str, nn.Module]) -> None:
    """Raise ConfigError unless switching the adapters off gives the model as it was loaded.

    It does not where an adapter moved part of the weights into itself (PiSSA, OLoRA, CorDA, LoftQ, LoRA-GA), trains
    biases or whole layers beside the low-rank factors, or has been merged.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, module in modules.items():
        carrier: Any = module
        settings = carrier.peft_config[NAME]
        why = _unrestorable(settings)
        if any(layer.merged for layer in module.modules() if isinstance(layer, BaseTunerLayer)):
            why = "it is merged into the weights"
        if why is not None:
            raise ConfigError(
                f"{name}: the objective compares with the model without its adapter, which this adapter does not give "
                f"back: {why}. Train a plain LoRA, or whole components, of which a frozen copy is held."
            )


def _unrestorable(settings: Any) -> str | None:
    """Why a peft configuration changes the model beside its adapter; None if it does not."""
    if changes_base(settings.init_lora_weights):
        return f"init_lora_weights {settings.init_lora_weights!r} changes the weights below it"
    if settings.bias != "none":
        return f"bias {settings.bias!r} is trained in place"
    if settings.modules_to_save:
        return f"whole layers are trained: {', '.join(settings.modules_to_save)}"
    return None
