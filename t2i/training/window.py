"""What is logged: means over the steps since the last line, and how fast they were."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

_TIMES = "steps, seconds, seconds waited"
"""Key of what `state` keeps beside the sums."""


class MetricsWindow:
    """Sums over the examples since the last line; they stay on the device until they are asked for."""

    def __init__(self, device: torch.device, batch_size: int) -> None:
        """batch_size: examples per step, over all processes."""
        self.device, self.batch_size = device, batch_size
        self.clear()

    def clear(self) -> None:
        """Begin anew, now."""
        self.sums: dict[str, Tensor] = {}
        self.steps, self.waited, self.began = 0, 0.0, time.perf_counter()

    def add(self, sums: Mapping[str, Tensor]) -> None:
        """Add sums over examples to those of their names."""
        for name, value in sums.items():
            self.sums[name] = self.sums.get(name, torch.zeros((), device=self.device)) + value.detach()

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time of the block as time in which nothing was computed."""
        began = time.perf_counter()
        yield
        self.waited += time.perf_counter() - began

    def leave_out(self, seconds: float) -> None:
        """Do not count time that has just passed."""
        self.began += seconds

    def means(self, over_processes: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """Means over all examples. over_processes: sum of a tensor over all processes."""
        count = self.batch_size * self.steps
        return {name: float(over_processes(total)) / count for name, total in self.sums.items()}

    def rates(self) -> dict[str, float]:
        """Examples per second, and the share of the time in which this process waited for data."""
        seconds = time.perf_counter() - self.began
        return {"images_per_second": self.batch_size * self.steps / seconds, "data_wait_share": self.waited / seconds}

    def state(self, over_processes: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        """Everything, for a checkpoint between two lines."""
        times = (self.steps, time.perf_counter() - self.began, self.waited)
        sums = {name: over_processes(total) for name, total in self.sums.items()}
        return {**sums, _TIMES: torch.tensor(times, dtype=torch.float64)}

    def restore(self, state: Mapping[str, Tensor], *, with_sums: bool) -> None:
        """Go on from a state. with_sums: in one process alone; the others begin with zeros."""
        steps, seconds, self.waited = state[_TIMES].tolist()
        self.steps, self.began = int(steps), time.perf_counter() - seconds
        share = 1.0 if with_sums else 0.0
        self.sums = {name: share * value.to(self.device) for name, value in state.items() if name != _TIMES}
