"""What numbers look like, worked out by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from t2i.report.model import ComparisonRow
from t2i.report.numbers import (
    align,
    comparison_sentence,
    duration,
    headline,
    interval,
    number,
    percent_interval,
    supported_decimals,
    value_decimals,
)


def plain(text: str) -> str:
    return text.replace("\N{NO-BREAK SPACE}", " ").replace("\N{MINUS SIGN}", "-")


@pytest.mark.parametrize("value", [None, float("nan"), float("inf"), float("-inf")])
def test_what_does_not_exist_is_not_available(value: float | None) -> None:
    assert number(value, 2) == "n/a"
    assert interval(value, 1.0, 2) == "n/a"
    assert percent_interval(0.5, value) == "n/a"


def test_zero_is_a_number_and_carries_no_sign() -> None:
    assert number(0.0, 2, signed=True) == "0.00"
    assert number(-0.001, 2, signed=True) == "0.00"
    assert number(-0.006, 2) == "\N{MINUS SIGN}0.01"


@pytest.mark.parametrize(
    ("low", "high", "decimals"), [(0.0503, 0.1121, 3), (-18.0, -6.0, 1), (0.93, 1.49, 2), (0.0, 400.0, 0)]
)
def test_decimals_show_two_digits_of_the_half_width(low: float, high: float, decimals: int) -> None:
    assert supported_decimals(low, high) == decimals


def test_without_an_interval_three_digits_are_shown() -> None:
    assert supported_decimals(None, None, 21.31) == 1
    assert supported_decimals(0.5, 0.5, 0.5) == 3
    assert value_decimals([None, 0.25, 1.0]) == 2
    assert value_decimals([]) == 3


def test_aligned_numbers_have_their_points_below_each_other() -> None:
    assert align(["0.643", "21.31", "103", "n/a"], " ", " ") == ["0.643", "21.31 ", "103    ", "n/a"]


def test_durations_are_written_in_the_units_they_fill() -> None:
    assert [duration(s) for s in (2.34, 42.4, 187, 7500, None)] == ["2.3 s", "42 s", "3 min 07 s", "2 h 05 min", "n/a"]
    assert [duration(s) for s in (9.97, 59.6, 3599.7)] == ["10 s", "1 min 00 s", "1 h 00 min"]


def test_the_sentence_holds_difference_interval_and_prompts(comparison: ComparisonRow) -> None:
    sentence = plain(comparison_sentence(comparison))
    assert sentence == "tuned beats base on judge: +0.081 [0.050, 0.112] over 240 prompts"


def test_the_sentence_says_not_distinguishable(comparison: ComparisonRow) -> None:
    row = replace(comparison, verdict="not distinguishable", difference=0.01, low=-0.02, high=0.04, prompts=1)
    assert plain(comparison_sentence(row)) == (
        "tuned is not distinguishable from base on judge: +0.010 [-0.020, 0.040] over 1 prompt"
    )


def test_a_lower_is_better_scorer_can_win_with_a_negative_difference(comparison: ComparisonRow) -> None:
    row = replace(comparison, difference=-0.08, low=-0.11, high=-0.05)
    assert plain(comparison_sentence(row)).startswith("tuned beats base on judge: -0.080 [-0.110, -0.050]")


def test_the_headline_is_the_first_held_out_scorer(comparison: ComparisonRow) -> None:
    trained_on = replace(comparison, scorer="clip", role="trained on")
    assert "on judge" in headline([trained_on, comparison])
    assert headline([trained_on]).endswith("over 240\N{NO-BREAK SPACE}prompts, a scorer that was trained on.")
    assert headline([]) == "No comparison was made."


def test_an_unmeasured_row_has_no_numbers_in_its_sentence(unmeasured: ComparisonRow) -> None:
    assert comparison_sentence(unmeasured) == "tuned was not measured against base on aesthetic"
