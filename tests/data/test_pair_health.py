"""What preference pairs give away by accident: a trait of the winners, with each prompt as one observation."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import pytest
from PIL import Image

from t2i.data.pair_health import health, leakage, warnings
from t2i.records import PreferencePair


@pytest.fixture
def greys(tmp_path: Path) -> list[str]:
    """Eight images, each brighter than the one before it."""
    paths = [tmp_path / f"{level}.png" for level in range(8)]
    for level, path in enumerate(paths):
        Image.new("RGB", (8, 8), (20 * level,) * 3).save(path)
    return [str(path) for path in paths]


def all_pairs(images: list[str], prompt: str, brighter: bool) -> list[PreferencePair]:
    """All 28 pairs of eight images, in each of which the brighter or the darker image wins."""
    ordered = images if brighter else images[::-1]
    return [PreferencePair(prompt, chosen, rejected, prompt) for rejected, chosen in combinations(ordered, 2)]


def test_pairs_of_one_prompt_are_one_observation(greys: list[str]) -> None:
    pairs = [pair for number in range(10) for pair in all_pairs(greys, f"p{number}", brighter=number < 7)]
    row = leakage(pairs)["brighter"]
    assert (row["pairs"], row["prompts"], row["winner"]) == (280, 10, pytest.approx(0.7))
    # Student's t of seven ones and three zeros: 0.7 - 2.262 * 0.4830 / sqrt(10), or further out.
    assert row["low"] <= 0.3545
    assert not row["leaks"]
    assert not [text for text in warnings(health(pairs, len(pairs))) if "brighter" in text]


def test_a_trait_of_the_winners_of_every_prompt_leaks(greys: list[str]) -> None:
    pairs = [pair for number in range(10) for pair in all_pairs(greys, f"p{number}", brighter=True)]
    row = leakage(pairs)["brighter"]
    # Wilson's lower end of 10 of 10 is 10 / (10 + 3.8415).
    assert (row["low"], row["high"]) == (pytest.approx(0.7225, abs=1e-4), 1.0)
    assert row["leaks"]
    [text] = [text for text in warnings(health(pairs, len(pairs))) if "brighter" in text]
    assert text.startswith("the winner is brighter on average in 100% of 280 pairs of 10 prompts")


def test_one_pair_a_prompt_has_the_interval_of_wilson(greys: list[str]) -> None:
    pairs = [PreferencePair(f"p{number}", greys[1], greys[0]) for number in range(15)]
    pairs += [PreferencePair(f"q{number}", greys[0], greys[1]) for number in range(5)]
    row = leakage(pairs)["brighter"]
    # With z^2 = 3.8415 the centre is (0.75 + 0.0960) / 1.1921 = 0.7097,
    # the reach sqrt(3.8415 * (0.009375 + 0.0024)) / 1.1921 = 0.1784.
    assert (row["low"], row["high"]) == pytest.approx((0.5313, 0.8881), abs=2e-4)
    assert row["leaks"]


def test_the_pairs_of_a_single_prompt_show_nothing(greys: list[str]) -> None:
    row = leakage(all_pairs(greys, "p", brighter=True))["brighter"]
    assert (row["prompts"], row["winner"], row["leaks"]) == (1, 1.0, False)
