"""One optimizer step, and all that it changes: weights, optimizer, moving average, and the sums that are logged."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from t2i import processes
from t2i.objectives.base import LossOutput
from t2i.randomness import derive_key
from t2i.training.average import MovingAverage
from t2i.training.checkpoint import (
    buffer_tensors,
    copy_weights,
    optimizer_tensors,
    restore_buffers,
    restore_optimizer,
)
from t2i.training.measured import StepCost
from t2i.training.optim import build_optimizer
from t2i.training.parallel import micro_steps
from t2i.training.settings import LoopSettings, OptimizerSettings, learning_rate_factor
from t2i.training.trainable import Batch, Trainable
from t2i.training.window import MetricsWindow

if TYPE_CHECKING:
    from accelerate import Accelerator

WEIGHTS, AVERAGE, OPTIMIZER, WINDOW, BUFFERS = "weights", "ema", "optimizer", "window", "buffers"
"""Files of a checkpoint, by their stems."""


class Stepper:
    """The mutable state of a training."""

    def __init__(
        self,
        trainable: Trainable,
        settings: LoopSettings,
        optimizer_settings: OptimizerSettings,
        accelerator: Accelerator,
        seed: int,
    ) -> None:
        self.trainable, self.settings, self.optimizer_settings = trainable, settings, optimizer_settings
        self.accelerator, self.device, self.seed = accelerator, accelerator.device, seed
        self.micro_steps = micro_steps(settings, accelerator.num_processes)
        self.parameters = trainable.parameters()
        optimizer, self.names = build_optimizer(
            self.parameters, trainable.learning_rates, optimizer_settings, ratios=trainable.learning_rate_ratios
        )
        self.base_rates = [group["lr"] for group in optimizer.param_groups]
        self.module, self.optimizer = accelerator.prepare(trainable.module, optimizer)
        self.average = None if settings.ema_decay is None else MovingAverage(self.parameters, settings.ema_decay)
        # First step whose loss or gradient was not finite; stays on the device until the next log.
        self.bad_step = torch.full((), -1, dtype=torch.long, device=self.device)
        self.window = MetricsWindow(self.device, settings.batch_size)
        self.cost = StepCost(self.window)

    def step(self, step: int, batches: Iterator[Batch]) -> None:
        """Descend the mean loss over the global batch, whatever its portions."""
        factor = learning_rate_factor(self.optimizer_settings, step, self.settings.steps)
        for group, rate in zip(self.optimizer.param_groups, self.base_rates, strict=True):
            group["lr"] = rate * factor
        loss_sum = torch.zeros((), device=self.device)
        for micro in range(self.micro_steps):
            loss_sum = loss_sum + self._accumulate(step, micro, batches)
        norm = torch.nn.utils.clip_grad_norm_(list(self.parameters.values()), self.optimizer_settings.max_grad_norm)
        finite = torch.isfinite(loss_sum) & torch.isfinite(norm)
        self.bad_step = torch.where((self.bad_step < 0) & ~finite, step, self.bad_step)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.average is not None:
            self.average.update(step)
        # The norm is the same in every process: weighted by the examples that a process has of a batch.
        share = self.settings.batch_size / self.accelerator.num_processes
        self.window.add({"loss": loss_sum, "grad_norm": norm * share})
        self.window.steps += 1

    def _accumulate(self, step: int, micro: int, batches: Iterator[Batch]) -> Tensor:
        """Add the gradient of a portion of the batch; returns its loss, summed over examples."""
        with self.window.waiting():
            batch = next(batches).to(self.device)
        if step == 0 and micro == 0 and self.trainable.check is not None:
            with self._autocast(), self.cost.left_out():
                self.trainable.check(batch)
        # Only for libraries that draw from the global generator (dropout); ours are keyed already.
        torch.manual_seed(derive_key(self.seed, "library", step, self.accelerator.process_index, micro) % 2**63)
        with self._synchronise_on(micro == self.micro_steps - 1):
            with self._autocast():
                output: LossOutput = self.module(batch)
            total = output.loss.sum()
            # DDP averages gradients over processes; the sum over all examples is wanted.
            self.accelerator.backward(total * (self.accelerator.num_processes / self.settings.batch_size))
        self.window.add({name: values.sum() for name, values in output.metrics.items()})
        return total.detach()

    def _autocast(self) -> AbstractContextManager[Any]:
        if self.settings.precision == "fp32":
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16)

    def _synchronise_on(self, last: bool) -> AbstractContextManager[Any]:
        return contextlib.nullcontext() if last else self.accelerator.no_sync(self.module)

    def first_bad_step(self) -> int | None:
        """First step, of all processes, whose loss or gradient was not finite; None if there was none."""
        return min((step for step in processes.gather(int(self.bad_step)) if step >= 0), default=None)

    def weights(self) -> dict[str, Tensor]:
        """The trained weights as they are now."""
        return {name: value.detach() for name, value in self.parameters.items()}

    def means(self) -> dict[str, float]:
        """Means over the examples since the last line of the log, in all processes, and the learning rate."""
        return self.window.means(self._over_processes) | {"learning_rate": self.optimizer.param_groups[0]["lr"]}

    def _over_processes(self, total: Tensor) -> Tensor:
        return cast("Tensor", self.accelerator.reduce(total, "sum")) if self.accelerator.num_processes > 1 else total

    def state(self) -> dict[str, dict[str, Tensor]]:
        """Everything that a checkpoint holds, by file."""
        tensors = {WEIGHTS: self.weights(), OPTIMIZER: optimizer_tensors(self.optimizer.optimizer, self.names)}
        if self.average is not None:
            tensors[AVERAGE] = self.average.values
        if buffers := buffer_tensors(self.trainable.module):
            tensors[BUFFERS] = buffers
        if self.window.steps:
            # Between two lines of the log, where only signals stop a run: the next line is to tell of all its steps.
            tensors[WINDOW] = self.window.state(self._over_processes)
        return tensors

    def restore(self, tensors: dict[str, dict[str, Tensor]]) -> None:
        """Go on from a state. Raises RunError if it is of other weights."""
        copy_weights(tensors[WEIGHTS], self.parameters)
        restore_optimizer(self.optimizer.optimizer, self.names, tensors[OPTIMIZER])
        if self.average is not None:
            copy_weights(tensors[AVERAGE], self.average.values)
        # Checkpoints of earlier versions have none.
        if BUFFERS in tensors:
            restore_buffers(self.trainable.module, tensors[BUFFERS])
        if WINDOW in tensors:
            self.window.restore(tensors[WINDOW], with_sums=processes.is_first())
