"""Levels are the inverse CDF of their distribution, with 1 as noise; diffusers' are the same the other way round."""

from __future__ import annotations

import math

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from diffusers.training_utils import compute_density_for_timestep_sampling
from pydantic import ValidationError
from torch import Tensor

from t2i.errors import ConfigError
from t2i.timesteps import (
    LARGEST_MODE_SCALE,
    TimestepSettings,
    completed,
    logit_normal,
    mode,
    noise_levels,
    shift_factor,
    shifted,
)

SETTINGS = [
    TimestepSettings(),
    TimestepSettings(shift=3.0),
    TimestepSettings(distribution="logit_normal"),
    TimestepSettings(distribution="logit_normal", logit_mean=-0.7, logit_std=1.5, shift=0.5),
    TimestepSettings(distribution="mode"),
    TimestepSettings(distribution="mode", mode_scale=-1.0, shift=3.0),
    TimestepSettings(distribution="mode", mode_scale=LARGEST_MODE_SCALE),
    TimestepSettings(distribution="logit_normal", shift="resolution"),
]


def grid(count: int = 20_000) -> Tensor:
    """Midpoints of equal parts of [0, 1]: their mean is an integral."""
    return (torch.arange(count, dtype=torch.float64) + 0.5) / count


def levels(values: list[float], settings: TimestepSettings, tokens: float | None = None) -> list[float]:
    return noise_levels(torch.tensor(values, dtype=torch.float64), settings, tokens).tolist()


def test_plain_uniform_levels_are_the_draws_to_the_last_bit() -> None:
    draws = torch.rand(1000, generator=torch.Generator().manual_seed(0))
    assert torch.equal(noise_levels(draws, TimestepSettings()), draws)
    assert noise_levels(torch.ones(1), TimestepSettings()).tolist() == [1.0]


def test_shift_by_hand() -> None:
    assert shifted(0.5, 3.0) == pytest.approx(0.75)
    assert shifted(0.25, 3.0) == pytest.approx(0.5)
    assert levels([0.0, 0.25, 0.5], TimestepSettings(shift=3.0)) == pytest.approx([0.0, 0.5, 0.75])
    assert shifted(shifted(0.3, 2.5), 1 / 2.5) == pytest.approx(0.3)
    # It multiplies the odds of noise.
    assert shifted(0.3, 4.0) / (1 - shifted(0.3, 4.0)) == pytest.approx(4 * 0.3 / 0.7)


def test_logit_normal_quantiles_by_hand() -> None:
    # The median is where the logit is the mean; the normal CDF of 1 is 0.8413.
    settings = TimestepSettings(distribution="logit_normal", logit_mean=0.4, logit_std=0.8)
    draws = [0.5, 0.841344746068543, 1 - 0.841344746068543]
    expected = [1 / (1 + math.exp(-logit)) for logit in (0.4, 0.4 + 0.8, 0.4 - 0.8)]
    assert levels(draws, settings) == pytest.approx(expected)
    assert levels([0.0, 1.0], settings) == [0.0, 1.0]


def test_mode_quantiles_by_hand() -> None:
    # sin^2(pi/6) = 1/4, so 1/3 goes to 1/3 - k (1/4 - 1/3).
    assert levels([1 / 3], TimestepSettings(distribution="mode", mode_scale=1.2)) == pytest.approx([1 / 3 + 0.1])
    assert levels([0.0, 0.5, 1.0], TimestepSettings(distribution="mode")) == pytest.approx([0.0, 0.5, 1.0])
    assert levels([0.3], TimestepSettings(distribution="mode", mode_scale=0.0)) == pytest.approx([0.3])


