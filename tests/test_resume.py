"""A run that was killed and goes on ends with the same bits as one that was never killed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from t2i.data.batches import KeyedBatches
from t2i.data.sources import load_records
from t2i.errors import RunError
from t2i.objectives import Classification
from t2i.records import CaptionedImage
from t2i.training.loop import FitResult, fit
from t2i.training.settings import FullSettings, LoopSettings, OptimizerSettings
from t2i.training.tasks import Task, TaskSettings, build_task

STEPS = 8
LOOP = LoopSettings(
    steps=STEPS, batch_size=4, micro_batch_size=2, ema_decay=0.9, checkpoint_every=3, keep_checkpoints=3, log_every=2
)
OPTIMIZER = OptimizerSettings(learning_rate=1e-2, warmup_steps=2, schedule="cosine")


class Killed(BaseException):
    """Stands for the end of the process."""


@dataclass(frozen=True)
class EndingBatches:
    """Batches that end the process before step `last` is complete."""

    batches: KeyedBatches
    last: int

    def micro_batches(self, first_step: int, last_step: int, rank: int, world_size: int) -> Iterator[Any]:
        for number, batch in enumerate(self.batches.micro_batches(first_step, last_step, rank, world_size)):
            if number == 2 * (self.last - first_step) + 1:
                raise Killed
            yield batch

    def describe(self, step: int) -> str:
        return self.batches.describe(step)


def train(folder: Path, *, killed_in: int | None = None, workers: int = 0) -> FitResult:
    """What a train stage does, in a process of its own as far as the model is concerned."""
    return fit_task(tiny.diffusion_task(folder), folder, killed_in=killed_in, workers=workers)


def fit_task(task: Task, folder: Path, *, killed_in: int | None, workers: int = 0) -> FitResult:
    batches = KeyedBatches(task.examples, 7, LOOP.batch_size, 2, workers)
    source = batches if killed_in is None else EndingBatches(batches, killed_in)
    return fit(task.trainable, source, LOOP, OPTIMIZER, folder, seed=7)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[FitResult, Path]:
    """A run that was never killed, and its folder."""
    folder = tmp_path_factory.mktemp("whole")
    return train(folder), folder


def metrics(folder: Path) -> list[dict[str, float]]:
    """Lines of metrics.jsonl without the two values that measure time."""
    from t2i.training.log import read_metrics

    timed = ("images_per_second", "data_wait_share")
    return [
        {name: value for name, value in row.items() if name not in timed}
        for row in read_metrics(folder / "metrics.jsonl")
    ]


def assert_same_run(result: FitResult, folder: Path, whole: tuple[FitResult, Path]) -> None:
    expected, whole_folder = whole
    assert result.steps == expected.steps == STEPS
    assert all(torch.equal(result.weights[name], value) for name, value in expected.weights.items())
    last = f"checkpoints/step-{STEPS:08d}"
    assert not (folder / last / "buffers.safetensors").exists()
    for stem in ("weights", "optimizer", "ema"):
        file = f"{last}/{stem}.safetensors"
        assert (folder / file).read_bytes() == (whole_folder / file).read_bytes(), f"{stem} differs"
    assert metrics(folder) == metrics(whole_folder)


@pytest.mark.parametrize("killed_in", [1, 3, 5, 6, 7])
def test_resumed_run_is_bit_identical(tmp_path: Path, whole: tuple[FitResult, Path], killed_in: int) -> None:
    with pytest.raises(Killed):
        train(tmp_path, killed_in=killed_in)
    result = train(tmp_path)
    assert result.resumed_from == killed_in // 3 * 3
    assert_same_run(result, tmp_path, whole)


def test_run_killed_twice_with_data_workers_is_bit_identical(tmp_path: Path, whole: tuple[FitResult, Path]) -> None:
    for killed_in, workers in ((4, 2), (6, 0)):
        with pytest.raises(Killed):
            train(tmp_path, killed_in=killed_in, workers=workers)
    assert_same_run(train(tmp_path, workers=1), tmp_path, whole)


def test_finished_run_does_nothing_more(tmp_path: Path, whole: tuple[FitResult, Path]) -> None:
    shutil.copytree(whole[1], tmp_path, dirs_exist_ok=True)
    result = train(tmp_path)
    assert result.resumed_from == STEPS
    assert_same_run(result, tmp_path, whole)


def damage(checkpoint: Path, how: str) -> None:
    file = checkpoint / "optimizer.safetensors"
    if how == "truncated":
        file.write_bytes(file.read_bytes()[:1000])
    elif how == "missing file":
        file.unlink()
    elif how == "missing state":
        (checkpoint / "state.json").unlink()
    else:
        (checkpoint / "state.json").write_text("{")


@pytest.mark.parametrize("how", ["truncated", "missing file", "missing state", "torn state"])
def test_damaged_newest_checkpoint_is_passed_over(tmp_path: Path, whole: tuple[FitResult, Path], how: str) -> None:
    shutil.copytree(whole[1], tmp_path, dirs_exist_ok=True)
    damage(tmp_path / f"checkpoints/step-{STEPS:08d}", how)
    result = train(tmp_path)
    assert result.resumed_from == 6
    assert_same_run(result, tmp_path, whole)


def test_checkpoint_that_is_written_outlives_a_damaged_later_one(tmp_path: Path) -> None:
    from t2i.training.checkpoint import list_checkpoints, write_checkpoint

    weights = {"weights": {"value": torch.ones(1)}}
    for step in (6, 8):
        write_checkpoint(tmp_path, step, weights, keep=2)
    (tmp_path / "step-00000008/weights.safetensors").write_bytes(b"torn")
    write_checkpoint(tmp_path, 7, weights, keep=1)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-00000007"]


def test_run_whose_checkpoints_are_all_damaged_says_so(tmp_path: Path, whole: tuple[FitResult, Path]) -> None:
    shutil.copytree(whole[1], tmp_path, dirs_exist_ok=True)
    for checkpoint in (tmp_path / "checkpoints").iterdir():
        damage(checkpoint, "truncated")
    with pytest.raises(RunError, match="none of its 3 checkpoints can be read"):
        train(tmp_path)


def test_half_written_checkpoint_of_a_killed_run_is_no_checkpoint(
    tmp_path: Path, whole: tuple[FitResult, Path]
) -> None:
    half = tmp_path / "checkpoints/.step-00000003.99.tmp"
    half.mkdir(parents=True)
    (half / "weights.safetensors").write_bytes(b"half")
    result = train(tmp_path)
    assert result.resumed_from == 0
    assert_same_run(result, tmp_path, whole)


def test_torn_metrics_are_repaired(tmp_path: Path, whole: tuple[FitResult, Path]) -> None:
    with pytest.raises(Killed):
        train(tmp_path, killed_in=5)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')
    assert_same_run(train(tmp_path), tmp_path, whole)


class NormedReader(nn.Module):
    """Tells whether a picture is wide, and keeps running statistics of what it sees."""

    image_size = 16
    noise_shape = (1, 1, 1)

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.head = nn.BatchNorm2d(3), nn.Linear(3, 2)

    def labels(self, record: CaptionedImage) -> dict[str, np.ndarray]:
        return {"wide": np.array(int(record.width > record.height))}

    def augment(self, pixels: Tensor, labels: dict[str, Tensor], noise: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return pixels + 0.01 * noise, labels

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        return {"wide": self.head(self.norm(pixels).relu().mean(dim=(2, 3)))}


def train_reader(folder: Path, *, killed_in: int | None = None) -> FitResult:
    """As `train`, with a reader that has running statistics."""
    folder.mkdir(exist_ok=True)
    common: dict[str, Any] = {"model": "", "revision": None, "random_seed": 1, "mix": None, "resolution": None}
    common |= {"trained": FullSettings(components=("model",)), "posterior": "mode", "encode_batch_size": 4}
    records = load_records(tiny.captioned_photographs() / "records.jsonl")
    settings = TaskSettings(seed=7, folder=folder, records=records, **common)
    task = build_task(settings, Classification(reader="test_resume:NormedReader"))
    return fit_task(task, folder, killed_in=killed_in)


def test_resumed_run_goes_on_with_the_running_statistics(tmp_path: Path) -> None:
    expected = train_reader(tmp_path / "whole")
    with pytest.raises(Killed):
        train_reader(tmp_path / "killed", killed_in=5)
    result = train_reader(tmp_path / "killed")
    assert result.resumed_from == 3
    assert all(torch.equal(result.weights[name], value) for name, value in expected.weights.items())
    last = f"checkpoints/step-{STEPS:08d}"
    for stem in ("weights", "optimizer", "ema", "buffers"):
        file = f"{last}/{stem}.safetensors"
        assert (tmp_path / "killed" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes(), f"{stem} differs"
    kept = load_file(tmp_path / "killed" / last / "buffers.safetensors")
    assert kept.keys() == {f"model.norm.{name}" for name in ("running_mean", "running_var", "num_batches_tracked")}
    assert kept["model.norm.running_mean"].any()
    assert int(kept["model.norm.num_batches_tracked"]) == 2 * STEPS


def test_checkpoint_without_running_statistics_is_still_read(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        train_reader(tmp_path, killed_in=5)
    checkpoint = tmp_path / "checkpoints/step-00000003"
    (checkpoint / "buffers.safetensors").unlink()
    state = json.loads((checkpoint / "state.json").read_text())
    state["files"].remove("buffers")
    (checkpoint / "state.json").write_text(json.dumps(state))
    assert train_reader(tmp_path).resumed_from == 3


def test_statistics_that_no_training_changes_are_in_no_checkpoint() -> None:
    from t2i.training.checkpoint import buffer_tensors

    reader = NormedReader()
    assert len(buffer_tensors(reader)) == 3
    assert not buffer_tensors(reader.eval())


def test_tensors_of_a_checkpoint_outlive_their_file(tmp_path: Path) -> None:
    from t2i.training.checkpoint import read_newest, write_checkpoint

    write_checkpoint(tmp_path, 3, {"weights": {"value": torch.ones(1000)}}, keep=1)
    found = read_newest(tmp_path)
    assert found is not None
    file = tmp_path / "step-00000003/weights.safetensors"
    file.write_bytes(bytes(file.stat().st_size))
    assert torch.equal(found[1]["weights"]["value"], torch.ones(1000))
