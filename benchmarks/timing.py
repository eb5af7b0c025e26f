"""How long each step takes on a device, without making the host wait for it, and how much memory."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

PEAK = Path("/proc/self/status")


@dataclass
class Marks:
    """Moments of a device's work: CUDA events, or the clock where the host computes."""

    device: torch.device
    clock: Callable[[], float] = time.perf_counter
    moments: list[Any] = field(default_factory=list)

    def mark(self) -> None:
        if self.device.type != "cuda":
            self.moments.append(self.clock())
            return
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        self.moments.append(event)

    def seconds(self) -> list[float]:
        """Between each moment and the next."""
        pairs = list(zip(self.moments, self.moments[1:], strict=False))
        if self.device.type != "cuda":
            return [later - earlier for earlier, later in pairs]
        torch.cuda.synchronize()
        return [earlier.elapsed_time(later) / 1000 for earlier, later in pairs]


class TimedBatches:
    """A source of batches that marks when each one is asked for: the beginning of a step without accumulation."""

    def __init__(self, batches: Any, device: torch.device, clock: Callable[[], float] = time.perf_counter) -> None:
        self.batches, self.marks = batches, Marks(device, clock)

    def micro_batches(self, first_step: int, last_step: int, rank: int, world_size: int) -> Iterator[Any]:
        batches = self.batches.micro_batches(first_step, last_step, rank, world_size)
        while True:
            self.marks.mark()
            batch = next(batches, None)
            if batch is None:
                return
            yield batch

    def describe(self, step: int) -> str:
        return self.batches.describe(step)


@dataclass(frozen=True)
class Spread:
    """Median, least and largest of some measurements."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: list[float]) -> Spread:
        return cls(statistics.median(values), min(values), max(values))

    def __str__(self) -> str:
        return f"{self.median:.4g} ({self.low:.4g}-{self.high:.4g})"


def synchronise(device: torch.device) -> None:
    """Wait for all that the device was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def matrix_rate(device: torch.device) -> float:
    """FLOP/s of one large bf16 matrix product of random numbers, the median of several."""
    side = 8192 if device.type == "cuda" else 512
    left, right = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    return 2 * side**3 / median_seconds(lambda: left @ right, device)


def median_seconds(call: Callable[[], Tensor], device: torch.device, repeats: int = 10) -> float:
    """Seconds of a call on a device, after three to warm up."""
    for _ in range(3):
        call()
    marks = Marks(device)
    marks.mark()
    for _ in range(repeats):
        call()
        marks.mark()
    return statistics.median(marks.seconds())


def reset_peak(device: torch.device) -> None:
    """Forget the largest memory so far, of the device or, where the host computes, of this process."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif PEAK.exists():
        # 5 asks Linux to begin the high-water mark anew.
        PEAK.with_name("clear_refs").write_text("5")


def peak_bytes(device: torch.device) -> int:
    """Largest memory since then; 0 where the system does not tell."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if not PEAK.exists():
        return 0
    line = next(line for line in PEAK.read_text().splitlines() if line.startswith("VmHWM"))
    return 1024 * int(line.split()[1])
