"""The training loop: the only one. It speaks of examples, losses and steps, never of images or models.

Batch k is a function of (seed, k), the learning rate a function of k, the moving average's decay a function of k. So a
checkpoint is weights, optimizer, average and k, and a killed run that goes on from it ends with the same bits.
"""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn, cast

import torch
from torch import Tensor

from t2i import devices, processes
from t2i.errors import ConfigError, RunError, StoppedError
from t2i.objectives.base import LossOutput
from t2i.randomness import derive_key
from t2i.training.checkpoint import (
    checkpoint_name,
    optimizer_tensors,
    read_newest,
    restore_optimizer,
    weights_digest,
    write_checkpoint,
)
from t2i.training.log import MetricsLog
from t2i.training.measured import forget_peak_memory, peak_memory
from t2i.training.optim import build_optimizer
from t2i.training.settings import (
    LoopSettings,
    OptimizerSettings,
    TrackingSettings,
    ema_decay_at,
    learning_rate_factor,
)
from t2i.training.stopping import StopRequest
from t2i.training.trainable import Batch, BatchSource, Trainable
from t2i.training.window import MetricsWindow

if TYPE_CHECKING:
    from accelerate import Accelerator

Probe = Callable[[int, Path], Literal["continue", "stop"]]
"""Called with (steps done, file of the trained weights) when such a checkpoint is there. It may be asked again about a
checkpoint that a killed run was the last to write, and must answer the same. While it looks, these weights (the moving
average, if there is one) are in the module."""


@dataclass(frozen=True)
class FitResult:
    """steps: steps done in all; weights: the trained weights by name (the moving average, if there is one).

    seconds, memory_bytes: what the steps of this call took, and no checkpoint or probe beside them.
    """

    steps: int
    weights: dict[str, Tensor]
    resumed_from: int
    seconds: float
    memory_bytes: int | None
    """Most that tensors took on the GPU at once; None without one."""


def fit(
    trainable: Trainable,
    batches: BatchSource,
    settings: LoopSettings,
    optimizer_settings: OptimizerSettings,
    folder: Path,
    *,
    seed: int,
    probe: Probe | None = None,
    probe_every: Sequence[int] = (),
    tracking: TrackingSettings | None = None,
) -> FitResult:
    """Train until `settings.steps`, going on from the newest checkpoint in `folder/checkpoints` if there is one.

    probe_every: numbers of steps after whose multiples there is a checkpoint for the probe, beside the settings' own.
    Leaves the trained weights (or their moving average) in the module. Raises RunError for a non-finite loss, and
    StoppedError after SIGTERM or SIGINT, when the step is done and its checkpoint written.
    """
    forget_peak_memory()
    run = _Run(trainable, batches, settings, optimizer_settings, folder, seed, probe, probe_every, tracking)
    start = run.resume()
    began = time.perf_counter()
    steps = _train(run, start)
    seconds = time.perf_counter() - began - run.seconds_beside
    return FitResult(steps, run.finish(), start, seconds, run.peak_memory())


def _train(run: _Run, start: int) -> int:
    """Steps from `start` until the last one or the probe's stop; returns the number of steps done."""
    step, last = start, run.settings.steps
    with StopRequest() as request, run.progress(start) as advance:
        iterator = run.micro_batches(start)
        # What the probe said of the newest checkpoint was lost if the run was killed while it spoke.
        with run.beside_steps():
            going_on = start == 0 or run.probe_at(start)
        while going_on and step < last:
            run.step(step, iterator)
            step += 1
            advance(step)
            checkpoint_due = run.checkpoint_due(step)
            if checkpoint_due or step % run.settings.log_every == 0:
                run.log(step)
            if checkpoint_due:
                with run.beside_steps():
                    run.save(step)
                    going_on = run.probe_at(step)
            signalled = request.agreed(last=not going_on or step == last)
            if signalled is not None:
                run.stop(step, signalled)
    return step


