"""Export a whole model: the same folder with its weights in another precision."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch

from t2i.errors import ModelError
from t2i.files import check_no_folder, write_tensors

_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def export_model(source: Path, target: Path, *, precision: str) -> dict[str, Any]:
    """Copy a diffusers or transformers folder, casting every floating tensor of its safetensors files.

    Everything else is copied byte for byte. Raises ModelError for a value that is not finite after the cast, and
    ConfigError for a folder that has the target's name.
    """
    check_no_folder(target)
    temporary = target.with_name(f".{target.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    files = sorted(path for path in source.rglob("*") if path.is_file())
    total = 0
    try:
        for path in files:
            copy = temporary / path.relative_to(source)
            copy.parent.mkdir(parents=True, exist_ok=True)
            if path.suffix == ".safetensors":
                _cast(path, copy, _DTYPES[precision])
            else:
                shutil.copyfile(path, copy)
            total += copy.stat().st_size
        temporary.rename(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return {"model": target.name, "files": len(files), "megabytes": round(total / 1e6, 3)}


def _cast(source: Path, target: Path, dtype: torch.dtype) -> None:
    from safetensors import safe_open
    from safetensors.torch import load_file

    with safe_open(source, "pt") as file:
        metadata = file.metadata()
    tensors = {key: value.to(dtype) if value.is_floating_point() else value for key, value in load_file(source).items()}
    bad = [key for key, value in tensors.items() if value.is_floating_point() and not torch.isfinite(value).all()]
    if bad:
        raise ModelError(f"{source.name}: {bad[0]} is not finite in {dtype}; export in another precision.")
    write_tensors(target, tensors, metadata)
