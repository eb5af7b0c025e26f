"""Adapters to export: what training would leave on the tiny checkpoint of every family."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import tiny
import tiny_flow
import torch
from torch import nn

from t2i import lora
from t2i.export.factors import Adapter
from t2i.export.layouts import ModelLayers
from t2i.families import load_family
from t2i.training.settings import LoraSettings

CHECKPOINTS = {
    "sd1": tiny.sd1,
    "sdxl": tiny.sdxl,
    "pixart": tiny_flow.pixart,
    "sd3": tiny_flow.sd3,
    "flux": tiny_flow.flux,
}
"""Family -> builder of the folder of its tiny checkpoint."""
KINDS: dict[str, dict[str, Any]] = {
    "lora": {"alpha": 3.0},
    "rslora": {"variant": "rslora", "alpha": 2.0},
    "dora": {"variant": "dora"},
}
"""Kind of adapter -> settings. 3 / 4 is no power of two; 2 / sqrt(4) is."""


@functools.cache
def family(name: str) -> Any:
    """A loaded checkpoint without adapters, shared by all tests: whoever puts one in takes it out again."""
    return load_family(str(CHECKPOINTS[name]()))


def layers(name: str) -> ModelLayers:
    return ModelLayers.of(family(name).facts, family(name).pipeline)


def fill(modules: dict[str, nn.Module], scale: float = 0.2) -> None:
    """Give every B some values, as training would."""
    draw = torch.Generator().manual_seed(1)
    for module in modules.values():
        for name, parameter in module.named_parameters():
            if ".lora_B." in name:
                parameter.data = scale * torch.randn(parameter.shape, generator=draw)


@functools.cache
def adapter(name: str, kind: str = "lora", targets: tuple[str, ...] | None = None) -> Adapter:
    """An adapter of rank 4 on the family's own targets, or on others, text encoders included where it has any."""
    settings = LoraSettings(rank=4, targets=targets, text_encoder=name != "pixart", **KINDS[kind])
    modules = lora.inject(family(name), settings, seed=3)
    fill(modules)
    found = lora.adapter_of(modules)
    lora.unload(family(name).pipeline)
    return found


def saved(path: Path, name: str, kind: str = "lora") -> Path:
    """The file that training would leave."""
    from t2i.export.layouts import to_layout, to_tensors
    from t2i.files import write_tensors

    write_tensors(path, to_tensors(to_layout(adapter(name, kind), "diffusers", layers(name)), "diffusers"))
    return path
