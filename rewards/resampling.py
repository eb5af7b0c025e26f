"""Bootstrap over clusters: draws, bias-corrected intervals, p-values by sign flips. Pure functions on arrays.

A cluster is what was drawn independently: a prompt, with all its images. Images of one prompt resemble each other, so
that drawing them one by one would make every interval too narrow.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rewards.errors import InputError

Floats = NDArray[np.float64]

_CHUNK = 1_000_000
"""Numbers in an array at once (8 MB). The draws do not depend on it."""


@dataclass(frozen=True)
class Interval:
    """A value with its confidence interval. level: 0.95 for a 95 % interval; clusters: independent units behind it."""

    value: float
    low: float
    high: float
    level: float
    clusters: int


def check_level(level: float) -> None:
    """Raise InputError unless 0 < level < 1."""
    if not 0.0 < level < 1.0:
        raise InputError(f"level is {level}; expected a number between 0 and 1, such as 0.95.")


def check_resampling(level: float, resamples: int) -> None:
    """Raise InputError for a level outside (0, 1) or fewer than 100 resamples."""
    check_level(level)
    if resamples < 100:
        raise InputError(f"resamples is {resamples}; an interval needs at least 100 (10000 is the default).")


def _index_chunks(clusters: int, resamples: int, seed: int, items: int = 0) -> Iterator[NDArray[np.int64]]:
    """Yield [r, clusters] indices drawn with replacement; the r add up to `resamples`. items as `resampled_counts`."""
    random = np.random.default_rng(seed)
    rows = max(1, _CHUNK // max(clusters, items))
    for start in range(0, resamples, rows):
        yield random.integers(clusters, size=(min(rows, resamples - start), clusters))


def resampled_means(columns: Floats, resamples: int, seed: int) -> Floats:
    """Bootstrap means. columns: [clusters, k]. Returns [resamples, k]; one draw of clusters serves all k columns."""
    chunks = _index_chunks(len(columns), resamples, seed)
    return np.concatenate([np.stack([column[index].mean(axis=1) for column in columns.T], axis=1) for index in chunks])


def resampled_counts(clusters: int, resamples: int, seed: int, items: int = 0) -> Iterator[Floats]:
    """Yield [r, clusters]: how often each cluster was drawn, rows summing to `clusters`.

    items: numbers that the caller makes of a row, such as one an image; with more of them than clusters r is smaller.
    """
    for index in _index_chunks(clusters, resamples, seed, items):
        offset = index + np.arange(len(index))[:, None] * clusters
        yield np.bincount(offset.ravel(), minlength=index.size).reshape(index.shape).astype(np.float64)


def _leave_one_out(clusters: int, items: int) -> Iterator[Floats]:
    rows = max(1, _CHUNK // max(clusters, items))
    for start in range(0, clusters, rows):
        left_out = np.arange(start, min(start + rows, clusters))
        yield (left_out[:, None] != np.arange(clusters)).astype(np.float64)


def bca_interval(estimate: float, draws: Floats, jackknife: Floats, level: float) -> tuple[float, float]:
    """Bias-corrected and accelerated bootstrap interval (Efron 1987, doi:10.1080/01621459.1987.10478410).

    draws: [resamples] statistics of the resamples; jackknife: [clusters] statistics with one cluster left out each.
    Draws equal to the estimate count half below it, so that discrete statistics get no spurious bias.
    """
    from scipy.special import ndtr, ndtri

    spread = float(np.ptp(draws))
    if spread == 0.0:
        return estimate, estimate
    close = 1e-12 * max(spread, abs(estimate))
    below = float(np.mean(draws < estimate - close) + 0.5 * np.mean(np.abs(draws - estimate) <= close))
    half_draw = 0.5 / len(draws)
    bias = ndtri(min(max(below, half_draw), 1.0 - half_draw))
    deviations = jackknife.mean() - jackknife
    squares = float((deviations**2).sum())
    acceleration = float((deviations**3).sum()) / (6.0 * squares**1.5) if squares > 0.0 else 0.0
    z = ndtri([(1.0 - level) / 2.0, (1.0 + level) / 2.0])
    low, high = np.quantile(draws, ndtr(bias + (bias + z) / (1.0 - acceleration * (bias + z))))
    return float(low), float(high)


def mean_interval(values: Floats, draws: Floats, level: float) -> Interval:
    """Interval of the mean of [clusters] values: BCa, each end moved out to Student's t where that reaches further.

    A bootstrap cannot look beyond the values it was given: with 3 clusters its 95 % interval covers the truth 70 % of
    the time for normal values, with 10 clusters 90 %. Student's t alone is too short on the long side of skewed values.
    """
    from scipy.special import stdtrit

    count = len(values)
    mean = float(values.mean())
    jackknife = (values.sum() - values) / (count - 1)
    low, high = bca_interval(mean, draws, jackknife, level)
    reach = float(stdtrit(count - 1, (1.0 + level) / 2.0)) * float(values.std(ddof=1)) / count**0.5
    return Interval(mean, min(low, mean - reach), max(high, mean + reach), level, count)


def statistic_interval(
    statistic: Callable[[Floats], Floats],
    clusters: int,
    *,
    items: int,
    level: float,
    resamples: int,
    seed: int,
    name: str,
) -> Interval:
    """BCa interval of any statistic of weighted clusters.

    statistic: [r, clusters] counts -> [r] values, NaN where undefined (all drawn values equal); items: numbers that it
    makes of each row. Raises InputError when it is undefined for the data, or for more than one resample in ten: such
    data cannot carry an interval.
    """
    check_resampling(level, resamples)
    if clusters < 4:
        raise InputError(f"{name}: {clusters} prompts or items; an interval needs at least 4.")
    [estimate] = statistic(np.ones((1, clusters)))
    if np.isnan(estimate):
        raise InputError(f"{name}: one of the two variables has the same value everywhere, so it is undefined.")
    draws = np.concatenate([statistic(counts) for counts in resampled_counts(clusters, resamples, seed, items)])
    defined = draws[~np.isnan(draws)]
    if len(defined) < 0.9 * resamples:
        raise InputError(
            f"{name}: too few distinct values; {resamples - len(defined)} of {resamples} resamples had one."
        )
    jackknife = np.concatenate([statistic(counts) for counts in _leave_one_out(clusters, items)])
    low, high = bca_interval(float(estimate), defined, jackknife[~np.isnan(jackknife)], level)
    return Interval(float(estimate), low, high, level, clusters)


def sign_flip_p_value(differences: Floats, *, draws: int = 10_000, seed: int = 0) -> float:
    """Two-sided p-value of "the mean difference is zero", by flipping the signs of [clusters] differences.

    Exact over all 2^n sign patterns when there are at most `draws` of them, else Monte Carlo with the add-one rule
    (Phipson & Smyth 2010, doi:10.2202/1544-6115.1585), so that it is never 0. Assumes that, without an effect, a and b
    could be exchanged within each prompt.
    """
    count = len(differences)
    threshold = abs(float(differences.sum())) * (1.0 - 1e-9)
    if 2**count <= draws:
        patterns = (np.arange(2**count)[:, None] >> np.arange(count)) & 1
        sums = np.abs((2.0 * patterns - 1.0) @ differences)
        return float(np.mean(sums >= threshold))
    random = np.random.default_rng([seed, 1])
    reached = 0
    rows = max(1, _CHUNK // count)
    for start in range(0, draws, rows):
        signs = random.integers(2, size=(min(rows, draws - start), count), dtype=np.int8)
        sums = np.abs((2.0 * signs - 1.0) @ differences)
        reached += int((sums >= threshold).sum())
    return (reached + 1) / (draws + 1)
