"""Rows of tensors on disk, found by key: what was encoded once is not encoded again, whichever run asks.

A folder holds the rows of one encoder in safetensors files of a few hundred, each with the keys of its rows. A file is
named by its keys and renamed into place when whole, so several processes and runs may write into one folder: at worst
two of them encode the same rows and the last file stays.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from t2i.errors import DataError
from t2i.files import write_tensors, write_text

if TYPE_CHECKING:
    from t2i.families.base import ModelFamily

CACHE_VERSION = 3
"""Part of every identity. Bump when the same settings would be encoded to something else."""
KEYS = "keys"
OPEN_FILES = 10_000
"""Files that a process keeps open at most. They are mapped: address space, no memory of its own and no descriptor."""


def row_key(*parts: object) -> bytes:
    """16 bytes that stand for the parts, which must be what JSON can hold."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).digest()[:16]


def key_array(keys: bytes | bytearray) -> np.ndarray:
    """Keys, one after the other, as int64 [n, 2]."""
    return np.frombuffer(keys, dtype="<i8").reshape(-1, 2)


class RowCache:
    """The rows of one encoder in `root/<kind>-<hash of what identifies it>`."""

    def __init__(self, root: Path, kind: str, identity: Mapping[str, object]) -> None:
        """identity: everything beside the row's own key that decides what a row holds."""
        about = json.dumps({"version": CACHE_VERSION, **identity}, sort_keys=True, indent=1)
        self.folder = root / f"{kind}-{hashlib.sha256(about.encode()).hexdigest()[:16]}"
        self.folder.mkdir(parents=True, exist_ok=True)
        if not (self.folder / "about.json").exists():
            write_text(self.folder / "about.json", about + "\n")
        self._files: dict[int, Any] = {}
        self.paths: list[Path] = []
        """The files that locations refer to."""

    def __getstate__(self) -> dict[str, Any]:
        """Open files stay behind when a data worker gets the cache."""
        return {**self.__dict__, "_files": {}}

    def locate(self, keys: np.ndarray) -> np.ndarray:
        """Location of each key in the files that there are now, or -1; int64 [n]. keys: int64 [n, 2].

        Earlier locations do not hold any more. Reads the files' keys one file at a time: a cache may be much larger
        than what is looked for in it.
        """
        self.paths = sorted(path for path in self.folder.glob("*.safetensors") if not path.name.startswith("."))
        self._files = {}
        order = np.argsort(keys[:, 0], kind="stable")
        first = keys[order, 0]
        found = np.full(len(keys), -1, np.int64)
        for number, path in enumerate(self.paths):
            table = _opened(path).get_tensor(KEYS).numpy()
            place = np.searchsorted(first, table[:, 0], side="left")
            # A key may be wanted several times, and two may share their first half by chance.
            end = np.searchsorted(first, table[:, 0], side="right")
            while (open_ := np.flatnonzero(place < end)).size:
                wanted = order[place[open_]]
                hit = (keys[wanted, 1] == table[open_, 1]) & (found[wanted] < 0)
                found[wanted[hit]] = (number << 32) + open_[hit]
                place[open_] += 1
        return found

    def read(self, location: int) -> dict[str, Tensor]:
        """The tensors of one row."""
        number, row = location >> 32, location & 0xFFFFFFFF
        if number not in self._files:
            if len(self._files) >= OPEN_FILES:
                del self._files[next(iter(self._files))]
            self._files[number] = _opened(self.paths[number])
        file = self._files[number]
        return {name: file.get_slice(name)[row] for name in file.keys() if name != KEYS}  # noqa: SIM118

    def add(self, keys: np.ndarray, tensors: Mapping[str, Tensor]) -> None:
        """Write rows; `locate` finds them. keys: int64 [n, 2]."""
        name = hashlib.sha256(keys.tobytes()).hexdigest()[:16]
        table = torch.from_numpy(np.array(keys))
        write_tensors(self.folder / f"{name}.safetensors", {**tensors, KEYS: table})


def _opened(path: Path) -> Any:
    from safetensors import SafetensorError, safe_open

    try:
        return safe_open(path, "pt").__enter__()
    except (OSError, SafetensorError) as error:
        raise DataError(f"{path}: cannot be read ({error}); delete it, and it is made again.") from error


def image_identity(family: ModelFamily, posterior: str) -> dict[str, object]:
    """What decides the latents of given pixels: weights and config of the autoencoder, and what is kept of it."""
    vae = family.pipeline.vae  # pyright: ignore[reportAttributeAccessIssue]
    return {"family": family.facts.name, "posterior": posterior, "dtype": "float32", "autoencoder": module_digest(vae)}


@torch.no_grad()
def text_identity(family: ModelFamily) -> dict[str, object]:
    """What decides the conditioning of a given prompt: encoders, tokenizers, and the shape of what comes out.

    Also whether the empty prompt is zeros, which of two SDXL checkpoints with the same encoders one may say.
    """
    components: Mapping[str, Any] = family.pipeline.components
    encoders = {name: components[name] for name in family.facts.text_encoders}
    tokenizers = {name: value for name, value in components.items() if name.startswith("tokenizer")}
    empty = family.encode_prompts([""])
    given = [value for value in (empty.prompt_embeds, empty.pooled, empty.mask) if value is not None]
    return {
        "family": family.facts.name,
        "encoders": {name: module_digest(module) if module is not None else None for name, module in encoders.items()},
        "tokenizers": {name: _tokenizer_identity(value) for name, value in tokenizers.items() if value is not None},
        "shapes": [f"{value.dtype} {list(value.shape)}" for value in given],
        "empty prompt is zeros": not any(bool(value.any()) for value in given),
    }


def _tokenizer_identity(tokenizer: Any) -> dict[str, object]:
    """All that makes numbers of a text, the filling up to the limit included: CLIP reads it like words."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    rules = json.loads(backend.to_str()) if backend is not None else {"vocab": tokenizer.get_vocab()}
    for changed_by_calls in ("padding", "truncation"):
        rules.pop(changed_by_calls, None)
    return {
        "class": type(tokenizer).__name__,
        "limit": tokenizer.model_max_length,
        "rules": hashlib.sha256(json.dumps(rules, sort_keys=True).encode()).hexdigest(),
        "special": [tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.padding_side],
    }


def module_digest(module: nn.Module) -> str:
    """SHA-256 (hex) of a module's config and of its weights as they are in memory, dtype included."""
    digest = hashlib.sha256(_config_json(getattr(module, "config", None)).encode())
    named = sorted(module.state_dict().items())
    # A T5 has 10 GB, which take one thread 10 s; hashing lets other threads run.
    with ThreadPoolExecutor() as pool:
        for (name, tensor), content in zip(named, pool.map(_tensor_digest, (value for _, value in named)), strict=True):
            digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode() + content)
    return digest.hexdigest()


def _tensor_digest(tensor: Tensor) -> bytes:
    return hashlib.sha256(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data).digest()


def _config_json(config: Any) -> str:
    """The config without where it was loaded from and which version of a library wrote it."""
    if config is None:
        return ""
    values = dict(config) if isinstance(config, Mapping) else config.to_dict()
    kept = {name: value for name, value in values.items() if not name.startswith("_") and "version" not in name}
    return json.dumps(kept, sort_keys=True, default=str)
