"""What the layers of a model are called: in diffusers, and in the layout of the model's authors."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from torch import nn

from t2i.families.base import FamilyFacts, NativeLayer

ADAPTABLE = (nn.Linear, nn.Conv2d)
"""What a LoRA can be put on."""


@dataclass(frozen=True)
class Part:
    """A layer of diffusers: its module as adapters call it, and how many outputs it has."""

    module: str
    rows: int


@dataclass(frozen=True)
class Layer:
    """A layer as some layout knows it, made of one layer of diffusers or of several, stacked along its outputs."""

    name: str
    parts: tuple[Part, ...]
    swaps_halves: bool = False


def adaptable_layers(module: nn.Module) -> dict[str, nn.Module]:
    """Path -> layer that can carry an adapter; where one is in already, the layer under it."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    found: dict[str, nn.Module] = {}
    covered: tuple[str, ...] = ()
    for path, child in module.named_modules():
        if path.startswith(covered) and covered:
            continue
        if isinstance(child, BaseTunerLayer):
            child = child.get_base_layer()
            covered = (*covered, f"{path}.")
        if isinstance(child, ADAPTABLE):
            found[path] = child
    return found


def rows_of(layer: nn.Module) -> int:
    """Outputs of a layer. Not the shape of its weight, which is another where weights are held in few bits."""
    return layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels  # type: ignore[union-attr, return-value]


def file_path(component: str, path: str) -> str:
    """A module's path in files: every reader expects the `text_model.` that transformers 5.6 dropped from CLIP's."""
    is_bare = component.startswith("text_encoder") and path.startswith(("encoder.layers.", "embeddings.", "final_"))
    return f"text_model.{path}" if is_bare else path


def component_layers(component: str, module: nn.Module) -> dict[str, int]:
    """Path in files -> outputs, of all layers of a component that can carry an adapter."""
    return {file_path(component, path): rows_of(layer) for path, layer in adaptable_layers(module).items()}


def plain_layers(component: str, layers: Mapping[str, int]) -> Iterator[Layer]:
    """Every layer under its own name."""
    for path, rows in layers.items():
        yield Layer(path, (Part(f"{component}.{path}", rows),))


def native_layers(facts: FamilyFacts, layers: Mapping[str, int]) -> Iterator[Layer]:
    """The denoiser's layers under the names of the model's authors. Layers that these do not know are left out."""
    if not facts.native_layers:
        names = unet_names(layers)
        yield from (Layer(name, (Part(f"{facts.denoiser}.{path}", layers[path]),)) for path, name in names.items())
        return
    for native in facts.native_layers:
        yield from _in_every_block(native, facts.denoiser, layers)


def _in_every_block(native: NativeLayer, component: str, layers: Mapping[str, int]) -> Iterator[Layer]:
    numbers = _block_numbers(native.parts[0], layers)
    for number in numbers:
        paths = [part.replace("{}", number) for part in native.parts]
        parts = tuple(Part(f"{component}.{path}", layers[path]) for path in paths if path in layers)
        swaps = native.swaps_halves == "always" or (native.swaps_halves == "last" and number == numbers[-1])
        yield Layer(native.name.replace("{}", number), parts, swaps)


def _block_numbers(template: str, layers: Iterable[str]) -> list[str]:
    """What stands for `{}` in the paths that a template matches, in order; for one without, whether it is there."""
    if "{}" not in template:
        return [""] if template in layers else []
    pattern = re.compile(re.escape(template).replace(r"\{\}", r"(\d+)"))
    return sorted({match[1] for path in layers if (match := pattern.fullmatch(path))}, key=int)


_UNET_BLOCK = re.compile(r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)")
_UNET_MIDDLE = re.compile(r"mid_block\.(resnets|attentions)\.(\d+)\.(.+)")
_UNET_ENDS = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_out": "out.2",
}
_RESNET = {
    "conv1": "in_layers.2",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}


def unet_names(paths: Iterable[str]) -> dict[str, str]:
    """Path in diffusers -> path in CompVis' U-Net, whose blocks are numbered through (Rombach et al. 2022, code).

    A level has `layers_per_block` blocks on the way down, each with a resnet and perhaps attention, and one that
    halves the size; on the way up one block more, the last of which doubles the size.
    """
    paths = list(paths)
    per_level = len({path.split(".")[3] for path in paths if path.startswith("down_blocks.0.resnets.")})
    attentive = {path.split(".")[1] for path in paths if path.startswith("up_blocks.") and ".attentions." in path}
    names = {path: _unet_name(path, per_level, attentive) for path in paths}
    return {path: name for path, name in names.items() if name}


def _unet_name(path: str, per_level: int, attentive: set[str]) -> str | None:
    """None for a layer that is in no block known."""
    if path in _UNET_ENDS:
        return _UNET_ENDS[path]
    if middle := _UNET_MIDDLE.fullmatch(path):
        kind, number, rest = middle.groups()
        return f"middle_block.{1 if kind == 'attentions' else 2 * int(number)}.{_inner_name(kind, rest)}"
    block = _UNET_BLOCK.fullmatch(path)
    if block is None:
        return None
    side, level, kind, number, rest = block.groups()
    start = int(level) * (per_level + 1)
    if kind == "downsamplers":
        return f"input_blocks.{start + per_level + 1}.0.op"
    if kind == "upsamplers":
        return f"output_blocks.{start + per_level}.{2 if level in attentive else 1}.conv"
    place = f"input_blocks.{start + int(number) + 1}" if side == "down" else f"output_blocks.{start + int(number)}"
    return f"{place}.{int(kind == 'attentions')}.{_inner_name(kind, rest)}"


def _inner_name(kind: str, rest: str) -> str:
    return _RESNET.get(rest, rest) if kind == "resnets" else rest
