"""The loop on a model of one number, where every value can be worked out by hand."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from t2i.errors import ConfigError, RunError
from t2i.objectives.base import LossOutput
from t2i.training.log import read_metrics
from t2i.training.loop import FitResult, Probe, Trainable, fit
from t2i.training.parallel import build_accelerator, micro_steps
from t2i.training.settings import LoopSettings, OptimizerSettings, ema_decay_at, learning_rate_factor, warmup_caution


@dataclass(frozen=True)
class Numbers:
    values: Tensor

    def to(self, device: torch.device) -> Numbers:
        return self


@dataclass(frozen=True)
class Steps:
    """The numbers of each step, in portions."""

    steps: list[list[float]]
    portion: int

    def micro_batches(self, first_step: int, last_step: int, rank: int, world_size: int) -> Iterator[Numbers]:
        for step in self.steps[first_step:last_step]:
            for start in range(0, len(step), self.portion):
                yield Numbers(torch.tensor(step[start : start + self.portion]))

    def describe(self, step: int) -> str:
        return f"numbers {self.steps[step]}"


class Slope(nn.Module):
    """Loss of an example x: slope * x (its gradient is x), and slope * x + (slope2 * x)^2 / 2 with a second number."""

    def __init__(self, *, second: bool = False) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(1.0))
        self.second = nn.Parameter(torch.tensor(2.0)) if second else None

    def forward(self, batch: Numbers) -> LossOutput:
        loss = self.slope * batch.values
        if self.second is not None:
            loss = loss + (self.second * batch.values).square() / 2
        return LossOutput(loss, {"number": batch.values})


def run(
    folder: Path,
    steps: list[list[float]],
    module: nn.Module | None = None,
    *,
    portion: int = 2,
    rates: dict[str, float] | None = None,
    probe: Probe | None = None,
    optimizer: OptimizerSettings | None = None,
    **loop: object,
) -> FitResult:
    settings = {"checkpoint_every": 1, "log_every": 1, "keep_checkpoints": 100, "micro_batch_size": portion} | loop
    loop_settings = LoopSettings.model_validate({"steps": len(steps), "batch_size": len(steps[0])} | settings)
    folder.mkdir(exist_ok=True)
    adamw = optimizer or OptimizerSettings(learning_rate=0.1, weight_decay=0.0)
    trainable = Trainable(module or Slope(), rates or {})
    return fit(trainable, Steps(steps, portion), loop_settings, adamw, folder, seed=0, probe=probe)


def weights_after(folder: Path, step: int, name: str = "slope") -> float:
    return float(load_file(folder / f"checkpoints/step-{step:08d}/weights.safetensors")[name])


def test_first_step_of_adamw_moves_by_the_learning_rate_against_the_gradient(tmp_path: Path) -> None:
    result = run(tmp_path, [[0.25, 0.5]])
    assert float(result.weights["slope"]) == pytest.approx(1 - 0.1)


def test_weight_decay_is_decoupled(tmp_path: Path) -> None:
    run(tmp_path, [[0.25, 0.5]], optimizer=OptimizerSettings(learning_rate=0.1, weight_decay=0.5))
    assert weights_after(tmp_path, 1) == pytest.approx(1 * (1 - 0.1 * 0.5) - 0.1)


def test_two_steps_of_adamw_by_hand(tmp_path: Path) -> None:
    run(tmp_path, [[0.25, 0.5], [0.1, -0.3]])
    slope, mean, square = 1.0, 0.0, 0.0
    for step, gradient in enumerate((0.375, -0.1), 1):
        mean = 0.9 * mean + 0.1 * gradient
        square = 0.999 * square + 0.001 * gradient**2
        slope -= 0.1 * (mean / (1 - 0.9**step)) / (math.sqrt(square / (1 - 0.999**step)) + 1e-8)
        assert weights_after(tmp_path, step) == pytest.approx(slope, rel=1e-6)


def test_logged_values_are_means_over_the_steps_since_the_last_line(tmp_path: Path) -> None:
    run(tmp_path, [[1.0, 2.0], [3.0, 4.0], [0.0, 0.0]], log_every=2, checkpoint_every=100)
    first, last = read_metrics(tmp_path / "metrics.jsonl")
    assert (first["step"], last["step"]) == (2, 3)
    assert first["number"] == pytest.approx(2.5)
    # Losses: slope 1 in step 0, and 0.9 in step 1.
    assert first["loss"] == pytest.approx((1 * 1.5 + 0.9 * 3.5) / 2)
    assert first["grad_norm"] == pytest.approx((1.5 + 3.5) / 2)
    assert last["loss"] == 0


@pytest.mark.parametrize("portion", [1, 2, 4, 8])
def test_portions_change_nothing_that_is_logged_or_learned(tmp_path: Path, portion: int) -> None:
    steps = [[0.5, 1.0, -2.0, 0.25, 4.0, 1.5, -0.5, 1.0]] * 3
    result = run(tmp_path, steps, Slope(second=True), portion=portion)
    whole = run(tmp_path / "whole", steps, Slope(second=True), portion=8)
    for name, value in whole.weights.items():
        assert float(result.weights[name]) == pytest.approx(float(value), rel=1e-6)
    for row, expected in zip(*(read_metrics(f / "metrics.jsonl") for f in (tmp_path, tmp_path / "whole")), strict=True):
        assert row["loss"] == pytest.approx(expected["loss"], rel=1e-6)
        assert row["grad_norm"] == pytest.approx(expected["grad_norm"], rel=1e-6)


def test_time_is_that_of_steps_and_not_of_what_looks_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock by which a step takes a second, a probe 100, and the check of the first batch 7."""
    clock = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])

    class Slow(Slope):
        def forward(self, batch: Numbers) -> LossOutput:
            clock[0] += 1
            return super().forward(batch)

    def look(step: int, weights: Path) -> Literal["continue"]:
        clock[0] += 100
        return "continue"

    def check(batch: Numbers) -> None:
        clock[0] += 7

    settings = LoopSettings(steps=4, batch_size=2, checkpoint_every=2, log_every=1)
    steps, adamw = Steps([[1.0, 2.0]] * 4, 2), OptimizerSettings(learning_rate=0.1)
    result = fit(Trainable(Slow(), check=check), steps, settings, adamw, tmp_path, seed=0, probe=look)
    assert result.seconds == pytest.approx(4)
    assert [row["images_per_second"] for row in read_metrics(tmp_path / "metrics.jsonl")] == pytest.approx([2] * 4)


