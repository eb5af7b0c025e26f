"""Read a LoRA file of any layout, which is found out from its keys, against the model it is for."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from t2i.errors import ModelError
from t2i.export.factors import Adapter, Factors, check_factors
from t2i.export.fusing import split
from t2i.export.layouts import PEFT_PREFIX, ModelLayers
from t2i.export.names import Layer
from t2i.families.safetensor_files import read_header

_ENDINGS = {
    ".lora_A.weight": "down",
    ".lora_down.weight": "down",
    ".lora.down.weight": "down",
    ".lora_B.weight": "up",
    ".lora_up.weight": "up",
    ".lora.up.weight": "up",
    ".alpha": "alpha",
    ".lora_magnitude_vector.weight": "magnitude",
    ".lora_magnitude_vector": "magnitude",
    ".dora_scale": "column",
}
"""Ending of a key -> what the tensor is."""
_OTHER_METHODS = {
    ".hada_": "a LoHa",
    ".lokr_": "a LoKr",
    ".oft_": "an OFT",
    ".lora_mid.": "a LoCon with a core (Tucker)",
}
_PEFT_FILE = "adapter_model.safetensors"
"""What peft calls the weights in its folders."""
_INITS_BESIDE_THE_BASE = ("true", "false", "none", "gaussian", "orthogonal", "eva", "mica")
"""`init_lora_weights` of peft that leave the weights below the adapter alone, in lower case."""


class UnknownLayout(ModelError):
    """The keys are of none of the layouts that are read here. Told apart to let other readers try."""


@dataclass(frozen=True)
class Imported:
    """What a LoRA file holds."""

    layout: str
    """In words, for example `kohya` or `comfyui with diffusers' names`."""
    adapter: Adapter
    metadata: Mapping[str, str]
    """The strings of its header."""


def read_adapter(path: Path, layers: ModelLayers) -> Imported:
    """Read a LoRA file, or a folder as peft writes it, for a model. Factors come in float32.

    Raises ModelError for a file that is missing, pickled, broken, of another model or made for changed weights of this
    one, and for peft's layout without its folder; UnknownLayout for strange keys.
    """
    if path.is_dir():
        return _read_peft_folder(path, layers)
    if not path.is_file():
        raise ModelError(f"{path}: no such LoRA file.")
    tensors, metadata = _load(path)
    if any(key.startswith(f"{PEFT_PREFIX}.") for key in tensors):
        if path.name != _PEFT_FILE:
            raise ModelError(
                f"{path}: has peft's layout; call it {_PEFT_FILE}, in a folder of its own with its adapter_config.json."
            )
        return _read_peft_folder(path.parent, layers)
    return interpret(path, tensors, metadata, layers)


def _load(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    from safetensors import SafetensorError, safe_open

    read_header(path)
    try:
        with safe_open(path, "pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ModelError(f"{path}: cannot be read as safetensors ({reason}).") from error


def _read_peft_folder(folder: Path, layers: ModelLayers) -> Imported:
    """One component's folder, named like it, or the folder around several."""
    tensors: dict[str, Tensor] = {}
    configs: dict[str, Any] = {}
    for component, inner in _peft_folders(folder, layers).items():
        loaded, _ = _load(inner / _PEFT_FILE)
        tensors |= {f"{component}.{key}": value for key, value in loaded.items()}
        configs |= _flat(component, _read_config(inner / "adapter_config.json"))
    if not tensors:
        raise ModelError(f"{folder}: holds no {_PEFT_FILE}; expected a LoRA file or a folder of peft's.")
    return interpret(folder, tensors, {"lora_adapter_metadata": json.dumps(configs)}, layers)


def _peft_folders(folder: Path, layers: ModelLayers) -> dict[str, Path]:
    """Component -> the folder of its adapter. Raises ModelError for two of one component, such as two checkpoints."""
    inside = [folder] if (folder / _PEFT_FILE).is_file() else sorted(folder.iterdir())
    found: dict[str, Path] = {}
    for inner in inside:
        if not (inner / _PEFT_FILE).is_file():
            continue
        component = inner.name if inner.name in layers.components else layers.facts.denoiser
        if component in found:
            both = f"{found[component].name} and {inner.name}"
            raise ModelError(f"{folder}: {both} are both adapters of {component}; give the folder of one of them.")
        found[component] = inner
    return found


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: cannot be read as peft's configuration ({error}).") from error
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        raise ModelError(f"{path}: not the configuration of a LoRA.")
    return config


