"""What the loop trains, and what it is fed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import nn


class Batch(Protocol):
    """Any batch that can be moved to a device."""

    def to(self, device: torch.device) -> Any:
        """The same batch on a device."""
        ...


class BatchSource(Protocol):
    """Where batches come from."""

    def micro_batches(self, first_step: int, last_step: int, rank: int, world_size: int) -> Iterator[Batch]:
        """All micro-batches of this process for steps first_step .. last_step - 1, in order."""
        ...

    def describe(self, step: int) -> str:
        """The examples of a step, for error messages."""
        ...


@dataclass(frozen=True)
class Trainable:
    """What the loop trains. `module(batch)` gives a LossOutput; parameters that ask for a gradient are trained."""

    module: nn.Module
    learning_rates: dict[str, float] = field(default_factory=dict)
    """Prefix of parameter names -> learning rate, where it is not the optimizer's."""
    check: Callable[[Any], None] | None = None
    """Looks at the first batch before step 0 and raises RunError if something is wrong."""
    learning_rate_ratios: dict[str, float] = field(default_factory=dict)
    """Part of a parameter's name -> factor on its learning rate."""

    def parameters(self) -> dict[str, nn.Parameter]:
        """Trained parameters by name."""
        return {name: value for name, value in self.module.named_parameters() if value.requires_grad}
