"""The rule by which a run is stopped that follows its reward away from what was wanted. Pure functions on numbers.

A reward that is trained on rises whatever happens to the images. So the same prompts and seeds are scored again and
again with rewards that nothing is trained on, and each difference is that of a pair: same prompt, same seed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from rewards.statistics import Interval, bootstrap_interval

RESAMPLES = 10_000


@dataclass(frozen=True)
class Reading:
    """What was measured at a step; 0 is the model before training. Images are ordered by prompt, then by sample."""

    step: int
    scores: Mapping[str, Sequence[float]]
    """Reward -> score of each image, turned so that more is better."""
    diversity: Sequence[float] = ()
    """Of each prompt: how far its images are from each other. Empty if not measured."""
    fidelity: Sequence[float] = ()
    """Of each image: how much it is like the one that the untrained model paints. Empty if not measured."""


@dataclass(frozen=True)
class Rule:
    """When a run is over-optimised. See `signs`."""

    trained: tuple[str, ...]
    """Rewards that are trained on."""
    held_out: tuple[str, ...]
    """Rewards that are not; the first says which checkpoint is the best."""
    images_per_prompt: int
    level: float = 0.95
    """Confidence of every interval, but see `signs`."""
    patience: int = 2
    """Readings in a row that must show it."""
    max_diversity_loss: float = 0.5
    """Share of the untrained model's diversity that may be lost."""
    min_fidelity: float | None = None
    """Mean fidelity that must be kept."""


@dataclass(frozen=True)
class Judgement:
    """What the readings so far say. signs: of the last one, empty if nothing is wrong."""

    best_step: int
    """The step with the highest held-out score after the start."""
    signs: tuple[str, ...] = ()
    is_over: bool = field(default=False)
    """Whether the last `patience` readings all show signs: the run should end."""


def mean_score(reading: Reading, reward: str) -> float:
    """Mean over all images; prompts have equally many."""
    return sum(reading.scores[reward]) / len(reading.scores[reward])


def best_reading(readings: Sequence[Reading], rule: Rule) -> Reading:
    """The earliest with the highest mean of the first held-out reward."""
    return max(readings, key=lambda reading: (mean_score(reading, rule.held_out[0]), -reading.step))


def judge(readings: Sequence[Reading], rule: Rule) -> Judgement:
    """Judge the last reading, and the run. readings: in the order of their steps; the first is that of step 0."""
    base, *after = readings
    recent = range(max(1, len(readings) - rule.patience + 1), len(readings) + 1)
    found = [signs(readings[:count], rule) for count in recent]
    is_over = len(after) >= rule.patience and all(found)
    return Judgement(best_reading(after or [base], rule).step, found[-1], is_over)


def signs(readings: Sequence[Reading], rule: Rule) -> tuple[str, ...]:
    """Signs of over-optimisation at the last reading, in words; empty if there are none.

    There are none unless a trained reward has risen: its mean difference to step 0 is above 0 with its whole interval.
    Then each of these is one, again with the whole interval (bootstrap over prompts, `Rule.level`):
    a held-out reward is below its value at the best reading so far; diversity is below what may remain of step 0's;
    fidelity is below `min_fidelity`.

    The best of k readings owes some of its height to chance. So the first of these is at 1 - (1 - level) / k
    (Bonferroni: that any of the k lies clear above an equal one then has the chance that `level` leaves).
    """
    base, now = readings[0], readings[-1]
    if now.step == base.step or not any(_difference(now, base, name, rule).low > 0 for name in rule.trained):
        return ()
    best = best_reading(readings, rule)
    strict = replace(rule, level=1 - (1 - rule.level) / (len(readings) - 1))
    found = []
    for name in rule.held_out:
        change = _difference(now, best, name, strict)
        if change.high < 0:
            found.append(f"{name} is {_words(change)} against step {best.step}")
    if now.diversity:
        kept = 1 - rule.max_diversity_loss
        excess = _mean([a - kept * b for a, b in zip(now.diversity, base.diversity, strict=True)], 1, rule.level)
        if excess.high < 0:
            found.append(f"diversity less {kept:.0%} of the untrained model's is {_words(excess)}")
    if now.fidelity and rule.min_fidelity is not None:
        kept_like = _mean(now.fidelity, rule.images_per_prompt, rule.level)
        if kept_like.high < rule.min_fidelity:
            found.append(f"fidelity to the untrained model is {_words(kept_like)}, below {rule.min_fidelity:g}")
    return tuple(found)


def _difference(now: Reading, then: Reading, reward: str, rule: Rule) -> Interval:
    pairs = zip(now.scores[reward], then.scores[reward], strict=True)
    return _mean([a - b for a, b in pairs], rule.images_per_prompt, rule.level)


def _mean(values: Sequence[float], per_prompt: int, level: float) -> Interval:
    by_prompt = {start: values[start : start + per_prompt] for start in range(0, len(values), per_prompt)}
    return bootstrap_interval(by_prompt, level, RESAMPLES)


def _words(interval: Interval) -> str:
    return f"{interval.value:+.4g} [{interval.low:.4g}, {interval.high:.4g}]"
