"""An adapter worked into the weights of its model, written as a diffusers folder."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from t2i.errors import ModelError
from t2i.export.adapter import TOLERANCES, Exported, Precision
from t2i.export.factors import Adapter
from t2i.export.merge import Size, dora_change, dora_to_lora
from t2i.export.model import export_model
from t2i.export.names import adaptable_layers, file_path
from t2i.families.base import ModelFamily
from t2i.training.outputs import forget_origin


def base_weights(family: ModelFamily) -> dict[str, Tensor]:
    """Module -> weight, of every layer of the denoiser and the text encoders that can carry an adapter."""
    found: dict[str, Tensor] = {}
    for component in (family.facts.denoiser, *family.facts.text_encoders):
        module = family.pipeline.components.get(component)
        if isinstance(module, nn.Module):
            for path, layer in adaptable_layers(module).items():
                found[f"{component}.{file_path(component, path)}"] = layer.weight.detach()  # pyright: ignore
    return found


def converted(adapter: Adapter, family: ModelFamily, rank: int) -> tuple[Adapter, float]:
    """A DoRA as the nearest plain LoRA of a rank, and the share of the change's norm that is lost; others as they are.

    Raises ModelError for modules that the model lacks.
    """
    if all(factors.magnitude is None for factors in adapter.values()):
        return adapter, 0.0
    merged = dora_to_lora(adapter, base_weights(family), Size(rank=rank))
    return merged.adapter, merged.error


def export_merged(adapter: Adapter, target: Path, family: ModelFamily, *, precision: Precision) -> Exported:
    """Write the family's model with the adapter in its weights, whole or not at all; the model itself stays as it is.

    Every changed weight is read back and compared with what it should be, relative to the weight. Raises ModelError if
    the model lacks a module, or a weight does not arrive.
    """
    weights = base_weights(family)
    lacking = sorted(adapter.keys() - weights.keys())
    if lacking:
        raise ModelError(f"the model has no {lacking[0]}; the adapter is of another model.")
    changed = {name: weights[name].double() + dora_change(factors, weights[name]) for name, factors in adapter.items()}
    draft = target.with_name(f".{uuid.uuid4().hex[:8]}.tmp")
    try:
        with _replaced(weights, changed):
            pipeline: Any = family.pipeline
            pipeline.save_pretrained(draft, safe_serialization=True)
        forget_origin(draft)
        error = _arrival_error(draft, changed, precision)
        if not error <= TOLERANCES[precision]:
            raise ModelError(f"{target}: weights changed by {error:.2g} relative on the way; nothing was written.")
        export_model(draft, target, precision=precision)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return Exported(target, "merged", error, "memory", "t2i")


@contextmanager
def _replaced(weights: dict[str, Tensor], changed: dict[str, Tensor]) -> Iterator[None]:
    """Other weights for the length of the block."""
    kept = {name: weights[name].clone() for name in changed}
    try:
        for name, value in changed.items():
            weights[name].copy_(value)
        yield
    finally:
        for name, value in kept.items():
            weights[name].copy_(value)


def _arrival_error(folder: Path, changed: dict[str, Tensor], precision: Precision) -> float:
    """The largest relative error of a changed weight, as it will be rounded, in the files of a folder."""
    from safetensors import safe_open

    from t2i.export.adapter import DTYPES

    errors = []
    for component in {name.partition(".")[0] for name in changed}:
        wanted = {name.partition(".")[2]: name for name in changed if name.startswith(f"{component}.")}
        for path in sorted((folder / component).glob("*.safetensors")):
            with safe_open(path, "pt") as file:
                for key in file.keys():  # noqa: SIM118
                    stem = file_path(component, key.removesuffix(".weight"))
                    if key.endswith(".weight") and stem in wanted:
                        expected = changed[wanted.pop(stem)]
                        found = file.get_tensor(key).to(DTYPES[precision]).double()
                        errors.append((found - expected).norm() / expected.norm().clamp(min=1e-30))
        if wanted:
            raise ModelError(f"{component} was saved without {next(iter(wanted))}.")
    return float(torch.stack(errors).max())
