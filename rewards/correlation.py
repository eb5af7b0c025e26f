"""Pearson, Spearman and Kendall correlation with bootstrap intervals: scorers against human labels or a known truth.

Intervals are BCa over clusters. Give `clusters` (the prompt of each item) whenever a prompt has several images; without
it every item counts as independent.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rewards.errors import InputError
from rewards.resampling import Floats, Interval, statistic_interval

_KENDALL_LIMIT = 5000


def pearson(
    x: ArrayLike,
    y: ArrayLike,
    clusters: Sequence[Hashable] | None = None,
    *,
    level: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Interval:
    """Linear correlation of [n] x and y, with a BCa interval over clusters.

    Raises InputError for unequal lengths, values that are not finite, fewer than 4 clusters, or a constant variable.
    """
    first, second = _pair("pearson", x, y)

    def statistic(weights: Floats) -> Floats:
        return _weighted_correlation(weights, first - first.mean(), second - second.mean())

    return _interval("pearson", statistic, len(first), clusters, level, resamples, seed)


def spearman(
    x: ArrayLike,
    y: ArrayLike,
    clusters: Sequence[Hashable] | None = None,
    *,
    level: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Interval:
    """Rank correlation (mid-ranks for ties, ranked anew in every resample). Arguments and errors as `pearson`."""
    first, second = _pair("spearman", x, y)
    groups = _Groups(first), _Groups(second)

    def statistic(weights: Floats) -> Floats:
        ranks = [group.mid_ranks(weights) for group in groups]
        return _weighted_correlation(weights, ranks[0], ranks[1])

    return _interval("spearman", statistic, len(first), clusters, level, resamples, seed)


def kendall(
    x: ArrayLike,
    y: ArrayLike,
    clusters: Sequence[Hashable] | None = None,
    *,
    level: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Interval:
    """Kendall's tau-b (Kendall 1945): concordant minus discordant pairs, corrected for ties. Arguments as `pearson`.

    Work grows with resamples * n^2 (about a second at n = 1000), so more than 5000 items are an InputError.
    """
    first, second = _pair("kendall", x, y)
    if len(first) > _KENDALL_LIMIT:
        raise InputError(f"kendall: {len(first)} items; at most {_KENDALL_LIMIT}. Use spearman, or draw a sample.")
    order = _signs(first)
    order *= _signs(second)
    groups = _Groups(first), _Groups(second)

    def statistic(weights: Floats) -> Floats:
        agreement = np.einsum("rn,rn->r", weights.astype(np.float32) @ order, weights)
        untied = [weights.sum(axis=1) ** 2 - (group.sums(weights) ** 2).sum(axis=1) for group in groups]
        product = untied[0] * untied[1]
        return np.divide(agreement, np.sqrt(product), out=np.full(len(weights), np.nan), where=product > 0.0)

    return _interval("kendall", statistic, len(first), clusters, level, resamples, seed)


def _pair(name: str, x: ArrayLike, y: ArrayLike) -> tuple[Floats, Floats]:
    first, second = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if first.ndim != 1 or first.shape != second.shape:
        raise InputError(f"{name}: shapes {first.shape} and {second.shape}; expected two lists of equal length.")
    for label, values in (("x", first), ("y", second)):
        if not np.isfinite(values).all():
            raise InputError(f"{name}: {label}[{int(np.argmin(np.isfinite(values)))}] is not a finite number.")
    return first, second


def _interval(
    name: str,
    statistic: Callable[[Floats], Floats],
    items: int,
    clusters: Sequence[Hashable] | None,
    level: float,
    resamples: int,
    seed: int,
) -> Interval:
    """Interval of a statistic of item weights: draw clusters, weigh each item as often as its cluster was drawn."""
    index, count = _cluster_index(name, items, clusters)
    return statistic_interval(
        lambda counts: statistic(counts[:, index]),
        count,
        items=items,
        level=level,
        resamples=resamples,
        seed=seed,
        name=name,
    )


def _cluster_index(name: str, items: int, clusters: Sequence[Hashable] | None) -> tuple[NDArray[np.int64], int]:
    if clusters is None:
        return np.arange(items), items
    if len(clusters) != items:
        raise InputError(f"{name}: {len(clusters)} clusters for {items} items; expected one per item.")
    numbers: dict[Hashable, int] = {}
    index = np.array([numbers.setdefault(cluster, len(numbers)) for cluster in clusters], dtype=np.int64)
    return index, len(numbers)


def _weighted_correlation(weights: Floats, x: Floats, y: Floats) -> Floats:
    """Pearson of x and y ([n], or [r, n] one row per resample) under [r, n] weights; NaN where either is constant."""
    total = weights.sum(axis=1, keepdims=True)
    x = x - _row_sums(weights, x)[:, None] / total
    y = y - _row_sums(weights, y)[:, None] / total
    square_x, square_y = _row_sums(weights, x * x), _row_sums(weights, y * y)
    product = square_x * square_y
    smallest = (1e-14 * np.maximum(np.abs(x).max(), 1e-300) * np.maximum(np.abs(y).max(), 1e-300)) ** 2
    out = np.full(len(weights), np.nan)
    np.divide(_row_sums(weights, x * y), np.sqrt(product), out=out, where=product > smallest)
    return np.clip(out, -1.0, 1.0)


def _row_sums(weights: Floats, values: Floats) -> Floats:
    return np.einsum("rn,rn->r", weights, np.broadcast_to(values, weights.shape))


def _signs(values: Floats) -> NDArray[np.float32]:
    return np.sign(values[:, None] - values).astype(np.float32)


class _Groups:
    """Items that share a value, in ascending order: ranks and tie sums under any weights, without sorting again."""

    def __init__(self, values: Floats) -> None:
        self._order = np.argsort(values, kind="stable")
        ordered = values[self._order]
        self._starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
        _, self._group = np.unique(values, return_inverse=True)

    def sums(self, weights: Floats) -> Floats:
        """[r, n] weights -> [r, groups] total weight of each distinct value."""
        return np.add.reduceat(weights[:, self._order], self._starts, axis=1)

    def mid_ranks(self, weights: Floats) -> Floats:
        """[r, n] weights -> [r, n] rank of each item in the resample, equal values sharing their mean rank."""
        sums = self.sums(weights)
        return (np.cumsum(sums, axis=1) - (sums - 1.0) / 2.0)[:, self._group]
