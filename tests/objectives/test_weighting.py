"""Weights by hand, against diffusers, and refused where they are not defined."""

from __future__ import annotations

import math

import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.training_utils import compute_loss_weighting_for_sd3, compute_snr

from t2i.errors import ConfigError
from t2i.noise import DDPM, RectifiedFlow
from t2i.objectives.pseudo_huber import PseudoHuber, exponential_c, pseudo_huber, snr_c
from t2i.objectives.weighting import (
    Cosmap,
    Debiased,
    MinSnr,
    SigmaSqrt,
    Weighting,
    cosmap_weights,
    debiased_weights,
    min_snr_weights,
    sigma_sqrt_weights,
)
from t2i.timesteps import TimestepSettings

SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
EPSILON = DDPM.from_scheduler(DDPMScheduler(**SCHEDULE))
VELOCITY = DDPM.from_scheduler(DDPMScheduler(**SCHEDULE, prediction_type="v_prediction"))
UNIFORM = TimestepSettings()
EVERY = torch.arange(1000)


def test_min_snr_by_hand() -> None:
    snr = torch.tensor([10.0, 2.0, 0.0, math.inf])
    assert min_snr_weights(snr[:3], 5.0, "epsilon").tolist() == pytest.approx([0.5, 1.0, 1.0])
    assert min_snr_weights(snr[:3], 5.0, "v_prediction").tolist() == pytest.approx([5 / 11, 2 / 3, 0.0])
    assert min_snr_weights(snr[3:], 5.0, "epsilon").tolist() == [0.0]


@pytest.mark.parametrize("process", [EPSILON, VELOCITY])
def test_min_snr_is_that_of_the_diffusers_scripts(process: DDPM) -> None:
    snr = compute_snr(DDPMScheduler(**SCHEDULE), EVERY)
    smaller = torch.stack([snr, 5.0 * torch.ones_like(snr)], dim=1).min(dim=1).values
    theirs = smaller / (snr if process is EPSILON else snr + 1)
    torch.testing.assert_close(MinSnr().weights(process, EVERY), theirs, rtol=1e-4, atol=1e-6)


def test_debiased_by_hand() -> None:
    snr = torch.tensor([4.0, 1e6])
    assert debiased_weights(snr, "epsilon").tolist() == pytest.approx([0.5, 1000**-0.5])
    three = torch.tensor([3.0, 0.0])
    assert debiased_weights(three, "inverse").tolist() == pytest.approx([0.25, 1.0])
    assert debiased_weights(three, "inverse_root").tolist() == pytest.approx([0.5, 1.0])
    assert debiased_weights(three, "equivalent").tolist() == pytest.approx([math.sqrt(3) / 4, 0.0])


def test_weights_of_v_give_the_same_loss_as_those_of_epsilon() -> None:
    """One error in the image, seen as an error of eps and of v."""
    draw = torch.Generator().manual_seed(0)
    latents, noise, error = torch.randn(3, 4, 6, generator=draw).double()
    timesteps = torch.tensor([150, 400, 700, 990])
    signal = EPSILON.alphas_cumprod.double()[timesteps].sqrt()[:, None]
    sigma = (1 - signal.square()).sqrt()
    noisy = signal * latents + sigma * noise
    wrong = latents + error
    wrong_noise = (noisy - signal * wrong) / sigma
    epsilon = (wrong_noise - noise).square().mean(1)
    velocity = ((signal * wrong_noise - sigma * wrong) - (signal * noise - sigma * latents)).square().mean(1)
    snr = EPSILON.snr(timesteps).double()
    for ours, theirs in (
        (debiased_weights(snr, "epsilon"), debiased_weights(snr, "equivalent")),
        (min_snr_weights(snr, 5.0, "epsilon"), min_snr_weights(snr, 5.0, "v_prediction")),
    ):
        torch.testing.assert_close(ours * epsilon, theirs * velocity, rtol=1e-5, atol=0)


def test_flow_weights_by_hand_and_as_in_diffusers() -> None:
    levels = torch.tensor([0.5, 1.0, 0.2])
    assert sigma_sqrt_weights(levels).tolist() == pytest.approx([4.0, 1.0, 25.0])
    assert cosmap_weights(levels).tolist() == pytest.approx([4 / math.pi, 2 / math.pi, 2 / math.pi / 0.68])
    grid = torch.linspace(0.001, 1, 500)
    torch.testing.assert_close(sigma_sqrt_weights(grid), compute_loss_weighting_for_sd3("sigma_sqrt", grid))
    torch.testing.assert_close(cosmap_weights(grid), compute_loss_weighting_for_sd3("cosmap", grid))


def test_cosmap_is_the_density_of_levels_with_the_log_snr_of_the_cosine_schedule() -> None:
    u = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    # log-SNR -2 log tan(pi u / 2) of the cosine schedule, equal to 2 log((1 - s) / s) of flow.
    levels = torch.tan(math.pi / 2 * u) / (1 + torch.tan(math.pi / 2 * u))
    slope = levels.diff() * 20_000
    torch.testing.assert_close(cosmap_weights((levels[1:] + levels[:-1]) / 2), slope.reciprocal(), rtol=1e-4, atol=0)
    assert float(cosmap_weights(u).mean()) == pytest.approx(1)


