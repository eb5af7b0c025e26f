"""What is looked at while a run trains: held-out loss, the best weights, samples through the saved file, trackers."""

from __future__ import annotations

import importlib.util
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from safetensors.torch import load_file

from t2i.data.held_out import hold_out
from t2i.data.sources import load_records
from t2i.errors import DataError, MissingDependencyError
from t2i.randomness import image_seed
from t2i.sampling import Sampler, SamplingSettings
from t2i.stages.train import Train
from t2i.training.settings import HeldOutSettings
from t2i.training.watch import Watch, held_out_facts, read_held_out

HELD_OUT = {"share": 0.5, "examples": 8, "every": 2}
SAMPLES = {"prompts": ["a cat", "the moon"], "every": 3, "seed": 5, "sampling": {"steps": 2, "guidance_scale": 2.0}}


def train(folder: Path, **fields: object) -> dict[str, Any]:
    settings = {
        "model": str(tiny.sd1()),
        "captions": {"caption": 1.0},
        "trained": {"type": "lora", "rank": 4},
        "optimizer": {"learning_rate": 1e-2},
        "loop": {"steps": 5, "batch_size": 2, "checkpoint_every": 4, "ema_decay": 0.9},
        **fields,
    }
    return tiny.run_stage(Train, folder, settings, {"data_from": tiny.captioned_photographs()})


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A finished stage with everything to look at, and its facts."""
    folder = tmp_path_factory.mktemp("run") / "train"
    return folder, train(folder, held_out=HELD_OUT, samples=SAMPLES)


def test_held_out_loss_is_measured_at_its_steps_and_after_the_last(watched: tuple[Path, dict[str, Any]]) -> None:
    folder, facts = watched
    rows = read_held_out(folder)
    assert [row["step"] for row in rows] == [2, 4, 5]
    assert len({row["loss"] for row in rows}) == 3
    best = min(rows, key=lambda row: row["loss"])
    assert (facts["best_step"], facts["best_held_out_loss"]) == (best["step"], best["loss"])
    assert facts["held_out_loss"] == rows[-1]["loss"]
    assert 0 < facts["images"] < len(tiny.PHOTOGRAPHS)


def test_held_out_loss_does_not_depend_on_portions_or_checkpoints(
    watched: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    loop = {"steps": 5, "batch_size": 2, "checkpoint_every": 1, "ema_decay": 0.9, "micro_batch_size": 1}
    train(tmp_path / "train", held_out=HELD_OUT, loop=loop)
    for row, expected in zip(read_held_out(tmp_path / "train"), read_held_out(watched[0]), strict=True):
        assert row["loss"] == pytest.approx(expected["loss"], rel=1e-5)


def test_best_weights_are_kept_and_can_be_the_result(watched: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    folder, facts = watched
    last = load_file(folder / facts["adapter"])
    [file] = (folder / "best").iterdir()
    best = load_file(file)
    same = all(torch.equal(best[name], value) for name, value in last.items())
    assert same == (facts["best_step"] == 5)
    again = train(tmp_path / "train", held_out={**HELD_OUT, "result": "best"})
    result = load_file(tmp_path / "train" / again["adapter"])
    assert all(torch.equal(result[name], value) for name, value in best.items())


def test_last_sample_is_what_the_saved_file_gives_to_anyone(watched: tuple[Path, dict[str, Any]]) -> None:
    folder, facts = watched
    names = [path.relative_to(folder / "samples").as_posix() for path in sorted((folder / "samples").rglob("*.png"))]
    assert names == [f"step-0000000{step}/0{number}.png" for step in (3, 5) for number in (0, 1)]
    settings = SamplingSettings(steps=2, guidance_scale=2.0)
    sampler = Sampler.load(str(tiny.sd1()), settings, adapter=folder / facts["adapter"])
    for number, prompt in enumerate(("a cat", "the moon")):
        [image] = sampler.generate([prompt], [image_seed(5, number)])
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        assert (folder / f"samples/step-00000005/0{number}.png").read_bytes() == buffer.getvalue()
        assert (folder / f"samples/step-00000003/0{number}.png").read_bytes() != buffer.getvalue()


def test_looking_changes_nothing_that_is_learned(watched: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    facts = train(tmp_path / "train", held_out={**HELD_OUT, "every": 5})
    found, expected = load_file(tmp_path / "train" / facts["adapter"]), load_file(watched[0] / watched[1]["adapter"])
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_watch_that_is_asked_again_leaves_the_same_files(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    losses = iter([3.0, 1.0, 2.0, 2.0])
    settings = HeldOutSettings(every=2)
    watch = Watch(tmp_path, 6, settings, lambda: next(losses))
    for step in (2, 4, 5, 6, 6):
        weights = tmp_path / f"{step}.safetensors"
        weights.write_bytes(bytes([step]))
        assert watch(step, weights) == "continue"
    assert [row["step"] for row in read_held_out(tmp_path)] == [2, 4, 6]
    assert (tmp_path / "checkpoints/best.safetensors").read_bytes() == bytes([4])
    assert held_out_facts(tmp_path) == {"held_out_loss": 2.0, "best_held_out_loss": 1.0, "best_step": 4}


def test_a_loss_that_is_no_number_does_not_hide_the_others(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    losses = iter([float("nan"), 0.5, 0.7])
    watch = Watch(tmp_path, 6, HeldOutSettings(every=2), lambda: next(losses))
    for step in (2, 4, 6):
        weights = tmp_path / f"{step}.safetensors"
        weights.write_bytes(bytes([step]))
        watch(step, weights)
    assert (tmp_path / "checkpoints/best.safetensors").read_bytes() == bytes([4])
    assert held_out_facts(tmp_path) == {"held_out_loss": 0.7, "best_held_out_loss": 0.5, "best_step": 4}


def test_levels_of_held_out_examples_are_spread_evenly(tmp_path: Path) -> None:
    from t2i.training.held_out import HeldOutLoss

    task: Any = tiny.diffusion_task(tmp_path)
    loss = HeldOutLoss(task.examples, HeldOutSettings(examples=10), batch_size=4, seed=1)
    batches = list(loss._batches())
    assert [len(batch.latents) for batch in batches] == [4, 4, 2]
    levels = sorted(float(level) for batch in batches for level in batch.uniform)
    assert levels == pytest.approx(list((np.arange(10) + 0.5) / 10))
    again = list(loss._batches())
    assert all(torch.equal(a.noise, b.noise) for a, b in zip(batches, again, strict=True))


def test_held_out_images_are_chosen_by_their_content() -> None:
    records = list(load_records(tiny.captioned_photographs() / "records.jsonl"))
    [kept], [held] = hold_out([records], 0.5, seed=7)
    assert sorted(row.id for row in [*kept, *held]) == sorted(row.id for row in records)
    fewer_kept, fewer_held = hold_out([list(reversed(records)), [*records, *records]], 0.5, seed=7)
    for some_kept, some_held in zip(fewer_kept, fewer_held, strict=True):
        assert {row.id for row in some_kept} == {row.id for row in kept}
        assert {row.id for row in some_held} == {row.id for row in held}


def test_share_that_holds_out_nothing_or_all_is_refused() -> None:
    records = list(load_records(tiny.captioned_photographs() / "records.jsonl"))
    for share in (1e-9, 1 - 1e-9):
        with pytest.raises(DataError, match=r"held_out\.share: .* images; change it"):
            hold_out([records], share, seed=0)


@pytest.mark.skipif(importlib.util.find_spec("wandb") is not None, reason="wandb is installed")
def test_tracker_without_its_package_is_refused() -> None:
    stage = tiny.from_recipe(
        Train,
        {
            "model": str(tiny.sd1()),
            "data_from": "caption",
            "captions": {"caption": 1.0},
            "optimizer": {"learning_rate": 1e-2},
            "loop": {"steps": 1, "batch_size": 1},
            "tracking": {"to": ["wandb"]},
        },
    )
    with pytest.raises(MissingDependencyError, match=r"tracking\.to: wandb needs .*t2i-toolkit\[wandb\]"):
        stage.check()


@pytest.mark.skipif(importlib.util.find_spec("tensorboard") is None, reason="tensorboard is not installed")
def test_tensorboard_gets_what_is_logged(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    loop = {"steps": 2, "batch_size": 2, "log_every": 1}
    train(tmp_path / "train", tracking={"to": ["tensorboard"]}, loop=loop)
    [events] = (tmp_path / "train/tracking").rglob("events.*")
    found = EventAccumulator(str(events)).Reload().Scalars("loss")
    logged = [json.loads(line) for line in (tmp_path / "train/metrics.jsonl").read_text().splitlines()]
    assert [event.value for event in found] == pytest.approx([row["loss"] for row in logged], rel=1e-5)
