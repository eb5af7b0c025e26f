"""The only place where random generators are made.

Every draw is keyed by (seed, purpose, indices), never taken from a stream that something else also reads. A resumed
run, another micro-batch size or another number of workers therefore draws exactly the same numbers.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from t2i.errors import RunError

if TYPE_CHECKING:
    import torch


def derive_key(seed: int, purpose: str, *indices: int) -> int:
    """128-bit key of one draw. Distinct arguments give distinct keys (up to hash collision, 2^-64 for 2^32 keys)."""
    text = "/".join([str(seed), purpose, *(str(int(index)) for index in indices)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=16).digest(), "little")


def generator(seed: int, purpose: str, *indices: int) -> np.random.Generator:
    """Counter-based generator (Philox 4x64) for one draw: `generator(seed, "noise", step, position)`.

    NumPy's, not torch's: torch's CPU generator keeps 32 bits of a seed, so that a long run would reuse noise.
    """
    return np.random.Generator(np.random.Philox(key=derive_key(seed, purpose, *indices)))


def sampling_generator(seed: int) -> torch.Generator:
    """CPU torch generator for one image: what a diffusers user passes as `generator=` for the same pixels."""
    import torch

    return torch.Generator("cpu").manual_seed(seed)


def image_seed(seed: int, *indices: int) -> int:
    """Seed of one image in [0, 2^31), to be recorded beside it and given to `sampling_generator`."""
    return derive_key(seed, "image", *indices) % 2**31


@contextlib.contextmanager
def seeded_global(seed: int, purpose: str, *indices: int) -> Iterator[None]:
    """Seed torch's global CPU generator for libraries that offer no other (weight initialisation), and put it back."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_key(seed, purpose, *indices) % 2**63)
        yield


@contextlib.contextmanager
def deterministic_kernels(*, strict: bool = False) -> Iterator[None]:
    """On a CUDA device, let torch use only kernels that give the same bits each time, for the length of the block.

    strict: raise RunError at an operation that has none, and pick the deterministic kernels of attention's gradient,
    which torch leaves out if it may only warn. On a CPU the kernels are deterministic as they are. cuBLAS reads its
    variable when the device is first used, so the first block must come before that.
    """
    import torch

    if not torch.cuda.is_available():
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    # Filling memory before it is written would only cost time.
    memory: Any = torch.utils.deterministic
    filling, memory.fill_uninitialized_memory = memory.fill_uninitialized_memory, False
    torch.use_deterministic_algorithms(True, warn_only=not strict)
    try:
        yield
    except RuntimeError as error:
        if strict and "does not have a deterministic implementation" in str(error):
            first = str(error).partition(",")[0]
            raise RunError(f"{first} on this device; loop.deterministic: false allows it, to rounding.") from error
        raise
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        memory.fill_uninitialized_memory = filling
