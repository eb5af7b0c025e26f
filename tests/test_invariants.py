"""What may not change what is learned: portions, data workers, the gradient's sign and the batch's order."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from t2i import lora
from t2i.objectives.base import LossOutput
from t2i.stages.train import Train
from t2i.training.log import read_metrics
from t2i.training.loop import Trainable, fit
from t2i.training.settings import FullSettings, LoopSettings, LoraSettings, OptimizerSettings

LORA = {"type": "lora", "rank": 4, "alpha": 8.0, "text_encoder": True}


def train(folder: Path, *, steps: int = 20, **loop: object) -> dict[str, Tensor]:
    """Run a train stage on photographs; the LoRA it leaves."""
    fields = {
        "model": str(tiny.sd1()),
        "captions": {"caption": 1.0},
        "trained": LORA,
        "optimizer": {"learning_rate": 1e-3},
        "loop": {"steps": steps, "batch_size": 8, **loop},
    }
    facts = tiny.run_stage(Train, folder, fields, {"data_from": tiny.captioned_photographs()})
    assert facts["steps"] == steps
    return load_file(folder / facts["adapter"])


@pytest.fixture(scope="module")
def whole_batches(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    """LoRA after 20 steps of one batch of 8."""
    return train(tmp_path_factory.mktemp("run") / "train")


def fresh() -> dict[str, Tensor]:
    settings = LoraSettings(rank=4, alpha=8.0, text_encoder=True)
    return lora.adapter_state(lora.inject(tiny.load_sd1(), settings, seed=7))


def norm(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    """L2 norm of the difference."""
    return float(torch.stack([(a[name] - b[name]).double().square().sum() for name in a]).sum().sqrt())


def test_eight_portions_of_one_learn_what_one_batch_of_eight_learns(
    tmp_path: Path, whole_batches: dict[str, Tensor]
) -> None:
    portions = train(tmp_path / "train", micro_batch_size=1)
    update = norm(whole_batches, fresh())
    assert update > 0.1
    assert norm(portions, whole_batches) / update <= 1e-5


def test_data_workers_change_nothing_bit_for_bit(tmp_path: Path, whole_batches: dict[str, Tensor]) -> None:
    with_workers = train(tmp_path / "train", workers=2)
    assert all(torch.equal(with_workers[name], value) for name, value in whole_batches.items())


def test_finished_train_stage_keeps_results_and_no_working_files(tmp_path: Path) -> None:
    folder = tmp_path / "train"
    state = train(folder, steps=4, log_every=1, checkpoint_every=2)
    assert sorted(path.name for path in folder.iterdir()) == ["adapter", "metrics.jsonl", "trained.json"]
    assert [row["step"] for row in read_metrics(folder / "metrics.jsonl")] == [1, 2, 3, 4]
    [file] = (folder / "adapter").iterdir()
    written = file.stat()
    # As after a kill between the removal of the checkpoints and the mark that the stage is done.
    train(folder, steps=4, log_every=1, checkpoint_every=2)
    assert file.stat() == written, "trained again"
    file.unlink()
    again = train(folder, steps=4, log_every=1, checkpoint_every=2)
    assert all(torch.equal(again[name], value) for name, value in state.items())


@dataclass(frozen=True)
class OneBatch:
    """The same batch in every step."""

    batch: Any

    def micro_batches(self, first_step: int, last_step: int, rank: int, world_size: int) -> Iterator[Any]:
        for _ in range(first_step, last_step):
            yield self.batch

    def describe(self, step: int) -> str:
        return "the only batch"


class Negated(nn.Module):
    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, batch: Any) -> LossOutput:
        return LossOutput(-self.module(batch).loss)


@pytest.mark.parametrize(
    ("prediction_type", "trained", "learning_rate"),
    [
        ("epsilon", LoraSettings(rank=8, text_encoder=True), 1e-2),
        ("v_prediction", LoraSettings(rank=8), 1e-2),
        ("v_prediction", FullSettings(components=("unet", "text_encoder")), 1e-3),
    ],
    ids=["lora, epsilon", "lora, v", "full, v"],
)
def test_loss_falls_on_a_fixed_batch_and_rises_against_the_gradient(
    tmp_path: Path, prediction_type: str, trained: LoraSettings | FullSettings, learning_rate: float
) -> None:
    loop = LoopSettings(steps=30, batch_size=4, log_every=1)
    ratios = []
    for name, wrap in (("down", lambda module: module), ("up", Negated)):
        task = tiny.diffusion_task(tmp_path / name, trained=trained, prediction_type=prediction_type)
        batch = task.examples.collate([task.examples.example(record, 0, record) for record in range(4)])
        trainable = Trainable(wrap(task.trainable.module))
        optimizer = OptimizerSettings(learning_rate=learning_rate)
        fit(trainable, OneBatch(batch), loop, optimizer, tmp_path / name, seed=0)
        losses = [abs(row["loss"]) for row in read_metrics(tmp_path / name / "metrics.jsonl")]
        ratios.append(losses[-1] / losses[0])
    assert ratios[0] < 0.9
    assert ratios[1] > 1.1
