"""The noise processes are diffusers' own, to the last bit where both compute in the same way."""

from __future__ import annotations

import math

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, FlowMatchEulerDiscreteScheduler, PNDMScheduler
from diffusers.training_utils import compute_snr

from t2i.errors import ConfigError, ModelError
from t2i.noise import DDPM, RectifiedFlow, with_zero_terminal_snr, zero_terminal_snr
from t2i.timesteps import TimestepSettings

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


def test_levels_and_timesteps_of_ddpm_by_hand() -> None:
    process = DDPM(torch.linspace(0.9, 0.1, 4), "epsilon")
    assert process.timesteps(torch.tensor([0.0, 0.249, 0.25, 0.74, 1.0])).tolist() == [0, 0, 1, 2, 3]
    assert process.levels(torch.tensor([0, 1, 3])).tolist() == [0.0, 0.25, 0.75]
    every = torch.arange(1000)
    whole = DDPM.from_scheduler(DDPMScheduler(**SCHEDULE))
    # Half a step above its lowest level is safely within a timestep.
    assert torch.equal(whole.timesteps(whole.levels(every) + 0.0005), every)


def test_snr_by_hand_and_as_in_diffusers() -> None:
    assert DDPM(torch.tensor([0.8, 0.2]), "epsilon").snr(torch.tensor([0, 1])).tolist() == pytest.approx([4, 0.25])
    scheduler, every = DDPMScheduler(**SCHEDULE), torch.arange(1000)
    torch.testing.assert_close(
        DDPM.from_scheduler(scheduler).snr(every), compute_snr(scheduler, every), rtol=1e-4, atol=0
    )
    # Level 0.8 leaves a fifth of the image: (0.2 / 0.8)^2.
    snr = RectifiedFlow().snr(torch.tensor([1000.0, 800.0, 500.0, 0.0]))
    assert snr.tolist() == pytest.approx([0, 1 / 16, 1, math.inf])


def test_flow_by_hand() -> None:
    process = RectifiedFlow()
    latents, noise = torch.tensor([[2.0]]), torch.tensor([[-1.0]])
    timesteps = process.timesteps(torch.tensor([0.25]))
    assert timesteps.tolist() == [250.0]
    assert process.levels(timesteps).tolist() == [0.25]
    assert float(process.add_noise(latents, noise, timesteps)) == pytest.approx(0.75 * 2 - 0.25)
    assert float(process.target(latents, noise, timesteps)) == -3
    ends = torch.tensor([0.0, 1000.0])
    assert process.add_noise(latents.expand(2, 1), noise.expand(2, 1), ends).flatten().tolist() == [2.0, -1.0]


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_noisy_latents_of_flow_are_those_of_diffusers(shift: float) -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    latents, noise, _ = draws()
    timesteps = scheduler.timesteps[[0, 1, 250, 500, 998, 999]]
    theirs = scheduler.scale_noise(latents, timesteps, noise)
    torch.testing.assert_close(RectifiedFlow().add_noise(latents, noise, timesteps), theirs, rtol=0, atol=1e-6)


def test_a_step_along_the_target_of_flow_leads_to_the_image() -> None:
    latents, noise, _ = draws()
    timesteps = torch.tensor([1.0, 10.0, 250.0, 500.0, 900.0, 1000.0])
    process = RectifiedFlow()
    noisy, target = process.add_noise(latents, noise, timesteps), process.target(latents, noise, timesteps)
    levels = process.levels(timesteps).reshape(-1, 1, 1, 1)
    torch.testing.assert_close(noisy - levels * target, latents, rtol=0, atol=1e-5)


def test_flow_takes_its_levels_from_the_scheduler_of_the_checkpoint() -> None:
    fixed = RectifiedFlow.from_scheduler(FlowMatchEulerDiscreteScheduler(shift=3.0))
    assert fixed.default_timesteps == TimestepSettings(distribution="logit_normal", shift=3.0)
    dynamic = FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True, shift=3.0, max_shift=1.2, num_train_timesteps=500
    )
    process = RectifiedFlow.from_scheduler(dynamic, patch_size=1)
    assert process.default_timesteps == TimestepSettings(distribution="logit_normal", shift="resolution", max_shift=1.2)
    assert (process.patch_size, process.num_train_timesteps) == (1, 500)
    assert process.timesteps(torch.ones(1)).tolist() == [500.0]


def test_flow_in_half_precision_keeps_dtype_and_the_level() -> None:
    latents, noise, _ = draws()
    timesteps = torch.full((6,), 501.5)
    half = RectifiedFlow().add_noise(latents.bfloat16(), noise.bfloat16(), timesteps)
    exact = RectifiedFlow().add_noise(latents.bfloat16().float(), noise.bfloat16().float(), timesteps)
    assert torch.equal(half, exact.bfloat16())


@pytest.mark.parametrize(
    ("scheduler", "message"),
    [
        (DDPMScheduler(), "it has no shift"),
        (FlowMatchEulerDiscreteScheduler(invert_sigmas=True), "invert_sigmas is on"),
        (
            FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, time_shift_type="linear"),
            "time_shift_type is 'linear'",
        ),
    ],
)
def test_schedulers_of_another_flow_are_refused(scheduler: FlowMatchEulerDiscreteScheduler, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        RectifiedFlow.from_scheduler(scheduler)


def test_zero_terminal_snr_by_hand() -> None:
    # Roots 0.9, 0.6, 0.3 become (root - 0.3) 0.9 / 0.6.
    rescaled = zero_terminal_snr(torch.tensor([0.81, 0.36, 0.09]))
    assert rescaled.tolist() == pytest.approx([0.81, 0.45**2, 0.0])


def test_zero_terminal_snr_ends_in_noise_alone_and_is_that_of_diffusers() -> None:
    plain = DDPM.from_scheduler(DDPMScheduler(**SCHEDULE, prediction_type="v_prediction"))
    process = with_zero_terminal_snr(plain)
    assert float(process.alphas_cumprod[-1]) == 0
    assert process.alphas_cumprod[0] == plain.alphas_cumprod[0]
    sampler = DDPMScheduler(**SCHEDULE, prediction_type="v_prediction", rescale_betas_zero_snr=True)
    torch.testing.assert_close(process.alphas_cumprod, sampler.alphas_cumprod, rtol=1e-4, atol=1e-7)
    assert torch.equal(with_zero_terminal_snr(process).alphas_cumprod, process.alphas_cumprod)
    latents, noise, _ = draws()
    last = torch.full((6,), 999)
    assert torch.equal(process.add_noise(latents, noise, last), noise)
    assert torch.equal(process.target(latents, noise, last), -latents)


def test_zero_terminal_snr_is_refused_where_it_means_nothing() -> None:
    with pytest.raises(ConfigError, match="needs a v_prediction checkpoint"):
        with_zero_terminal_snr(DDPM.from_scheduler(DDPMScheduler(**SCHEDULE)))
    with pytest.raises(ConfigError, match="ends in pure noise already"):
        with_zero_terminal_snr(RectifiedFlow())