class _Run:
    """The mutable state of one call of `fit`."""

    def __init__(
        self,
        trainable: Trainable,
        batches: BatchSource,
        settings: LoopSettings,
        optimizer_settings: OptimizerSettings,
        folder: Path,
        seed: int,
        probe: Probe | None,
        probe_every: Sequence[int],
        tracking: TrackingSettings | None,
    ) -> None:
        self.batches, self.seed, self.probe = batches, seed, probe
        self.intervals = (settings.checkpoint_every, *probe_every)
        self.trainable, self.settings, self.optimizer_settings = trainable, settings, optimizer_settings
        self.checkpoints = folder / "checkpoints"
        self.metrics_path = folder / "metrics.jsonl"
        self.parameters = trainable.parameters()
        if not self.parameters:
            raise ConfigError("nothing to train: no parameter asks for a gradient.")
        self._check_equal(0)  # before DDP gives the first process's weights to all
        self.accelerator = _accelerator(trainable, folder, tracking)
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
        self.window = MetricsWindow(self.device, settings.batch_size)
        self.seconds_beside, self.peak = 0.0, 0

    def resume(self) -> int:
        """Restore the newest checkpoint; returns the number of steps done."""
        found = read_newest(self.checkpoints)
        step, tensors = found if found else (0, {})
        if found:
            self._copy(tensors["weights"], self.parameters)
            restore_optimizer(self.optimizer.optimizer, self.names, tensors["optimizer"])
            if self.ema is not None:
                self._copy(tensors["ema"], self.ema)
            if "window" in tensors:
                self.window.restore(tensors["window"], with_sums=processes.is_first())
        self._check_equal(step)
        if processes.is_first():
            self.log_file = MetricsLog(self.metrics_path, resumed_step=step)
        return step

    def _check_equal(self, step: int) -> None:
        """Raise RunError unless the trained weights are the same in every process."""
        if processes.count() == 1:
            return
        digests = processes.gather(f"step {step}: {weights_digest(self._detached())}")
        strangers = [number for number, digest in enumerate(digests) if digest != digests[0]]
        if strangers:
            raise RunError(
                f"step {step}: processes {strangers} hold other weights than process 0; they must have the same "
                "versions of everything and see the same files."
            )

    def micro_batches(self, start: int) -> Iterator[Batch]:
        """This process's part of the batches of all steps that are left."""
        accelerator = self.accelerator
        return self.batches.micro_batches(
            start, self.settings.steps, accelerator.process_index, accelerator.num_processes
        )

    def checkpoint_due(self, step: int) -> bool:
        """Whether a checkpoint is due when so many steps are done, signals aside."""
        return step == self.settings.steps or any(step % interval == 0 for interval in self.intervals)

    def probe_at(self, step: int) -> bool:
        """Ask the probe about the checkpoint of a step; whether to go on."""
        if self.probe is None or not self.checkpoint_due(step):
            return True
        probe, name = self.probe, "weights" if self.ema is None else "ema"
        weights = self.checkpoints / checkpoint_name(step) / f"{name}.safetensors"
        with self._trained_weights():
            return processes.first(lambda: probe(step, weights)) == "continue"

    @contextlib.contextmanager
    def beside_steps(self) -> Iterator[None]:
        """Leave the time and the memory of the block out of what steps take."""
        self.peak = self.peak_memory() or 0
        began = time.perf_counter()
        yield
        seconds = time.perf_counter() - began
        self.seconds_beside += seconds
        self.window.leave_out(seconds)
        forget_peak_memory()

    def peak_memory(self) -> int | None:
        """Bytes that tensors took on the GPU at most in a step; None without a GPU."""
        since = peak_memory()
        return None if since is None else max(since, self.peak)

    @contextlib.contextmanager
    def _trained_weights(self) -> Iterator[None]:
        """The moving average, if there is one, stands in the module for the length of the block."""
        if self.ema is None:
            yield
            return
        trained = {name: value.clone() for name, value in self._detached().items()}
        self._copy(self.ema, self.parameters)
        try:
            yield
        finally:
            self._copy(trained, self.parameters)

    def stop(self, step: int, number: signal.Signals) -> NoReturn:
        """Write a checkpoint, unless there is one of this step, and raise StoppedError."""
        if not self.checkpoint_due(step):
            self.check_finite()
            self.save(step)
        raise StoppedError(
            f"{number.name}: stopped after step {step} of {self.settings.steps}, whose checkpoint is written; "
            "the same command goes on from there.",
            number,
        )

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
            with self.window.waiting():
                batch = next(iterator).to(self.device)
            if step == 0 and micro == 0 and self.trainable.check is not None:
                with self._autocast(), self.beside_steps():
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
            self.window.add({name: values.sum() for name, values in output.metrics.items()})
        norm = torch.nn.utils.clip_grad_norm_(list(self.parameters.values()), self.optimizer_settings.max_grad_norm)
        finite = torch.isfinite(loss_sum) & torch.isfinite(norm)
        self.bad_step = torch.where((self.bad_step < 0) & ~finite, step, self.bad_step)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self._update_ema(step)
        self.window.add({"loss": loss_sum, "grad_norm": norm * self._share()})
        self.window.steps += 1

    def _share(self) -> float:
        """Examples of a batch per process: weight of a value that is the same in every process."""
        return self.settings.batch_size / self.accelerator.num_processes

    def _autocast(self) -> AbstractContextManager[Any]:
        if self.settings.precision == "fp32":
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16)

    def _synchronise_on(self, last: bool) -> AbstractContextManager[Any]:
        return contextlib.nullcontext() if last else self.accelerator.no_sync(self.module)

    def _update_ema(self, step: int) -> None:
        if self.ema is not None and self.settings.ema_decay is not None:
            decay = ema_decay_at(self.settings.ema_decay, step)
            with torch.no_grad():
                for average, value in zip(self.ema.values(), self.parameters.values(), strict=True):
                    average.lerp_(value, 1 - decay)

    def check_finite(self) -> None:
        """Raise RunError, in every process, if a loss or its gradient was not finite."""
        bad = min((step for step in processes.gather(int(self.bad_step)) if step >= 0), default=None)
        if bad is not None:
            raise RunError(
                f"step {bad}: the loss or its gradient is not finite. Batch: {self.batches.describe(bad)}. "
                "Lower the learning rate or look at these examples; no checkpoint was written after that step."
            )

    def log(self, step: int) -> None:
        """Write the means since the last line; stop the run if a loss was not finite."""
        self.check_finite()
        values = self.window.means(self._over_processes)
        values["learning_rate"] = self.optimizer.param_groups[0]["lr"]
        if processes.is_first():
            memory = self.peak_memory()
            rates = self.window.rates() | ({} if memory is None else {"peak_memory_gb": memory / 1e9})
            self.log_file.append(step, values | rates)
            if self.accelerator.trackers:
                self.accelerator.log(values | rates, step=step)
        self.window.clear()

    def _over_processes(self, total: Tensor) -> Tensor:
        return cast("Tensor", self.accelerator.reduce(total, "sum")) if self.accelerator.num_processes > 1 else total

    def save(self, step: int) -> None:
        """Write a checkpoint; every process sees it when this returns."""
        self._check_equal(step)
        tensors = {"weights": self._detached(), "optimizer": optimizer_tensors(self.optimizer.optimizer, self.names)}
        if self.ema is not None:
            tensors["ema"] = self.ema
        if self.window.steps:
            # Between two lines of the log, where only signals stop a run: the next line is to tell of all its steps.
            tensors["window"] = self.window.state(self._over_processes)
        if processes.is_first():
            write_checkpoint(self.checkpoints, step, tensors, keep=self.settings.keep_checkpoints)
        processes.wait()

    def _detached(self) -> dict[str, Tensor]:
        return {name: value.detach() for name, value in self.parameters.items()}

    def finish(self) -> dict[str, Tensor]:
        """Put the moving average, if any, into the module; return the trained weights."""
        if self.ema is not None:
            self._copy(self.ema, self.parameters)
        # Not `end_training`: it also takes down the process group, in which the stages go on.
        for tracker in self.accelerator.trackers:
            tracker.finish()
        return self._detached()

    def progress(self, start: int) -> Any:
        """Context manager of a progress bar on the main process; gives a function of the steps done."""
        from t2i.training.progress import progress_bar

        return progress_bar("training", start, self.settings.steps, visible=processes.is_first())


def micro_steps(settings: LoopSettings, processes: int) -> int:
    """Forward passes per process and optimizer step. Raises ConfigError unless the batch divides evenly."""
    micro = settings.portion(processes)
    if settings.batch_size % (micro * processes):
        raise ConfigError(
            f"batch_size {settings.batch_size} is not a multiple of micro_batch_size {micro} x {processes} processes."
        )
    return settings.batch_size // (micro * processes)


def _accelerator(trainable: Trainable, folder: Path, tracking: TrackingSettings | None) -> Accelerator:
    from accelerate import Accelerator, DistributedDataParallelKwargs

    processes.join()
    # Looking for unused parameters costs a walk through the graph in every step.
    ddp = DistributedDataParallelKwargs(find_unused_parameters=trainable.has_unused)
    accelerator = Accelerator(
        cpu=devices.compute_device().type == "cpu",
        # accelerate has one precision per process; a recipe may have stages of several. Autocast is the loop's own.
        mixed_precision="no",
        kwargs_handlers=[ddp],
        log_with=list(tracking.to) if tracking else None,
        project_dir=folder / "tracking",
    )
    if tracking is not None:
        accelerator.init_trackers(tracking.project)
    return accelerator
