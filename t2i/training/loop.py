"""The training loop: the only one. It speaks of examples, losses and steps, never of images or models.

Batch k is a function of (seed, k), the learning rate a function of k, the moving average's decay a function of k. So a
checkpoint is weights, optimizer, average and k, and a killed run that goes on from it ends with the same bits.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, cast

import torch
from torch import Tensor, nn

from t2i.errors import ConfigError, RunError
from t2i.objectives.base import LossOutput
from t2i.randomness import derive_key
from t2i.training.checkpoint import optimizer_tensors, read_newest, restore_optimizer, write_checkpoint
from t2i.training.log import MetricsLog
from t2i.training.optim import build_optimizer
from t2i.training.settings import LoopSettings, OptimizerSettings, ema_decay_at, learning_rate_factor

if TYPE_CHECKING:
    from accelerate import Accelerator

Probe = Callable[[int, Path], Literal["continue", "stop"]]
"""Called after each checkpoint with (steps done, file of the trained weights)."""


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


@dataclass(frozen=True)
class FitResult:
    """steps: steps done in all; weights: the trained weights by name (the moving average, if there is one)."""

    steps: int
    weights: dict[str, Tensor]
    resumed_from: int
    seconds: float


def fit(
    trainable: Trainable,
    batches: BatchSource,
    settings: LoopSettings,
    optimizer_settings: OptimizerSettings,
    folder: Path,
    *,
    seed: int,
    probe: Probe | None = None,
) -> FitResult:
    """Train until `settings.steps`, going on from the newest checkpoint in `folder/checkpoints` if there is one.

    Leaves the trained weights (or their moving average) in the module. Raises RunError for a non-finite loss.
    """
    run = _Run(trainable, settings, optimizer_settings, folder, seed)
    start = run.resume()
    began = time.perf_counter()
    iterator = batches.micro_batches(
        start, settings.steps, run.accelerator.process_index, run.accelerator.num_processes
    )
    step = start
    with run.progress(start) as advance:
        while step < settings.steps:
            run.step(step, iterator)
            step += 1
            advance(step)
            checkpoint_due = step % settings.checkpoint_every == 0 or step == settings.steps
            if checkpoint_due or step % settings.log_every == 0:
                run.log(step, batches)
            if checkpoint_due:
                path = run.save(step)
                if probe is not None and probe(step, path / "weights.safetensors") == "stop":
                    break
    weights = run.finish()
    return FitResult(step, weights, start, time.perf_counter() - began)


class _Run:
    """The mutable state of one call of `fit`."""

    def __init__(
        self,
        trainable: Trainable,
        settings: LoopSettings,
        optimizer_settings: OptimizerSettings,
        folder: Path,
        seed: int,
    ) -> None:
        self.seed = seed
        self.trainable, self.settings, self.optimizer_settings = trainable, settings, optimizer_settings
        self.checkpoints = folder / "checkpoints"
        self.metrics_path = folder / "metrics.jsonl"
        self.parameters = trainable.parameters()
        if not self.parameters:
            raise ConfigError("nothing to train: no parameter asks for a gradient.")
        self.accelerator = _accelerator()
        self.micro_steps = micro_steps(settings, self.accelerator.num_processes)
        optimizer, self.names = build_optimizer(
            self.parameters, trainable.learning_rates, optimizer_settings, ratios=trainable.learning_rate_ratios
        )
        self.base_rates = [group["lr"] for group in optimizer.param_groups]
        self.module, self.optimizer = self.accelerator.prepare(trainable.module, optimizer)
        self.device = self.accelerator.device
        self.ema = None if settings.ema_decay is None else {n: p.detach().clone() for n, p in self.parameters.items()}
        # First step whose loss or gradient was not finite; stays on the device until the next log.
        self.bad_step = torch.full((), -1, dtype=torch.long, device=self.device)
        self.sums: dict[str, Tensor] = {}
        self.summed_steps = 0
        self.waited = 0.0
        self.window_began = time.perf_counter()

    def resume(self) -> int:
        """Restore the newest checkpoint; returns the number of steps done."""
        found = read_newest(self.checkpoints)
        step, tensors = found if found else (0, {})
        if found:
            self._copy(tensors["weights"], self.parameters)
            restore_optimizer(self.optimizer.optimizer, self.names, tensors["optimizer"])
            if self.ema is not None:
                self._copy(tensors["ema"], self.ema)
        self.log_file = MetricsLog(self.metrics_path, resumed_step=step)
        return step

    @staticmethod
    def _copy(source: dict[str, Tensor], target: dict[str, Any]) -> None:
        if source.keys() != target.keys():
            raise RunError("the checkpoint holds other weights than this recipe trains; delete the stage's folder.")
        with torch.no_grad():
            for name, value in target.items():
                value.copy_(source[name])

    def step(self, step: int, iterator: Iterator[Batch]) -> None:
        """One optimizer step: mean loss over the global batch, whatever its portions."""
        factor = learning_rate_factor(self.optimizer_settings, step, self.settings.steps)
        for group, rate in zip(self.optimizer.param_groups, self.base_rates, strict=True):
            group["lr"] = rate * factor
        loss_sum = torch.zeros((), device=self.device)
        for micro in range(self.micro_steps):
            waiting = time.perf_counter()
            batch = next(iterator).to(self.device)
            self.waited += time.perf_counter() - waiting
            if step == 0 and micro == 0 and self.trainable.check is not None:
                with self._autocast():
                    self.trainable.check(batch)
            # Only for libraries that draw from the global generator (dropout); ours are keyed already.
            torch.manual_seed(derive_key(self.seed, "library", step, self.accelerator.process_index, micro) % 2**63)
            with self._synchronise_on(micro == self.micro_steps - 1):
                with self._autocast():
                    output: LossOutput = self.module(batch)
                total = output.loss.sum()
                # DDP averages gradients over processes; the sum over all examples is wanted.
                self.accelerator.backward(total * (self.accelerator.num_processes / self.settings.batch_size))
            loss_sum = loss_sum + total.detach()
            self._accumulate({name: values.sum() for name, values in output.metrics.items()})
        norm = torch.nn.utils.clip_grad_norm_(list(self.parameters.values()), self.optimizer_settings.max_grad_norm)
        finite = torch.isfinite(loss_sum) & torch.isfinite(norm)
        self.bad_step = torch.where((self.bad_step < 0) & ~finite, step, self.bad_step)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self._update_ema(step)
        self._accumulate({"loss": loss_sum, "grad_norm": norm.detach() * self._share()})
        self.summed_steps += 1

    def _share(self) -> float:
        """Examples of a batch per process: weight of a value that is the same in every process."""
        return self.settings.batch_size / self.accelerator.num_processes

    def _autocast(self) -> AbstractContextManager[Any]:
        if self.settings.precision == "fp32":
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16)

    def _synchronise_on(self, last: bool) -> AbstractContextManager[Any]:
        return contextlib.nullcontext() if last else self.accelerator.no_sync(self.module)

    def _accumulate(self, sums: dict[str, Tensor]) -> None:
        for name, value in sums.items():
            self.sums[name] = self.sums.get(name, torch.zeros((), device=self.device)) + value.detach()

    def _update_ema(self, step: int) -> None:
        if self.ema is not None and self.settings.ema_decay is not None:
            decay = ema_decay_at(self.settings.ema_decay, step)
            with torch.no_grad():
                for average, value in zip(self.ema.values(), self.parameters.values(), strict=True):
                    average.lerp_(value, 1 - decay)

    def log(self, step: int, batches: BatchSource) -> None:
        """Write the means since the last line; stop the run if a loss was not finite."""
        bad = int(self.bad_step)
        if bad >= 0:
            raise RunError(
                f"step {bad}: the loss or its gradient is not finite. Batch: {batches.describe(bad)}. "
                "Lower the learning rate or look at these examples; no checkpoint was written after that step."
            )
        seconds = time.perf_counter() - self.window_began
        count = self.settings.batch_size * self.summed_steps
        values = {name: float(self._over_processes(total)) / count for name, total in self.sums.items()}
        values["learning_rate"] = self.optimizer.param_groups[0]["lr"]
        if self.accelerator.is_main_process:
            rates = {"images_per_second": count / seconds, "data_wait_share": self.waited / seconds}
            self.log_file.append(step, values | rates)
        self.sums, self.summed_steps, self.waited = {}, 0, 0.0
        self.window_began = time.perf_counter()

    def _over_processes(self, total: Tensor) -> Tensor:
        return cast("Tensor", self.accelerator.reduce(total, "sum")) if self.accelerator.num_processes > 1 else total

    def save(self, step: int) -> Path:
        """Write a checkpoint; every process sees it when this returns."""
        tensors = {"weights": self._detached(), "optimizer": optimizer_tensors(self.optimizer.optimizer, self.names)}
        if self.ema is not None:
            tensors["ema"] = self.ema
        path = self.checkpoints / f"step-{step:08d}"
        if self.accelerator.is_main_process:
            path = write_checkpoint(self.checkpoints, step, tensors, keep=self.settings.keep_checkpoints)
        self.accelerator.wait_for_everyone()
        return path

    def _detached(self) -> dict[str, Tensor]:
        return {name: value.detach() for name, value in self.parameters.items()}

    def finish(self) -> dict[str, Tensor]:
        """Put the moving average, if any, into the module; return the trained weights."""
        if self.ema is not None:
            self._copy(self.ema, self.parameters)
        return self._detached()

    def progress(self, start: int) -> Any:
        """Context manager of a progress bar on the main process; gives a function of the steps done."""
        from t2i.training.progress import progress_bar

        return progress_bar("training", start, self.settings.steps, visible=self.accelerator.is_main_process)


def micro_steps(settings: LoopSettings, processes: int) -> int:
    """Forward passes per process and optimizer step. Raises ConfigError unless the batch divides evenly."""
    micro = settings.micro_batch_size or settings.batch_size // processes
    if micro == 0 or settings.batch_size % (micro * processes):
        raise ConfigError(
            f"batch_size {settings.batch_size} is not a multiple of micro_batch_size {micro} x {processes} processes."
        )
    return settings.batch_size // (micro * processes)


def _accelerator() -> Accelerator:
    from accelerate import Accelerator

    # accelerate has one precision per process; a recipe may have stages of several. Autocast is the loop's own.
    return Accelerator(mixed_precision="no")
