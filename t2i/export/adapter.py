"""Export an adapter: convert, write, load through plain diffusers, and compare what arrived."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from t2i import lora
from t2i.errors import ModelError
from t2i.export.layouts import split_key, to_kohya
from t2i.families.base import ModelFamily
from t2i.records import write_tensors

Layout = Literal["diffusers", "kohya"]
Precision = Literal["fp32", "fp16", "bf16"]
DTYPES: dict[str, torch.dtype] = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
TOLERANCES: dict[str, float] = {"fp32": 1e-6, "fp16": 2**-10, "bf16": 2**-7}
"""Largest relative change of a weight delta by rounding both factors."""


def export_lora(
    source: Path, target: Path, family: ModelFamily, *, layout: Layout, precision: Precision, metadata: dict[str, str]
) -> float:
    """Write the LoRA file `source` (diffusers layout) as `target`, whole or not at all.

    The written file is loaded into the family's pipeline before it gets its name, so `family` must be fresh. Returns
    the largest relative error of a weight delta. Raises ModelError for values that are not finite, an adapter that does
    nothing, and a file that does not arrive as it was sent.
    """
    from safetensors.torch import load_file

    state = load_file(source)
    check_state(state, source)
    if layout == "kohya" and _magnitudes(state):
        raise ModelError(
            f"{source}: a DoRA; its readers in kohya's layout disagree about the axis. Export as diffusers."
        )
    rounded = {key: value.to(DTYPES[precision]).contiguous() for key, value in state.items()}
    tensors = to_kohya(rounded, family.facts) if layout == "kohya" else rounded
    draft = target.with_name(f".{target.stem}.draft.safetensors")
    try:
        write_tensors(draft, tensors, {"format": "pt", **metadata})
        error = _arrival_error(state, draft, family)
        # Written so that an error that is not a number, from values beyond the precision's range, is refused too.
        if not error <= TOLERANCES[precision]:
            raise ModelError(
                f"{target}: weight deltas changed by {error:.2g} relative on the way; nothing was written."
            )
        draft.replace(target)
    finally:
        draft.unlink(missing_ok=True)
    return error


def check_state(state: dict[str, Tensor], source: Path) -> None:
    """Raise ModelError unless all values are finite and at least one B is not zero."""
    bad = [key for key, value in state.items() if not torch.isfinite(value).all()]
    if bad:
        raise ModelError(f"{source}: {len(bad)} tensors hold values that are not finite, the first is {bad[0]}.")
    if not any(value.any() for key, value in state.items() if ".lora_B." in key):
        raise ModelError(f"{source}: every B is zero: this adapter changes nothing.")


def deltas(state: dict[str, Tensor]) -> dict[tuple[str, str], Tensor]:
    """(component, module) -> B A in float64, from a diffusers-layout state of strength 1. Magnitudes are left out."""
    names = {split_key(key)[:2] for key in state.keys() - _magnitudes(state).keys()}
    pairs = {name: [state[f"{'.'.join(name)}.lora_{side}.weight"].double() for side in "BA"] for name in names}
    return {name: up.flatten(1) @ down.flatten(1) for name, (up, down) in pairs.items()}


def _magnitudes(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Those of a DoRA."""
    return {key: value for key, value in state.items() if ".lora_magnitude_vector." in key}


def _measured(state: dict[str, Tensor]) -> dict[tuple[str, str], Tensor]:
    """Everything that must arrive: weight deltas, and magnitudes under the names of their keys."""
    return deltas(state) | {(key, "magnitude"): value.double() for key, value in _magnitudes(state).items()}


def _arrival_error(state: dict[str, Tensor], path: Path, family: ModelFamily) -> float:
    """Load the file as anyone would; the largest relative error of a weight delta or magnitude against `state`."""
    components = {key.partition(".")[0] for key in state}
    if family.facts.loads_lora_files:
        family.pipeline.load_lora_weights(str(path.parent), weight_name=path.name, adapter_name="default")
    else:
        lora.load_into(family.pipeline, path)
    modules = {name: getattr(family.pipeline, name) for name in components}
    arrived = _measured(
        lora.adapter_state({name: module for name, module in modules.items() if isinstance(module, nn.Module)})
    )
    lora.unload(family.pipeline)
    sent = _measured(state)
    if arrived.keys() != sent.keys():
        lost = sorted(".".join(name) for name in sent.keys() ^ arrived.keys())
        raise ModelError(f"{path.name}: diffusers reads other modules than were written, for example {lost[:2]}.")
    errors = ((arrived[name] - delta).norm() / delta.norm().clamp(min=1e-12) for name, delta in sent.items())
    # Python's max() would pass over an error that is not a number.
    return float(torch.stack(list(errors)).max())
