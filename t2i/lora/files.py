"""Adapters as files, in diffusers' layout, and back into a pipeline.

Keys are `<component>.<module path>.lora_A.weight` and `.lora_B.weight`, for DoRA also `.lora_magnitude_vector.weight`.
B is already multiplied by the adapter's strength, whatever the variant, so that a reader that assumes alpha = rank, as
most do, applies the right one. A magnitude is of the whole weight and is written as it is.
"""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from t2i.errors import ConfigError, ModelError
from t2i.export.factors import Adapter, Factors
from t2i.export.layouts import ModelLayers
from t2i.export.names import file_path
from t2i.export.reading import UnknownLayout, read_adapter
from t2i.families.loading import facts_of
from t2i.files import write_tensors
from t2i.lora.adapters import NAME
from t2i.lora.patterns import rank_and_alpha_options

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

_DOWN_KEYS = ("lora_A.weight", "down.weight")
"""Endings of the keys of A in the layouts that diffusers reads."""
_DOWN, _UP, _MAGNITUDE = ".lora_A.weight", ".lora_B.weight", ".lora_magnitude_vector.weight"
"""Endings of our own keys."""


def adapter_state(modules: dict[str, nn.Module]) -> dict[str, Tensor]:
    """The adapters under the keys of their file, strength folded into B, fp32 on the CPU."""
    state: dict[str, Tensor] = {}
    for name, module in modules.items():
        for path, layer in _lora_layers(module):
            prefix = f"{name}.{file_path(name, path)}"
            state[f"{prefix}{_DOWN}"] = _copied(layer.lora_A[NAME].weight)
            state[f"{prefix}{_UP}"] = _copied(layer.lora_B[NAME].weight.detach().float() * layer.scaling[NAME])
            if NAME in layer.lora_magnitude_vector:
                state[f"{prefix}{_MAGNITUDE}"] = _copied(layer.lora_magnitude_vector[NAME].weight)
    return state


def _lora_layers(module: nn.Module, name: str = NAME) -> list[tuple[str, Any]]:
    """Path and layer of everything that carries the adapter."""
    from peft.tuners.lora import LoraLayer

    named = [(path, child) for path, child in module.named_modules() if isinstance(child, LoraLayer)]
    return [(path, layer) for path, layer in named if name in layer.lora_A]


def _copied(value: Tensor) -> Tensor:
    return value.detach().float().cpu().clone().contiguous()


def save(modules: dict[str, nn.Module], path: Path, metadata: dict[str, str]) -> None:
    """Write the adapters in diffusers layout, whole or not at all."""
    write_tensors(path, adapter_state(modules), {"format": "pt", **metadata})


def adapter_of(modules: dict[str, nn.Module], name: str = NAME) -> Adapter:
    """The adapters as plain factors, strength kept apart, fp32 on the CPU."""
    found: Adapter = {}
    for component, module in modules.items():
        for path, layer in _lora_layers(module, name):
            down, up = layer.lora_A[name].weight, layer.lora_B[name].weight
            magnitude = layer.lora_magnitude_vector
            alpha = float(layer.scaling[name]) * down.shape[0]
            own = _copied(magnitude[name].weight).flatten() if name in magnitude else None
            found[f"{component}.{file_path(component, path)}"] = Factors(_copied(down), _copied(up), alpha, own)
    return found


def load_into(pipeline: DiffusionPipeline, path: Path, *, name: str = NAME) -> str:
    """Load a LoRA file, of any layout that is read here or by diffusers, into a pipeline. Returns the layout in words.

    Raises ModelError unless all its modules, and all its magnitudes, arrive.
    """
    from diffusers.loaders.lora_base import LoraBaseMixin

    try:
        imported = read_adapter(path, ModelLayers.of(facts_of(pipeline), pipeline))
    except UnknownLayout:
        if not isinstance(pipeline, LoraBaseMixin) or not path.is_file():
            raise
        load_through_diffusers(pipeline, path, name=name)
        return "a layout of which diffusers makes its own"
    try:
        put_into(pipeline, imported.adapter, name=name)
    except (ValueError, RuntimeError, LookupError) as error:
        raise _unfit(path, error) from error
    return imported.layout


def load_through_diffusers(pipeline: DiffusionPipeline, path: Path, *, name: str = NAME) -> None:
    """Load a LoRA file as anyone would with diffusers alone. Raises ModelError unless all its modules arrive."""
    from safetensors import SafetensorError, safe_open

    loader: Any = pipeline
    try:
        with safe_open(path, "pt") as file:
            wanted = sum(key.endswith(_DOWN_KEYS) for key in file.keys())  # noqa: SIM118
        with warnings.catch_warnings():
            # A top layer, such as Flux's proj_out, is a suffix of others' names. What arrives is counted below.
            warnings.filterwarnings("ignore", message="While injecting the PEFT adapters, an inconsistency")
            loader.load_lora_weights(str(path.parent), weight_name=path.name, adapter_name=name)
    except (SafetensorError, OSError, ValueError, RuntimeError, LookupError, AssertionError) as error:
        raise _unfit(path, error) from error
    # diffusers passes over layouts and modules it does not know with a log line at most.
    modules = [component for component in pipeline.components.values() if isinstance(component, nn.Module)]
    arrived = sum(len(_lora_layers(module, name)) for module in modules)
    if arrived < max(wanted, 1):
        raise ModelError(
            f"{path}: {arrived} of its {wanted} adapted layers found a place; "
            "the file is of another model, or in a layout that is not known."
        )


def _unfit(path: Path, error: Exception) -> ModelError:
    reason = str(error).strip().split("\n")[0]
    return ModelError(f"{path}: cannot be loaded as a LoRA of this model ({reason}).")


