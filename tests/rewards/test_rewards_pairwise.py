"""Accuracy and calibration on preference pairs, worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from rewards.errors import InputError
from rewards.pairwise import ReliabilityBin, calibration, pairwise_accuracy, share_by_prompt
from rewards.statistics import wilson_interval


def test_ties_do_not_count_and_equal_scores_count_half() -> None:
    found = pairwise_accuracy([2.0, -1.0, 0.0, 5.0, 1.0], [1.0, 1.0, 0.8, 0.5, 0.3], list("abcde"))
    # Right, wrong, half; a tie; wrong, since the other image is the likelier one.
    assert found == wilson_interval(1.5, 4)
    assert found.value == pytest.approx(1.5 / 4)


def test_several_pairs_of_a_prompt_are_one_observation() -> None:
    margins, prompts = [1.0] * 20 + [-1.0] * 2 + [1.0] * 8, ["a"] * 20 + ["b"] * 2 + list("cdefghij")
    found = pairwise_accuracy(margins, [1.0] * 30, prompts)
    assert found.value == pytest.approx(9 / 10)
    assert found.clusters == 10
    assert 0.0 <= found.low < found.value < found.high <= 1.0


def test_prompts_that_agree_are_as_many_trials_as_there_are_prompts() -> None:
    found = pairwise_accuracy([1] * 8, [1] * 8, list("aabbccdd"))
    assert found == wilson_interval(4, 4)
    # Wilson's lower end for n of n is n / (n + z^2), with z^2 = 3.8415: 4 / 7.8415.
    assert (found.low, found.high) == (pytest.approx(0.5101, abs=1e-4), 1.0)
    # Every prompt half right: the interval is that of 2 of 4 and not a point.
    assert pairwise_accuracy([1, -1] * 4, [1] * 8, list("aabbccdd")) == wilson_interval(2, 4)


def test_a_share_of_one_prompt_is_one_trial() -> None:
    found = share_by_prompt({"a": [1.0] * 28})
    assert (found.value, found.low, found.clusters) == (1.0, pytest.approx(1 / 4.8415, abs=1e-4), 1)


def test_calibration_by_hand() -> None:
    three_to_one = math.log(3)
    found = calibration([three_to_one] * 3 + [-three_to_one], [1.0] * 4, bins=2)
    # Four claims of 3 in 4, and three of them hold.
    assert found.reliability == (ReliabilityBin(0.75, 1.0, 4, pytest.approx(0.75), pytest.approx(0.75)),)
    assert found.expected_calibration_error == pytest.approx(0.0)
    assert found.brier == pytest.approx((3 * 0.25**2 + 0.75**2) / 4)
    assert found.log_loss == pytest.approx(-(3 * math.log(0.75) + math.log(0.25)) / 4)


def test_sure_and_wrong_is_the_worst_calibration() -> None:
    found = calibration([-1000.0, -1000.0], [1.0, 1.0])
    assert found.expected_calibration_error == pytest.approx(1.0)
    assert found.brier == pytest.approx(1.0)
    assert found.log_loss == pytest.approx(1000.0)


def test_nothing_depends_on_which_image_of_a_pair_comes_first() -> None:
    random = np.random.default_rng(0)
    margins, preferences = random.normal(size=60), random.choice([0.5, 0.7, 1.0], size=60)
    swapped = random.random(60) < 0.5
    turned = np.where(swapped, -margins, margins), np.where(swapped, 1 - preferences, preferences)
    prompts = list(range(60))
    assert pairwise_accuracy(margins, preferences, prompts) == pairwise_accuracy(*turned, prompts)
    first, second = calibration(margins, preferences), calibration(*turned)
    assert first.brier == pytest.approx(second.brier)
    assert first.log_loss == pytest.approx(second.log_loss)
    assert first.expected_calibration_error == pytest.approx(second.expected_calibration_error)


def test_bins_add_up_and_the_error_is_their_weighted_distance() -> None:
    random = np.random.default_rng(1)
    margins = random.normal(size=500) * 2
    found = calibration(margins, random.choice([0.5, 1.0], size=500))
    assert sum(one.pairs for one in found.reliability) == 500
    distance = sum(one.pairs * abs(one.confidence - one.accuracy) for one in found.reliability) / 500
    assert found.expected_calibration_error == pytest.approx(distance)
    assert all(one.low <= one.confidence <= one.high for one in found.reliability)


def test_lists_of_other_lengths_and_values_are_refused() -> None:
    with pytest.raises(InputError, match="equal length"):
        calibration([1.0], [1.0, 1.0])
    with pytest.raises(InputError, match="finite"):
        calibration([float("nan")], [1.0])
    with pytest.raises(InputError, match="finite"):
        calibration([1.0], [1.5])
    with pytest.raises(InputError, match="2 prompts"):
        pairwise_accuracy([1.0, 1.0], [1.0, 0.5], ["a", "b"])
    with pytest.raises(InputError, match="3 clusters"):
        pairwise_accuracy([1.0, 1.0], [1.0, 1.0], ["a", "b", "c"])