def _flat(component: str, config: Mapping[str, Any]) -> dict[str, Any]:
    return {f"{component}.{key}": value for key, value in config.items()}


def interpret(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str], layers: ModelLayers) -> Imported:
    """An adapter from the tensors of a file, whose name only serves messages."""
    settings = _HeaderAlphas(path, metadata.get("lora_adapter_metadata"))
    _check_base(path, settings.values)
    found = _grouped(path, tensors)
    layout, named = _recognised(path, found, layers)
    adapter: Adapter = {}
    for name, parts in found.items():
        layer = named[name]
        factors = _factors(f"{path}: {name}", parts, layer, settings)
        adapter |= split(layer, factors)
    _check_magnitudes(path, adapter)
    check_factors(adapter, str(path))
    return Imported(layout, adapter, metadata)


def changes_base(init: object) -> bool:
    """Whether peft, told this `init_lora_weights`, moves a part of the weights below an adapter into it.

    As PiSSA, OLoRA, CorDA, LoftQ and LoRA-GA do: over the weights as they were, such an adapter is another one.
    """
    return str(init).lower() not in _INITS_BESIDE_THE_BASE


def _check_base(path: Path, config: object) -> None:
    """Raise ModelError where peft's configurations, flat and by component, say that the base was changed."""
    values = config if isinstance(config, dict) else {}
    for key, value in values.items():
        if str(key).rpartition(".")[2] == "init_lora_weights" and changes_base(value):
            raise ModelError(
                f"{path}: init_lora_weights {value!r}: the adapter belongs to a model whose weights peft changed; have "
                "peft save it as a plain LoRA first (save_pretrained with path_initial_model_for_weight_conversion, "
                "which takes all but LoftQ)."
            )


