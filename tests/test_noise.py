"""The noise process is diffusers' own, to the last bit."""

from __future__ import annotations

import math

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, PNDMScheduler

from t2i.errors import ModelError
from t2i.noise import DDPM

SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def draws() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    latents, noise = torch.randn(2, 6, 4, 8, 8, generator=draw)
    return latents, noise, torch.tensor([0, 1, 250, 500, 998, 999])


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("zero_snr", [False, True])
def test_noisy_latents_and_targets_are_those_of_diffusers(prediction_type: str, zero_snr: bool) -> None:
    scheduler = DDPMScheduler(**SCHEDULE, prediction_type=prediction_type, rescale_betas_zero_snr=zero_snr)
    process = DDPM.from_scheduler(scheduler)
    latents, noise, timesteps = draws()
    assert torch.equal(process.add_noise(latents, noise, timesteps), scheduler.add_noise(latents, noise, timesteps))
    target = process.target(latents, noise, timesteps)
    velocity = scheduler.get_velocity(latents, noise, timesteps)
    assert torch.equal(target, velocity if prediction_type == "v_prediction" else noise)


@pytest.mark.parametrize("scheduler_class", [DDIMScheduler, PNDMScheduler])
def test_training_noise_does_not_depend_on_the_sampler_of_the_checkpoint(scheduler_class: type) -> None:
    expected = DDPM.from_scheduler(DDPMScheduler(**SCHEDULE))
    assert torch.equal(DDPM.from_scheduler(scheduler_class(**SCHEDULE)).alphas_cumprod, expected.alphas_cumprod)


def test_values_by_hand() -> None:
    latents, noise = torch.tensor([[2.0]]), torch.tensor([[-1.0]])
    epsilon = DDPM(torch.tensor([0.64, 0.36]), "epsilon")
    velocity = DDPM(torch.tensor([0.64, 0.36]), "v_prediction")
    first, second = torch.tensor([0]), torch.tensor([1])
    assert float(epsilon.add_noise(latents, noise, first)) == pytest.approx(0.8 * 2 - 0.6 * 1)
    assert float(epsilon.add_noise(latents, noise, second)) == pytest.approx(0.6 * 2 - 0.8 * 1)
    assert float(epsilon.target(latents, noise, second)) == -1
    assert float(velocity.target(latents, noise, first)) == pytest.approx(0.8 * -1 - 0.6 * 2)


def test_clean_latents_follow_from_noisy_ones_and_the_target() -> None:
    process = DDPM.from_scheduler(DDPMScheduler(**SCHEDULE, prediction_type="v_prediction"))
    latents, noise, timesteps = draws()
    noisy, target = process.add_noise(latents, noise, timesteps), process.target(latents, noise, timesteps)
    signal = process.alphas_cumprod[timesteps].sqrt().reshape(-1, 1, 1, 1)
    sigma = (1 - process.alphas_cumprod[timesteps]).sqrt().reshape(-1, 1, 1, 1)
    torch.testing.assert_close(signal * noisy - sigma * target, latents, atol=1e-5, rtol=0)


def test_every_timestep_is_as_likely_as_every_other() -> None:
    process = DDPM.from_scheduler(DDPMScheduler(**SCHEDULE))
    uniform = (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000
    counts = torch.bincount(process.timesteps(uniform.float()), minlength=1000)
    assert counts.tolist() == [4] * 1000


def test_timesteps_at_the_ends() -> None:
    process = DDPM.from_scheduler(DDPMScheduler(**SCHEDULE))
    # A draw below 1 in float64 can be 1 in float32.
    ends = torch.tensor([0.0, math.nextafter(1.0, 0.0), 1 - 2**-24, 0.9999])
    assert process.timesteps(ends).tolist() == [0, 999, 999, 999]
    assert process.timesteps(ends).dtype == torch.long


def test_half_precision_latents_stay_half_precision() -> None:
    process = DDPM.from_scheduler(DDPMScheduler(**SCHEDULE, prediction_type="v_prediction"))
    latents, noise, timesteps = draws()
    half = latents.bfloat16(), noise.bfloat16(), timesteps
    assert process.add_noise(*half).dtype == process.target(*half).dtype == torch.bfloat16


def test_other_prediction_types_are_refused() -> None:
    with pytest.raises(ModelError, match="prediction_type is 'sample'"):
        DDPM.from_scheduler(DDPMScheduler(prediction_type="sample"))