def test_more_noise_with_a_higher_mean_and_a_higher_shift() -> None:
    middle = [levels([0.5], TimestepSettings(distribution="logit_normal", logit_mean=m))[0] for m in (-1.0, 0.0, 1.0)]
    assert middle == sorted(middle)
    assert levels([0.5], TimestepSettings(shift=3.0)) > levels([0.5], TimestepSettings(shift=1.0))


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_levels_rise_with_the_draw_from_0_to_1(settings: TimestepSettings) -> None:
    found = noise_levels(grid(), settings, 1024)
    # At its largest scales the mode map is flat somewhere, to the last bit.
    assert (found.diff() >= -1e-15).all()
    assert noise_levels(torch.tensor([0.0, 1.0]), settings, 1024).tolist() == pytest.approx([0.0, 1.0], abs=1e-6)


@pytest.mark.parametrize("scale", [-1.0, -0.4, 0.8, 1.29, LARGEST_MODE_SCALE])
def test_mode_has_the_moments_of_its_closed_form(scale: float) -> None:
    found = mode(grid(), scale)
    # With v = u - 1/2 the level is 1/2 + (1 + k) v - k/2 sin(pi v).
    variance = (1 + scale) ** 2 / 12 - 2 * (1 + scale) * scale / math.pi**2 + scale**2 / 8
    assert float(found.mean()) == pytest.approx(0.5)
    assert float(found.var(correction=0)) == pytest.approx(variance, rel=1e-6)


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (0.5, 0.6), (-1.0, 2.0)])
def test_logit_of_logit_normal_levels_is_normal(mean: float, std: float) -> None:
    found = logit_normal(grid(), mean, std)
    logits = torch.logit(found)
    assert float(logits.mean()) == pytest.approx(mean, abs=1e-6)
    assert float(logits.std(correction=0)) == pytest.approx(std, rel=1e-3)
    share_below = float((logits < mean + std).double().mean())
    assert share_below == pytest.approx(0.8413447, abs=1e-4)


def test_mode_is_that_of_diffusers_at_the_other_end() -> None:
    theirs = compute_density_for_timestep_sampling(
        "mode", 1000, mode_scale=1.29, generator=torch.Generator().manual_seed(0)
    )
    draws = torch.rand(1000, generator=torch.Generator().manual_seed(0))
    ours = noise_levels(1 - draws, TimestepSettings(distribution="mode"))
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)


def test_timesteps_are_those_of_the_diffusers_script_with_the_sign_of_the_mean_turned() -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    theirs = compute_density_for_timestep_sampling(
        "logit_normal", 4000, logit_mean=0.6, logit_std=0.8, generator=torch.Generator().manual_seed(0)
    )
    sigmas = scheduler.sigmas[(theirs * 1000).long()]
    normal = (torch.logit(theirs) - 0.6) / 0.8
    settings = TimestepSettings(distribution="logit_normal", logit_mean=-0.6, logit_std=0.8, shift=3.0)
    ours = noise_levels(torch.special.ndtr(-normal), settings)
    # Theirs is rounded up to 1/1000 before the shift, which stretches by 3 at most.
    assert float((sigmas - ours).min()) > -1e-5
    assert float((sigmas - ours).max()) < 0.003 + 1e-5


@pytest.mark.parametrize("tokens", [64, 256, 1024, 4096, 9216])
def test_resolution_shift_is_that_of_the_flux_pipeline(tokens: int) -> None:
    settings = TimestepSettings(shift="resolution")
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    draws = torch.linspace(0.01, 1, 50)
    theirs = scheduler.time_shift(calculate_shift(tokens), 1.0, draws)
    torch.testing.assert_close(noise_levels(draws, settings, tokens), theirs)


def test_resolution_shift_by_hand() -> None:
    settings = TimestepSettings(shift="resolution")
    # 1024 px make 64 x 64 tokens, 512 px 32 x 32.
    assert shift_factor(settings, 4096) == pytest.approx(math.exp(1.15))
    assert shift_factor(settings, 1024) == pytest.approx(math.exp(0.5 + 0.65 * 768 / 3840))
    with pytest.raises(ConfigError, match="needs a denoiser that cuts images into tokens"):
        shift_factor(settings)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_range_keeps_the_distribution_within_it(settings: TimestepSettings) -> None:
    low, high = 0.3, 0.85
    everything = noise_levels(grid(), settings, 1024)
    within = everything[(everything >= low) & (everything <= high)]
    ranged = noise_levels(grid(len(within)), settings.model_copy(update={"min_level": low, "max_level": high}), 1024)
    torch.testing.assert_close(ranged, within, atol=2e-4, rtol=0)


