"""Optimizers: who is trained at which rate, AdamW as torch's, and a state that survives a checkpoint bit for bit."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from torch import Tensor, nn

from t2i.errors import ConfigError
from t2i.files import write_tensors
from t2i.objectives.base import LossOutput
from t2i.training.checkpoint import optimizer_tensors, restore_optimizer
from t2i.training.loop import Trainable, fit
from t2i.training.optim import build_optimizer, learning_rate_of
from t2i.training.settings import FullSettings, LoopSettings, LoraSettings, OptimizerSettings, check_rates

PACKAGES = {"adamw_8bit": "bitsandbytes", "prodigy": "prodigyopt"}
RATES = {"adamw": 1e-2, "adamw_8bit": 1e-2, "prodigy": 1.0}


def require(kind: str) -> None:
    if kind in PACKAGES and importlib.util.find_spec(PACKAGES[kind]) is None:
        pytest.skip(f"{PACKAGES[kind]} is not installed")


def parameters() -> dict[str, nn.Parameter]:
    """One large enough for 8 bits, one not, one that is zero at first."""
    draw = torch.Generator().manual_seed(0)
    large, small = torch.randn(64, 80, generator=draw), torch.randn(7, generator=draw)
    return {"a.large": nn.Parameter(large), "b.small": nn.Parameter(small), "b.zero": nn.Parameter(torch.zeros(5, 3))}


def settings(kind: str, **fields: Any) -> OptimizerSettings:
    return OptimizerSettings.model_validate({"type": kind, "learning_rate": RATES[kind], **fields})


def train(optimizer: torch.optim.Optimizer, named: dict[str, nn.Parameter], steps: range) -> None:
    """Steps with gradients that depend on the step and on the parameters."""
    for step in steps:
        draw = torch.Generator().manual_seed(step)
        for value in named.values():
            value.grad = 0.1 * value.detach() + torch.randn(value.shape, generator=draw)
        for group in optimizer.param_groups:
            group["lr"] = group["lr"] * 0.97
        optimizer.step()


def test_adamw_is_torch_fused_adamw_bit_for_bit() -> None:
    ours, theirs = parameters(), parameters()
    fields: Any = {"betas": (0.8, 0.95), "weight_decay": 0.05, "epsilon": 1e-6}
    optimizer, names = build_optimizer(ours, {"b.": 3e-2}, settings("adamw", **fields))
    groups: Any = [{"params": [theirs["a.large"]]}, {"params": [theirs["b.small"], theirs["b.zero"]], "lr": 3e-2}]
    reference = torch.optim.AdamW(groups, lr=1e-2, betas=(0.8, 0.95), weight_decay=0.05, eps=1e-6, fused=True)
    train(optimizer, ours, range(5))
    train(reference, theirs, range(5))
    assert names == ["a.large", "b.small", "b.zero"]
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


def test_learning_rate_is_that_of_the_first_prefix_times_every_ratio() -> None:
    rates, ratios = {"te.": 2.0, "te.x.": 3.0}, {".lora_B.": 16.0}
    assert learning_rate_of("te.x.lora_A.w", rates, ratios, 1.0) == 2
    assert learning_rate_of("te.x.lora_B.w", rates, ratios, 1.0) == 32
    assert learning_rate_of("unet.lora_B.w", rates, ratios, 1.0) == 16
    assert learning_rate_of("unet.lora_A.w", rates, ratios, 1.0) == 1


def test_lora_plus_moves_b_faster_by_its_ratio() -> None:
    named = {f"x.lora_{side}.w": nn.Parameter(torch.zeros(3)) for side in "AB"}
    optimizer, _ = build_optimizer(named, {}, settings("adamw", weight_decay=0.0), ratios={".lora_B.": 16.0})
    for value in named.values():
        value.grad = torch.ones(3)
    optimizer.step()
    # The first step of Adam is the learning rate, whatever the gradient.
    torch.testing.assert_close(named["x.lora_A.w"].detach(), torch.full((3,), -1e-2))
    torch.testing.assert_close(named["x.lora_B.w"].detach(), torch.full((3,), -16e-2))


def test_magnitudes_do_not_decay() -> None:
    named = {f"x.lora_{part}.default.weight": nn.Parameter(torch.ones(3)) for part in ("A", "magnitude_vector")}
    optimizer, _ = build_optimizer(named, {}, settings("adamw", weight_decay=0.5))
    for value in named.values():
        value.grad = torch.zeros(3)
    optimizer.step()
    assert torch.equal(named["x.lora_magnitude_vector.default.weight"], torch.ones(3))
    torch.testing.assert_close(named["x.lora_A.default.weight"].detach(), torch.full((3,), 1 - 1e-2 * 0.5))


@pytest.mark.parametrize("kind", ["adamw", "adamw_8bit", "prodigy"])
def test_going_on_from_a_file_gives_the_same_bits(tmp_path: Path, kind: str) -> None:
    require(kind)
    unbroken = parameters()
    optimizer, _ = build_optimizer(unbroken, {}, settings(kind))
    train(optimizer, unbroken, range(12))
    first = parameters()
    optimizer, names = build_optimizer(first, {}, settings(kind))
    train(optimizer, first, range(7))
    rates = [group["lr"] for group in optimizer.param_groups]
    write_tensors(tmp_path / "optimizer.safetensors", optimizer_tensors(optimizer, names))
    second = {name: nn.Parameter(value.detach().clone()) for name, value in first.items()}
    optimizer, names = build_optimizer(second, {}, settings(kind))
    restore_optimizer(optimizer, names, load_file(tmp_path / "optimizer.safetensors"))
    # The loop sets the learning rates at each step.
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    train(optimizer, second, range(7, 12))
    assert all(torch.equal(value, unbroken[name]) for name, value in second.items())
    assert not any(torch.equal(value, first[name]) for name, value in second.items())


@pytest.mark.parametrize("kind", ["adamw", "adamw_8bit", "prodigy"])
def test_going_on_with_channels_last_gives_the_same_bits(tmp_path: Path, kind: str) -> None:
    require(kind)

    def convolution() -> dict[str, nn.Parameter]:
        drawn = torch.randn(16, 8, 3, 3, generator=torch.Generator().manual_seed(0))
        return {"weight": nn.Parameter(drawn.to(memory_format=torch.channels_last))}

    unbroken, cut = convolution(), convolution()
    optimizer, _ = build_optimizer(unbroken, {}, settings(kind))
    train(optimizer, unbroken, range(4))
    optimizer, names = build_optimizer(cut, {}, settings(kind))
    train(optimizer, cut, range(2))
    rates = [group["lr"] for group in optimizer.param_groups]
    # A file has its tensors in the order of their dimensions.
    write_tensors(tmp_path / "optimizer.safetensors", optimizer_tensors(optimizer, names))
    optimizer, names = build_optimizer(cut, {}, settings(kind))
    restore_optimizer(optimizer, names, load_file(tmp_path / "optimizer.safetensors"))
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    train(optimizer, cut, range(2, 4))
    assert torch.equal(cut["weight"], unbroken["weight"])


@pytest.mark.parametrize(
    ("kind", "keys"),
    [
        ("adamw", {"a.large/exp_avg", "a.large/exp_avg_sq", "a.large/step", "b.small/exp_avg"}),
        ("adamw_8bit", {"a.large/state1", "a.large/absmax1", "a.large/step:int", "b.small/state1"}),
        ("prodigy", {"a.large/p0", "b.zero/p0", "[0]/d:float", "[0]/d_numerator:float", "[0]/k:int"}),
    ],
)
def test_a_state_holds_what_makes_each_optimizer_itself(kind: str, keys: set[str]) -> None:
    require(kind)
    named = parameters()
    optimizer, names = build_optimizer(named, {}, settings(kind))
    train(optimizer, named, range(3))
    tensors = optimizer_tensors(optimizer, names)
    assert keys <= tensors.keys()
    if kind == "adamw_8bit":
        assert (tensors["a.large/state1"].dtype, tensors["b.small/state1"].dtype) == (torch.uint8, torch.float32)


@pytest.mark.parametrize("kind", ["adamw", "adamw_8bit", "prodigy"])
def test_a_quadratic_is_minimised(kind: str) -> None:
    require(kind)
    goal = torch.randn(64, 80, generator=torch.Generator().manual_seed(3))
    value = nn.Parameter(torch.zeros(64, 80))
    rate = {"adamw": 0.1, "adamw_8bit": 0.1, "prodigy": 1.0}[kind]
    optimizer, _ = build_optimizer({"x": value}, {}, settings(kind, learning_rate=rate, weight_decay=0.0))
    for _ in range(120):
        loss = (value - goal).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert (value - goal).square().mean() < 0.1 * goal.square().mean()


class Distance(nn.Module):
    """Squared distance of one large and one small parameter to a point."""

    def __init__(self) -> None:
        super().__init__()
        self.large, self.small = nn.Parameter(torch.ones(64, 80)), nn.Parameter(torch.ones(7))

    def forward(self, point: Tensor) -> LossOutput:
        distance = (self.large - point).square().mean() + (self.small * point - 2).square().mean()
        return LossOutput(distance[None])


class Points:
    """Batch k is the point k / 10."""

    def micro_batches(self, first_step: int, last_step: int, rank: int, world_size: int) -> Iterator[Tensor]:
        for step in range(first_step, last_step):
            yield torch.tensor(step / 10)

    def describe(self, step: int) -> str:
        return str(step)


@pytest.mark.parametrize("kind", ["adamw", "adamw_8bit", "prodigy"])
def test_a_run_that_was_cut_ends_as_one_that_was_not(tmp_path: Path, kind: str) -> None:
    require(kind)
    optimizer = settings(kind, warmup_steps=3)
    weights = {}
    for name, parts in (("whole", (8,)), ("cut", (3, 8))):
        (tmp_path / name).mkdir()
        for steps in parts:
            loop = LoopSettings(steps=steps, batch_size=1, checkpoint_every=3)
            result = fit(Trainable(Distance()), Points(), loop, optimizer, tmp_path / name, seed=0)
            weights[name, steps] = result.weights
    assert result.resumed_from == 3
    for key, value in weights["whole", 8].items():
        assert torch.equal(value, weights["cut", 8][key])
        assert not torch.equal(value, weights["cut", 3][key])


def test_prodigy_refuses_several_rates() -> None:
    require("prodigy")
    with pytest.raises(ConfigError, match="one learning rate for all"):
        build_optimizer(parameters(), {"b.": 0.5}, settings("prodigy"))


def test_prodigy_takes_a_rate_that_is_a_factor() -> None:
    with pytest.raises(ValidationError, match=r"1 is usual, not 0\.0001"):
        settings("prodigy", learning_rate=1e-4)


@pytest.mark.parametrize("betas", [(0.9, 1.0), (0.9, 99.0), (-0.1, 0.99)])
def test_decays_that_are_none_are_found_in_the_recipe(betas: tuple[float, float]) -> None:
    with pytest.raises(ValidationError, match=r"betas"):
        settings("adamw", betas=betas)
    assert settings("adamw", betas=(0.0, 0.5)).betas == (0.0, 0.5)


@pytest.mark.parametrize(
    "trained",
    [
        LoraSettings(text_encoder=True, text_encoder_learning_rate=1e-5),
        LoraSettings(b_learning_rate_ratio=2),
        LoraSettings.model_validate({"modules": ({"match": "to_q", "learning_rate": 1e-3},)}),
    ],
)
def test_rates_that_prodigy_cannot_have_are_found_in_the_recipe(trained: LoraSettings) -> None:
    with pytest.raises(ValueError, match="prodigy has one learning rate for all"):
        check_rates(trained, settings("prodigy"))
    check_rates(trained, settings("adamw"))
    check_rates(FullSettings(components=("unet",)), settings("prodigy"))
