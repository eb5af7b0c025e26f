"""Checkpoints: trained weights, optimizer, moving average and step, as safetensors, whole or not there."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

from torch import Tensor
from torch.optim import Optimizer

from t2i.errors import RunError
from t2i.records import write_tensors, write_text

PREFIX = "step-"


def write_checkpoint(folder: Path, step: int, tensors: dict[str, dict[str, Tensor]], *, keep: int) -> Path:
    """Write `folder/step-000123/` under a temporary name, rename it, then delete all but the newest `keep`.

    tensors: file stem -> named tensors; `weights` is what a sampler may load.
    """
    target = folder / f"{PREFIX}{step:08d}"
    temporary = folder / f".{target.name}.{os.getpid()}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    for stem, named in tensors.items():
        write_tensors(temporary / f"{stem}.safetensors", named)
    write_text(temporary / "state.json", json.dumps({"step": step, "files": sorted(tensors)}))
    # The run went on from an earlier step, so these could not be read.
    for damaged in folder.glob(f"{PREFIX}*"):
        if damaged.name >= target.name:
            shutil.rmtree(damaged)
    temporary.rename(target)
    for old in list_checkpoints(folder)[:-keep]:
        shutil.rmtree(old)
    return target


def list_checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    return sorted(path for path in folder.glob(f"{PREFIX}*") if (path / "state.json").is_file())


def read_newest(folder: Path) -> tuple[int, dict[str, dict[str, Tensor]]] | None:
    """(steps done, file stem -> tensors) of the newest checkpoint that can be read; None if there is none.

    A damaged one is passed over for the one before it; if all are damaged, RunError says so.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    checkpoints = list_checkpoints(folder)
    for path in reversed(checkpoints):
        try:
            state = json.loads((path / "state.json").read_text())
            # Bytes, not a memory map: tensors must not change when the file is replaced.
            return state["step"], {stem: load((path / f"{stem}.safetensors").read_bytes()) for stem in state["files"]}
        except (OSError, ValueError, KeyError, SafetensorError):
            continue
    if checkpoints:
        raise RunError(
            f"{folder}: none of its {len(checkpoints)} checkpoints can be read; delete the folder to start again."
        )
    return None


def optimizer_tensors(optimizer: Optimizer, names: list[str]) -> dict[str, Tensor]:
    """The optimizer's state as `<parameter name>/<slot>`; names in the order of its parameters."""
    state = optimizer.state_dict()["state"]
    return {f"{names[index]}/{slot}": value for index, slots in state.items() for slot, value in slots.items()}


def restore_optimizer(optimizer: Optimizer, names: list[str], tensors: dict[str, Tensor]) -> None:
    """Inverse of `optimizer_tensors` on an optimizer with the same parameters."""
    index = {name: number for number, name in enumerate(names)}
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        name, _, slot = key.rpartition("/")
        state.setdefault(index[name], {})[slot] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
