"""Where a checkpoint lies, and what exactly is in it."""

from __future__ import annotations

import hashlib
import json
import os
import urllib.request
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from rewards.errors import InputError, ModelError

if TYPE_CHECKING:
    import torch

_SMALL_FILES = (
    "added_tokens.json",
    "config.json",
    "med_config.json",
    "merges.txt",
    "preprocessor_config.json",
    "processor_config.json",
    "special_tokens_map.json",
    "spiece.model",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
)
"""Beside the weights, everything that decides what the model sees."""

_SETTINGS = ["*.json", "*.txt", "*.jinja", "spiece.model", "tokenizer.model"]


def local_folder(model: str, revision: str | None = None) -> Path:
    """Folder of a checkpoint: the folder itself, or the snapshot of a hub id, downloaded if it is not there yet.

    Raises ModelError when neither is reachable or there are no weights, InputError for a revision of a local folder.
    """
    folder = _own_folder(model, revision)
    if folder is not None:
        return folder
    snapshot = _snapshot(model, revision, [*_SETTINGS, "model*.safetensors"])
    if not any(snapshot.glob("model*.safetensors")):
        snapshot = _snapshot(model, revision, [*_SETTINGS, "pytorch_model*.bin"])
    return snapshot


def settings_folder(model: str, revision: str | None = None) -> Path:
    """As `local_folder`, for configuration and tokenizer only: of a hub id, no weights are downloaded."""
    return _own_folder(model, revision) or _snapshot(model, revision, _SETTINGS)


def local_file(model: str, name: str, revision: str | None = None) -> Path:
    """One file of a folder or hub id; `model` may also be the file itself. Errors as `local_folder`."""
    path = Path(model).expanduser()
    if path.is_file():
        return path
    folder = _own_folder(model, revision) or _snapshot(model, revision, [name])
    if not (folder / name).is_file():
        raise ModelError(f"{model}: there is no {name}; name the file itself, or the folder that holds it.")
    return folder / name


def _own_folder(model: str, revision: str | None) -> Path | None:
    """The local folder that `model` names, or None for what can only be a hub id."""
    folder = Path(model).expanduser()
    if folder.is_dir():
        if revision is not None:
            raise InputError(f"{model} is a local folder; it has no revision {revision!r}. Leave revision out.")
        return folder
    if folder.is_absolute() or model.startswith((".", "~")) or model.count("/") > 1:
        raise ModelError(f"{model}: there is no such folder.")
    return None


def _snapshot(model: str, revision: str | None, patterns: list[str]) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, RevisionResolutionError

    try:
        return Path(snapshot_download(model, revision=revision, allow_patterns=patterns))
    except (OSError, ValueError, HfHubHTTPError, RevisionResolutionError) as error:
        [reason, *_] = str(error).strip().splitlines() or [type(error).__name__]
        at = f" at revision {revision}" if revision else ""
        raise ModelError(f"{model}{at}: neither a local folder nor reachable on the hub ({reason}).") from error


def published_file(url: str, sha256: str) -> Path:
    """A small file that is published at a fixed address only, downloaded once into the hub's cache folder.

    sha256: of the file; another content is refused. Raises ModelError when it cannot be had (HF_HUB_OFFLINE counts).
    """
    from huggingface_hub.constants import HF_HOME, HF_HUB_OFFLINE

    path = Path(HF_HOME) / "rewards" / sha256
    if path.is_file():
        return path
    if HF_HUB_OFFLINE:
        raise ModelError(f"{url} is not in {path.parent} and HF_HUB_OFFLINE is set; fetch it and give its path.")
    try:
        with urllib.request.urlopen(url, timeout=60) as response:
            data = response.read()
    except OSError as error:
        raise ModelError(f"{url}: cannot be downloaded ({error}); fetch it yourself and give its path.") from error
    found = hashlib.sha256(data).hexdigest()
    if found != sha256:
        raise ModelError(f"{url}: SHA-256 is {found}, expected {sha256}; the published file was changed.")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{sha256}.{os.getpid()}.tmp")
    temporary.write_bytes(data)
    temporary.replace(path)
    return path


