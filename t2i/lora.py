"""Low-rank adapters: put them in, switch them off, write and read their files. The mechanism is peft's.

Weight change of a module = (alpha / rank) * B A (Hu et al. 2021, arXiv:2106.09685, section 4.1), A: [rank, in],
B: [out, rank], B zero at first. Files hold B already multiplied by alpha / rank, so that a reader that assumes
alpha = rank, as most do, applies the right strength.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from t2i.errors import ConfigError, ModelError
from t2i.families.base import FamilyFacts, ModelFamily
from t2i.randomness import seeded_global
from t2i.records import write_tensors

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

    from t2i.training.settings import LoraSettings

_ADAPTABLE = (nn.Linear, nn.Conv2d)
_DOWN_KEYS = ("lora_A.weight", "down.weight")
"""Endings of the keys of A in the layouts that diffusers reads."""


def freeze(family: ModelFamily) -> None:
    """No parameter of any component asks for a gradient; all are in evaluation mode."""
    for component in family.pipeline.components.values():
        if isinstance(component, nn.Module):
            component.requires_grad_(False).eval()


def inject(family: ModelFamily, settings: LoraSettings, seed: int) -> dict[str, nn.Module]:
    """Freeze the model and add one fresh adapter per trained component. Returns the components that carry one.

    Raises ConfigError when a target matches no module.
    """
    freeze(family)
    components = adapter_components(family.facts, text_encoders=settings.text_encoder)
    for number, (name, targets) in enumerate(components.items()):
        if name == family.facts.denoiser and settings.targets:
            targets = settings.targets
        with seeded_global(seed, "lora", number):
            _add_adapter(getattr(family.pipeline, name), name, targets, settings)
    return {name: getattr(family.pipeline, name) for name in components}


def adapter_components(facts: FamilyFacts, *, text_encoders: bool) -> dict[str, tuple[str, ...]]:
    """Pipeline attribute -> default targets, denoiser first."""
    components = {facts.denoiser: facts.lora_targets}
    if text_encoders:
        components |= dict.fromkeys(facts.text_encoders, facts.text_encoder_lora_targets)
    return components


def _add_adapter(module: nn.Module, name: str, targets: tuple[str, ...], settings: LoraSettings) -> None:
    from peft import LoraConfig, inject_adapter_in_model

    strangers = [target for target in targets if not _fits(module, target)]
    if strangers:
        known = sorted({_last_name(path) for path, child in module.named_modules() if isinstance(child, _ADAPTABLE)})
        raise ConfigError(f"LoRA targets {strangers} do not name layers of {name}; known: {', '.join(known)}.")
    # peft declares an integer and works with any number.
    alpha: Any = settings.alpha or settings.rank
    config = LoraConfig(r=settings.rank, lora_alpha=alpha, target_modules=list(targets))
    inject_adapter_in_model(config, module)


def _fits(module: nn.Module, target: str) -> bool:
    """Whether the target names at least one module, and only modules that can carry an adapter."""
    named = [child for path, child in module.named_modules() if path == target or path.endswith(f".{target}")]
    return bool(named) and all(isinstance(child, _ADAPTABLE) for child in named)


def _last_name(path: str) -> str:
    """`a.to_q` -> `to_q`, `a.to_out.0` -> `to_out.0`: a number alone would name layers of every kind."""
    parts = path.split(".")
    return ".".join(parts[-2:] if parts[-1].isdigit() else parts[-1:])


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


def adapter_state(modules: dict[str, nn.Module]) -> dict[str, Tensor]:
    """The adapters as `<component>.<module path>.lora_A|B.weight`, alpha / rank folded into B, fp32 on the CPU."""
    from peft.tuners.lora import LoraLayer

    state: dict[str, Tensor] = {}
    for name, module in modules.items():
        for path, layer in module.named_modules():
            if isinstance(layer, LoraLayer) and "default" in layer.lora_A:
                prefix = _file_prefix(name, path)
                down = layer.lora_A.get_parameter("default.weight")
                up = layer.lora_B.get_parameter("default.weight")
                state[f"{prefix}.lora_A.weight"] = down.detach().float().cpu().clone().contiguous()
                state[f"{prefix}.lora_B.weight"] = (up.detach().float() * layer.scaling["default"]).cpu().contiguous()
    return state


def _file_prefix(component: str, path: str) -> str:
    """transformers 5.6 dropped `text_model.` from CLIPTextModel's modules; files keep it, as every reader expects."""
    if component.startswith("text_encoder") and path.startswith("encoder."):
        path = f"text_model.{path}"
    return f"{component}.{path}"


def save(modules: dict[str, nn.Module], path: Path, metadata: dict[str, str]) -> None:
    """Write the adapters in diffusers layout, whole or not at all."""
    write_tensors(path, adapter_state(modules), {"format": "pt", **metadata})


def load_into(pipeline: DiffusionPipeline, path: Path, *, name: str = "default") -> None:
    """Load a LoRA file of any layout that diffusers reads. Raises ModelError unless all its modules are found."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise ModelError(f"{path}: no such LoRA file.")
    try:
        with safe_open(path, "pt") as file:
            wanted = sum(key.endswith(_DOWN_KEYS) for key in file.keys())  # noqa: SIM118  (safe_open is no mapping)
        pipeline.load_lora_weights(str(path.parent), weight_name=path.name, adapter_name=name)
    except (SafetensorError, OSError, ValueError, RuntimeError, KeyError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ModelError(f"{path}: cannot be loaded as a LoRA of this model ({reason}).") from error
    loaded = _count_adapters(pipeline, name)
    # diffusers passes over layouts and modules it does not know with a log line at most.
    if loaded != wanted or not wanted:
        raise ModelError(
            f"{path}: diffusers took {loaded} of its {wanted} adapted modules; "
            "the file is of another model, or in a layout that diffusers does not read."
        )


def _count_adapters(pipeline: DiffusionPipeline, name: str) -> int:
    from peft.tuners.lora import LoraLayer

    modules = [component for component in pipeline.components.values() if isinstance(component, nn.Module)]
    layers = (layer for module in modules for layer in module.modules() if isinstance(layer, LoraLayer))
    return sum(name in layer.lora_A for layer in layers)
