"""What the processes that train together share and must agree on. One process is the usual case of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from t2i import devices, processes
from t2i.errors import ConfigError, RunError
from t2i.training.checkpoint import weights_digest
from t2i.training.settings import LoopSettings, TrackingSettings

if TYPE_CHECKING:
    from accelerate import Accelerator


def micro_steps(settings: LoopSettings, processes: int) -> int:
    """Forward passes per process and optimizer step. Raises ConfigError unless the batch divides evenly."""
    micro = settings.portion(processes)
    if settings.batch_size % (micro * processes):
        raise ConfigError(
            f"batch_size {settings.batch_size} is not a multiple of micro_batch_size {micro} x {processes} processes."
        )
    return settings.batch_size // (micro * processes)


def build_accelerator(folder: Path, tracking: TrackingSettings | None) -> Accelerator:
    """One that knows of all processes. folder: where trackers write."""
    from accelerate import Accelerator, DistributedDataParallelKwargs

    processes.join()
    # The loss may not depend on all parameters: of a text encoder whose last layer but one is read, not on the last.
    # And without this DDP sorts gradients into other buckets after its first step. A gradient's place in a bucket
    # decides the order in which processes are summed, so that a run that goes on would round otherwise than one that
    # was never interrupted. It costs a walk through the graph in every step.
    ddp = DistributedDataParallelKwargs(find_unused_parameters=True)
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


def check_equal_weights(step: int, weights: Mapping[str, Tensor]) -> None:
    """Raise RunError unless they are the same in every process."""
    if processes.count() == 1:
        return
    digests = processes.gather(f"step {step}: {weights_digest(weights)}")
    strangers = [number for number, digest in enumerate(digests) if digest != digests[0]]
    if strangers:
        raise RunError(
            f"step {step}: processes {strangers} hold other weights than process 0; they must have the same "
            "versions of everything and see the same files."
        )