def read_state(path: Path) -> dict[str, torch.Tensor]:
    """Weights of a .safetensors file, or of a torch checkpoint read with weights_only=True: no code in it can run.

    A checkpoint that keeps its weights under "state_dict" is unwrapped. Raises ModelError for anything else.
    """
    import pickle

    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, ValueError, EOFError, RuntimeError, pickle.UnpicklingError, SafetensorError) as error:
        [reason, *_] = str(error).strip().splitlines() or [type(error).__name__]
        raise ModelError(f"{path}: weights cannot be read ({reason}).") from error
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise ModelError(f"{path}: not a table of weights; expected names and tensors.")
    return {str(key): value for key, value in state.items()}


def fill(model: torch.nn.Module, state: dict[str, torch.Tensor], source: str) -> None:
    """Copy weights into a model, all of them. Raises ModelError for one that is missing or has another shape.

    Weights that the model has no place for are left: once every place is filled they cannot change a score.
    """
    expected = model.state_dict()
    missing = sorted(expected.keys() - state.keys())
    if missing:
        raise ModelError(f"{source}: {len(missing)} weights are missing, first {missing[0]}.")
    for key, value in expected.items():
        if state[key].shape != value.shape:
            raise ModelError(
                f"{source}: {key} has shape {tuple(state[key].shape)}, the model {tuple(value.shape)}; "
                "the weights belong to another architecture."
            )
    model.load_state_dict({key: state[key] for key in expected})


def reason(error: Exception) -> str:
    """First line of what transformers says about a checkpoint that does not open, without its advice to trust."""
    if "trust_remote_code" in str(error):
        return "it brings code of its own, which is never run; use a checkpoint of a class that transformers has"
    [line, *_] = str(error).strip().splitlines() or [type(error).__name__]
    return line


def weight_files(folder: Path) -> list[Path]:
    """Files that hold the weights: safetensors before pickle, one file before shards. Raises ModelError if none."""
    for name in (
        "model.safetensors",
        "model.safetensors.index.json",
        "pytorch_model.bin",
        "pytorch_model.bin.index.json",
    ):
        path = folder / name
        if path.is_file():
            return _shards(path) if path.suffix == ".json" else [path]
    raise ModelError(f"{folder}: no weights; expected model.safetensors or pytorch_model.bin, whole or in shards.")


def _shards(index: Path) -> list[Path]:
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise ModelError(f"{index}: not an index of weight shards ({error!r}).") from error
    strays = [name for name in names if Path(name).name != name]
    if strays:
        raise ModelError(f"{index}: names {strays[0]!r}; expected files beside it.")
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing:
        raise ModelError(
            f"{index.parent}: {len(missing)} of {len(names)} weight shards are missing, first {missing[0]}."
        )
    return [index, *(index.parent / name for name in names)]


def settings_files(folder: Path) -> list[Path]:
    """Configuration and tokenizer files of a checkpoint."""
    return [folder / name for name in _SMALL_FILES if (folder / name).is_file()]


def content_hash(folder: Path) -> str:
    """SHA-256 over names and bytes of the weights, configuration and tokenizer of a checkpoint (about 1 s per GB)."""
    return files_hash([*settings_files(folder), *weight_files(folder)])


def files_hash(files: Iterable[Path]) -> str:
    """SHA-256 over names and bytes of files, in that order. Raises ModelError for one that cannot be read."""
    total = hashlib.sha256()
    for path in files:
        try:
            with path.open("rb") as file:
                total.update(f"{path.name}:{hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
        except OSError as error:
            raise ModelError(f"{path}: cannot be read ({error.strerror}).") from error
    return total.hexdigest()
