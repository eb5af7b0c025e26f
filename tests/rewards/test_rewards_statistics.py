"""Intervals, comparisons and corrections, against values worked out by hand and published tables."""

from __future__ import annotations

import time
import tracemalloc

import numpy as np
import pytest
from scipy import stats

from rewards.correlation import kendall, pearson, spearman
from rewards.errors import InputError
from rewards.resampling import bca_interval, resampled_counts
from rewards.statistics import (
    bootstrap_interval,
    holm,
    paired_comparison,
    prompts_needed,
    sign_flip_p_value,
    wilson_interval,
)


def _pairs(prompts: int, seeds: int, shift: float, number: int = 0) -> tuple[dict, dict]:
    random = np.random.default_rng(number)
    keys = [(f"p{prompt}", sample, 7) for prompt in range(prompts) for sample in range(seeds)]
    hardness = {key: random.normal(size=1)[0] for key in keys}
    a = {key: hardness[key] + shift + 0.3 * random.normal() for key in keys}
    b = {key: hardness[key] + 0.3 * random.normal() for key in keys}
    return a, b


def test_interval_of_two_prompts_is_students_t_by_hand():
    # Prompt means 1 and 3: mean 2, standard error 1, t(0.975, 1 degree of freedom) = 12.7062.
    interval = bootstrap_interval({"x": [0.0, 2.0], "y": [3.0]})
    assert interval.value == 2.0
    assert (interval.low, interval.high) == pytest.approx((2 - 12.7062, 2 + 12.7062), abs=1e-4)
    assert interval.clusters == 2


def test_interval_agrees_with_scipys_bca_for_many_prompts():
    values = np.random.default_rng(1).lognormal(size=400)
    ours = bootstrap_interval(dict(enumerate(values[:, None].tolist())))
    theirs = stats.bootstrap((values,), np.mean, method="BCa", rng=3).confidence_interval
    reach = stats.t.ppf(0.975, 399) * stats.sem(values)
    assert ours.low == pytest.approx(min(theirs.low, values.mean() - reach), abs=0.01)
    assert ours.high == pytest.approx(max(theirs.high, values.mean() + reach), abs=0.01)


def test_more_images_of_the_same_kind_do_not_narrow_the_interval():
    values = np.random.default_rng(2).normal(size=20)
    one = bootstrap_interval({i: [v] for i, v in enumerate(values)})
    many = bootstrap_interval({i: [v] * 50 for i, v in enumerate(values)})
    assert (many.low, many.high) == pytest.approx((one.low, one.high))


def test_a_prompt_with_more_images_counts_no_more():
    assert bootstrap_interval({"x": [1.0] * 9, "y": [0.0]}).value == 0.5


def test_interval_of_equal_values_is_that_value():
    interval = bootstrap_interval({"x": [0.1], "y": [0.1], "z": [0.1]})
    assert (interval.low, interval.high) == pytest.approx((0.1, 0.1), abs=1e-12)


def test_interval_is_a_function_of_its_seed():
    values = {i: [v] for i, v in enumerate(np.random.default_rng(3).normal(size=30))}
    assert bootstrap_interval(values, seed=5) == bootstrap_interval(values, seed=5)
    assert bootstrap_interval(values, seed=5) != bootstrap_interval(values, seed=6)


@pytest.mark.parametrize(("prompts", "skewed"), [(5, False), (20, False), (40, True)])
def test_interval_covers_the_truth_about_as_often_as_it_says(prompts: int, skewed: bool):
    random = np.random.default_rng(4)
    covered = naive = 0
    for _ in range(300):
        effect = random.exponential(size=(prompts, 1)) - 1.0 if skewed else random.normal(size=(prompts, 1))
        scores = effect + 0.3 * random.normal(size=(prompts, 4))
        interval = bootstrap_interval(dict(enumerate(scores.tolist())), resamples=400)
        by_image = bootstrap_interval(dict(enumerate(scores.reshape(-1, 1).tolist())), resamples=400)
        covered += interval.low <= 0.0 <= interval.high
        naive += by_image.low <= 0.0 <= by_image.high
    assert 0.90 <= covered / 300 <= 0.985
    # What resampling images instead of prompts would give: the reason for all this.
    assert naive / 300 < 0.80


