"""Export an adapter: convert, write, read it back as its users will, and compare what arrived."""

from __future__ import annotations

import json
import shutil
import uuid
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from t2i import lora
from t2i.errors import ConfigError, ModelError
from t2i.export.card import architecture, sizes
from t2i.export.factors import Adapter, Factors, check_adapter, largest_error
from t2i.export.layouts import PEFT_PREFIX, Layout, ModelLayers, to_layout, to_tensors
from t2i.export.reading import read_adapter
from t2i.families.base import ModelFamily
from t2i.files import check_no_folder, write_tensors, write_text
from t2i.lora.patterns import rank_and_alpha_options

Target = Literal["diffusers", "peft", "kohya", "comfyui", "merged"]
"""What an adapter can be exported as: a layout of LoRA files, or the whole model with the adapter in its weights."""
Precision = Literal["fp32", "fp16", "bf16"]
DTYPES: dict[str, torch.dtype] = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
TOLERANCES: dict[str, float] = {"fp32": 1e-6, "fp16": 2**-10, "bf16": 2**-7}
"""Largest relative change of a weight change by rounding both factors."""
_DIFFUSERS_ROWS = {"linear1": 21504}
"""Fused layers of Flux that diffusers splits at fixed places: their outputs in the published models."""
_DIFFUSERS_LOSES = ("img_in", "txt_in", "time_in", "vector_in", "guidance_in", "final_layer", "lora_te3", "t5xxl")
"""Layers of Flux that diffusers drops or misplaces when it reads kohya or comfyui files."""


@dataclass(frozen=True)
class Exported:
    """What was written, and how it was proved."""

    path: Path
    layout: str
    error: float
    """The largest relative error of a weight change after reading the file back."""
    read_from: str
    """The layout that was found, in words."""
    read_by: Literal["diffusers", "peft", "t2i"]
    """Whose reader the file was loaded with, into the model it is for."""

    conversion_error: float = 0.0
    """Share of the weight change's norm that a plain LoRA of the given rank could not take over from a DoRA."""

    def __str__(self) -> str:
        what = "weights" if self.layout == "merged" else "weight deltas"
        text = f"{what} arrive within {self.error:.1e}, read by {self.read_by}"
        if self.conversion_error:
            text += f"; a LoRA in place of the DoRA, {100 * self.conversion_error:.2g} % of whose change is lost"
        return text


def export_lora(
    source: Path,
    target: Path,
    family: ModelFamily,
    *,
    layout: Target,
    precision: Precision,
    metadata: dict[str, str],
    dora_rank: int | None = None,
) -> Exported:
    """Write the LoRA file `source`, of any layout, as `target` in another one, whole or not at all.

    target: a file; for layout `peft` a folder, with one of peft's per component, for `merged` one of the whole model.
    It is loaded into the family's pipeline before it gets its name, so `family` must be fresh. dora_rank: convert a
    DoRA to the nearest plain LoRA of that rank. A file that has the name is replaced. Raises ConfigError for a folder
    that has it, and for a rank as `check_dora_rank` does; ModelError for values that are not finite, an adapter that
    does nothing, modules that the layout has no names for, and a file that does not arrive as it was sent.
    """
    from t2i.export.whole import converted, export_merged

    check_no_folder(target)
    check_dora_rank("dora_rank", dora_rank, layout)
    imported = read_adapter(source, ModelLayers.of(family.facts, family.pipeline))
    check_adapter(imported.adapter, str(source))
    adapter, lost = imported.adapter, 0.0
    if dora_rank is not None:
        adapter, lost = converted(adapter, family, dora_rank)
    if layout == "merged":
        exported = export_merged(adapter, target, family, precision=precision)
    else:
        exported = write_adapter(adapter, target, family, layout=layout, precision=precision, metadata=metadata)
    return replace(exported, read_from=imported.layout, conversion_error=lost)


def check_dora_rank(option: str, rank: int | None, layout: Target) -> None:
    """Raise ConfigError for a rank below 1, and for one where the adapter does not stay an adapter."""
    if rank is not None and rank < 1:
        raise ConfigError(f"{option}: {rank} is given; expected at least 1.")
    if rank is not None and layout == "merged":
        raise ConfigError(f"{option}: layout merged takes the whole change of a DoRA; leave it out.")


def write_adapter(
    adapter: Adapter,
    target: Path,
    family: ModelFamily,
    *,
    layout: Layout,
    precision: Precision,
    metadata: dict[str, str],
) -> Exported:
    """As `export_lora`, of an adapter in memory. A family held in half precision reads it back no more exactly."""
    layers = ModelLayers.of(family.facts, family.pipeline)
    named = to_layout(adapter, layout, layers)
    rounded = {name: factors.to(DTYPES[precision]) for name, factors in named.items()}
    if "t2i_ranks" in metadata:
        # The header of a file for others: what it says of sizes and model is of this very file.
        metadata = metadata | sizes(named, layout) | {"modelspec.architecture": architecture(family)}
    with _draft(target) as draft:
        write_layout(rounded, draft, layout, metadata)
        read_by = reader_of(layout, family, named)
        error = arrival_error(adapter, draft, family, read_by)
        limit = max(TOLERANCES[precision], _reader_tolerance(family, adapter))
        _check_arrived(error, limit, target)
        # By our own reader too: what is written here may come back as a start, or into a merge.
        _check_arrived(largest_error(adapter, read_adapter(draft, layers).adapter), limit, target)
    return Exported(target, layout, error, "memory", read_by)


