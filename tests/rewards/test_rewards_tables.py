"""Tables over several scorers, accuracy against labels, and diversity: by hand, and by what must not change."""

from __future__ import annotations

import numpy as np
import pytest

from rewards.diversity import pairwise_diversity
from rewards.errors import InputError
from rewards.pairwise import label_pairs, pairwise_accuracy
from rewards.statistics import bootstrap_interval, holm, paired_comparison, wilson_interval
from rewards.tables import compare_scorers, correlations, mean_rows


def test_means_by_category_are_over_prompts_by_hand():
    # Prompt p0 has three images, and still counts once.
    scores = {("p0", 0): 1.0, ("p0", 1): 1.0, ("p0", 2): 1.0, ("p1", 0): 3.0, ("q", 0): 7.0}
    colour, shape = mean_rows(scores, lambda key: "shape" if key[0] == "q" else "colour", resamples=200)
    assert (colour.group, colour.mean, colour.prompts, colour.images) == ("colour", 2.0, 2, 4)
    assert colour.interval == bootstrap_interval({"p0": [1.0, 1.0, 1.0], "p1": [3.0]}, resamples=200)
    assert (shape.group, shape.mean, shape.interval, shape.prompts) == ("shape", 7.0, None, 1)


def test_comparisons_of_scorers_are_the_paired_ones_under_holm():
    random = np.random.default_rng(0)
    b = {name: {f"p{number}": float(random.normal()) for number in range(30)} for name in ("one", "two", "three")}
    shifts = {"one": 1.0, "two": 0.0, "three": 0.4}
    a = {name: {key: value + shifts[name] + 0.3 * random.normal() for key, value in b[name].items()} for name in b}
    rows = compare_scorers(a, b, names=("tuned", "base"), lower_is_better=frozenset({"three"}), resamples=1000)
    expected = [
        paired_comparison(a[name], b[name], names=("tuned", "base"), higher_is_better=name != "three", resamples=1000)
        for name in b
    ]
    assert [row.result for row in rows] == expected
    np.testing.assert_allclose([row.adjusted for row in rows], holm([result.p_value for result in expected]))
    assert [row.holds for row in rows] == [True, False, True]
    assert rows[2].result.win_rate < 0.5
    with pytest.raises(InputError, match="two: scored in one of tuned and base only"):
        compare_scorers({"one": a["one"], "two": a["two"]}, {"one": b["one"]}, names=("tuned", "base"))


def test_scorers_are_correlated_on_the_images_that_both_scored():
    first = {f"p{number}": float(number) for number in range(12)}
    turned = {key: -value for key, value in first.items() if key != "p11"}
    flat = dict.fromkeys(first, 1.0)
    rows = correlations({"first": first, "turned": turned, "flat": flat}, resamples=200)
    assert [(row.first, row.second, row.images) for row in rows] == [
        ("first", "turned", 11),
        ("first", "flat", 12),
        ("turned", "flat", 11),
    ]
    assert rows[0].interval is not None
    assert rows[0].interval.value == pytest.approx(-1.0)
    assert rows[1].interval is None
    assert "same value everywhere" in rows[1].reason


def test_label_pairs_by_hand():
    # p: 3 images, labels 2 > 1 = 1; q: 2 images, scored the wrong way round; r: one image, no pair.
    prompts, labels = ["p", "p", "q", "p", "q", "r"], [2, 1, 5, 1, 4, 9]
    margins, preferences, clusters = label_pairs([0.9, 0.5, 0.1, 0.7, 0.3, 0.0], labels, prompts)
    assert clusters == ["p", "p", "p", "q"]
    np.testing.assert_allclose(margins, [0.4, 0.2, -0.2, -0.2])
    assert preferences.tolist() == [1.0, 1.0, 0.5, 1.0]
    # Two right of p's two pairs that are no tie, none of q's one.
    assert pairwise_accuracy(margins, preferences, clusters).value == pytest.approx(0.5)
    one_pair_each = label_pairs([1, 0, 1, 0], [1, 0, 1, 0], ["p", "p", "q", "q"])
    assert pairwise_accuracy(*one_pair_each) == wilson_interval(2, 2)
    with pytest.raises(InputError, match="no prompt has two images"):
        label_pairs([1.0, 2.0], [1, 2], ["p", "q"])


def test_diversity_by_hand():
    # p: two orthogonal vectors (1) ; q: opposite (2) ; r: alike (0), whatever their lengths; s: one image, left out.
    vectors = [[1, 0], [0, 3], [1, 1], [-2, -2], [5, 0], [1, 0], [0, 1]]
    found = pairwise_diversity(vectors, ["p", "p", "q", "q", "r", "r", "s"], resamples=200)
    assert found.value == pytest.approx(1.0)
    assert found.clusters == 3
    assert found.low <= 0.5


def test_diversity_is_the_mean_over_all_pairs_and_falls_when_images_become_alike():
    random = np.random.default_rng(1)
    vectors = random.normal(size=(40, 8))
    prompts = [number // 4 for number in range(40)]
    units = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    expected = np.mean(
        [
            np.mean([1 - units[i] @ units[j] for i in range(p, p + 4) for j in range(p, p + 4) if i < j])
            for p in range(0, 40, 4)
        ]
    )
    found = pairwise_diversity(vectors, prompts, resamples=200)
    assert found.value == pytest.approx(expected)
    alike = vectors + 5.0 * np.repeat(vectors[::4], 4, axis=0)
    assert pairwise_diversity(alike, prompts, resamples=200).high < found.low


def test_diversity_refuses_what_it_cannot_measure():
    with pytest.raises(InputError, match="found 1"):
        pairwise_diversity([[1, 0], [0, 1], [1, 1]], ["p", "p", "q"])
    with pytest.raises(InputError, match="length 0"):
        pairwise_diversity([[1, 0], [0, 0]], ["p", "p"])
    with pytest.raises(InputError, match="expected"):
        pairwise_diversity([1, 0], ["p", "p"])