def test_range_by_hand() -> None:
    settings = TimestepSettings(min_level=0.2, max_level=0.6)
    assert levels([0.0, 0.25, 1.0], settings) == pytest.approx([0.2, 0.3, 0.6])
    upper_half = TimestepSettings(distribution="logit_normal", min_level=0.5)
    assert levels([0.0, (0.841344746068543 - 0.5) * 2], upper_half) == pytest.approx([0.5, 1 / (1 + math.exp(-1))])


def test_levels_of_an_example_do_not_depend_on_the_others() -> None:
    draws = torch.rand(16, generator=torch.Generator().manual_seed(0))
    for settings in SETTINGS:
        together = noise_levels(draws, settings, 1024)
        assert torch.equal(noise_levels(draws.flip(0), settings, 1024), together.flip(0))


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ('{"shift": 0}', "shift must be above 0"),
        ('{"shift": "resolutoin"}', "resolution"),
        ('{"min_level": 0.5, "max_level": 0.5}', "must be below max_level"),
        ('{"shift": "resolution", "base_tokens": 4096}', "must be below max_tokens"),
        ('{"logit_mean": 1}', "logit_mean counts with `distribution: logit_normal` only"),
        ('{"distribution": "logit_normal", "mode_scale": 1}', "mode_scale counts with `distribution: mode` only"),
        ('{"shift": 3, "max_shift": 1.2}', "max_shift counts with `shift: resolution` only"),
        ('{"distribution": "mode", "mode_scale": 1.8}', "less than or equal to 1.75"),
        ('{"distribution": "logit_normal", "logit_std": 0}', "greater than 0"),
    ],
)
def test_settings_that_mean_nothing_are_refused(written: str, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        TimestepSettings.model_validate_json(written)


def test_whole_numbers_are_taken_as_shifts() -> None:
    assert TimestepSettings.model_validate_json('{"shift": 3}').shift == 3.0


FLUX = TimestepSettings(
    distribution="logit_normal", shift="resolution", base_tokens=16, max_tokens=64, base_shift=0.25, max_shift=1
)
"""Levels of a model of flow."""


@pytest.mark.parametrize(
    ("written", "found"),
    [
        (None, FLUX),
        (TimestepSettings(), FLUX),
        (TimestepSettings(min_level=0.1), FLUX.model_copy(update={"min_level": 0.1})),
        (
            TimestepSettings(distribution="uniform"),
            FLUX.model_copy(update={"distribution": "uniform"}),
        ),
        (TimestepSettings(shift=3), TimestepSettings(distribution="logit_normal", shift=3)),
        (
            TimestepSettings(distribution="mode", mode_scale=0.5, shift=1),
            TimestepSettings(distribution="mode", mode_scale=0.5, shift=1),
        ),
        (
            TimestepSettings(distribution="logit_normal", logit_mean=0.5),
            FLUX.model_copy(update={"logit_mean": 0.5}),
        ),
    ],
)
def test_what_is_left_open_is_as_the_model_was_made_for(
    written: TimestepSettings | None, found: TimestepSettings
) -> None:
    assert completed(written, FLUX) == found


def test_a_choice_comes_with_its_own_parameters() -> None:
    bell = TimestepSettings(distribution="logit_normal", logit_mean=0.3, logit_std=0.8, shift=2)
    flat = TimestepSettings(distribution="uniform", shift=2)
    assert completed(TimestepSettings(distribution="uniform"), bell) == flat
    assert completed(TimestepSettings(shift=1), bell) == bell.model_copy(update={"shift": 1.0})