def test_ten_thousand_resamples_of_a_thousand_prompts_take_less_than_a_second():
    a, b = _pairs(1000, 1, 0.1)
    paired_comparison(dict(list(a.items())[:5]), dict(list(b.items())[:5]))  # imports scipy
    start = time.process_time()
    paired_comparison(a, b)
    assert time.process_time() - start < 1.0


@pytest.mark.parametrize("values", [{}, {"x": [1.0]}, {"x": [1.0], "y": []}, {"x": [1.0], "y": [float("nan")]}])
def test_too_few_prompts_or_missing_values_are_refused(values: dict):
    with pytest.raises(InputError):
        bootstrap_interval(values)


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    # Newcombe 1998, Statistics in Medicine 17, table I, method 3 (score without continuity correction).
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_interval_agrees_with_newcombes_table(successes: int, trials: int, low: float, high: float):
    interval = wilson_interval(successes, trials)
    assert (interval.low, interval.high) == pytest.approx((low, high), abs=5e-5)


def test_wilson_interval_mirrors_and_refuses_nonsense():
    a, b = wilson_interval(2.5, 10), wilson_interval(7.5, 10)
    assert (a.low, a.high) == pytest.approx((1 - b.high, 1 - b.low))
    for successes, trials in ((3, 2), (-1, 2), (0, 0)):
        with pytest.raises(InputError):
            wilson_interval(successes, trials)


def test_wilson_interval_holds_its_rate_whatever_rounding_does():
    for trials in range(1, 200):
        assert wilson_interval(trials, trials).high == 1.0
        assert wilson_interval(0, trials).low == 0.0


def test_comparison_by_hand():
    a = {("p", 0): 1.0, ("q", 0): 2.0, ("r", 0): 3.0, ("s", 0): 4.0}
    b = {("p", 0): 0.0, ("q", 0): 2.0, ("r", 0): 1.0, ("s", 0): 5.0}
    found = paired_comparison(a, b)
    assert (found.prompts, found.images) == (4, 4)
    assert (found.mean_a, found.mean_b, found.difference) == (2.5, 2.0, 0.5)
    assert (found.wins, found.ties, found.losses) == (2, 1, 1)
    assert found.win_rate == 2.5 / 4
    assert found.win_method == "wilson"
    expected = wilson_interval(2.5, 4)
    assert (found.win_low, found.win_high) == (expected.low, expected.high)
    # Differences 1, 0, 2, -1: of the 16 sign patterns 12 have a sum of at least 2 in size.
    assert found.p_value == 12 / 16
    assert not found.distinguishable
    assert "not distinguishable" in found.verdict


def test_swapping_a_and_b_swaps_every_number():
    a, b = _pairs(25, 3, 0.1)
    there, back = paired_comparison(a, b), paired_comparison(b, a)
    assert (back.difference, back.low, back.high) == pytest.approx((-there.difference, -there.high, -there.low))
    assert (back.wins, back.ties, back.losses) == (there.losses, there.ties, there.wins)
    assert (back.win_rate, back.win_low, back.win_high) == pytest.approx(
        (1 - there.win_rate, 1 - there.win_high, 1 - there.win_low)
    )
    assert back.p_value == there.p_value
    assert back.distinguishable == there.distinguishable


def test_order_of_keys_does_not_move_the_means():
    a, b = _pairs(25, 3, 0.1)
    turned = paired_comparison(dict(reversed(a.items())), b)
    assert turned.difference == pytest.approx(paired_comparison(a, b).difference, abs=1e-12)


def test_lower_is_better_turns_wins_but_not_the_difference():
    a, b = _pairs(25, 1, 0.5)
    up, down = paired_comparison(a, b), paired_comparison(a, b, higher_is_better=False)
    assert down.difference == up.difference
    assert (down.wins, down.losses) == (up.losses, up.wins)
    assert up.verdict.startswith("a is better")
    assert down.verdict.startswith("b is better")


def test_verdict_says_distinguishable_exactly_when_the_interval_leaves_out_zero():
    for shift in (0.0, 0.05, 0.1, 0.2, 0.5):
        found = paired_comparison(*_pairs(40, 2, shift), names=("tuned", "base"))
        assert found.distinguishable == (found.low > 0 or found.high < 0)
        assert ("not distinguishable" in found.verdict) != found.distinguishable
    assert found.verdict.startswith("tuned is better")


