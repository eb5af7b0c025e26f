"""Numbers one can trust: intervals by prompt, paired comparison, win rates, correction for many tests, sample size.

Pure functions on plain numbers (numpy, and scipy where a quantile is needed). The unit is the prompt: prompts are what
was drawn, the images of one prompt belong together. Every mean is the mean over prompts of each prompt's mean, so that
a prompt with more images counts no more than another; with equally many images it is the plain mean.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import ArrayLike

from rewards.correlation import kendall, pearson, spearman
from rewards.errors import InputError
from rewards.resampling import (
    Floats,
    Interval,
    check_level,
    check_resampling,
    mean_interval,
    resampled_means,
    sign_flip_p_value,
)

__all__ = [
    "Interval",
    "PairedComparison",
    "bootstrap_interval",
    "holm",
    "kendall",
    "paired_comparison",
    "pearson",
    "prompt_of",
    "prompts_needed",
    "sign_flip_p_value",
    "spearman",
    "wilson_interval",
]

Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True)
class PairedComparison:
    """What a and b differ by on the same prompts and seeds. All means are over prompts; difference is mean_a - mean_b.

    wins, ties, losses: pairs in which a is better, equal, worse. win_rate: a tie counts half. p_value: two-sided
    sign-flip test over prompts, for use with `holm`. distinguishable: the interval of the difference does not contain
    0; where every prompt differs by the same, so that the interval has no width, p_value is below 1 - level as well.
    """

    prompts: int
    images: int
    """Pairs of images."""
    mean_a: float
    mean_b: float
    difference: float
    low: float
    high: float
    wins: int
    ties: int
    losses: int
    win_rate: float
    win_low: float
    win_high: float
    win_method: Literal["wilson", "bootstrap"]
    level: float
    p_value: float
    distinguishable: bool
    verdict: str


def bootstrap_interval(
    values_by_prompt: Mapping[Key, Sequence[float]], level: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> Interval:
    """Mean over prompts with its interval; prompts are drawn with replacement, each with all its images.

    BCa interval (Efron 1987), each end moved out to Student's t where that reaches further, for few prompts. Raises
    InputError for fewer than 2 prompts, a prompt without values, or a value that is not finite.
    """
    check_resampling(level, resamples)
    means = np.array([_prompt_mean(prompt, values) for prompt, values in values_by_prompt.items()])
    if len(means) < 2:
        raise InputError(f"an interval needs at least 2 prompts; found {len(means)}.")
    draws = resampled_means(means[:, None], resamples, seed)[:, 0]
    return mean_interval(means, draws, level)


def _prompt_mean(prompt: Hashable, values: Sequence[float]) -> float:
    numbers = np.asarray(values, dtype=np.float64)
    if numbers.size == 0:
        raise InputError(f"prompt {prompt!r} has no values; leave it out on purpose, or score its images.")
    if not np.isfinite(numbers).all():
        raise InputError(f"prompt {prompt!r} has a value that is not finite; a missing score is not a number.")
    return float(numbers.mean())


def wilson_interval(successes: float, trials: int, level: float = 0.95) -> Interval:
    """Wilson score interval of a proportion (Wilson 1927, doi:10.1080/01621459.1927.10502953).

    successes: 0..trials; a tie is half a success, for which the interval is wider than needed. Never leaves [0, 1].
    """
    from scipy.special import ndtri

    check_level(level)
    if trials < 1 or not 0.0 <= successes <= trials:
        raise InputError(f"{successes} successes in {trials} trials; expected 0 <= successes <= trials, trials >= 1.")
    z2 = float(ndtri((1.0 + level) / 2.0)) ** 2
    rate = successes / trials
    centre = (rate + z2 / (2 * trials)) / (1.0 + z2 / trials)
    reach = (z2 * (rate * (1.0 - rate) / trials + z2 / (4 * trials**2))) ** 0.5 / (1.0 + z2 / trials)
    # Where all trials or none succeed, one end is the rate itself, which rounding would miss.
    low, high = min(rate, centre - reach), max(rate, centre + reach)
    return Interval(rate, max(0.0, low), min(1.0, high), level, trials)


def prompt_of(key: Hashable) -> Hashable:
    """Prompt of a pairing key: the first part of a tuple such as (prompt id, sample, seed), else the key itself."""
    return key[0] if isinstance(key, tuple) and key else key


def paired_comparison(
    a: Mapping[Key, float],
    b: Mapping[Key, float],
    cluster: Callable[[Key], Hashable] = prompt_of,
    *,
    names: tuple[str, str] = ("a", "b"),
    higher_is_better: bool = True,
    level: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> PairedComparison:
    """Compare two sets of scores of the same prompts and seeds.

    a, b: key -> score with exactly the same keys; cluster: key -> prompt. Difference and, with several images per
    prompt, win rate are bootstrapped over prompts (as `bootstrap_interval`); with one image per prompt the win rate has
    a Wilson interval. Swapping a and b swaps every number. Raises InputError listing keys without a partner, scores
    that are not finite, and for fewer than 2 prompts.
    """
    check_resampling(level, resamples)
    check_partners(a, b, names)
    keys = list(a)
    prompts: dict[Hashable, list[int]] = {}
    for position, key in enumerate(keys):
        prompts.setdefault(cluster(key), []).append(position)
    if len(prompts) < 2:
        raise InputError(f"a comparison needs at least 2 prompts; found {len(prompts)}.")
    scores = np.array([[a[key], b[key]] for key in keys], dtype=np.float64)
    outcomes = np.sign(scores[:, 0] - scores[:, 1]) * (1.0 if higher_is_better else -1.0)
    rows = np.column_stack([scores, scores[:, 0] - scores[:, 1], (outcomes + 1.0) / 2.0])
    by_prompt = np.array([rows[positions].mean(axis=0) for positions in prompts.values()])
    draws = resampled_means(by_prompt[:, 2:], resamples, seed)
    difference = mean_interval(by_prompt[:, 2], draws[:, 0], level)
    win, method = _win_interval(by_prompt[:, 3], draws[:, 1], level, several=len(keys) > len(prompts))
    p_value = sign_flip_p_value(by_prompt[:, 2], draws=resamples, seed=seed)
    # A few equal differences have no spread, which says nothing about those of other prompts.
    is_shown = p_value < 1.0 - level or not _are_equal(by_prompt[:, 2])
    distinguishable = is_shown and not difference.low <= 0.0 <= difference.high
    return PairedComparison(
        prompts=len(prompts),
        images=len(keys),
        mean_a=float(by_prompt[:, 0].mean()),
        mean_b=float(by_prompt[:, 1].mean()),
        difference=difference.value,
        low=difference.low,
        high=difference.high,
        wins=int((outcomes > 0).sum()),
        ties=int((outcomes == 0).sum()),
        losses=int((outcomes < 0).sum()),
        win_rate=win.value,
        win_low=win.low,
        win_high=win.high,
        win_method=method,
        level=level,
        p_value=p_value,
        distinguishable=distinguishable,
        verdict=_verdict(difference, names, higher_is_better, p_value, distinguishable=distinguishable),
    )


def _are_equal(values: Floats) -> bool:
    """Whether values differ by no more than rounding."""
    return float(np.ptp(values)) <= 1e-9 * float(np.abs(values).max())


def check_partners(a: Mapping[Key, float], b: Mapping[Key, float], names: tuple[str, str]) -> None:
    """Raise InputError for keys that one of the two lacks, and for scores that are not finite."""
    for name, other, lacking in ((names[1], names[0], a.keys() - b.keys()), (names[0], names[1], b.keys() - a.keys())):
        if lacking:
            listed = ", ".join(sorted(map(repr, lacking))[:10]) + (", ..." if len(lacking) > 10 else "")
            raise InputError(f"{name} lacks {len(lacking)} of the keys of {other}: {listed}. Score them, or drop both.")
    for name, scores in ((names[0], a), (names[1], b)):
        bad = [key for key, value in scores.items() if not np.isfinite(value)]
        if bad:
            raise InputError(
                f"{name}: the score of {bad[0]!r} is not finite ({len(bad)} such); it is missing, not zero."
            )


def _win_interval(
    rates: Floats, draws: Floats, level: float, *, several: bool
) -> tuple[Interval, Literal["wilson", "bootstrap"]]:
    """Interval of the mean of the prompts' win rates. rates: [prompts] in [0, 1]; several: images per prompt.

    When all prompts have the same rate (each seed of each prompt won) a bootstrap has no spread; Wilson on the number
    of prompts, as if the seeds of a prompt were one observation, is then the honest, wider answer.
    """
    if not several or float(np.ptp(rates)) == 0.0:
        return wilson_interval(float(rates.sum()), len(rates), level), "wilson"
    interval = mean_interval(rates, draws, level)
    clipped = Interval(interval.value, max(0.0, interval.low), min(1.0, interval.high), level, interval.clusters)
    return clipped, "bootstrap"


def _verdict(
    difference: Interval, names: tuple[str, str], higher_is_better: bool, p_value: float, *, distinguishable: bool
) -> str:
    numbers = (
        f"{names[0]} minus {names[1]} is {difference.value:.4g}, {100 * difference.level:.4g} % interval "
        f"{difference.low:.4g} to {difference.high:.4g}, {difference.clusters} prompts"
    )
    if not distinguishable:
        has_zero = difference.low <= 0.0 <= difference.high
        return f"not distinguishable ({numbers}{'' if has_zero else f', all the same: p {p_value:.2g}'})"
    better = names[0] if (difference.value > 0.0) == higher_is_better else names[1]
    return f"{better} is better ({numbers})"


def holm(p_values: ArrayLike) -> Floats:
    """Holm's step-down adjustment of [m] p-values (Holm 1979); reject where the result is below 1 - level.

    Keeps the chance of even one false claim among m scorers below that, whatever their dependence.
    """
    raw = np.asarray(p_values, dtype=np.float64)
    if raw.ndim != 1 or not ((raw >= 0.0) & (raw <= 1.0)).all():
        raise InputError("p-values must be a list of numbers in [0, 1].")
    order = np.argsort(raw, kind="stable")
    stepped = np.maximum.accumulate(raw[order] * np.arange(len(raw), 0, -1))
    adjusted = np.empty_like(raw)
    adjusted[order] = np.minimum(stepped, 1.0)
    return adjusted


def prompts_needed(effect: float, sd: float, power: float = 0.8, level: float = 0.95) -> int:
    """Prompts for which a paired comparison finds a true mean difference `effect` with probability `power`.

    sd: standard deviation over prompts of the per-prompt difference, in the same unit (take it from a pilot run).
    Two-sided paired t-test, non-central t (Cohen 1988, chapter 2). Raises InputError for effect 0 or sd not positive.
    """
    check_level(level)
    check_level(power)
    if effect == 0.0 or not sd > 0.0 or not np.isfinite([effect, sd]).all():
        raise InputError(f"effect {effect}, sd {sd}; expected an effect other than 0 and a positive sd.")
    low, high = 1, 2
    while _paired_power(high, abs(effect) / sd, level) < power:
        low, high = high, high * 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if _paired_power(middle, abs(effect) / sd, level) >= power else (middle, high)
    return high


def _paired_power(prompts: int, size: float, level: float) -> float:
    """Power of the two-sided t-test; size: effect in standard deviations. The far tail is left out (below 1e-4)."""
    from scipy.special import nctdtr, ndtr, ndtri, stdtrit

    shift = size * prompts**0.5
    if prompts > 10_000:
        return float(ndtr(shift - ndtri((1.0 + level) / 2.0)))
    return 1.0 - float(nctdtr(prompts - 1, shift, stdtrit(prompts - 1, (1.0 + level) / 2.0)))
