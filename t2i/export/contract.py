"""The promise that what is trained can be written and read: kept before the first step, and again at the end.

Before: an adapter of the shape that will be trained, with random values in place of its zeros, is written in every
layout that is asked for and loaded into the very pipeline, by its usual reader. After: what was trained and the file on
the disk are compared. A key that nobody reads is found in the first minute, not after ten hours.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from t2i import lora
from t2i.errors import ModelError, RunError
from t2i.export.adapter import TOLERANCES, write_adapter
from t2i.export.factors import Adapter, check_adapter, largest_error
from t2i.export.layouts import Layout, ModelLayers
from t2i.export.reading import read_adapter
from t2i.families.base import ModelFamily
from t2i.randomness import seeded_global

if TYPE_CHECKING:
    from t2i.training.settings import LoraSettings


def check_contract(family: ModelFamily, settings: LoraSettings, layouts: Sequence[Layout], seed: int) -> None:
    """Raise RunError unless the adapter that settings describe arrives in every layout. The family has none yet."""
    adapter = _with_random_b(family, settings, seed)
    for layout in layouts:
        with tempfile.TemporaryDirectory() as folder:
            target = Path(folder) / ("peft" if layout == "peft" else f"{layout}.safetensors")
            try:
                write_adapter(adapter, target, family, layout=layout, precision="fp32", metadata={})
            except ModelError as problem:
                raise RunError(f"before step 1: the adapter cannot be exported as {layout}: {problem}") from problem


def _with_random_b(family: ModelFamily, settings: LoraSettings, seed: int) -> Adapter:
    # In few bits the same layers carry the same adapters; quantizing cannot be taken back.
    modules = lora.inject(family, settings.model_copy(update={"base_bits": None}), seed)
    adapter = lora.adapter_of(modules)
    lora.unload(family.pipeline)
    with seeded_global(seed, "lora", len(modules)):
        return {name: replace(factors, up=torch.randn(factors.up.shape)) for name, factors in adapter.items()}


def check_trained(family: ModelFamily, modules: Mapping[str, nn.Module], path: Path) -> None:
    """Raise RunError unless the file that was written is finite, does something, and is what was trained."""
    try:
        found = read_adapter(path, ModelLayers.of(family.facts, family.pipeline))
        check_adapter(found.adapter, str(path))
        error = largest_error(lora.adapter_of(dict(modules)), found.adapter)
    except ModelError as problem:
        raise RunError(f"after the last step: {problem}") from problem
    if not error <= TOLERANCES["fp32"]:
        raise RunError(f"{path}: holds weight deltas that differ by {error:.2g} relative from those that were trained.")
