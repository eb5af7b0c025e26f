"""Several processes of one run, on one machine or more, started by torchrun.

Every process runs the same program. The first one plans, holds the lock and runs all stages but training, while the
others wait for it; all of them train. Folders must be shared between machines. With one process, nothing here does
anything, and torch is not imported.
"""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

from t2i import devices
from t2i.errors import ConfigError, RunError

Result = TypeVar("Result")

_PATIENCE = timedelta(days=30)
"""Longest time that processes wait for the first one, which may have images to caption."""
_REFUSED = {
    "ACCELERATE_USE_FSDP": "FSDP is not supported, and on a CPU accelerate would leave it out in silence",
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed is not supported",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM is not supported",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "parallelism other than DDP is not supported",
    "ACCELERATE_MIXED_PRECISION": "the recipe sets the precision (loop.precision)",
    "ACCELERATE_DYNAMO_BACKEND": "the recipe sets whether the model is compiled (speed.compile)",
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "the recipe sets the portions of a batch (loop.micro_batch_size)",
}
_NEUTRAL = ("", "0", "1", "no", "false")
"""Values by which a variable says nothing, in lower case; 1 where it counts steps."""


def rank() -> int:
    """Number of this process, 0 for the first."""
    return int(os.environ["RANK"]) if "LOCAL_RANK" in os.environ else 0


def count() -> int:
    """Processes of this run."""
    return int(os.environ["WORLD_SIZE"]) if "LOCAL_RANK" in os.environ else 1


def is_first() -> bool:
    """Whether this is the process that writes."""
    return rank() == 0


def check_launch() -> None:
    """Raise ConfigError if the program was started in a way that accelerate would misunderstand in silence."""
    for name, reason in _REFUSED.items():
        value = os.environ.get(name, "")
        if value.lower() not in _NEUTRAL or (value == "1" and "_USE_" in name):
            raise ConfigError(
                f"{name}={value}: {reason}. Unset it, or start with torchrun instead of accelerate launch."
            )
    asked = _processes_asked_of_accelerate() if count() == 1 and "ACCELERATE_USE_CPU" in os.environ else 1
    if asked > 1:
        raise ConfigError(
            f"accelerate launch started one process where {asked} were asked for, as it does on CPUs; "
            f"use torchrun --nproc_per_node {asked} -m t2i run RECIPE."
        )


def _processes_asked_of_accelerate() -> int:
    """`--num_processes` of the command that started this process; 1 if there is none."""
    import psutil

    parent = psutil.Process().parent()
    words = [part for word in (parent.cmdline() if parent else []) for part in word.split("=", 1)]
    for word, value in itertools.pairwise(words):
        if word in ("--num_processes", "--num-processes") and value.isdigit():
            return int(value)
    return 1


def join() -> None:
    """Meet the other processes, and choose this one's device. Raises RunError if they are not as many as started."""
    from accelerate import PartialState

    # Unless it is told that this is a CPU, accelerate runs every process by itself there, in silence.
    state = PartialState(cpu=devices.compute_device().type == "cpu")
    if state.num_processes != count():
        raise RunError(f"accelerate sees {state.num_processes} processes where {count()} were started.")


@functools.cache
def _group() -> Any:
    """All processes, speaking through their CPUs."""
    import torch.distributed

    join()
    return torch.distributed.new_group(backend="gloo", timeout=_PATIENCE)


def first(work: Callable[[], Result]) -> Result:
    """Let the first process do something, and give its result to every process when it is done.

    Raises RunError in the others if it fails; the first one raises its own error.
    """
    if count() == 1:
        return work()
    if not is_first():
        [done, result] = _from_first([False, None])
        if not done:
            raise RunError(f"process {rank()}: ended, because the first process failed; its message says why.")
        return result
    try:
        result = work()
    except BaseException:
        _from_first([False, None])
        raise
    _from_first([True, result])
    return result


def _from_first(values: list[Any]) -> list[Any]:
    import torch.distributed

    torch.distributed.broadcast_object_list(values, src=0, group=_group())
    return values


def gather(value: Result) -> list[Result]:
    """The value of every process, in all of them."""
    if count() == 1:
        return [value]
    import torch.distributed

    values: list[Any] = [None] * count()
    torch.distributed.all_gather_object(values, value, group=_group())
    return values


def wait() -> None:
    """Return when every process has come here."""
    gather(None)


def start_largest(value: int) -> Callable[[], int]:
    """Begin to find the largest value over all processes; the function that is returned waits for it."""
    if count() == 1:
        return lambda: value
    import torch
    from torch import distributed

    largest = torch.tensor(value)
    pending: Any = distributed.all_reduce(largest, distributed.ReduceOp.MAX, _group(), async_op=True)

    def finish() -> int:
        pending.wait()
        return int(largest)

    return finish


def check_shared(folder: Path) -> None:
    """Raise RunError, in every process, unless all of them see a folder that the first one has made."""
    blind = [number for number, sees in enumerate(gather(folder.is_dir())) if not sees]
    if blind:
        raise RunError(f"{folder}: processes {blind} do not see it; set T2I_RUNS to a folder that machines share.")


def leave() -> None:
    """Say goodbye to the others, when the run is over."""
    if count() > 1:
        import torch.distributed

        _group.cache_clear()
        torch.distributed.destroy_process_group()
