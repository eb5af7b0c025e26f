"""Kill runs of a recipe with SIGKILL, let them go on, and look for any trace. `python killing.py RECIPE FOLDER COUNT`.

One process imports everything once and then forks: a child for every run, so that a run costs no imports. Nothing is
computed before a fork, so no thread is lost in one. A line of JSON for each moment goes to standard output.

A moment is drawn in one of two ways, by turns: uniformly in the time of a run that nobody kills, or uniformly among the
file operations of one stage (before an open, a rename, a removal), stage after stage. A moment in time is reached
through the last file operation before it, so that a slow machine does not move it into another stage.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import select
import shutil
import signal
import sys
import time
import traceback
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import tiny

from t2i.engine import run
from t2i.errors import RunError
from t2i.randomness import generator
from t2i.recipe import Recipe
from t2i.rundir import CONFIG, DONE, PROVENANCE, RunDirectory, damage, read_done, read_json
from t2i.training.outputs import OUTCOME_FILE

TELL_TIMES = (PROVENANCE, "report.html")
"""Files that say how long something took; no two runs agree on them."""
SEED = 20
"""Of the moments."""
AT_ONCE = 2
"""Moments tried side by side; every run computes with one thread."""
RECIPES = {
    "adapter": """
name: killed
model: MODEL
seed: 3
stages:
  - type: caption
    data: {type: folder, path: PHOTOGRAPHS}
    captioner: {type: files}
  - {type: filter, data_from: caption, require: [caption]}
  - type: train
    data_from: filter
    captions: {caption: 1}
    resolution: 32
    trained: {type: lora, rank: 4, text_encoder: true}
    optimizer: {learning_rate: 1e-2, warmup_steps: 3, schedule: cosine}
    loop: {steps: 10, batch_size: 2, checkpoint_every: 3, log_every: 2, ema_decay: 0.9}
  - type: generate
    name: base
    prompts: &prompts {type: list, prompts: [a cat, the moon, red cup, rocket, space]}
    sampling: &sampling {steps: 2, guidance_scale: 2}
    batch_size: 3
  - {type: generate, name: tuned, weights_from: train, prompts: *prompts, sampling: *sampling, batch_size: 3}
  - type: score
    name: base_scores
    generations_from: base
    scorers: &scorers [{name: brightness}, {name: jpeg_size}]
    batch_size: 3
  - {type: score, name: tuned_scores, generations_from: tuned, scorers: *scorers, batch_size: 3}
  - {type: compare, a_from: base_scores, b_from: tuned_scores, resamples: 1000}
  - {type: export, weights_from: train, layouts: [diffusers, kohya]}
""",
    "model": """
name: killed
model: MODEL
seed: 3
stages:
  - type: caption
    data: {type: shapes, count: 8, captions: [alt, short]}
    captioner: {type: shapes}
  - {type: filter, data_from: caption, require: [dense]}
  - type: train
    data_from: filter
    captions: {dense: 1, alt: 1}
    resolution: 32
    trained: {type: full, components: [unet]}
    optimizer: {learning_rate: 1e-3}
    loop: {steps: 8, batch_size: 2, micro_batch_size: 1, checkpoint_every: 3, log_every: 2, precision: bf16}
  - type: train
    name: second
    model_from: train
    data: {type: shapes, count: 4}
    captions: {alt: 1}
    resolution: 32
    trained: {type: full, components: [text_encoder]}
    optimizer: {learning_rate: 1e-3}
    loop: {steps: 3, batch_size: 2, checkpoint_every: 2}
  - type: generate
    name: base
    prompts: &prompts {type: shapes, count: 4}
    sampling: &sampling {steps: 1, guidance_scale: 2}
    batch_size: 3
  - {type: generate, name: tuned, weights_from: second, prompts: *prompts, sampling: *sampling, batch_size: 3}
  - type: score
    name: base_scores
    generations_from: base
    scorers: &scorers [{name: brightness}, {name: "t2i.shapes.scorers:JudgeFaithfulness", label: judge}]
    batch_size: 3
  - {type: score, name: tuned_scores, generations_from: tuned, scorers: *scorers, batch_size: 3}
  - {type: compare, a_from: base_scores, b_from: tuned_scores, resamples: 1000}
  - {type: export, weights_from: second, precision: fp16}
  - {type: report, compare_from: [compare], scores_from: [base_scores, tuned_scores], train_from: [train]}
""",
}
TARGETS = {
    "adapter": ("train", "tuned", "tuned_scores", "train", "base", "export"),
    "model": ("train", "caption", "second", "export", "report", "compare"),
}
"""Stages whose file operations are moments, in turn."""


@dataclass(frozen=True)
class Operation:
    """A change to a file of a run. seconds: since the run's first one."""

    seconds: float
    stage: str


@dataclass(frozen=True)
class Moment:
    """Before the file operation with this number, or `delay` seconds after it, but before the next one."""

    operation: int
    delay: float = 0.0


