"""Means of one arm: over prompts, with an interval, and never a number for what is missing."""

from __future__ import annotations

import pytest

from t2i.records import ScoredImage
from t2i.report.means import Key, score_rows


def arm(scores: dict[str, list[float | None]]) -> dict[Key, ScoredImage]:
    """prompt -> score of each of its images, None for none."""
    images = [
        ScoredImage(prompt, prompt, seed=0, image="x.png", sample=number, scores=_scores(score))
        for prompt, values in scores.items()
        for number, score in enumerate(values)
    ]
    return {image.key: image for image in images}


def _scores(score: float | None) -> dict[str, float]:
    return {} if score is None else {"judge": score}


def test_a_prompt_counts_once_however_many_images_it_has() -> None:
    row = score_rows({"base": arm({"a": [0.0, 0.0, 0.0], "b": [1.0]})}, ["judge"])[0]
    assert row.mean == pytest.approx(0.5)
    assert row.low is not None
    assert row.high is not None
    assert row.low <= 0.5 <= row.high


def test_equal_scores_have_an_interval_of_no_width() -> None:
    row = score_rows({"base": arm({prompt: [0.25] for prompt in "abcd"})}, ["judge"])[0]
    assert (row.mean, row.low, row.high) == (0.25, 0.25, 0.25)


def test_images_without_a_score_are_counted_and_are_no_zeros() -> None:
    row = score_rows({"base": arm({"a": [1.0, None], "b": [1.0], "c": [None]})}, ["judge"])[0]
    assert (row.mean, row.images, row.missing, row.values) == (1.0, 2, 2, (1.0, 1.0))


def test_one_prompt_has_no_interval_and_none_has_no_mean() -> None:
    one, none = score_rows({"one": arm({"a": [0.5, 1.0]}), "none": arm({"a": [None]})}, ["judge"])
    assert (one.mean, one.low, one.high) == (0.75, None, None)
    assert (none.mean, none.low, none.high) == (None, None, None)