def test_wins_of_every_seed_are_not_counted_as_independent():
    # 3 prompts, 20 seeds each, all won: no more certain than 3 wins of 3.
    a, b = _pairs(3, 20, 100.0)
    found = paired_comparison(a, b)
    assert found.win_rate == 1.0
    assert found.win_low == pytest.approx(wilson_interval(3, 3).low)


def test_win_rate_of_several_seeds_is_resampled_by_prompt_and_stays_in_range():
    found = paired_comparison(*_pairs(5, 4, 0.4))
    assert found.win_method == "bootstrap"
    assert 0.0 <= found.win_low < found.win_rate < found.win_high <= 1.0


def test_identical_sets_are_not_distinguishable_and_all_ties():
    a, _ = _pairs(10, 2, 0.0)
    found = paired_comparison(a, dict(a))
    assert (found.ties, found.win_rate, found.difference, found.p_value) == (20, 0.5, 0.0, 1.0)
    assert not found.distinguishable


@pytest.mark.parametrize(("prompts", "p_value", "shown"), [(2, 2 / 4, False), (5, 2 / 32, False), (6, 2 / 64, True)])
def test_equal_differences_of_few_prompts_show_nothing(prompts: int, p_value: float, shown: bool):
    zero, one, tenth = ({str(number): value for number in range(prompts)} for value in (0.0, 1.0, 0.1))
    found = paired_comparison(one, zero)
    assert (found.difference, found.low, found.high, found.p_value) == (1.0, 1.0, 1.0, p_value)
    assert (found.distinguishable, "not distinguishable" in found.verdict) == (shown, not shown)
    assert f"{prompts} prompts, all the same: p" in found.verdict or shown
    uneven = {key: 0.1 + number * 1e-17 for number, key in enumerate(tenth)}
    assert paired_comparison(zero, uneven).distinguishable == shown


def test_keys_without_a_partner_are_listed():
    with pytest.raises(InputError, match=r"base lacks 1 of the keys of tuned: 'r'"):
        paired_comparison({"p": 1.0, "q": 1.0, "r": 1.0}, {"p": 1.0, "q": 1.0}, names=("tuned", "base"))
    with pytest.raises(InputError, match=r"a lacks 1 of the keys of b: 's'"):
        paired_comparison({"p": 1.0, "q": 1.0}, {"p": 1.0, "q": 1.0, "s": 1.0})


def test_comparison_refuses_one_prompt_and_missing_scores():
    with pytest.raises(InputError, match="at least 2 prompts; found 1"):
        paired_comparison({("p", 0): 1.0, ("p", 1): 2.0}, {("p", 0): 1.0, ("p", 1): 2.0})
    with pytest.raises(InputError, match="not finite"):
        paired_comparison({"p": 1.0, "q": float("nan")}, {"p": 1.0, "q": 1.0})


def test_false_alarms_are_about_one_in_twenty_even_with_few_prompts():
    alarms = sum(paired_comparison(*_pairs(4, 1, 0.0, number), resamples=300).distinguishable for number in range(300))
    assert alarms / 300 < 0.09


def test_sign_flips_by_hand_and_by_monte_carlo():
    assert sign_flip_p_value(np.array([1.0, 2.0, 3.0])) == 2 / 8
    assert sign_flip_p_value(np.array([1.0, -1.0])) == 1.0
    differences = np.random.default_rng(5).normal(0.4, 1.0, size=12)
    exact, drawn = sign_flip_p_value(differences), sign_flip_p_value(differences, draws=4000)
    assert drawn == pytest.approx(exact, abs=0.03)
    assert sign_flip_p_value(np.full(40, 1.0), draws=999) == 1 / 1000


def test_holm_by_hand():
    # Sorted 0.005, 0.01, 0.03, 0.04 times 4, 3, 2, 1 = 0.02, 0.03, 0.06, 0.04; then never falling.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == pytest.approx([1.0, 1.0])
    assert len(holm([])) == 0
    with pytest.raises(InputError):
        holm([1.5])


@pytest.mark.parametrize(("effect", "prompts"), [(0.2, 199), (0.5, 34), (0.8, 15)])
def test_prompts_needed_agrees_with_the_tables_for_paired_t_tests(effect: float, prompts: int):
    # Small, medium and large effect, power 0.8, two-sided 0.05: as G*Power gives them.
    assert prompts_needed(effect, 1.0) == prompts
    assert prompts_needed(-2 * effect, 2.0) == prompts


