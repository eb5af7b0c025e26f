"""What a run took, to stand beside what was estimated."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from pydantic import JsonValue

from t2i.training.window import MetricsWindow


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


class StepCost:
    """Time and GPU memory that steps take, without what is done beside them: checkpoints, samples, checks."""

    def __init__(self, window: MetricsWindow) -> None:
        """window: told what to leave out of the speed that it logs."""
        self._window, self._peak = window, 0
        self.seconds_beside = 0.0
        forget_peak_memory()

    @contextlib.contextmanager
    def left_out(self) -> Iterator[None]:
        """Leave the block out."""
        self._peak = self.peak_memory() or 0
        began = time.perf_counter()
        yield
        seconds = time.perf_counter() - began
        self.seconds_beside += seconds
        self._window.leave_out(seconds)
        forget_peak_memory()

    def peak_memory(self) -> int | None:
        """Bytes that tensors took on the GPU at most in a step; None without a GPU."""
        since = peak_memory()
        return None if since is None else max(since, self._peak)


def folder_bytes(folder: Path) -> int | None:
    """Bytes of all files below a folder; None if there is no folder."""
    if not folder.is_dir():
        return None
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def measured_run(folder: Path, seconds_per_step: float | None, memory_bytes: int | None) -> Measured:
    """Of a run that has just ended in a stage's folder. Caches that it shares with others are not its own."""
    seconds = None if seconds_per_step is None else float(f"{seconds_per_step:.4g}")
    return Measured(seconds, memory_bytes, folder_bytes(folder / "latents"), folder_bytes(folder / "checkpoints"))
