"""A signal ends a run at the end of a step, with a checkpoint from which the next run goes on to the same bits."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from t2i.errors import RunError, StoppedError
from t2i.objectives.base import LossOutput
from t2i.training.log import read_metrics
from t2i.training.loop import FitResult, Probe, Trainable, fit
from t2i.training.settings import LoopSettings, OptimizerSettings

STEPS = 9
LOOP = LoopSettings(steps=STEPS, batch_size=2, checkpoint_every=4, log_every=3, ema_decay=0.9)
TIMES = ("images_per_second", "data_wait_share")


@dataclass(frozen=True)
class Numbers:
    values: Tensor

    def to(self, device: torch.device) -> Numbers:
        return self


@dataclass(frozen=True)
class Signalling:
    """Batches of which those of some steps come with a signal to this process."""

    signals: dict[int, signal.Signals]

    def micro_batches(self, first_step: int, last_step: int, rank: int, world_size: int) -> Iterator[Numbers]:
        for step in range(first_step, last_step):
            if step in self.signals:
                os.kill(os.getpid(), self.signals[step])
            yield Numbers(torch.tensor([1.0 + step, -0.5 * step]))

    def describe(self, step: int) -> str:
        return f"step {step}"


class Slope(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(1.0))

    def forward(self, batch: Numbers) -> LossOutput:
        return LossOutput((self.slope * batch.values - 1).square())


def train(folder: Path, signals: dict[int, signal.Signals] | None = None, probe: Probe | None = None) -> FitResult:
    optimizer = OptimizerSettings(learning_rate=0.1, schedule="cosine")
    return fit(Trainable(Slope()), Signalling(signals or {}), LOOP, optimizer, folder, seed=0, probe=probe)


def metrics(folder: Path) -> list[dict[str, Any]]:
    rows = read_metrics(folder / "metrics.jsonl")
    return [{name: value for name, value in row.items() if name not in TIMES} for row in rows]


@pytest.mark.parametrize("name", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("step", [0, 1, 3, 4, 8])
def test_signal_in_any_step_changes_nothing_that_is_learned_or_logged(
    tmp_path: Path, step: int, name: signal.Signals
) -> None:
    (tmp_path / "whole").mkdir()
    whole = train(tmp_path / "whole")
    before = signal.getsignal(name)
    with pytest.raises(StoppedError, match=f"{name.name}: stopped after step {step + 1} of 9, .* goes on") as stopped:
        train(tmp_path, {step: name})
    assert stopped.value.exit_code == 128 + name
    assert signal.getsignal(name) is before
    result = train(tmp_path)
    assert result.resumed_from == step + 1
    assert torch.equal(result.weights["slope"], whole.weights["slope"])
    assert metrics(tmp_path) == metrics(tmp_path / "whole")


def test_second_interrupt_ends_the_run_at_once(tmp_path: Path) -> None:
    class Impatient(Slope):
        def forward(self, batch: Numbers) -> LossOutput:
            for _ in range(2):
                os.kill(os.getpid(), signal.SIGINT)
            return super().forward(batch)

    with pytest.raises(KeyboardInterrupt):
        fit(Trainable(Impatient()), Signalling({}), LOOP, OptimizerSettings(learning_rate=0.1), tmp_path, seed=0)
    assert not (tmp_path / "checkpoints").exists()


def test_signal_does_not_save_a_loss_that_is_not_finite(tmp_path: Path) -> None:
    class Bad(Slope):
        def forward(self, batch: Numbers) -> LossOutput:
            return LossOutput(self.slope * batch.values * float("nan"))

    with pytest.raises(RunError, match="step 0: the loss"):
        fit(
            Trainable(Bad()),
            Signalling({0: signal.SIGTERM}),
            LOOP,
            OptimizerSettings(learning_rate=0.1),
            tmp_path,
            seed=0,
        )
    assert not (tmp_path / "checkpoints").exists()


def test_run_that_was_killed_while_its_probe_spoke_asks_it_again(tmp_path: Path) -> None:
    class Killed(BaseException):
        pass

    asked: list[int] = []

    def dies(step: int, weights: Path) -> str:
        raise Killed

    def stops(step: int, weights: Path) -> str:
        assert weights.is_file()
        asked.append(step)
        return "stop"

    with pytest.raises(Killed):
        train(tmp_path, probe=dies)  # pyright: ignore[reportArgumentType]
    for _ in range(2):
        assert train(tmp_path, probe=stops).steps == 4  # pyright: ignore[reportArgumentType]
    assert asked == [4, 4]
