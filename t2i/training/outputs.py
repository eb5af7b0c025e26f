"""What a finished train stage leaves behind, and where. No torch here."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from t2i.errors import RunError
from t2i.files import write_text

LORA_FILE = "pytorch_lora_weights.safetensors"
"""The name under which diffusers looks for a LoRA in a folder."""
ADAPTER_FOLDER = "adapter"
MODEL_FOLDER = "model"
BEST_FOLDER, SAMPLES_FOLDER = "best", "samples"
RESULT_FOLDERS = (ADAPTER_FOLDER, MODEL_FOLDER, BEST_FOLDER, SAMPLES_FOLDER)
OUTCOME_FILE = "trained.json"


def trained_model(folder: Path) -> Path | None:
    """The whole model that a train stage saved; None if it trained an adapter."""
    path = folder / MODEL_FOLDER
    return path if path.is_dir() else None


def trained_adapter(folder: Path) -> Path:
    """The LoRA file of a train stage. Raises RunError if it has none."""
    path = folder / ADAPTER_FOLDER / LORA_FILE
    if not path.is_file() and trained_model(folder) is not None:
        raise RunError(f"{folder}: holds a whole model, where an adapter is expected; train one with `trained: lora`.")
    if not path.is_file():
        raise RunError(
            f"{folder}: holds neither {ADAPTER_FOLDER}/{LORA_FILE} nor {MODEL_FOLDER}/; run the recipe again."
        )
    return path


def write_outcome(
    folder: Path, facts: dict[str, Any], saved: Sequence[str] = (ADAPTER_FOLDER, MODEL_FOLDER, "best", "samples")
) -> None:
    """Record that everything is trained and saved: the facts, and the size of every file in the `saved` folders.

    A run that is killed between this and the end of its stage does not train again.
    """
    paths = [path for name in saved for path in sorted((folder / name).rglob("*")) if path.is_file()]
    files = {path.relative_to(folder).as_posix(): path.stat().st_size for path in paths}
    write_text(folder / OUTCOME_FILE, json.dumps({"facts": facts, "files": files}, indent=1, sort_keys=True) + "\n")


def read_outcome(folder: Path) -> dict[str, Any] | None:
    """The facts of `write_outcome`; None if there are none, or a file is not what it was."""
    try:
        outcome = json.loads((folder / OUTCOME_FILE).read_text())
        if any((folder / name).stat().st_size != size for name, size in outcome["files"].items()):
            return None
        return outcome["facts"]
    except (OSError, ValueError, KeyError):
        return None


def forget_origin(folder: Path) -> None:
    """Take out of a model folder's configs where it was loaded from: the same model has the same bytes everywhere."""
    for path in sorted(folder.rglob("*.json")):
        config = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(config, dict) and "_name_or_path" in config:
            del config["_name_or_path"]
            write_text(path, json.dumps(config, indent=2, sort_keys=True) + "\n")


def save_pipeline(pipeline: Any, folder: Path) -> dict[str, Any]:
    """Write a whole pipeline in diffusers layout under a temporary name and rename it."""
    import shutil

    target, temporary = folder / MODEL_FOLDER, folder / f".{MODEL_FOLDER}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    shutil.rmtree(target, ignore_errors=True)
    pipeline.save_pretrained(temporary, safe_serialization=True)
    forget_origin(temporary)
    temporary.rename(target)
    return {"model": MODEL_FOLDER}
