"""Tables over several scorers: means by category, two sets compared under Holm, scorers against each other.

Scores come as scorer -> key -> number, where a key names one image and its prompt (see `statistics.prompt_of`). A score
that is missing is a key that is absent; each row says over how many prompts it was taken.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TypeVar

from rewards.correlation import spearman
from rewards.errors import InputError
from rewards.resampling import Interval
from rewards.statistics import PairedComparison, bootstrap_interval, holm, paired_comparison, prompt_of

Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True)
class MeanRow:
    """Mean over prompts of one group of images. interval: None for a single prompt, which has none."""

    group: str
    mean: float
    interval: Interval | None
    prompts: int
    images: int


@dataclass(frozen=True)
class ScorerComparison:
    """One scorer's comparison of a and b. adjusted: p-value by Holm over all scorers of the table."""

    scorer: str
    result: PairedComparison
    adjusted: float

    @property
    def holds(self) -> bool:
        """Whether the difference stands when all scorers of the table are looked at."""
        return self.adjusted < 1.0 - self.result.level


@dataclass(frozen=True)
class Correlation:
    """Spearman correlation of two scorers on the images that both scored; None where there is none to be had."""

    first: str
    second: str
    interval: Interval | None
    images: int
    reason: str = ""
    """Why there is none."""


def mean_rows(
    scores: Mapping[Key, float],
    group: Callable[[Key], str],
    cluster: Callable[[Key], Hashable] = prompt_of,
    *,
    level: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> list[MeanRow]:
    """One row per group of keys, in order of first appearance: mean over prompts, with its interval."""
    groups: dict[str, dict[Hashable, list[float]]] = {}
    for key, value in scores.items():
        groups.setdefault(group(key), {}).setdefault(cluster(key), []).append(value)
    return [_mean_row(name, by_prompt, level, resamples, seed) for name, by_prompt in groups.items()]


def _mean_row(
    name: str, by_prompt: Mapping[Hashable, Sequence[float]], level: float, resamples: int, seed: int
) -> MeanRow:
    images = sum(len(values) for values in by_prompt.values())
    if len(by_prompt) < 2:
        [values] = by_prompt.values()
        return MeanRow(name, sum(values) / len(values), None, 1, images)
    found = bootstrap_interval(by_prompt, level, resamples, seed)
    return MeanRow(name, found.value, found, len(by_prompt), images)


def compare_scorers(
    a: Mapping[str, Mapping[Key, float]],
    b: Mapping[str, Mapping[Key, float]],
    cluster: Callable[[Key], Hashable] = prompt_of,
    *,
    names: tuple[str, str] = ("a", "b"),
    lower_is_better: frozenset[str] = frozenset(),
    level: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> list[ScorerComparison]:
    """`paired_comparison` of two sets by each scorer, with p-values corrected for looking at all of them.

    a, b: the same scorers, each with the same keys. Raises InputError for scorers without a partner; other errors as
    `paired_comparison`.
    """
    if a.keys() != b.keys():
        alone = ", ".join(sorted(a.keys() ^ b.keys()))
        raise InputError(f"{alone}: scored in one of {names[0]} and {names[1]} only; score both, or leave it out.")
    results = [
        paired_comparison(
            a[name],
            b[name],
            cluster,
            names=names,
            higher_is_better=name not in lower_is_better,
            level=level,
            resamples=resamples,
            seed=seed,
        )
        for name in a
    ]
    adjusted = holm([result.p_value for result in results]).tolist()
    return [ScorerComparison(*row) for row in zip(a, results, adjusted, strict=True)]


def correlations(
    scores: Mapping[str, Mapping[Key, float]],
    cluster: Callable[[Key], Hashable] = prompt_of,
    *,
    level: float = 0.95,
    resamples: int = 2_000,
    seed: int = 0,
) -> list[Correlation]:
    """Spearman correlation of every two scorers, resampled by prompt, over the images that both scored."""
    found = []
    for first, second in combinations(scores, 2):
        keys = [key for key in scores[first] if key in scores[second]]
        x, y = ([scores[name][key] for key in keys] for name in (first, second))
        clusters = [cluster(key) for key in keys]
        try:
            interval = spearman(x, y, clusters, level=level, resamples=resamples, seed=seed)
        except InputError as error:
            found.append(Correlation(first, second, None, len(keys), str(error)))
        else:
            found.append(Correlation(first, second, interval, len(keys)))
    return found
