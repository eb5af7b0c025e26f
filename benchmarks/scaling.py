"""How a step of the toolkit's loop grows: with the rows of the data set, not at all; with processes, by their number.

python benchmarks/scaling.py

Rows: the whole step of a model of a few weights, so that what is timed is all that the loop does besides computing: it
finds a batch of 8 among so many rows on disk, draws, moves, trains, logs. Processes: a small Stable Diffusion 1 with a
LoRA, the same batch of 8 in all, by torchrun with gloo, one thread each. Seconds are those that the (first) process had
a processor: on a machine that is shared, its neighbours do not lengthen them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from gpu_bench import Bench
from machine import describe
from rows import BATCH, ROWS, examples, fill_cache, write_rows
from timing import Spread, TimedBatches
from torch import Tensor, nn

from t2i.data.batches import KeyedBatches
from t2i.objectives.base import DiffusionBatch, LossOutput
from t2i.training.loop import fit
from t2i.training.settings import LoopSettings, OptimizerSettings
from t2i.training.trainable import Trainable

STEPS, WARM = 200, 20
PROCESS_STEPS = 12


def main() -> None:
    """Print both tables."""
    print("| rows | a step, ms |\n|---:|---:|")
    for count in ROWS:
        with tempfile.TemporaryDirectory() as folder:
            write_rows(Path(folder, "records.jsonl"), count)
            fill_cache(Path(folder))
            print(f"| {count} | {_milliseconds(_worker(['rows', folder]))} |", flush=True)
    print("\n| processes | a step, ms |\n|---:|---:|")
    for processes in (1, 2):
        with tempfile.TemporaryDirectory() as folder:
            spread = _worker(["processes", folder], processes)
            print(f"| {processes} | {_milliseconds(spread)} |", flush=True)
    print(f"\nMeasured with `python benchmarks/scaling.py`: {describe()}.")


def _worker(arguments: list[str], processes: int = 1) -> Spread:
    """Run this file in processes of its own; seconds of a step."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    command = [sys.executable, *(launcher if processes > 1 else []), __file__, *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    return Spread(*json.loads(done.stdout.strip().splitlines()[-1]))


def _milliseconds(spread: Spread) -> str:
    return f"{1000 * spread.median:.2f} ({1000 * spread.low:.2f}-{1000 * spread.high:.2f})"


def rows_step(folder: Path) -> list[float]:
    """Seconds of steps over the rows of a folder."""
    batches = KeyedBatches(examples(folder), 1, BATCH, BATCH)
    timed = TimedBatches(batches, torch.device("cpu"), time.process_time)
    (folder / "run").mkdir()
    loop = LoopSettings(steps=STEPS, batch_size=BATCH, checkpoint_every=10**6, log_every=50)
    optimizer = OptimizerSettings(learning_rate=1e-4)
    fit(Trainable(_FewWeights()), timed, loop, optimizer, folder / "run", seed=1)
    return timed.marks.seconds()[WARM:]


class _FewWeights(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.zeros(1))

    def forward(self, batch: DiffusionBatch) -> LossOutput:
        error: Tensor = batch.latents * self.scale - batch.noise
        return LossOutput(error.square().flatten(1).mean(1))


def process_step(folder: Path) -> list[float]:
    """Seconds of steps in one of the processes that torchrun started."""
    bench = Bench("sd1", torch.device("cpu"), folder, reduced=True, batch_size=BATCH)
    bench.clock = time.process_time
    bench.build()
    return bench.fit(folder / "run", PROCESS_STEPS)[2:]


def worker(kind: str, folder: Path) -> None:
    """Measure, and print the middle nine tenths as JSON."""
    seconds = sorted(rows_step(folder) if kind == "rows" else process_step(folder))
    cut = len(seconds) // 20
    spread: Any = Spread.of(seconds[cut : len(seconds) - cut])
    if int(os.environ.get("RANK", "0")) == 0:
        print(json.dumps([spread.median, spread.low, spread.high]), flush=True)


if __name__ == "__main__":
    if len(sys.argv) == 1:
        main()
    else:
        worker(sys.argv[1], Path(sys.argv[2]))
