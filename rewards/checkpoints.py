"""Where a checkpoint lies, and what exactly is in it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from rewards.errors import InputError, ModelError

_SMALL_FILES = (
    "added_tokens.json",
    "config.json",
    "merges.txt",
    "preprocessor_config.json",
    "processor_config.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
)
"""Beside the weights, everything that decides what the model sees."""


def local_folder(model: str, revision: str | None = None) -> Path:
    """Folder of a checkpoint: the folder itself, or the snapshot of a hub id, downloaded if it is not there yet.

    Raises ModelError when neither is reachable or there are no weights, InputError for a revision of a local folder.
    """
    folder = Path(model).expanduser()
    if folder.is_dir():
        if revision is not None:
            raise InputError(f"{model} is a local folder; it has no revision {revision!r}. Leave revision out.")
        return folder
    if folder.is_absolute() or model.startswith((".", "~")) or model.count("/") > 1:
        raise ModelError(f"{model}: there is no such folder.")
    snapshot = _snapshot(model, revision, ["*.json", "*.txt", "model*.safetensors"])
    if not any(snapshot.glob("model*.safetensors")):
        snapshot = _snapshot(model, revision, ["*.json", "*.txt", "pytorch_model*.bin"])
    return snapshot


def _snapshot(model: str, revision: str | None, patterns: list[str]) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, RevisionResolutionError

    try:
        return Path(snapshot_download(model, revision=revision, allow_patterns=patterns))
    except (OSError, ValueError, HfHubHTTPError, RevisionResolutionError) as error:
        [reason, *_] = str(error).strip().splitlines() or [type(error).__name__]
        at = f" at revision {revision}" if revision else ""
        raise ModelError(f"{model}{at}: neither a local folder nor reachable on the hub ({reason}).") from error


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
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing:
        raise ModelError(
            f"{index.parent}: {len(missing)} of {len(names)} weight shards are missing, first {missing[0]}."
        )
    return [index, *(index.parent / name for name in names)]


def content_hash(folder: Path) -> str:
    """SHA-256 over names and bytes of the weights, configuration and tokenizer of a checkpoint (about 1 s per GB)."""
    files = [folder / name for name in _SMALL_FILES if (folder / name).is_file()] + weight_files(folder)
    total = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            total.update(f"{path.name}:{hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return total.hexdigest()
