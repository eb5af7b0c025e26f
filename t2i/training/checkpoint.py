"""Checkpoints: trained weights, optimizer, moving average and step, as safetensors, whole or not there."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from t2i.errors import RunError
from t2i.files import write_tensors, write_text

PREFIX = "step-"
_GROUP_STATE = frozenset({"d", "d_max", "d_numerator", "d_denom", "d_hat", "k"})
"""What Prodigy changes in its groups."""
_NUMBERS: dict[type, torch.dtype] = {int: torch.int64, float: torch.float64}


def checkpoint_name(step: int) -> str:
    """Folder of the checkpoint after so many steps; names sort as steps do."""
    return f"{PREFIX}{step:08d}"


def write_checkpoint(folder: Path, step: int, tensors: dict[str, dict[str, Tensor]], *, keep: int) -> Path:
    """Write `folder/step-000123/` under a temporary name, rename it, then delete all but the newest `keep`.

    tensors: file stem -> named tensors; `weights` is what a sampler may load.
    """
    target = folder / checkpoint_name(step)
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

    checkpoints = list_checkpoints(folder)
    for path in reversed(checkpoints):
        try:
            state = json.loads((path / "state.json").read_text())
            return state["step"], {stem: _read_tensors(path / f"{stem}.safetensors") for stem in state["files"]}
        except (OSError, ValueError, KeyError, SafetensorError):
            continue
    if checkpoints:
        raise RunError(
            f"{folder}: none of its {len(checkpoints)} checkpoints can be read; delete the folder to start again."
        )
    return None


def _read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a file, each copied out of its memory map: they must not change when the file is replaced."""
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        return {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118


def copy_weights(source: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> None:
    """Copy values by name. Raises RunError if the names are others."""
    if source.keys() != target.keys():
        raise RunError("the checkpoint holds other weights than this recipe trains; delete the stage's folder.")
    with torch.no_grad():
        for name, value in target.items():
            value.copy_(source[name])


def weights_digest(named: Mapping[str, Tensor]) -> str:
    """Hash of the names and the bits of tensors."""
    digest = hashlib.blake2b()
    for name, tensor in sorted(named.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def optimizer_tensors(optimizer: Optimizer, names: list[str]) -> dict[str, Tensor]:
    """The optimizer's state as `<parameter name>/<slot>`; names in the order of its parameters.

    Numbers become tensors under `<slot>:int` and `<slot>:float`. What an optimizer keeps per group, as Prodigy does its
    estimate of the step size, stands under `[<group>]/<slot>`.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    tensors: dict[str, Tensor] = {}
    # Its state_dict() is no use here: that of bitsandbytes hides its tensors one level deeper.
    for name, parameter in zip(names, parameters, strict=True):
        for slot, value in optimizer.state.get(parameter, {}).items():
            tensors |= _as_tensor(f"{name}/{slot}", value)
    for number, group in enumerate(optimizer.param_groups):
        for slot in _GROUP_STATE & group.keys():
            tensors |= _as_tensor(f"[{number}]/{slot}", group[slot])
    return _unshared(tensors)


def restore_optimizer(optimizer: Optimizer, names: list[str], tensors: dict[str, Tensor]) -> None:
    """Inverse of `optimizer_tensors` on an optimizer with the same parameters."""
    keys = {name: number for number, name in enumerate(names)}
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Any]] = {}
    groups = optimizer.state_dict()["param_groups"]
    targets = {f"[{number}]": group for number, group in enumerate(groups)}
    for key, tensor in tensors.items():
        owner, _, slot = key.rpartition("/")
        slot, _, kind = slot.partition(":")
        if owner in targets:
            targets[owner][slot] = tensor.item() if kind else tensor
            continue
        number = keys[owner]
        value = tensor.item() if kind else _laid_out_as(parameters[number], tensor)
        state.setdefault(number, {})[slot] = value
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def buffer_tensors(module: nn.Module) -> dict[str, Tensor]:
    """What a module changes in training beside its parameters, by name: running statistics, as BatchNorm keeps them."""
    return _unshared({name: value.detach() for name, value in _changing_buffers(module).items()})


def restore_buffers(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Inverse of `buffer_tensors`. Raises RunError if the module has others."""
    copy_weights(tensors, _changing_buffers(module))


def _changing_buffers(module: nn.Module) -> dict[str, Tensor]:
    """Persistent buffers of the parts in train mode; in eval mode, as frozen and loaded models are, none changes."""
    found = {
        name: value
        for path, part in module.named_modules()
        if part.training
        for name, value in part.named_buffers(path, recurse=False)
    }
    persistent = module.state_dict().keys() if found else ()
    return {name: value for name, value in found.items() if name in persistent}


def _laid_out_as(parameter: Tensor, tensor: Tensor) -> Tensor:
    """A slot of a parameter's shape in that parameter's order of memory, as channels last is one; others as they are.

    torch's fused AdamW pairs parameter and moments by their place in memory, whatever their strides say.
    """
    if tensor.shape != parameter.shape:
        return tensor
    return torch.empty_like(parameter, dtype=tensor.dtype, device=tensor.device).copy_(tensor)


def _as_tensor(key: str, value: Any) -> dict[str, Tensor]:
    """A value and its key; a number keeps every bit."""
    if isinstance(value, Tensor):
        return {key: value.detach()}
    return {f"{key}:{type(value).__name__}": torch.tensor(value, dtype=_NUMBERS[type(value)])}


def _unshared(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """With copies of tensors that share memory, as constants of bitsandbytes do: safetensors refuses to write those."""
    seen: set[int] = set()
    result: dict[str, Tensor] = {}
    for key, value in tensors.items():
        pointer = value.untyped_storage().data_ptr()
        result[key] = value.clone() if pointer in seen else value
        seen.add(pointer)
    return result