def test_gradient_is_clipped_to_the_largest_norm(tmp_path: Path) -> None:
    # AdamW forgets the size of the gradient in the first step, but its first moment keeps it.
    run(tmp_path, [[30.0, 50.0]], optimizer=OptimizerSettings(learning_rate=0.1, max_grad_norm=2.0))
    moments = load_file(tmp_path / "checkpoints/step-00000001/optimizer.safetensors")
    assert float(moments["slope/exp_avg"]) == pytest.approx(0.1 * 2.0)
    assert read_metrics(tmp_path / "metrics.jsonl")[0]["grad_norm"] == pytest.approx(40.0)


def test_learning_rate_by_prefix(tmp_path: Path) -> None:
    result = run(tmp_path, [[0.25, 0.5]], Slope(second=True), rates={"second": 0.01})
    assert float(result.weights["slope"]) == pytest.approx(1 - 0.1)
    assert float(result.weights["second"]) == pytest.approx(2 - 0.01)


@pytest.mark.parametrize(
    ("schedule", "factors"),
    [
        ("constant", [0.5, 1.0, 1.0, 1.0, 1.0, 1.0]),
        ("linear", [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]),
        ("cosine", [0.5, 1.0, 1.0, (1 + math.sqrt(0.5)) / 2, 0.5, (1 - math.sqrt(0.5)) / 2]),
    ],
)
def test_learning_rate_schedule(tmp_path: Path, schedule: str, factors: list[float]) -> None:
    settings = OptimizerSettings.model_validate({"learning_rate": 0.2, "warmup_steps": 2, "schedule": schedule})
    assert [learning_rate_factor(settings, step, 6) for step in range(6)] == pytest.approx(factors)
    run(tmp_path, [[1.0, 1.0]] * 6, optimizer=settings)
    logged = [row["learning_rate"] for row in read_metrics(tmp_path / "metrics.jsonl")]
    assert logged == pytest.approx([0.2 * factor for factor in factors], rel=1e-6)