def test_prompts_needed_grows_as_the_inverse_square_of_the_effect():
    # Normal approximation: (1.95996 + 0.84162)^2 = 7.8489.
    assert prompts_needed(0.01, 1.0) == pytest.approx(78489, abs=3)
    assert prompts_needed(5.0, 1.0) == 3
    with pytest.raises(InputError):
        prompts_needed(0.0, 1.0)


def test_correlations_by_hand():
    # One of six pairs is discordant: tau 4/6. Squared rank differences 0, 1, 1, 0: rho 1 - 6*2/(4*15) = 0.8.
    x, y = [1.0, 2.0, 3.0, 4.0], [10.0, 30.0, 20.0, 1000.0]
    assert kendall(x, y, resamples=100).value == pytest.approx(4 / 6)
    assert spearman(x, y, resamples=100).value == pytest.approx(0.8)


def _scipy_value(name: str, x: np.ndarray, y: np.ndarray) -> float:
    test = {"pearson": stats.pearsonr, "spearman": stats.spearmanr, "kendall": stats.kendalltau}[name]
    return float(test(x, y).statistic)


@pytest.mark.parametrize("function", [pearson, spearman, kendall])
def test_correlation_and_interval_agree_with_a_resampling_loop_over_scipy(function):
    random = np.random.default_rng(6)
    x = random.integers(0, 8, size=30).astype(float)  # many ties
    y = np.round(x + 3 * random.normal(size=30))
    found = function(x, y, resamples=200, seed=9)
    name = function.__name__
    counts = np.concatenate(list(resampled_counts(30, 200, 9))).astype(int)
    draws = np.array([_scipy_value(name, np.repeat(x, row), np.repeat(y, row)) for row in counts])
    jackknife = np.array([_scipy_value(name, np.delete(x, i), np.delete(y, i)) for i in range(30)])
    low, high = bca_interval(_scipy_value(name, x, y), draws, jackknife, 0.95)
    assert (found.value, found.low, found.high) == pytest.approx((_scipy_value(name, x, y), low, high), abs=1e-6)


@pytest.mark.parametrize("function", [pearson, spearman])
def test_copies_of_an_item_within_its_prompt_do_not_narrow_the_interval(function):
    random = np.random.default_rng(7)
    x = random.normal(size=15)
    y = x + random.normal(size=15)
    one = function(x, y, resamples=300)
    four = function(np.repeat(x, 4), np.repeat(y, 4), np.repeat(np.arange(15), 4).tolist(), resamples=300)
    assert (four.value, four.low, four.high) == pytest.approx((one.value, one.low, one.high))
    assert four.clusters == 15


def test_the_number_of_images_changes_the_size_of_a_chunk_and_no_draw():
    chunks = list(resampled_counts(7, 200, 3, items=30_000))
    assert max(len(chunk) for chunk in chunks) * 30_000 <= 1_000_000
    np.testing.assert_array_equal(np.concatenate(chunks), np.concatenate(list(resampled_counts(7, 200, 3))))


def test_many_images_of_few_prompts_take_little_memory():
    random = np.random.default_rng(8)
    x = random.normal(size=40_000)
    y = x + random.normal(size=40_000)
    prompts = np.repeat(np.arange(8), 5_000).tolist()
    tracemalloc.start()
    try:
        pearson(x, y, prompts, resamples=100)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # All resamples at once would be four arrays of 32 MB and more.
    assert peak < 100e6


def test_correlation_refuses_what_has_no_correlation():
    with pytest.raises(InputError, match="same value everywhere"):
        spearman([1, 1, 1, 1], [1, 2, 3, 4])
    with pytest.raises(InputError, match="too few distinct values"):
        pearson([0, 0, 0, 0, 0, 0, 0, 1], range(8))
    with pytest.raises(InputError, match=r"shapes \(3,\) and \(2,\)"):
        kendall([1, 2, 3], [1, 2])
    with pytest.raises(InputError, match="not a finite number"):
        pearson([1, 2, float("nan"), 4], [1, 2, 3, 4])
    with pytest.raises(InputError, match="at least 4"):
        pearson([1, 2, 3, 4], [1, 2, 4, 3], ["p", "p", "q", "q"])
