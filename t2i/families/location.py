"""Where a checkpoint is: a local folder or file, or a hub model in the hub's cache."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from t2i.errors import ModelError
from t2i.resources import resolve_path


def read_model_index(folder: Path) -> dict[str, Any]:
    """model_index.json of a diffusers folder. Raises ModelError if it is missing or not JSON."""
    if not (folder / "model_index.json").is_file():
        raise ModelError(f"{folder}: no model_index.json; expected a folder in diffusers layout.")
    return read_json(folder / "model_index.json")


def read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: not JSON ({error}).") from error
    if not isinstance(content, dict):
        raise ModelError(f"{path}: expected a JSON object, found {type(content).__name__}.")
    return content


def locate_checkpoint(model: str, revision: str | None = None, *, weights: bool = True) -> Path:
    """Where a model is: its folder, or its single file.

    model: a folder, a `.safetensors` file, a `pkg:` resource or a hub id, which is downloaded (or found in the hub's
    cache) at its revision; without `weights` its small files alone. Raises ModelError if there is no such model.
    """
    local = resolve_path(model)
    if local.exists():
        if revision is not None:
            raise ModelError(f"model {model!r} is a local path; a revision ({revision!r}) is for hub ids. Remove it.")
        return local
    if model.startswith(("pkg:", "/", ".", "~")) or model.count("/") != 1:
        raise ModelError(
            f"model {model!r}: no such folder ({local}); expected a diffusers folder, a .safetensors file or a hub id "
            "'owner/name'."
        )
    return download(model, revision, weights=weights)


def download(model: str, revision: str | None, *, weights: bool) -> Path:
    """Folder of a hub model in the hub's cache: configs and tokenizers and, with `weights`, what its pipeline loads."""
    from huggingface_hub import snapshot_download

    small = ["*.json", "*.txt", "*.model"]
    try:
        folder = Path(snapshot_download(model, revision=revision, allow_patterns=small))
        if weights:
            # Not the other variants, nor the single files that many repositories keep beside the folders.
            patterns, variants = [*small, *_weight_patterns(folder)], ["*.*.safetensors"]
            snapshot_download(model, revision=revision, allow_patterns=patterns, ignore_patterns=variants)
    except ModelError:
        raise
    except Exception as error:  # the hub client raises a dozen unrelated classes
        reason = str(error).splitlines()[0]
        raise ModelError(f"model {model!r}: neither a local folder nor to be had from the hub ({reason}).") from error
    return folder


def _weight_patterns(folder: Path) -> list[str]:
    """Files with the weights of a pipeline's components, or of a model that is no pipeline."""
    if not (folder / "model_index.json").is_file():
        return ["*.safetensors"]
    unused = ("safety_checker", "feature_extractor", "image_encoder")
    return [f"{name}/*.safetensors" for name in read_model_index(folder) if name[0] != "_" and name not in unused]


def public_model_name(model: str) -> str:
    """What a file that is passed on says of its model: a hub id or `pkg:` name; of a local path, its name alone."""
    path = resolve_path(model)
    return path.name if path.exists() and not model.startswith("pkg:") else model