def test_weights_follow_the_level_that_the_timestep_stands_for() -> None:
    flow = RectifiedFlow()
    assert SigmaSqrt().weights(flow, torch.tensor([250.0])).tolist() == pytest.approx([16.0])
    assert Cosmap().weights(flow, torch.tensor([500.0])).tolist() == pytest.approx([4 / math.pi])
    snr = VELOCITY.snr(torch.tensor([300]))
    found = Debiased(v_form="inverse").weights(VELOCITY, torch.tensor([300]))
    assert found.tolist() == pytest.approx((1 / (snr + 1)).tolist())


@pytest.mark.parametrize(
    ("weighting", "process", "message"),
    [
        (MinSnr(), RectifiedFlow(), "min_snr is defined for epsilon and v_prediction, but this model predicts flow"),
        (Debiased(), RectifiedFlow(), "debiased is defined for epsilon and v_prediction"),
        (Debiased(), VELOCITY, "needs one of inverse, inverse_root, equivalent"),
        (Debiased(v_form="inverse"), EPSILON, "leave v_form out"),
        (SigmaSqrt(), EPSILON, "sigma_sqrt is defined for flow"),
        (SigmaSqrt(), RectifiedFlow(), "set timesteps.min_level above 0"),
        (Cosmap(), VELOCITY, "cosmap is defined for flow"),
        (
            Debiased(),
            DDPM.from_scheduler(DDPMScheduler(**SCHEDULE, rescale_betas_zero_snr=True)),
            "grows without bound in pure noise",
        ),
    ],
)
def test_weights_that_are_not_defined_are_refused(weighting: Weighting, process: DDPM, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        weighting.check(process, UNIFORM)


def test_weights_that_are_defined_pass() -> None:
    for weighting, process in ((MinSnr(), EPSILON), (MinSnr(), VELOCITY), (Debiased(), EPSILON)):
        weighting.check(process, UNIFORM)
    Debiased(v_form="equivalent").check(VELOCITY, UNIFORM)
    SigmaSqrt().check(RectifiedFlow(), TimestepSettings(min_level=0.001))
    Cosmap().check(RectifiedFlow(), UNIFORM)


def test_pseudo_huber_by_hand() -> None:
    # sqrt(3^2 + 4^2) is 5, so 2 * 4 * (5 - 4); and 2 * 12 * (13 - 12).
    found = pseudo_huber(torch.tensor([[3.0, -3.0, 0.0], [5.0, -5.0, 0.0]]), torch.tensor([4.0, 12.0]))
    assert found.tolist() == [pytest.approx([8.0, 8.0, 0.0]), pytest.approx([24.0, 24.0, 0.0])]


def test_pseudo_huber_is_squared_for_small_errors_and_absolute_for_large_ones() -> None:
    c = torch.tensor([0.1])
    small, large = torch.tensor([[1e-4]]), torch.tensor([[50.0]])
    assert float(pseudo_huber(small, c)) == pytest.approx(1e-8, rel=1e-3)
    assert float(pseudo_huber(large, c)) == pytest.approx(2 * 0.1 * (50 - 0.1), rel=1e-4)
    assert float(pseudo_huber(large, torch.tensor([1e5]))) == pytest.approx(2500, rel=1e-4)


def test_schedules_of_c_by_hand() -> None:
    assert exponential_c(torch.tensor([0.0, 0.5, 1.0]), 0.01).tolist() == pytest.approx([1.0, 0.1, 0.01])
    # SNR 1 and 1/4: noise over signal 1 and 2.
    assert snr_c(torch.tensor([1.0, 0.25]), 0.1).tolist() == pytest.approx([0.9 / 4 + 0.1, 0.9 / 9 + 0.1])
    assert snr_c(torch.tensor([0.0, math.inf]), 0.1).tolist() == pytest.approx([0.1, 1.0])


def test_c_of_a_process() -> None:
    timesteps = torch.tensor([0, 500])
    constant = PseudoHuber(schedule="constant", c=0.3).values(EPSILON, timesteps)
    assert constant.tolist() == pytest.approx([0.3, 0.3])
    assert constant.dtype == torch.float32
    exponential = PseudoHuber(schedule="exponential", c=0.01)
    assert exponential.values(EPSILON, timesteps).tolist() == pytest.approx([1.0, 0.1])
    assert exponential.values(RectifiedFlow(), torch.tensor([500.0])).tolist() == pytest.approx([0.1])
    sigma = ((1 - EPSILON.alphas_cumprod[500]) / EPSILON.alphas_cumprod[500]) ** 0.5
    found = PseudoHuber(schedule="snr", c=0.1).values(EPSILON, timesteps)
    assert float(found[1]) == pytest.approx(float(0.9 / (1 + sigma) ** 2 + 0.1))
