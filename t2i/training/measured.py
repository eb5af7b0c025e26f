"""What a run took, to stand beside what was estimated."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from pydantic import JsonValue


@dataclass(frozen=True)
class Measured:
    """None where it was not measured."""

    seconds_per_step: float | None
    memory_bytes: int | None
    """Most that tensors took on the GPU at once; without one it is not measured."""
    cache_bytes: int | None = None
    checkpoint_bytes: int | None = None

    def facts(self) -> dict[str, JsonValue]:
        """As numbers, for done.json."""
        return asdict(self)


def forget_peak_memory() -> None:
    """Count the peak of the GPU's memory from now on."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def peak_memory() -> int | None:
    """Bytes that tensors took on the GPU at most since `forget_peak_memory`; None without a GPU."""
    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None


def folder_bytes(folder: Path) -> int | None:
    """Bytes of all files below a folder; None if there is no folder."""
    if not folder.is_dir():
        return None
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def measured_run(folder: Path, seconds_per_step: float | None, memory_bytes: int | None) -> Measured:
    """Of a run that has just ended in a stage's folder. Caches that it shares with others are not its own."""
    seconds = None if seconds_per_step is None else float(f"{seconds_per_step:.4g}")
    return Measured(seconds, memory_bytes, folder_bytes(folder / "latents"), folder_bytes(folder / "checkpoints"))