def _grouped(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Layer name -> what there is of it."""
    found: dict[str, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        ending = next((ending for ending in _ENDINGS if key.endswith(ending)), None)
        if ending is None:
            raise UnknownLayout(
                f"{path}: {_stranger(key)}; expected keys that end in lora_A.weight, lora_up.weight and the like"
            )
        parts = found.setdefault(key.removesuffix(ending), {})
        if _ENDINGS[ending] in parts:
            raise ModelError(f"{path}: {key}: a second key for the same factor of the same layer.")
        parts[_ENDINGS[ending]] = value
    if not found:
        raise UnknownLayout(f"{path}: holds no tensors.")
    for name, parts in found.items():
        if not {"down", "up"} <= parts.keys():
            raise ModelError(f"{path}: {name}: one of its two factors A and B is missing.")
    return found


def _stranger(key: str) -> str:
    method = next((name for mark, name in _OTHER_METHODS.items() if mark in key), None)
    return f"{key}: part of {method}, which is not read here" if method else f"{key}: not a key of a LoRA"


def _recognised(path: Path, found: Mapping[str, object], layers: ModelLayers) -> tuple[str, dict[str, Layer]]:
    """The layout whose names all layers of a file have."""
    best, known, stranger = "any layout", 0, ""
    for layout, named in _tables(layers):
        hits = found.keys() & named.keys()
        if len(hits) == len(found):
            return layout, named
        if len(hits) > known:
            best, known, stranger = layout, len(hits), sorted(found.keys() - hits)[0]
    family = layers.facts.name
    if not known:
        raise UnknownLayout(
            f"{path}: none of its {len(found)} adapted layers, such as {sorted(found)[0]}, is one of this {family} "
            "model; the file is of another model, or in a layout that is not known."
        )
    raise ModelError(
        f"{path}: {known} of its {len(found)} adapted layers found a place, by their names in {best} files of "
        f"{family}; the model has no {stranger}: the file is of another model."
    )


def _tables(layers: ModelLayers) -> Iterator[tuple[str, dict[str, Layer]]]:
    """Every layout that is read, the likeliest first."""
    yield "diffusers", layers.named("diffusers")
    yield "peft", layers.named("peft")
    yield "peft, of transformers before 5.6", replace(layers, bare=frozenset()).named("peft")
    for layout in ("kohya", "comfyui"):
        for names in ("native", "diffusers"):
            is_usual = names == (layers.facts.kohya_names if layout == "kohya" else "native")
            label = layout if is_usual else f"{layout}, with the layers' {names} names"
            yield label, layers.named(layout, names)


class _HeaderAlphas:
    """Alphas that stand in the header: peft's configuration of every component, as diffusers writes it."""

    def __init__(self, path: Path, text: str | None) -> None:
        self.path, self.values = path, None
        if text is not None:
            try:
                self.values = json.loads(text)
            except ValueError as error:
                raise ModelError(f"{path}: its lora_adapter_metadata is not JSON.") from error

    def alpha(self, module: str, rank: int) -> float:
        """Alpha of a module; its rank where the file says nothing of alphas."""
        if self.values is None:
            return float(rank)
        component, _, path = module.partition(".")
        try:
            values = {key: self.values[f"{component}.{key}"] for key in ("r", "lora_alpha")}
            pattern = self.values.get(f"{component}.alpha_pattern") or {}
            # Text encoders have a `text_model` around their layers, or by transformers from 5.6 on none.
            names = (path, path.removeprefix("text_model."))
            own = (value for key, value in pattern.items() if any(_matches(key, name) for name in names))
            alpha = float(next(own, values["lora_alpha"]))
        except (TypeError, KeyError, ValueError, AttributeError) as error:
            raise ModelError(
                f"{self.path}: its lora_adapter_metadata says no r and lora_alpha of {component}."
            ) from error
        return alpha * rank**0.5 if self.values.get(f"{component}.use_rslora") else alpha


def _matches(pattern: str, path: str) -> bool:
    """As peft matches the keys of its patterns: at the end of a path, behind a dot; `^` binds to the beginning."""
    import re

    return re.match(rf"(.*\.)?({pattern})$", path) is not None


def _factors(where: str, parts: Mapping[str, Tensor], layer: Layer, header: _HeaderAlphas) -> Factors:
    down, up = parts["down"].float(), parts["up"].float()
    if up.dim() < 2 or down.dim() != up.dim() or up.shape[1] != down.shape[0]:
        shapes = f"A {list(down.shape)}, B {list(up.shape)}"
        raise ModelError(f"{where}: {shapes} do not fit each other; expected A [rank, in], B [out, rank].")
    rows = sum(part.rows for part in layer.parts)
    if up.shape[0] != rows:
        raise ModelError(f"{where}: changes {up.shape[0]} outputs, the layer has {rows}: the file is of another model.")
    if "alpha" in parts and parts["alpha"].numel() != 1:
        raise ModelError(f"{where}: its alpha has shape {list(parts['alpha'].shape)}; expected one number.")
    rank = down.shape[0]
    # kohya writes 0 where it means the rank.
    alpha = (float(parts["alpha"]) or float(rank)) if "alpha" in parts else header.alpha(layer.parts[0].module, rank)
    return Factors(down, up, alpha, _magnitude(where, parts, rows, layer))


def _magnitude(where: str, parts: Mapping[str, Tensor], rows: int, layer: Layer) -> Tensor | None:
    """Norms per output, [out]. LyCORIS can also keep them per input, [1, in], which is another adapter."""
    value = parts.get("magnitude", parts.get("column"))
    if value is None:
        return None
    if value.numel() != rows or ("column" in parts and value.shape[0] != rows):
        raise ModelError(f"{where}: a DoRA with magnitudes {list(value.shape)}; expected one per output, {rows}.")
    if len(layer.parts) > 1:
        raise ModelError(f"{where}: a DoRA of fused layers, which is not read here.")
    return value.float().flatten()


def _check_magnitudes(path: Path, adapter: Adapter) -> None:
    components: dict[str, list[bool]] = {}
    for name, factors in adapter.items():
        components.setdefault(name.partition(".")[0], []).append(factors.magnitude is not None)
    for component, has in components.items():
        if any(has) and not all(has):
            raise ModelError(
                f"{path}: {sum(has)} of {len(has)} modules of {component} have a DoRA magnitude; expected all."
            )
