"""The training loop: the only one. It speaks of examples, losses and steps, never of images or models.

Batch k is a function of (seed, k), the learning rate a function of k, the moving average's decay a function of k. So a
checkpoint is weights, optimizer, average and k, and a killed run that goes on from it ends with the same bits.
What a step does: `t2i.training.stepper`.
"""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn

from torch import Tensor

from t2i import processes
from t2i.errors import ConfigError, RunError, StoppedError
from t2i.training.checkpoint import checkpoint_name, read_newest, write_checkpoint
from t2i.training.log import MetricsLog
from t2i.training.parallel import build_accelerator, check_equal_weights
from t2i.training.settings import LoopSettings, OptimizerSettings, TrackingSettings
from t2i.training.stepper import AVERAGE, WEIGHTS, Stepper
from t2i.training.stopping import StopRequest
from t2i.training.trainable import Batch, BatchSource, Trainable

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
    parameters = trainable.parameters()
    if not parameters:
        raise ConfigError("nothing to train: no parameter asks for a gradient.")
    check_equal_weights(0, parameters)  # before DDP gives the first process's weights to all
    accelerator = build_accelerator(folder, tracking)
    stepper = Stepper(trainable, settings, optimizer_settings, accelerator, seed)
    run = _Run(stepper, batches, folder, probe, (settings.checkpoint_every, *probe_every))
    start = run.resume()
    began = time.perf_counter()
    steps = _train(run, start)
    seconds = time.perf_counter() - began - stepper.cost.seconds_beside
    return FitResult(steps, run.finish(), start, seconds, stepper.cost.peak_memory())


def _train(run: _Run, start: int) -> int:
    """Steps from `start` until the last one or the probe's stop; returns the number of steps done."""
    stepper, beside = run.stepper, run.stepper.cost.left_out
    step, last = start, run.settings.steps
    with StopRequest() as request, run.progress(start) as advance:
        iterator = run.micro_batches(start)
        # What the probe said of the newest checkpoint was lost if the run was killed while it spoke.
        with beside():
            going_on = start == 0 or run.probe_at(start)
        while going_on and step < last:
            stepper.step(step, iterator)
            step += 1
            advance(step)
            checkpoint_due = run.checkpoint_due(step)
            if checkpoint_due or step % run.settings.log_every == 0:
                run.log(step)
            if checkpoint_due:
                with beside():
                    run.save(step)
                    going_on = run.probe_at(step)
            signalled = request.agreed(last=not going_on or step == last)
            if signalled is not None:
                run.stop(step, signalled)
    return step


class _Run:
    """One call of `fit`: what is written and asked between the steps."""

    def __init__(
        self, stepper: Stepper, batches: BatchSource, folder: Path, probe: Probe | None, intervals: tuple[int, ...]
    ) -> None:
        """intervals: a checkpoint is written after the multiples of any of these numbers of steps."""
        self.stepper, self.batches, self.probe, self.intervals = stepper, batches, probe, intervals
        self.settings, self.accelerator = stepper.settings, stepper.accelerator
        self.checkpoints = folder / "checkpoints"
        self.metrics_path = folder / "metrics.jsonl"

    def resume(self) -> int:
        """Restore the newest checkpoint; returns the number of steps done."""
        found = read_newest(self.checkpoints)
        step = 0
        if found is not None:
            step, tensors = found
            self.stepper.restore(tensors)
        check_equal_weights(step, self.stepper.weights())
        if processes.is_first():
            self.log_file = MetricsLog(self.metrics_path, resumed_step=step)
        return step

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
        probe, average = self.probe, self.stepper.average
        file = self.checkpoints / checkpoint_name(step) / f"{WEIGHTS if average is None else AVERAGE}.safetensors"
        with contextlib.nullcontext() if average is None else average.in_place():
            return processes.first(lambda: probe(step, file)) == "continue"

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

    def check_finite(self) -> None:
        """Raise RunError, in every process, if a loss or its gradient was not finite."""
        bad = self.stepper.first_bad_step()
        if bad is not None:
            raise RunError(
                f"step {bad}: the loss or its gradient is not finite. Batch: {self.batches.describe(bad)}. "
                "Lower the learning rate or look at these examples; no checkpoint was written after that step."
            )

    def log(self, step: int) -> None:
        """Write the means since the last line; stop the run if a loss was not finite."""
        self.check_finite()
        values = self.stepper.means()
        if processes.is_first():
            memory = self.stepper.cost.peak_memory()
            rates = self.stepper.window.rates() | ({} if memory is None else {"peak_memory_gb": memory / 1e9})
            self.log_file.append(step, values | rates)
            if self.accelerator.trackers:
                self.accelerator.log(values | rates, step=step)
        self.stepper.window.clear()

    def save(self, step: int) -> None:
        """Write a checkpoint; every process sees it when this returns."""
        check_equal_weights(step, self.stepper.weights())
        tensors = self.stepper.state()
        if processes.is_first():
            write_checkpoint(self.checkpoints, step, tensors, keep=self.settings.keep_checkpoints)
        processes.wait()

    def finish(self) -> dict[str, Tensor]:
        """Put the moving average, if any, into the module; return the trained weights."""
        if self.stepper.average is not None:
            self.stepper.average.put_in_place()
        # Not `end_training`: it also takes down the process group, in which the stages go on.
        for tracker in self.accelerator.trackers:
            tracker.finish()
        return self.stepper.weights()

    def progress(self, start: int) -> AbstractContextManager[Callable[[int], Any]]:
        """Progress bar on the main process; gives a function of the steps done."""
        from t2i.training.progress import progress_bar

        return progress_bar("training", start, self.settings.steps, visible=processes.is_first())
