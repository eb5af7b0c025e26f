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

from t2i.errors import ModelError
from t2i.lora.adapters import NAME
from t2i.records import write_tensors

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

_DOWN_KEYS = ("lora_A.weight", "down.weight")
"""Endings of the keys of A in the layouts that diffusers reads."""
_MAGNITUDE_KEYS = (".lora_magnitude_vector", ".lora_magnitude_vector.weight", ".dora_scale")
"""Endings of the keys of DoRA's magnitudes. diffusers drops the last kind."""
_DOWN, _UP, _MAGNITUDE = ".lora_A.weight", ".lora_B.weight", ".lora_magnitude_vector.weight"
"""Endings of our own keys."""


def adapter_state(modules: dict[str, nn.Module]) -> dict[str, Tensor]:
    """The adapters under the keys of their file, strength folded into B, fp32 on the CPU."""
    state: dict[str, Tensor] = {}
    for name, module in modules.items():
        for path, layer in _lora_layers(module):
            prefix = _file_prefix(name, path)
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


def _file_prefix(component: str, path: str) -> str:
    """transformers 5.6 dropped `text_model.` from CLIPTextModel's modules; files keep it, as every reader expects."""
    if component.startswith("text_encoder") and path.startswith("encoder."):
        path = f"text_model.{path}"
    return f"{component}.{path}"


def save(modules: dict[str, nn.Module], path: Path, metadata: dict[str, str]) -> None:
    """Write the adapters in diffusers layout, whole or not at all."""
    write_tensors(path, adapter_state(modules), {"format": "pt", **metadata})


def load_into(pipeline: DiffusionPipeline, path: Path, *, name: str = NAME) -> None:
    """Load a LoRA file of any layout that diffusers reads, or of ours where the pipeline loads no LoRA by itself.

    Raises ModelError unless all its modules, and all its magnitudes, arrive.
    """
    from diffusers.loaders.lora_base import LoraBaseMixin
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise ModelError(f"{path}: no such LoRA file.")
    try:
        with safe_open(path, "pt") as file:
            keys = list(file.keys())
            metadata = file.metadata() or {}
        if any(key.endswith(".dora_scale") for key in keys):
            raise ModelError(
                f"{path}: a DoRA in kohya's layout, whose magnitudes diffusers drops; it cannot be loaded."
            )
        if isinstance(pipeline, LoraBaseMixin):
            loader: Any = pipeline
            with warnings.catch_warnings():
                # A top layer, such as Flux's proj_out, is a suffix of others' names. What arrives is counted below.
                warnings.filterwarnings("ignore", message="While injecting the PEFT adapters, an inconsistency")
                loader.load_lora_weights(str(path.parent), weight_name=path.name, adapter_name=name)
        else:
            _load_through_peft(pipeline, path, metadata, name)
    except (SafetensorError, OSError, ValueError, RuntimeError, LookupError) as error:
        if isinstance(error, ModelError):
            raise
        reason = str(error).strip().split("\n")[0]
        raise ModelError(f"{path}: cannot be loaded as a LoRA of this model ({reason}).") from error
    _check_arrival(pipeline, path, keys, name)


def _check_arrival(pipeline: DiffusionPipeline, path: Path, keys: list[str], name: str) -> None:
    modules = [component for component in pipeline.components.values() if isinstance(component, nn.Module)]
    layers = [layer for module in modules for _, layer in _lora_layers(module, name)]
    wanted = sum(key.endswith(_DOWN_KEYS) for key in keys)
    # diffusers passes over layouts and modules it does not know with a log line at most.
    if len(layers) != wanted or not wanted:
        raise ModelError(
            f"{path}: {len(layers)} of its {wanted} adapted modules found a place; "
            "the file is of another model, or in a layout that diffusers does not read."
        )
    magnitudes = sum(key.endswith(_MAGNITUDE_KEYS) for key in keys)
    arrived = sum(name in layer.lora_magnitude_vector for layer in layers)
    if arrived != magnitudes:
        raise ModelError(f"{path}: {magnitudes} of {wanted} modules have a DoRA magnitude, {arrived} got one.")


def _load_through_peft(pipeline: DiffusionPipeline, path: Path, metadata: dict[str, str], name: str) -> None:
    """What `load_lora_weights` does, for pipelines that lack it. Reads our own layout only."""
    from safetensors.torch import load_file

    if "lora_adapter_metadata" in metadata:
        raise ModelError(f"{path}: has lora_adapter_metadata; for this model, only files of strength 1 are read.")
    parts: dict[str, dict[str, Tensor]] = {}
    for key, value in load_file(path).items():
        component, _, rest = key.partition(".")
        module = pipeline.components.get(component)
        if not isinstance(module, nn.Module) or not rest.endswith((_DOWN, _UP, _MAGNITUDE)):
            raise ModelError(f"{path}: unexpected key {key}; expected <component>.<module>{_DOWN} and the like.")
        # Models with and without `text_model.` in front are both about.
        if rest.startswith("text_model.") and "text_model" not in dict(module.named_children()):
            rest = rest.removeprefix("text_model.")
        parts.setdefault(component, {})[rest] = value
    for component, state in parts.items():
        _fill_component(pipeline.components[component], state, name)


def _fill_component(module: nn.Module, state: dict[str, Tensor], name: str) -> None:
    """Put an adapter of strength 1 into a module. Raises RuntimeError or ValueError where it does not fit."""
    from peft import LoraConfig, inject_adapter_in_model, set_peft_model_state_dict

    ranks = {key.removesuffix(_DOWN): value.shape[0] for key, value in state.items() if key.endswith(_DOWN)}
    unknown = sorted(set(ranks) - {path for path, _ in module.named_modules()})
    if unknown:
        raise ValueError(f"the model has no {unknown[0]}")
    patterns = {f"^{re.escape(path)}": rank for path, rank in ranks.items()}
    alphas: Any = dict(patterns)
    config = LoraConfig(
        target_modules="|".join(re.escape(path) for path in ranks),
        rank_pattern=patterns,
        alpha_pattern=alphas,
        use_dora=any(key.endswith(_MAGNITUDE) for key in state),
    )
    inject_adapter_in_model(config, module, name)
    module.requires_grad_(False)
    result = set_peft_model_state_dict(module, state, name)
    missing = [key for key in result.missing_keys if ".lora_" in key]
    if result.unexpected_keys or missing:
        raise ValueError(f"does not fit: {[*result.unexpected_keys, *missing][0]}")


def set_strength(pipeline: DiffusionPipeline, strength: float, *, name: str = NAME) -> None:
    """Multiply the effect of a loaded adapter, relative to what its file says. Works for every pipeline."""
    for component in pipeline.components.values():
        if isinstance(component, nn.Module):
            for _, layer in _lora_layers(component, name):
                layer.set_scale(name, strength)


def unload(pipeline: DiffusionPipeline) -> None:
    """Take all loaded adapters out again."""
    from diffusers.loaders.lora_base import LoraBaseMixin
    from peft.tuners.lora import LoraLayer

    if isinstance(pipeline, LoraBaseMixin):
        pipeline.unload_lora_weights()
        return
    for component in pipeline.components.values():
        if not isinstance(component, nn.Module):
            continue
        for path, layer in list(component.named_modules()):
            if isinstance(layer, LoraLayer):
                parent, _, name = path.rpartition(".")
                setattr(component.get_submodule(parent), name, layer.get_base_layer())
        vars(component).pop("peft_config", None)