class OperationWatch:
    """An audit hook that counts changes to files below a folder, and ends its own process or sends a sign at one."""

    def __init__(self, root: Path, moment: Moment | None, sign: int) -> None:
        self.root, self.moment, self.sign = f"{root}{os.sep}", moment, sign
        self.operations: list[Operation] = []

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self._is_change(event, arguments):
            return
        if self.moment is not None:
            late = len(self.operations) - self.moment.operation
            if late == 0 and self.moment.delay:
                os.write(self.sign, b".")
            elif late >= 0:
                # At the next operation too: whoever waits for the delay may be slower than this process.
                os.kill(os.getpid(), signal.SIGKILL)
        self.operations.append(Operation(time.perf_counter(), self._stage(str(arguments[0]))))

    def _is_change(self, event: str, arguments: tuple[Any, ...]) -> bool:
        if event == "open":
            return bool(arguments[2] & (os.O_WRONLY | os.O_RDWR)) and str(arguments[0]).startswith(self.root)
        if event not in ("os.mkdir", "os.rename", "os.remove", "os.rmdir"):
            return False
        # shutil.rmtree names files relative to an open folder.
        return str(arguments[0]).startswith(self.root) or arguments[-1] != -1

    def _stage(self, path: str) -> str:
        if not path.startswith(self.root):
            return self.operations[-1].stage
        parts = path.removeprefix(self.root).split(os.sep)
        return parts[1].rpartition("-")[0] if len(parts) > 2 else ""


def fork(work: Callable[[], None], log: Path) -> int:
    """Run something in a child whose output goes to a file; returns its process id. The child exits with 0 or 1."""
    process = os.fork()
    if process:
        return process
    status = 1
    try:
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(output, 1)
        os.dup2(output, 2)
        work()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


@dataclass(frozen=True)
class Killer:
    """Runs the recipe in `folder`, each time under a root of its own. targets: see TARGETS."""

    folder: Path
    targets: tuple[str, ...]

    def attempt(
        self, root: Path, moment: Moment | None = None, *, workers: int = 0, record: Path | None = None
    ) -> bool:
        """Run the recipe until its end or the moment; True if it was killed. Raises RuntimeError if it failed."""
        reader, writer = os.pipe()

        def work() -> None:
            import torch

            os.close(reader)
            torch.set_num_threads(1)
            watch = OperationWatch(root, moment, writer)
            sys.addaudithook(watch)
            recipe = Recipe.load(self.folder / "killed.yaml", [f"train.loop.workers={workers}"])
            # Arithmetic that writes nothing, and would take a fifth of the time.
            with mock.patch("t2i.stages.train_run._estimate", return_value=None):
                run(recipe, root)
            if record is not None:
                write_record(record, watch.operations)

        log = self.folder / f"{root.name}.log"
        process = fork(work, log)
        os.close(writer)
        # The end of the process closes the pipe, so neither wait outlasts it.
        if moment is not None and moment.delay and os.read(reader, 1):
            select.select([reader], [], [], moment.delay)
            os.kill(process, signal.SIGKILL)
        status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        os.close(reader)
        if status not in (0, -signal.SIGKILL):
            raise RuntimeError(f"exit status {status}:\n{log.read_text()[-2000:]}")
        return status != 0

    def try_moment(self, number: int, operations: list[Operation], whole: Mapping[str, dict[str, object]]) -> None:
        """Kill a run at a moment (every third one again later), let it end, and print what was found."""
        root = self.folder / f"run-{number}"
        random = generator(SEED, "moment", number)
        moment = draw_moment(number, operations, self.targets, random)
        workers = int(number % 5 == 0)
        killed = self.attempt(root, moment, workers=workers)
        problems = look_at_killed(root, whole)
        hit = unfinished(root)
        if number % 3 == 0:
            again = Moment(int(random.integers(1, len(operations) - moment.operation + 1)))
            killed = self.attempt(root, again, workers=workers) or killed
            problems += look_at_killed(root, whole)
        self.attempt(root)
        found = results(root)
        problems += [f"stage {name} is not done" for name in whole.keys() - found.keys()]
        problems += differences(found, whole)
        print(json.dumps({"number": number, "killed": killed, "stage": hit, "problems": problems}), flush=True)
        shutil.rmtree(root)


