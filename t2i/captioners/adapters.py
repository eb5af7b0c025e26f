"""The LoRA of a captioner: a folder in peft's layout, with a note of what it was tuned on and how it was asked."""

from __future__ import annotations

import contextlib
import json
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from t2i.errors import ConfigError, ModelError
from t2i.files import write_tensors, write_text

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
TUNED_FILE = "tuned.json"
"""Ours, beside peft's two: the model's name and hash, and the request."""


@contextlib.contextmanager
def old_names_allowed() -> Iterator[None]:
    """Say nothing of names that peft 0.21 and trl 1.16 still use and transformers 5.23 calls old."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`(is_)?gradient_checkpointing", category=FutureWarning)
        yield


def save_adapter(model: Any, folder: Path, tuned: Mapping[str, Any]) -> None:
    """Write the LoRA of a peft model; equal weights give equal bytes. tuned: what `read_tuned` gives back."""
    from peft import get_peft_model_state_dict

    folder.mkdir(parents=True, exist_ok=True)
    state = {name: value.detach().float().cpu() for name, value in get_peft_model_state_dict(model).items()}
    write_tensors(folder / WEIGHTS_FILE, state, {"format": "pt"})
    config = model.peft_config["default"].to_dict() | {"inference_mode": True}
    config["base_model_name_or_path"] = tuned["model"]
    # peft keeps names in sets, whose order differs between processes.
    values = {name: sorted(value) if isinstance(value, set) else value for name, value in config.items()}
    write_text(folder / CONFIG_FILE, json.dumps(values, indent=2, sort_keys=True, default=str) + "\n")
    write_text(folder / TUNED_FILE, json.dumps(tuned, indent=2, sort_keys=True, ensure_ascii=False) + "\n")


def read_tuned(folder: Path) -> dict[str, Any] | None:
    """What an adapter was tuned on and how it was asked; None for one that another tool wrote.

    Raises ModelError for a folder that holds no LoRA, or a note that cannot be read.
    """
    missing = [name for name in (CONFIG_FILE, WEIGHTS_FILE) if not (folder / name).is_file()]
    if missing:
        raise ModelError(f"{folder}: no captioner's LoRA, {missing[0]} is missing; expected a folder in peft's layout.")
    if not (folder / TUNED_FILE).is_file():
        return None
    try:
        tuned = json.loads((folder / TUNED_FILE).read_text(encoding="utf-8"))
        return {"model": tuned["model"], "model_sha256": tuned["model_sha256"], "request": dict(tuned["request"])}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{folder / TUNED_FILE}: not the note of a captioner's LoRA ({error!r}).") from error


def adapter_hash(folder: Path) -> str:
    """SHA-256 of what decides the answers of a model that wears it."""
    from rewards.checkpoints import files_hash

    return files_hash([folder / CONFIG_FILE, folder / WEIGHTS_FILE])


def check_request(folder: Path, request: Mapping[str, Any]) -> None:
    """Raise ConfigError unless a captioner asks as the adapter was tuned; one of another tool may be asked anything."""
    tuned = read_tuned(folder)
    if tuned is None:
        return
    other = sorted(name for name, value in request.items() if tuned["request"].get(name) != value)
    if other:
        name = other[0]
        raise ConfigError(
            f"captioner: its adapter was tuned with {name} {tuned['request'].get(name)!r}, and is asked with "
            f"{request[name]!r}; give both stages the same kind, wording and max_side_px."
        )


def wear(model: Any, folder: Path, base: Path) -> Any:
    """The model with the adapter of a folder over its weights, without gradients. base: folder of the model.

    Raises ModelError for an adapter of another model.
    """
    from peft import PeftModel
    from safetensors import SafetensorError

    from rewards.faithfulness.loading import checkpoint_hash

    tuned = read_tuned(folder)
    if tuned is not None and tuned["model_sha256"] != checkpoint_hash(base):
        raise ModelError(f"{folder}: was tuned on {tuned['model']}, whose files are not those of {base}.")
    try:
        with old_names_allowed():
            # peft leaves what it does not find at random values, and only warns.
            warnings.filterwarnings("error", message="Found missing adapter keys")
            worn = PeftModel.from_pretrained(model, str(folder))
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError, UserWarning) as error:
        [reason, *_] = str(error).strip().splitlines() or [type(error).__name__]
        raise ModelError(f"{folder}: does not fit {base} ({reason[:200]}).") from error
    return worn.get_base_model().eval().requires_grad_(False)
