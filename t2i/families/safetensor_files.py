"""Headers of safetensors files: names, dtypes and shapes of tensors, read without the tensors.

The layout: 8 bytes with the header's length, a JSON header with the place of each tensor, the tensors' bytes.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from t2i.errors import ModelError

PICKLE_SUFFIXES = frozenset({".ckpt", ".bin", ".pt", ".pth", ".pkl"})
_PICKLE_STARTS = (b"PK\x03\x04", b"\x80")
"""torch.save writes a zip archive, older versions and other tools a bare pickle."""
_MAX_HEADER = 100_000_000
"""Bytes; the limit of the safetensors library."""


@dataclass(frozen=True)
class TensorHeader:
    """What a file says of a tensor."""

    dtype: str
    """As the format writes it: F32, BF16, ..."""
    shape: tuple[int, ...]


def read_header(path: Path) -> dict[str, TensorHeader]:
    """All tensors of a file by name. Raises ModelError for a pickled, truncated or other file."""
    start = b""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(8)
            if start.startswith(_PICKLE_STARTS[0]) or (path.suffix in PICKLE_SUFFIXES and start):
                raise ModelError(pickle_message(path))
            length = int.from_bytes(start, "little")
            if len(start) < 8 or length > min(size - 8, _MAX_HEADER):
                raise _broken(path, start, f"it has {size} bytes, its header alone would have {length}")
            header = json.loads(file.read(length), object_pairs_hook=lambda pairs: _unique(path, pairs))
    except OSError as error:
        raise ModelError(f"{path}: cannot be read ({error.strerror}).") from error
    except ValueError as error:
        raise _broken(path, start, "its header is not JSON") from error
    return _tensors(path, header, size - 8 - length)


def _unique(path: Path, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object. Of a name that stands in it twice, readers would each take another one."""
    values = dict(pairs)
    if len(values) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ModelError(f"{path}: names {twice} twice in its header; the file is broken, fetch it again.")
    return values


def _tensors(path: Path, header: Any, payload: int) -> dict[str, TensorHeader]:
    """The tensors of a parsed header, once their bytes are known to be there. payload: bytes after the header."""
    try:
        entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
        end = max((entry["data_offsets"][1] for entry in entries.values()), default=0)
        tensors = {name: TensorHeader(entry["dtype"], tuple(entry["shape"])) for name, entry in entries.items()}
    except (AttributeError, KeyError, TypeError, IndexError) as error:
        raise ModelError(f"{path}: not a safetensors file; its header does not describe tensors.") from error
    if end != payload:
        raise ModelError(f"{path}: truncated: {payload} of {end} bytes of weights are there; fetch the file again.")
    return tensors


def _broken(path: Path, start: bytes, reason: str) -> ModelError:
    if start.startswith(_PICKLE_STARTS):
        return ModelError(pickle_message(path))
    return ModelError(f"{path}: truncated or not a safetensors file: {reason}; fetch the file again.")


def pickle_message(path: Path) -> str:
    """Why a pickled file is refused, and the command that converts it."""
    stem = f"{path.stem}-converted" if path.suffix == ".safetensors" else path.stem
    target = f"{stem}.safetensors"
    return (
        f"{path}: a pickled checkpoint, which may run code when it is opened; expected safetensors. "
        f"Convert it: python -m t2i.families.unpickle {path.name} {target}"
    )


def check_weights(folder: Path) -> None:
    """Raise ModelError unless a component's folder holds whole safetensors weights, in one file or in shards."""
    for path in weight_files(folder):
        read_header(path)


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that diffusers and transformers load from a component's folder.

    Raises ModelError if there is none, or if a shard is missing.
    """
    for stem in ("diffusion_pytorch_model", "model"):
        index, whole = folder / f"{stem}.safetensors.index.json", folder / f"{stem}.safetensors"
        if index.is_file():
            return _shards(index)
        if whole.is_file():
            return [whole]
    pickles = sorted(path for path in folder.glob("*") if path.suffix in PICKLE_SUFFIXES)
    if pickles:
        raise ModelError(pickle_message(pickles[0]))
    others = sorted(path.name for path in folder.glob("*.safetensors"))
    found = f"; found {', '.join(others)}, another variant: rename it or save the model without `variant`"
    raise ModelError(f"{folder}: no safetensors weights{found if others else '; the checkpoint is incomplete'}.")


def _shards(index: Path) -> list[Path]:
    try:
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise ModelError(f"{index}: not an index of safetensors shards.") from error
    strays = [name for name in names if Path(name).name != name]
    if strays:
        raise ModelError(f"{index}: names {strays[0]!r}; expected files beside it.")
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing:
        raise ModelError(f"{index.parent}: lacks {', '.join(missing)}; the checkpoint is incomplete.")
    return [index.parent / name for name in names]
