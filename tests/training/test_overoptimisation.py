"""The rule that ends a run which follows its reward: values by hand, and how often it is wrong and right."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import pytest

from t2i.training.overoptimisation import Reading, Rule, best_reading, judge, signs

RULE = Rule(trained=("reward",), held_out=("judge",), images_per_prompt=1)
PROMPTS = 4


def reading(step: int, reward: float, judge: float, **fields: Sequence[float]) -> Reading:
    """All images have the same scores: every interval is one point, so that only the sign of a mean counts."""
    return Reading(step, {"reward": [reward] * PROMPTS, "judge": [judge] * PROMPTS}, **fields)


def test_reward_up_and_judge_down_is_a_sign_and_nothing_else_is() -> None:
    base, best = reading(0, 1.0, 1.0), reading(1, 2.0, 2.0)
    assert signs([base, best], RULE) == ()
    assert signs([base, best, reading(2, 3.0, 1.5)], RULE) == ("judge is -0.5 [-0.5, -0.5] against step 1",)
    assert signs([base, best, reading(2, 3.0, 2.0)], RULE) == ()
    # Both fall: the run does badly, but does not follow its reward away.
    assert signs([base, best, reading(2, 1.0, 1.5)], RULE) == ()
    assert signs([base], RULE) == ()


def test_judge_must_fall_with_its_whole_interval() -> None:
    base = reading(0, 1.0, 1.0)
    up = {"reward": [2.0] * PROMPTS}
    # Differences -3, 1, -3, 1: mean -1, but chance gives that easily. -1, -1, -1, -0.9 it does not.
    noisy = Reading(1, {**up, "judge": [-2.0, 2.0, -2.0, 2.0]})
    clear = Reading(1, {**up, "judge": [0.0, 0.0, 0.0, 0.1]})
    assert signs([base, noisy], RULE) == ()
    assert len(signs([base, clear], RULE)) == 1
    # So must the rise of the reward.
    clear_fall = {"judge": [0.0] * PROMPTS}
    assert signs([base, Reading(1, {"reward": [5.0, -1.0, 5.0, -1.0], **clear_fall})], RULE) == ()
    assert len(signs([base, Reading(1, {"reward": [1.1, 1.2, 1.1, 1.2], **clear_fall})], RULE)) == 1


def test_images_of_one_prompt_are_one_observation() -> None:
    rule = dataclasses.replace(RULE, images_per_prompt=4)
    rows = {"reward": [1.0] * 8, "judge": [1.0] * 8}
    # Eight images agree by prompt: as images the fall would be clear, as two prompts it is not.
    after = {"reward": [2.0] * 8, "judge": [-9.0] * 4 + [0.9] * 4}
    assert signs([Reading(0, rows), Reading(1, after)], rule) == ()
    assert len(signs([Reading(0, rows), Reading(1, after)], RULE)) == 1


def test_diversity_may_fall_to_its_share_and_no_further() -> None:
    base = reading(0, 1.0, 1.0, diversity=[0.4] * PROMPTS)
    for value, expected in ((0.21, 0), (0.19, 1)):
        found = signs([base, reading(1, 2.0, 2.0, diversity=[value] * PROMPTS)], RULE)
        assert len(found) == expected
        assert all("diversity less 50% of the untrained model's is -0.01" in text for text in found)
    assert signs([base, reading(1, 1.0, 2.0, diversity=[0.0] * PROMPTS)], RULE) == ()


def test_fidelity_must_keep_its_limit_where_there_is_one() -> None:
    base = reading(0, 1.0, 1.0, fidelity=[1.0] * PROMPTS)
    after = reading(1, 2.0, 2.0, fidelity=[0.6] * PROMPTS)
    assert signs([base, after], RULE) == ()
    assert signs([base, after], dataclasses.replace(RULE, min_fidelity=0.5)) == ()
    [text] = signs([base, after], dataclasses.replace(RULE, min_fidelity=0.7))
    assert text == "fidelity to the untrained model is +0.6 [0.6, 0.6], below 0.7"


def test_the_run_is_over_when_readings_in_a_row_show_it() -> None:
    run = [reading(0, 1.0, 1.0), reading(1, 2.0, 2.0), reading(2, 3.0, 1.9)]
    assert not judge(run, RULE).is_over
    assert judge(run, dataclasses.replace(RULE, patience=1)).is_over
    assert judge([*run, reading(3, 3.0, 1.8)], RULE).is_over
    assert not judge([*run, reading(3, 3.0, 2.1)], RULE).is_over
    assert not judge([*run, reading(3, 3.0, 2.1), reading(4, 4.0, 2.0)], RULE).is_over
    # From the start on: the untrained model itself is the best there was.
    worse = [reading(0, 1.0, 1.0), reading(1, 2.0, 0.9)]
    assert not judge(worse, RULE).is_over
    assert judge([*worse, reading(2, 2.0, 0.8)], RULE).is_over


def test_best_is_the_earliest_of_equals_and_never_the_untrained_model() -> None:
    run = [reading(0, 1.0, 9.0), reading(1, 2.0, 2.0), reading(2, 3.0, 2.0)]
    assert best_reading(run[1:], RULE).step == 1
    assert judge(run, RULE).best_step == 1
    assert judge(run[:1], RULE).best_step == 0


def run_of(course: Sequence[float], seed: int, prompts: int = 60) -> int | None:
    """Simulated run: the reward rises, the judge's mean takes this course, and a prompt's scores have their own level
    and come out otherwise at each step. Returns how many readings there were when it was stopped, if it was."""
    random = np.random.default_rng(seed)
    level = random.normal(0, 1, prompts)
    readings = [
        Reading(
            step,
            {
                "reward": (level + 0.1 * step + random.normal(0, 0.3, prompts)).tolist(),
                "judge": (level + mean + random.normal(0, 0.3, prompts)).tolist(),
            },
        )
        for step, mean in enumerate(course)
    ]
    return next((n for n in range(1, len(readings) + 1) if judge(readings[:n], RULE).is_over), None)


def test_sound_runs_are_not_stopped_and_overoptimised_ones_are_within_four_readings() -> None:
    rising = [0.05 * step for step in range(21)]
    levelling = [0.5 * (1 - 0.7**step) for step in range(21)]
    falling = [0.4 * step / 8 for step in range(9)] + [0.4 - 0.1 * step for step in range(1, 13)]
    for seed in range(2):
        assert run_of([0.0] * 21, seed) is None
        assert run_of(rising, seed) is None
        assert run_of(levelling, seed) is None
        stopped = run_of(falling, seed)
        # Step 8 is the best, which is the ninth reading; a fifth of 20 steps is four.
        assert stopped is not None
        assert 9 < stopped <= 9 + 4


def test_best_of_many_equal_readings_must_be_undercut_by_more() -> None:
    base = {"reward": [0.0] * 6, "judge": [1.0] * 6}
    now = Reading(99, {"reward": [1.0] * 6, "judge": [0.2, 0.4, 0.6, 0.8, 1.0, 0.6]})
    # Mean -0.4, standard error 0.12: beyond t(5) = 2.57, not beyond the 4.77 of a tenth of the 5 %.
    assert len(signs([Reading(0, base), now], RULE)) == 1
    assert signs([*(Reading(step, base) for step in range(10)), now], RULE) == ()


@pytest.mark.parametrize("level", [0.95, 0.99])
def test_intervals_are_of_the_level_that_is_asked_for(level: float) -> None:
    random = np.random.default_rng(0)
    judged = (1 - 0.1 + random.normal(0, 0.3, 50)).tolist()
    base = Reading(0, {"reward": [0.0] * 50, "judge": [1.0] * 50})
    now = Reading(1, {"reward": [1.0] * 50, "judge": judged})
    found = signs([base, now], dataclasses.replace(RULE, level=level))
    mean, error = np.mean(judged) - 1, np.std(judged, ddof=1) / 50**0.5
    assert bool(found) == (mean + {0.95: 2.01, 0.99: 2.68}[level] * error < 0)