def put_into(pipeline: DiffusionPipeline, adapter: Adapter, *, name: str = NAME) -> None:
    """Put an adapter into a pipeline, whether or not it loads LoRA files by itself.

    Raises ValueError or RuntimeError where a module is missing or of another width.
    """
    components: dict[str, Adapter] = {}
    for module, factors in adapter.items():
        component, _, path = module.partition(".")
        components.setdefault(component, {})[path] = factors
    for component, parts in components.items():
        module = pipeline.components.get(component)
        if not isinstance(module, nn.Module):
            raise ValueError(f"the pipeline has no {component}")
        # Models with and without `text_model.` in front are both about.
        is_bare = "text_model" not in dict(module.named_children())
        bare = {path.removeprefix("text_model.") if is_bare else path: factors for path, factors in parts.items()}
        _fill_component(module, bare, name)


def _fill_component(module: nn.Module, adapter: Adapter, name: str) -> None:
    from peft import LoraConfig, inject_adapter_in_model, set_peft_model_state_dict

    unknown = sorted(set(adapter) - {path for path, _ in module.named_modules()})
    if unknown:
        raise ValueError(f"the model has no {unknown[0]}")
    config = LoraConfig(
        # One expression, for peft takes a listed path as a suffix too: `proj_out` would be that of every block.
        target_modules="|".join(re.escape(path) for path in adapter),
        **rank_and_alpha_options({path: (factors.rank, factors.alpha) for path, factors in adapter.items()}),
        use_dora=any(factors.magnitude is not None for factors in adapter.values()),
    )
    inject_adapter_in_model(config, module, name)
    module.requires_grad_(False)
    result = set_peft_model_state_dict(module, _peft_state(adapter), name)
    missing = [key for key in result.missing_keys if ".lora_" in key and f".{name}." in key]
    if result.unexpected_keys or missing:
        raise ValueError(f"does not fit: {[*result.unexpected_keys, *missing][0]}")


def _peft_state(adapter: Adapter) -> dict[str, Tensor]:
    state: dict[str, Tensor] = {}
    for path, factors in adapter.items():
        state |= {f"{path}{_DOWN}": factors.down, f"{path}{_UP}": factors.up}
        if factors.magnitude is not None:
            state[f"{path}{_MAGNITUDE}"] = factors.magnitude_of_peft()
    return state


def set_strength(pipeline: DiffusionPipeline, strength: float, *, name: str = NAME) -> None:
    """Multiply the effect of a loaded adapter, relative to what its file says. Works for every pipeline.

    Raises ConfigError for a DoRA at another strength than 1: its magnitudes hold whatever B A is multiplied by.
    """
    modules = [component for component in pipeline.components.values() if isinstance(component, nn.Module)]
    layers = [layer for module in modules for _, layer in _lora_layers(module, name)]
    if strength != 1 and any(name in layer.lora_magnitude_vector for layer in layers):
        raise ConfigError(
            f"sampling.lora_scale: {strength:g} does not scale a DoRA, whose magnitudes are of whole weights; leave it "
            "at 1, or convert the adapter to a plain LoRA (dora_rank)."
        )
    for layer in layers:
        layer.set_scale(name, strength)


def start_from(pipeline: DiffusionPipeline, modules: dict[str, nn.Module], path: Path) -> str:
    """Give fresh adapters the values of a LoRA file, of any layout. Returns the layout in words.

    Raises ModelError unless the file adapts the same modules with the same ranks; strengths may differ.
    """
    imported = read_adapter(path, ModelLayers.of(facts_of(pipeline), pipeline))
    layers = {
        f"{component}.{file_path(component, inner)}": layer
        for component, module in modules.items()
        for inner, layer in _lora_layers(module)
    }
    differing = sorted(layers.keys() ^ imported.adapter.keys())
    if differing:
        where = "the file lacks" if differing[0] in layers else "the recipe does not train"
        raise ModelError(f"{path}: {where} {differing[0]} ({len(differing)} such modules); set trained.targets alike.")
    for name, layer in layers.items():
        _set_values(layer, imported.adapter[name], f"{path}: {name}")
    return imported.layout


def _set_values(layer: Any, factors: Factors, where: str) -> None:
    down, up = layer.lora_A[NAME].weight, layer.lora_B[NAME].weight
    if down.shape != factors.down.shape or up.shape != factors.up.shape:
        raise ModelError(f"{where} has rank {factors.rank}, the recipe trains {down.shape[0]}; set trained.rank alike.")
    has = NAME in layer.lora_magnitude_vector
    if has != (factors.magnitude is not None):
        raise ModelError(f"{where}: a DoRA and a plain LoRA cannot start from each other; set trained.variant alike.")
    down.data.copy_(factors.down)
    # The strength is the recipe's; what the file's differs by goes into B.
    up.data.copy_(factors.up * (factors.strength / layer.scaling[NAME]))
    if has:
        layer.lora_magnitude_vector[NAME].weight.data.copy_(factors.magnitude_of_peft())


def unload(pipeline: DiffusionPipeline) -> None:
    """Take all loaded adapters out again."""
    from diffusers.loaders.lora_base import LoraBaseMixin
    from peft.tuners.lora import LoraLayer

    if isinstance(pipeline, LoraBaseMixin):
        pipeline.unload_lora_weights()
    for component in pipeline.components.values():
        if not isinstance(component, nn.Module):
            continue
        for path, layer in list(component.named_modules()):
            if isinstance(layer, LoraLayer):
                parent, _, name = path.rpartition(".")
                setattr(component.get_submodule(parent), name, layer.get_base_layer())
        vars(component).pop("peft_config", None)
