"""The moving average of the trained weights, which samples, probes and exports take in place of the last weights."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from t2i.training.checkpoint import copy_weights
from t2i.training.settings import ema_decay_at


class MovingAverage:
    """Of parameters by name; begins as a copy of them, on their device."""

    def __init__(self, parameters: Mapping[str, Tensor], decay: float) -> None:
        """decay: the one that is reached after the first steps, 0..1; see `ema_decay_at`."""
        self.parameters, self.decay = parameters, decay
        self.values = {name: value.detach().clone() for name, value in parameters.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after a step, counted from 0."""
        decay = ema_decay_at(self.decay, step)
        for average, value in zip(self.values.values(), self.parameters.values(), strict=True):
            average.lerp_(value, 1 - decay)

    def put_in_place(self) -> None:
        """Let the parameters have the average's values."""
        copy_weights(self.values, self.parameters)

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """Let the parameters have the average's values for the length of the block."""
        trained = {name: value.detach().clone() for name, value in self.parameters.items()}
        self.put_in_place()
        try:
            yield
        finally:
            copy_weights(trained, self.parameters)
