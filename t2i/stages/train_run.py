"""One run of a train stage: from its settings and the folders it reads to trained weights and facts."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from pydantic import JsonValue

from t2i import processes
from t2i.data.batches import KeyedBatches
from t2i.data.exposure import count_exposures
from t2i.errors import RunError
from t2i.export.card import dataset_strings
from t2i.stages.guard import begin_guard
from t2i.stages.score_rules import id_of
from t2i.stages.train_inputs import read_inputs
from t2i.training.bf16 import caution
from t2i.training.guard import GUARDED_FILE, guard_facts, read_readings
from t2i.training.held_out import HeldOutLoss
from t2i.training.inspection import estimate_before
from t2i.training.loop import FitResult, fit
from t2i.training.measured import measured_run
from t2i.training.outputs import BEST_FOLDER
from t2i.training.samples import write_samples
from t2i.training.settings import LoraSettings, warmup_caution
from t2i.training.tasks import DiffusionTask, build_task
from t2i.training.watch import BEST_FILE, Watch, asked_in_turn, held_out_facts

if TYPE_CHECKING:
    from pathlib import Path

    from t2i.stages.base import StageContext
    from t2i.stages.guard import GuardSettings
    from t2i.stages.train import Train
    from t2i.training.tasks import Task, TaskSettings
    from t2i.training.trainable import Trainable


def run_training(train: Train, context: StageContext) -> dict[str, Any]:
    """Train until the steps are done or a probe stops the run, save the result, and return facts about it."""
    _say_cautions(train)
    settings = read_inputs(train, context)
    task = build_task(settings, train.objective)
    estimate = _estimate(train, task)
    batches = KeyedBatches(
        task.examples,
        context.seed,
        train.loop.batch_size,
        train.loop.portion(processes.count()),
        train.loop.workers,
    )
    result = _fit(train, task, batches, settings)
    metadata = {"t2i_recipe": context.recipe_name, "t2i_steps": str(result.steps), "t2i_run": context.folder.name}
    metadata |= dataset_strings(settings.records, train.trigger_words)
    facts = processes.first(lambda: task.facts() | _save(train, task, metadata, settings) | {"steps": result.steps})
    exposures = count_exposures(batches, result.steps)
    facts |= {"exposures": exposures} if exposures else {}
    return facts if estimate is None else facts | {"estimated": estimate, "measured": _measured(result, context.folder)}


def _say_cautions(train: Train) -> None:
    from rich.console import Console

    if not processes.is_first():
        return
    for line in filter(None, (caution(train.loop.precision), warmup_caution(train.optimizer, train.loop.steps))):
        Console(stderr=True).print(f"  {line}", markup=False, highlight=False, soft_wrap=True)


def _fit(train: Train, task: Task, batches: KeyedBatches, settings: TaskSettings) -> FitResult:
    watch = _watch(train, task, settings)
    guard = begin_guard(train.guard, task, settings, train.loop.steps) if train.guard else None
    return fit(
        task.trainable,
        batches,
        train.loop,
        train.optimizer,
        settings.folder,
        seed=settings.seed,
        probe=asked_in_turn([probe for probe in (watch, guard) if probe is not None]),
        probe_every=(*(watch.intervals if watch else ()), *((guard.every,) if guard else ())),
        tracking=train.tracking,
    )


def _watch(train: Train, task: Task, settings: TaskSettings) -> Watch | None:
    """What looks at the run while it trains, if the recipe asks for it."""
    if (train.held_out is None and train.samples is None) or not isinstance(task, DiffusionTask):
        return None
    measure = sample = None
    if train.held_out is not None and task.held_out is not None:
        size = train.loop.portion(processes.count())
        loss = HeldOutLoss(task.held_out, train.held_out, batch_size=size, seed=settings.seed)
        device = next(task.family.denoiser.parameters()).device
        measure = partial(loss, task.trainable.module, device, precision=train.loop.precision)
    if train.samples is not None:
        sample = partial(
            write_samples,
            settings=train.samples,
            model=settings.model,
            revision=settings.revision,
            save=lambda folder: task.save_into(folder, {}),
            working=settings.folder / "checkpoints" / "sampled",
        )
    return Watch(settings.folder, train.loop.steps, train.held_out, measure, train.samples, sample)


def _save(train: Train, task: Task, metadata: dict[str, str], settings: TaskSettings) -> dict[str, Any]:
    """Save the result, and the best weights of a LoRA if they were looked for; returns facts."""
    if (train.held_out is None and train.guard is None) or not isinstance(task, DiffusionTask):
        return task.save(metadata)
    file, step, is_result, facts = _kept(train, settings.folder, int(metadata["t2i_steps"]))
    if not file.exists():
        raise RunError("no held-out loss is a number; look at the images held out, or lower the learning rate.")
    saved = {} if is_result else task.save(metadata)
    _load_weights(task.trainable, file)
    metadata = metadata | {"t2i_steps": str(step)}
    if is_result:
        saved = task.save(metadata)
    if isinstance(train.trained, LoraSettings):
        task.save_into(settings.folder, metadata, BEST_FOLDER)
    return saved | facts


def _kept(train: Train, folder: Path, steps: int) -> tuple[Path, int, bool, dict[str, Any]]:
    """The best weights by held-out reward or loss, their step, whether they are the result, and facts."""
    if train.guard is not None:
        facts = guard_facts(read_readings(folder), train.guard.rule(), stopped=steps < train.loop.steps)
        facts |= _deciding_rewards(train.guard)
        is_result = train.guard.result == "best"
        return folder / "checkpoints" / GUARDED_FILE, facts["guard"]["best_step"], is_result, facts
    facts = held_out_facts(folder)
    is_result = train.held_out is not None and train.held_out.result == "best"
    return folder / "checkpoints" / BEST_FILE, int(facts["best_step"]), is_result, facts


def _deciding_rewards(guard: GuardSettings) -> dict[str, list[str]]:
    """Ids of the rewards that are trained on, and of the one that chose the result: see `optimised_against`."""
    facts = {"chosen_by": [id_of(scorer) for scorer in guard.rewards if scorer.role == "train"]}
    if guard.result == "best":
        first = next(scorer for scorer in guard.rewards if scorer.role == "held_out")
        facts["picked_by"] = [id_of(first)]
    return facts


def _estimate(train: Train, task: Task) -> dict[str, JsonValue] | None:
    """What training a denoiser will take, by arithmetic; None for other models."""
    if not isinstance(task, DiffusionTask):
        return None
    return estimate_before(task, train.loop, train.optimizer, processes=processes.count()).facts()


def _measured(result: FitResult, folder: Path) -> dict[str, JsonValue]:
    """The same after the run; seconds a step only of the steps that this process has done."""
    steps = result.steps - result.resumed_from
    return measured_run(folder, result.seconds / steps if steps else None, result.memory_bytes).facts()


def _load_weights(trainable: Trainable, file: Path) -> None:
    import torch
    from safetensors.torch import load

    tensors = load(file.read_bytes())
    with torch.no_grad():
        for name, value in trainable.parameters().items():
            value.copy_(tensors[name])
