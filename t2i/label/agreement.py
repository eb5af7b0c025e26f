"""How far raters agree beyond chance: Cohen's kappa of two, Fleiss' kappa of all."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from t2i.label.votes import Ballots


@dataclass(frozen=True)
class Agreement:
    """Of two raters or of all. kappa: 1 full agreement, 0 what chance gives; None where chance alone explains all."""

    raters: tuple[str, ...]
    pairs: int
    """Pairs that at least two of them judged."""
    share: float
    """Of two judgements of one pair, the share that is the same."""
    kappa: float | None


def cohen_kappa(first: Sequence[str], second: Sequence[str]) -> float | None:
    """Cohen's kappa (1960) of two raters' choices of the same items; None if both always made one same choice."""
    counts = (Counter(first), Counter(second))
    total = len(first)
    observed = sum(a == b for a, b in zip(first, second, strict=True)) / total
    expected = sum(counts[0][choice] * counts[1][choice] for choice in counts[0]) / total**2
    return None if expected == 1 else (observed - expected) / (1 - expected)


def fleiss_kappa(items: Iterable[Mapping[str, int]]) -> float | None:
    """Fleiss' kappa (1971) of items, each choice -> number of raters; None if everybody always made one same choice.

    Items may have different numbers of raters, two at least: each item's agreement is that of its own raters, and
    chance agreement is that of all judgements together. At equal numbers that is Fleiss' formula.
    """
    listed = [Counter(item) for item in items]
    observed = sum(_agreeing(item) for item in listed) / len(listed)
    judged = sum((item for item in listed), Counter())
    expected = sum((count / judged.total()) ** 2 for count in judged.values())
    return None if expected == 1 else (observed - expected) / (1 - expected)


def _agreeing(item: Counter[str]) -> float:
    """Share of the pairs of an item's judgements that are the same."""
    raters = item.total()
    return sum(count * (count - 1) for count in item.values()) / (raters * (raters - 1))


def agreements(ballots: Ballots) -> list[Agreement]:
    """Of every two raters, then of all if they are more than two; skipped pairs are not judged."""
    judged = {
        rater: {pair: choice for pair, choice in own.items() if choice != "skip"} for rater, own in ballots.items()
    }
    names = sorted(name for name, own in judged.items() if own)
    found = [_of_two(judged, names) for names in itertools.combinations(names, 2)]
    if len(names) > 2:
        found.append(_of_all(judged, tuple(names)))
    return [one for one in found if one is not None]


def _of_two(judged: Mapping[str, Mapping[int, str]], names: tuple[str, str]) -> Agreement | None:
    first, second = (judged[name] for name in names)
    both = sorted(first.keys() & second.keys())
    if not both:
        return None
    choices = [first[pair] for pair in both], [second[pair] for pair in both]
    same = sum(a == b for a, b in zip(*choices, strict=True))
    return Agreement(names, len(both), same / len(both), cohen_kappa(*choices))


def _of_all(judged: Mapping[str, Mapping[int, str]], names: tuple[str, ...]) -> Agreement | None:
    items: dict[int, Counter[str]] = {}
    for name in names:
        for pair, choice in judged[name].items():
            items.setdefault(pair, Counter())[choice] += 1
    shared = [item for item in items.values() if item.total() > 1]
    if not shared:
        return None
    return Agreement(names, len(shared), sum(map(_agreeing, shared)) / len(shared), fleiss_kappa(shared))
