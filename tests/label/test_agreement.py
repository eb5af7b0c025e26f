"""Agreement of raters, against values worked out by hand and the example of Fleiss' paper."""

from __future__ import annotations

from fractions import Fraction

import pytest

from t2i.label.agreement import Agreement, agreements, cohen_kappa, fleiss_kappa

FLEISS_TABLE = [
    (0, 0, 0, 0, 14), (0, 2, 6, 4, 2), (0, 0, 3, 5, 6), (0, 3, 9, 2, 0), (2, 2, 8, 1, 1),
    (7, 7, 0, 0, 0), (3, 2, 6, 3, 0), (2, 5, 3, 2, 2), (6, 5, 2, 1, 0), (0, 2, 2, 3, 7),
]  # fmt: skip
"""Ten subjects, fourteen raters, five categories: a worked example that statistics texts share; kappa 0.210."""


def test_cohens_kappa_by_hand() -> None:
    # Of 50 items both say yes to 20 and no to 15: 0.7 observed, 0.5 * 0.6 + 0.5 * 0.4 = 0.5 expected.
    first = ["yes"] * 25 + ["no"] * 25
    second = ["yes"] * 20 + ["no"] * 5 + ["yes"] * 10 + ["no"] * 15
    assert cohen_kappa(first, second) == pytest.approx(0.4)
    assert cohen_kappa(second, first) == pytest.approx(0.4)


def test_cohens_kappa_is_one_for_equals_and_below_zero_for_opposites() -> None:
    assert cohen_kappa(["left", "right", "tie"], ["left", "right", "tie"]) == 1
    assert cohen_kappa(["left", "right"], ["right", "left"]) == -1


def test_fleiss_kappa_of_the_worked_example() -> None:
    items = [{str(category): count for category, count in enumerate(row)} for row in FLEISS_TABLE]
    assert fleiss_kappa(items) == pytest.approx(0.210, abs=5e-4)


def test_fleiss_kappa_of_items_with_two_and_three_raters_by_hand() -> None:
    # Agreement 1 and 1/3, mean 2/3; of five judgements 4 are left: 16/25 + 1/25 = 17/25 by chance.
    expected = (Fraction(2, 3) - Fraction(17, 25)) / (1 - Fraction(17, 25))
    assert fleiss_kappa([{"left": 2}, {"left": 2, "right": 1}]) == pytest.approx(float(expected))


def test_kappa_is_not_defined_where_all_choices_are_the_same() -> None:
    assert cohen_kappa(["left", "left"], ["left", "left"]) is None
    assert fleiss_kappa([{"left": 3}, {"left": 2}]) is None


def test_agreement_of_every_two_and_of_all_without_what_was_skipped() -> None:
    found = agreements(
        {
            "cyd": {0: "left", 1: "skip"},
            "ann": {0: "left", 1: "right", 2: "left"},
            "bob": {0: "left", 1: "right", 2: "right"},
            "dee": {2: "skip"},
        }
    )
    assert found[0] == Agreement(("ann", "bob"), 3, 2 / 3, pytest.approx(0.4))  # 2/3 seen, 4/9 by chance
    assert [(one.raters, one.pairs, one.kappa) for one in found[1:3]] == [
        (("ann", "cyd"), 1, None),
        (("bob", "cyd"), 1, None),
    ]
    # Shares 1, 1, 0; of seven judgements four are left: 25/49 by chance.
    assert found[3].raters == ("ann", "bob", "cyd")
    assert found[3].kappa == pytest.approx((2 / 3 - 25 / 49) / (1 - 25 / 49))


def test_one_rater_agrees_with_nobody() -> None:
    assert agreements({"ann": {0: "left"}}) == []
    assert agreements({"ann": {0: "left"}, "bob": {1: "left"}}) == []