def _check_arrived(error: float, limit: float, target: Path) -> None:
    # Written so that an error that is not a number, from values beyond the precision's range, is refused too.
    if not error <= limit:
        raise ModelError(f"{target}: weight deltas changed by {error:.2g} relative on the way; nothing was written.")


def _reader_tolerance(family: ModelFamily, adapter: Adapter) -> float:
    """What a reader loses that gives an adapter the dtype of the components it is loaded into."""
    modules = [getattr(family.pipeline, name) for name in _components(adapter)]
    held = {value.dtype for module in modules for value in module.parameters()}
    return max(tolerance for name, tolerance in TOLERANCES.items() if name == "fp32" or DTYPES[name] in held)


def _components(adapter: Adapter) -> set[str]:
    """Names in the pipeline of what an adapter changes."""
    return {name.partition(".")[0] for name in adapter}


@contextmanager
def _draft(target: Path) -> Iterator[Path]:
    """A path beside the target; renamed to it if the block succeeds, gone if it fails. Makes the folder they are in."""
    check_no_folder(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = target.with_name(f".{uuid.uuid4().hex[:8]}.draft{target.suffix}")
    try:
        yield draft
        draft.replace(target)
    finally:
        if draft.is_dir():
            shutil.rmtree(draft)
        draft.unlink(missing_ok=True)


def write_layout(named: Mapping[str, Factors], path: Path, layout: Layout, metadata: Mapping[str, str]) -> None:
    """Write layers under the names of a layout: a file, or for peft a folder."""
    header = {"format": "pt", **metadata}
    if layout != "peft":
        write_tensors(path, to_tensors(named, layout), header)
        return
    for component, own in _by_component(named).items():
        folder = path / component
        folder.mkdir(parents=True)
        write_tensors(folder / "adapter_model.safetensors", to_tensors(own, layout), header)
        write_text(folder / "adapter_config.json", json.dumps(_peft_config(own), indent=2, sort_keys=True) + "\n")


def _by_component(named: Mapping[str, Factors]) -> dict[str, dict[str, Factors]]:
    components: dict[str, dict[str, Factors]] = {}
    for name, factors in named.items():
        component, _, rest = name.partition(".")
        components.setdefault(component, {})[rest] = factors
    return components


def _peft_config(own: Mapping[str, Factors]) -> dict[str, Any]:
    """peft's configuration for layers named `base_model.model.<path>`, of strength 1."""
    import re

    paths = {name.removeprefix(f"{PEFT_PREFIX}."): factors for name, factors in own.items()}
    return {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": None,
        "inference_mode": True,
        **rank_and_alpha_options({path: (factors.rank, factors.rank) for path, factors in paths.items()}),
        "target_modules": "|".join(re.escape(path) for path in paths),
        "use_dora": any(factors.magnitude is not None for factors in own.values()),
        "bias": "none",
        "lora_dropout": 0.0,
    }


def reader_of(layout: Layout, family: ModelFamily, named: Mapping[str, Factors]) -> Literal["diffusers", "peft", "t2i"]:
    """Whose reader proves a file: the library's that people load it with, where there is one."""
    if layout == "peft":
        return "peft"
    if not family.facts.loads_lora_files or layout not in family.facts.diffusers_reads:
        return "t2i"
    if layout == "kohya" and any(factors.magnitude is not None for factors in named.values()):
        return "t2i"  # diffusers drops magnitudes under this name
    if layout == "diffusers" or family.facts.name != "flux":
        return "diffusers"
    odd = any(lost in name for name in named for lost in _DIFFUSERS_LOSES) or any(
        name.endswith(end) and factors.up.shape[0] != rows
        for name, factors in named.items()
        for end, rows in _DIFFUSERS_ROWS.items()
    )
    return "t2i" if odd else "diffusers"


def arrival_error(adapter: Adapter, path: Path, family: ModelFamily, read_by: str) -> float:
    """Load what was written as anyone would; the largest relative error of a weight change against `adapter`.

    Raises ModelError if other modules arrive than were sent.
    """
    pipeline = family.pipeline
    try:
        if read_by == "diffusers":
            lora.load_through_diffusers(pipeline, path)
        elif read_by == "peft":
            _load_through_peft(pipeline, path)
        else:
            lora.load_into(pipeline, path)
        modules = {name: getattr(pipeline, name) for name in _components(adapter)}
        arrived = lora.adapter_of({name: part for name, part in modules.items() if isinstance(part, nn.Module)})
        return largest_error(adapter, arrived)
    finally:
        lora.unload(pipeline)


def _load_through_peft(pipeline: Any, folder: Path) -> None:
    """`PeftModel.from_pretrained` for every component, as the users of these folders do."""
    from peft import PeftModel

    with warnings.catch_warnings():
        # Between peft and transformers; nothing that a reader of our files can do about it.
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")
        for inner in sorted(folder.iterdir()):
            PeftModel.from_pretrained(getattr(pipeline, inner.name), str(inner))
