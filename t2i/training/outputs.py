"""What a finished train stage leaves behind, and where. No torch here."""

from __future__ import annotations

import json
from pathlib import Path

from t2i.errors import RunError
from t2i.records import write_text

LORA_FILE = "pytorch_lora_weights.safetensors"
"""The name under which diffusers looks for a LoRA in a folder."""
ADAPTER_FOLDER = "adapter"
MODEL_FOLDER = "model"


def trained_model(folder: Path) -> Path | None:
    """The whole model that a train stage saved; None if it trained an adapter."""
    path = folder / MODEL_FOLDER
    return path if path.is_dir() else None


def trained_adapter(folder: Path) -> Path:
    """The LoRA file of a train stage. Raises RunError if it has none."""
    path = folder / ADAPTER_FOLDER / LORA_FILE
    if not path.is_file():
        raise RunError(
            f"{folder}: holds neither {ADAPTER_FOLDER}/{LORA_FILE} nor {MODEL_FOLDER}/; run the recipe again."
        )
    return path


def forget_origin(folder: Path) -> None:
    """Take out of a model folder's configs where it was loaded from: the same model has the same bytes everywhere."""
    for path in sorted(folder.rglob("*.json")):
        config = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(config, dict) and "_name_or_path" in config:
            del config["_name_or_path"]
            write_text(path, json.dumps(config, indent=2, sort_keys=True) + "\n")