def draw_moment(
    number: int, operations: list[Operation], targets: tuple[str, ...], random: np.random.Generator
) -> Moment:
    """The number-th moment: even ones in time, odd ones among the operations of a stage."""
    if number % 2:
        target = targets[number // 2 % len(targets)]
        candidates = [place for place, operation in enumerate(operations) if operation.stage == target]
        return Moment(int(random.choice(candidates)))
    seconds = float(random.uniform(0, operations[-1].seconds))
    place = bisect_right([operation.seconds for operation in operations], seconds) - 1
    return Moment(place, max(seconds - operations[place].seconds, 1e-6))


def stage_folders(root: Path) -> Iterator[tuple[str, Path]]:
    """(stage name, folder) of every stage that has begun."""
    for folder in RunDirectory(root, "killed").stage_folders():
        yield folder.name.rpartition("-")[0], folder


def unfinished(root: Path) -> str:
    """Name of the stage that the kill interrupted; empty if it hit none."""
    return next((name for name, folder in stage_folders(root) if read_done(folder) is None), "")


def look_at_killed(root: Path, whole: Mapping[str, dict[str, object]]) -> list[str]:
    """What is wrong right after a kill: a held lock, or something marked done that is not whole."""
    problems: list[str] = []
    try:
        with RunDirectory(root, "killed"):
            pass
    except RunError as error:
        problems.append(str(error))
    for name, folder in stage_folders(root):
        done = read_done(folder)
        if done is not None and damage(folder, done):
            problems.append(f"{name} is marked done, but {damage(folder, done)}")
    return problems + [f"right after the kill: {problem}" for problem in differences(results(root), whole)]


def results(root: Path) -> dict[str, dict[str, object]]:
    """Stage -> file -> content of every stage that is marked done, without times and speeds."""
    return {
        name: {
            path.relative_to(folder).as_posix(): content(path)
            for path in sorted(folder.rglob("*"))
            if path.is_file() and path.name not in TELL_TIMES
        }
        for name, folder in stage_folders(root)
        if (folder / DONE).exists()
    }


def content(path: Path) -> object:
    """Bytes of a file, or its parsed JSON where that holds times, speeds or fields that change speed only."""
    if path.name == CONFIG:
        return (read_json(path) or {}).get("identity")
    if path.name == DONE:
        done = read_done(path.parent)
        # Sizes are compared through the files themselves; times make some of them vary.
        return done and (untimed(done.facts), sorted(done.files))
    if path.name == OUTCOME_FILE:
        outcome = read_json(path) or {}
        return outcome | {"facts": untimed(outcome["facts"])}
    if path.name == "metrics.jsonl":
        rates = ("images_per_second", "data_wait_share")
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        return [{name: value for name, value in row.items() if name not in rates} for row in rows]
    return path.read_bytes()


def untimed(facts: Any) -> dict[str, object]:
    """Facts of a stage without what was measured, and what was estimated from the machine's speed."""
    return {name: value for name, value in facts.items() if name not in ("estimated", "measured")}


def differences(found: Mapping[str, dict[str, object]], whole: Mapping[str, dict[str, object]]) -> list[str]:
    """Files of the stages found that are not bit for bit those of the run that nobody killed."""
    return [
        f"{stage}/{name} differs"
        for stage, files in found.items()
        for name in sorted(files.keys() | whole[stage].keys())
        if files.get(name) != whole[stage].get(name)
    ]


def write_record(path: Path, operations: list[Operation]) -> None:
    """Keep what a run did and which modules it needed."""
    start = operations[0].seconds
    rows = [(operation.seconds - start, operation.stage) for operation in operations]
    path.write_text(json.dumps({"operations": rows, "modules": sorted(sys.modules)}))


def prepare(recipe: str, folder: Path) -> None:
    """Write the model, the photographs and the recipe."""
    tiny.build_pipeline("epsilon").save_pretrained(folder / "model")
    photographs = tiny.write_photographs(folder / "photographs", longer_side=48)
    text = RECIPES[recipe].replace("MODEL", str(folder / "model")).replace("PHOTOGRAPHS", str(photographs))
    (folder / "killed.yaml").write_text(text)


def import_again(modules: list[str]) -> None:
    """Import what a child has imported."""
    for name in modules:
        if not name.startswith("__"):
            try:
                importlib.import_module(name)
            except ImportError:  # made by its parent at run time, or gone after use
                continue


def main(recipe: str, folder: Path, count: int) -> None:
    """Try moments 0 .. count - 1."""
    killer = Killer(folder, TARGETS[recipe])
    os.waitpid(fork(lambda: prepare(recipe, folder), folder / "prepare.log"), 0)
    # The first run shows what to import; it is also a second one that nobody kills.
    killer.attempt(folder / "warm", record=folder / "warm.json")
    # Later collections leave what stands now alone: the children then share its memory.
    import_again(json.loads((folder / "warm.json").read_text())["modules"])
    gc.freeze()
    killer.attempt(folder / "whole", record=folder / "whole.json")
    operations = [Operation(*row) for row in json.loads((folder / "whole.json").read_text())["operations"]]
    whole = results(folder / "whole")
    differing = differences(results(folder / "warm"), whole)
    print(
        json.dumps({"operations": len(operations), "seconds": operations[-1].seconds, "problems": differing}),
        flush=True,
    )
    running: set[int] = set()
    failures = 0
    for number in range(count):
        if len(running) == AT_ONCE:
            failures += reap(running)
        output = folder / f"moment-{number}.log"
        running.add(fork(lambda number=number: killer.try_moment(number, operations, whole), output))
    while running:
        failures += reap(running)
    for number in range(count):
        print((folder / f"moment-{number}.log").read_text(), end="")
    sys.exit(1 if failures else 0)


def reap(running: set[int]) -> int:
    """Wait for one child; 1 if it failed."""
    process, status = os.wait()
    running.discard(process)
    return int(status != 0)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]).resolve(), int(sys.argv[3]))
