"""Layouts of LoRA files: what each calls the layers of a model, and an adapter written so.

diffusers  `unet.<module>.lora_A.weight`, `.lora_B.weight`; strength 1 (alpha / rank is folded into B)
peft       the same as `base_model.model.<module>...`, one folder per component with peft's configuration
kohya      `lora_unet_<layer with _>.lora_down.weight`, `.lora_up.weight`, `.alpha`; all but SD 1 in the authors' names;
           of a DoRA `.dora_scale`, [out, 1], as LyCORIS has it by default
comfyui    `diffusion_model.<layer>.lora_down.weight`, `.lora_up.weight`, `.alpha`, in the authors' names

Where the authors fuse query, key and value, kohya and comfyui files do too (`fusing`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from torch import Tensor, nn, tensor

from t2i.errors import ModelError
from t2i.export.factors import Adapter, Factors
from t2i.export.fusing import fuse
from t2i.export.names import Layer, component_layers, native_layers, plain_layers
from t2i.families.base import FamilyFacts

Layout = Literal["diffusers", "peft", "kohya", "comfyui"]
LAYOUTS: tuple[Layout, ...] = get_args(Layout)
PEFT_PREFIX = "base_model.model"
_SD2_COMFYUI_PREFIXES = {"text_encoder": "text_encoders.clip_h.transformer"}
"""What the family `sd1` calls `clip_l` is another encoder in Stable Diffusion 2.x."""
_FIRST_QUERY, _SD2_WIDTH = "text_model.encoder.layers.0.self_attn.q_proj", 1024
"""A layer of its text encoder, and how many outputs it has there; 768 in Stable Diffusion 1.x."""


@dataclass(frozen=True)
class ModelLayers:
    """Layers of one loaded model that can carry an adapter, by component and path."""

    facts: FamilyFacts
    components: Mapping[str, Mapping[str, int]]
    """Component -> path in files -> outputs."""
    bare: frozenset[str] = frozenset()
    """Components whose modules lack the `text_model.` of their files."""

    @classmethod
    def of(cls, facts: FamilyFacts, pipeline: Any) -> ModelLayers:
        """Those of a pipeline: of its denoiser and its text encoders."""
        modules = {name: pipeline.components.get(name) for name in (facts.denoiser, *facts.text_encoders)}
        present = {name: module for name, module in modules.items() if isinstance(module, nn.Module)}
        layers = {name: component_layers(name, module) for name, module in present.items()}
        bare = (name for name, module in present.items() if "text_model" not in dict(module.named_children()))
        return cls(facts, layers, frozenset(bare))

    @property
    def is_sd2(self) -> bool:
        """Whether it is a Stable Diffusion 2.x, which the family `sd1` holds too, by the width of its text encoder."""
        return self.facts.name == "sd1" and self.components.get("text_encoder", {}).get(_FIRST_QUERY) == _SD2_WIDTH

    def named(self, layout: Layout, denoiser_names: Literal["diffusers", "native"] | None = None) -> dict[str, Layer]:
        """Name in files of a layout -> layer; none where no tool reads such files of the family.

        denoiser_names: others for the denoiser than the layout has.
        """
        facts = self.facts
        if layout == "diffusers":
            return self._joined(dict.fromkeys(self.components, ""), lambda name, path: f"{name}.{path}")
        if layout == "peft":
            return self._joined(dict.fromkeys(self.components, ""), self._peft_name)
        if layout == "comfyui":
            prefixes, own = dict(facts.comfyui_prefixes) | (_SD2_COMFYUI_PREFIXES if self.is_sd2 else {}), "native"
        else:
            prefixes, own = dict(facts.kohya_prefixes), facts.kohya_names
        joined = _underscored if layout == "kohya" else _dotted
        return self._joined(prefixes, joined, native=(denoiser_names or own) == "native")

    def _peft_name(self, component: str, path: str) -> str:
        """peft reads a file straight into the modules, whose own paths it therefore has."""
        path = path.removeprefix("text_model.") if component in self.bare else path
        return f"{component}.{PEFT_PREFIX}.{path}"

    def _joined(
        self, prefixes: Mapping[str, str], join: Callable[[str, str], str], *, native: bool = False
    ) -> dict[str, Layer]:
        found: dict[str, Layer] = {}
        for component, prefix in prefixes.items():
            paths = self.components.get(component, {})
            is_native = native and component == self.facts.denoiser
            layers = native_layers(self.facts, paths) if is_native else plain_layers(component, paths)
            found |= {join(prefix or component, layer.name): layer for layer in layers}
        return found


def _underscored(prefix: str, path: str) -> str:
    return f"{prefix}_{path.replace('.', '_')}"


def _dotted(prefix: str, path: str) -> str:
    return f"{prefix}.{path}"


def to_layout(adapter: Adapter, layout: Layout, layers: ModelLayers) -> dict[str, Factors]:
    """Layer name of a layout -> its adapter, fused where the layout's layers are.

    Raises ModelError for modules that have no name in the layout, and for a DoRA in layouts without it.
    """
    if layout in ("diffusers", "peft"):
        adapter = {name: factors.folded() for name, factors in adapter.items()}
    else:
        _check_known(adapter, layout, layers.facts)
    named = layers.named(layout)
    check_covered(adapter, named.values(), layout, layers.facts.name)
    fused = {name: fuse(layer, adapter) for name, layer in named.items()}
    return {name: factors for name, factors in fused.items() if factors is not None}


def _check_known(adapter: Adapter, layout: str, facts: FamilyFacts) -> None:
    """Raise ModelError if no tool reads the layout for the family, or a DoRA in it."""
    if not (facts.kohya_prefixes if layout == "kohya" else facts.comfyui_prefixes):
        raise ModelError(f"no tool reads {layout} files of {facts.name}; choose another layout.")
    # LyCORIS reads magnitudes in files of U-Nets, whose layers are not fused. Of others no reader is known.
    knows_dora = layout == "kohya" and not facts.native_layers
    if not knows_dora and any(factors.magnitude is not None for factors in adapter.values()):
        raise ModelError(
            f"a DoRA, which no known reader of {layout} files of {facts.name} takes; export it as diffusers, peft or "
            "merged, or give the rank of a plain LoRA to convert it to (dora_rank)."
        )


def check_covered(adapter: Iterable[str], layers: Iterable[Layer], layout: str, family: str) -> None:
    """Raise ModelError unless every module of an adapter has a name among the layers."""
    nameless = sorted(set(adapter) - {part.module for layer in layers for part in layer.parts})
    if nameless:
        raise ModelError(
            f"{nameless[0]} and {len(nameless) - 1} more modules have no name in {layout} files of {family}; "
            "leave them out, or choose another layout."
        )


def to_tensors(named: Mapping[str, Factors], layout: Layout) -> dict[str, Tensor]:
    """The tensors of a file, of layers by name."""
    down, up = ("lora_A", "lora_B") if layout in ("diffusers", "peft") else ("lora_down", "lora_up")
    tensors: dict[str, Tensor] = {}
    for name, factors in named.items():
        tensors[f"{name}.{down}.weight"] = factors.down
        tensors[f"{name}.{up}.weight"] = factors.up
        if layout in ("kohya", "comfyui"):
            tensors[f"{name}.alpha"] = tensor(float(factors.alpha))
        if factors.magnitude is not None:
            tensors[f"{name}{_MAGNITUDE[layout]}"] = (
                factors.magnitude_column() if layout == "kohya" else factors.magnitude_of_peft()
            )
    return tensors


_MAGNITUDE: dict[Layout, str] = {
    "diffusers": ".lora_magnitude_vector.weight",
    # peft leaves the last word out in its own files.
    "peft": ".lora_magnitude_vector",
    "kohya": ".dora_scale",
}