@pytest.mark.parametrize(("warmup", "said"), [(0, None), (3, None), (4, "100%"), (16, "25%")])
def test_a_warm_up_as_long_as_the_run_is_told(warmup: int, said: str | None) -> None:
    line = warmup_caution(OptimizerSettings(learning_rate=0.1, warmup_steps=warmup), 4)
    assert line is None if said is None else said in str(line)


def test_moving_average_by_hand(tmp_path: Path) -> None:
    steps = [[0.25, 0.5], [0.1, -0.3], [2.0, 1.0]]
    result = run(tmp_path, steps, ema_decay=0.15)
    average = 1.0
    for step, decay in enumerate((0.1, 0.15, 0.15)):  # (1 + 0) / (10 + 0), then the limit: 2 / 11 is above it
        average = decay * average + (1 - decay) * weights_after(tmp_path, step + 1)
    assert float(result.weights["slope"]) == pytest.approx(average, rel=1e-6)


def test_moving_average_is_what_the_module_keeps(tmp_path: Path) -> None:
    module = Slope()
    result = run(tmp_path, [[0.25, 0.5]] * 4, module, ema_decay=0.9)
    assert module.slope.item() == float(result.weights["slope"]) != weights_after(tmp_path, 4)


def test_decay_of_the_moving_average_rises_to_its_limit() -> None:
    assert [ema_decay_at(0.99, step) for step in (0, 1, 8)] == pytest.approx([1 / 10, 2 / 11, 9 / 18])
    assert ema_decay_at(0.99, 10_000) == 0.99


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_value_that_is_not_finite_stops_the_run_and_is_named(tmp_path: Path, bad: float) -> None:
    steps = [[1.0, 2.0]] * 3 + [[1.0, bad]] + [[1.0, 2.0]] * 4
    seen: list[int] = []

    def probe(step: int, weights: Path) -> str:
        seen.append(step)
        return "continue"

    with pytest.raises(RunError, match=rf"step 3: .*numbers \[1\.0, {bad}\]"):
        run(tmp_path, steps, checkpoint_every=2, log_every=100, probe=probe)  # pyright: ignore[reportArgumentType]
    assert seen == [2]
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step-00000002"]
    assert [row["step"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [2]


def test_value_that_is_not_finite_is_found_again_by_the_next_run(tmp_path: Path) -> None:
    steps = [[1.0, 2.0]] * 3 + [[1.0, math.nan]] + [[1.0, 2.0]] * 4
    for _ in range(2):
        with pytest.raises(RunError, match="step 3"):
            run(tmp_path, steps)


def test_number_of_kept_checkpoints_is_bounded(tmp_path: Path) -> None:
    counts: list[int] = []

    def probe(step: int, weights: Path) -> str:
        counts.append(len(list((tmp_path / "checkpoints").iterdir())))
        assert weights.is_file()
        return "continue"

    run(tmp_path, [[1.0, 2.0]] * 5, keep_checkpoints=2, probe=probe)  # pyright: ignore[reportArgumentType]
    assert counts == [1, 2, 2, 2, 2]
    assert [path.name[-1] for path in sorted((tmp_path / "checkpoints").iterdir())] == ["4", "5"]


def test_probe_sees_the_trained_weights_and_can_stop_the_run(tmp_path: Path) -> None:
    def probe(step: int, weights: Path) -> str:
        assert float(load_file(weights)["slope"]) == weights_after(tmp_path, step)
        return "stop" if step == 4 else "continue"

    result = run(tmp_path, [[1.0, 2.0]] * 9, checkpoint_every=2, probe=probe)  # pyright: ignore[reportArgumentType]
    assert result.steps == 4
    assert float(result.weights["slope"]) == weights_after(tmp_path, 4)


@pytest.mark.parametrize(
    ("portion", "processes", "portions"), [(None, 1, 1), (None, 4, 1), (2, 1, 4), (2, 2, 2), (1, 8, 1)]
)
def test_number_of_portions(portion: int | None, processes: int, portions: int) -> None:
    assert micro_steps(LoopSettings(steps=1, batch_size=8, micro_batch_size=portion), processes) == portions


@pytest.mark.parametrize(("portion", "processes"), [(None, 3), (None, 16), (4, 4), (8, 2)])
def test_batch_that_does_not_divide_is_refused(portion: int | None, processes: int) -> None:
    with pytest.raises(ConfigError, match=rf"batch_size 8 is not a multiple of .* x {processes} processes"):
        micro_steps(LoopSettings(steps=1, batch_size=8, micro_batch_size=portion), processes)


@pytest.mark.parametrize(("portion", "processes", "examples"), [(None, 1, 8), (None, 2, 4), (2, 4, 2), (None, 16, 1)])
def test_a_portion_without_a_size_is_the_process_s_share_of_the_batch(
    portion: int | None, processes: int, examples: int
) -> None:
    assert LoopSettings(steps=1, batch_size=8, micro_batch_size=portion).portion(processes) == examples


def test_gradients_are_never_sorted_into_other_buckets(tmp_path: Path) -> None:
    ddp = build_accelerator(tmp_path, None).ddp_handler
    assert ddp is not None
    # DDP rebuilds its buckets only where it does not look for unused parameters.
    assert (ddp.find_unused_parameters, ddp.static_graph) == (True, False)


def test_module_without_trained_parameters_is_refused(tmp_path: Path) -> None:
    module = Slope()
    module.slope.requires_grad_(False)
    with pytest.raises(ConfigError, match="nothing to train"):
        run(tmp_path, [[1.0, 2.0]], module)


def test_checkpoint_of_another_module_is_refused(tmp_path: Path) -> None:
    run(tmp_path, [[1.0, 2.0]])
    with pytest.raises(RunError, match="other weights"):
        run(tmp_path, [[1.0, 2.0]] * 2, Slope(second=True))


class Multiplies(nn.Module):
    """Loss of an example x: weight * x, as a matrix product."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1, 1))
        self.seen: list[torch.dtype] = []

    def forward(self, batch: Numbers) -> LossOutput:
        product = nn.functional.linear(batch.values[:, None], self.weight)
        self.seen.append(product.dtype)
        return LossOutput(product[:, 0].float())


def test_runs_of_one_process_may_differ_in_precision(tmp_path: Path) -> None:
    for number, (name, dtype) in enumerate(
        (("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp32", torch.float32))
    ):
        module = Multiplies()
        result = run(tmp_path / str(number), [[1.0, 2.0]], module, precision=name)
        assert set(module.seen) == {dtype}
        assert result.weights["weight"].dtype == torch.float32


def test_global_generator_is_a_function_of_the_step(tmp_path: Path) -> None:
    class Drops(Slope):
        def forward(self, batch: Numbers) -> LossOutput:
            return LossOutput(self.slope * batch.values * torch.rand(len(batch.values)))

    torch.manual_seed(1)
    first = run(tmp_path / "first", [[1.0, 2.0]] * 3, Drops())
    torch.manual_seed(2)
    assert torch.equal(run(tmp_path / "second", [[1.0, 2.0]] * 3, Drops()).weights["slope"], first.weights["slope"])
