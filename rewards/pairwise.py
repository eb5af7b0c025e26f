"""How well differences of scores predict which of two images is preferred: accuracy and calibration.

A pair is (margin, preference): score of the chosen image minus that of the rejected, and the probability that the
chosen one is preferred, 0.5 for a tie. No number changes when the two images of a pair change places.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TypeVar

import numpy as np
from numpy.typing import ArrayLike

from rewards.errors import InputError
from rewards.resampling import Floats, Interval
from rewards.statistics import bootstrap_interval, wilson_interval

Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True)
class ReliabilityBin:
    """Pairs whose predicted side has a probability of `low` to `high`: what was claimed on average, and what held."""

    low: float
    high: float
    pairs: int
    confidence: float
    accuracy: float


@dataclass(frozen=True)
class Calibration:
    """Of the probabilities sigmoid(margin). log_loss: in nats; at best the entropy of the preferences, 0 if sure."""

    log_loss: float
    brier: float
    """Mean squared error of the probability of the chosen image (Brier 1950), 0 to 1; 0.25 for always one half."""
    expected_calibration_error: float
    """Mean distance of confidence and accuracy over the bins, weighted by their pairs (Naeini et al. 2015)."""
    reliability: tuple[ReliabilityBin, ...]
    """Bins that hold pairs; confidences begin at 0.5, since the predicted side is the likelier one."""


def pairwise_accuracy(
    margins: ArrayLike, preferences: ArrayLike, clusters: Sequence[Hashable], level: float = 0.95
) -> Interval:
    """Share of the pairs that are no tie in which the preferred image scores higher; equal scores count half.

    margins, preferences: [n]; clusters: prompt of each pair. The interval is that of `share_by_prompt`. Raises
    InputError for other shapes, or fewer than 2 prompts with a preference.
    """
    margin, preference = _pairs(margins, preferences)
    if len(clusters) != len(margin):
        raise InputError(f"pairwise accuracy: {len(clusters)} clusters for {len(margin)} pairs; expected one a pair.")
    hits: dict[Hashable, list[float]] = {}
    for one, probability, cluster in zip(margin, preference, clusters, strict=True):
        if probability != 0.5:
            hits.setdefault(cluster, []).append(float(np.sign(one) * np.sign(probability - 0.5) + 1) / 2)
    if len(hits) < 2:
        raise InputError(f"pairwise accuracy needs 2 prompts with a preference at least; found {len(hits)}.")
    return share_by_prompt(hits, level)


def share_by_prompt(hits: Mapping[Key, Sequence[float]], level: float = 0.95) -> Interval:
    """Mean over prompts of each prompt's share of hits, with its interval.

    hits: prompt -> 1 for each hit, 0 for each miss, 0.5 for what is neither. Where every prompt has one pair, the
    interval is Wilson's; so it is where all have the same share, which have no spread to resample, with prompts as
    trials. Else it is bootstrapped over prompts. Raises InputError where there are no prompts.
    """
    shares = [sum(values) / len(values) for values in hits.values()]
    if len(set(shares)) < 2 or all(len(values) == 1 for values in hits.values()):
        return wilson_interval(sum(shares), len(shares), level)
    found = bootstrap_interval(hits, level)
    return Interval(found.value, max(0.0, found.low), min(1.0, found.high), level, found.clusters)


def calibration(margins: ArrayLike, preferences: ArrayLike, bins: int = 5) -> Calibration:
    """Calibration of sigmoid(margin) on [n] pairs, ties included: of those, either side is right half the time.

    bins: of equal width between confidences 0.5 and 1.
    """
    margin, preference = _pairs(margins, preferences)
    probability = 1 / (1 + np.exp(-np.clip(margin, -700, 700)))
    confidence = np.maximum(probability, 1 - probability)
    held = np.where(margin > 0, preference, np.where(margin < 0, 1 - preference, 0.5))
    edges = np.linspace(0.5, 1, bins + 1)
    place = np.clip(np.digitize(confidence, edges) - 1, 0, bins - 1)
    found = tuple(
        ReliabilityBin(
            float(edges[number]),
            float(edges[number + 1]),
            int((place == number).sum()),
            float(confidence[place == number].mean()),
            float(held[place == number].mean()),
        )
        for number in sorted(set(place.tolist()))
    )
    error = sum(one.pairs * abs(one.confidence - one.accuracy) for one in found) / len(margin)
    losses = preference * np.logaddexp(0, -margin) + (1 - preference) * np.logaddexp(0, margin)
    return Calibration(float(losses.mean()), float(((probability - preference) ** 2).mean()), error, found)


def _pairs(margins: ArrayLike, preferences: ArrayLike) -> tuple[Floats, Floats]:
    margin, preference = np.asarray(margins, dtype=np.float64), np.asarray(preferences, dtype=np.float64)
    if margin.ndim != 1 or margin.shape != preference.shape or not len(margin):
        raise InputError(f"pairs: shapes {margin.shape} and {preference.shape}; expected two lists of equal length.")
    if not np.isfinite(margin).all() or not ((preference >= 0) & (preference <= 1)).all():
        raise InputError("pairs: expected finite margins and preferences of 0 to 1.")
    return margin, preference


def label_pairs(
    scores: ArrayLike, labels: ArrayLike, prompts: Sequence[Hashable]
) -> tuple[Floats, Floats, list[Hashable]]:
    """All pairs of images of one prompt as (margins, preferences, clusters), for `pairwise_accuracy`.

    scores, labels: [n] of the images; larger labels are better, equal ones a tie. Raises InputError for other shapes.
    """
    score, label = np.asarray(scores, dtype=np.float64), np.asarray(labels, dtype=np.float64)
    if score.ndim != 1 or score.shape != label.shape or len(prompts) != len(score):
        raise InputError(f"pairs: {score.shape} scores, {label.shape} labels, {len(prompts)} prompts; expected equal.")
    members: dict[Hashable, list[int]] = {}
    for position, prompt in enumerate(prompts):
        members.setdefault(prompt, []).append(position)
    pairs = [(first, second) for own in members.values() for first, second in combinations(own, 2)]
    if not pairs:
        raise InputError("pairs: no prompt has two images.")
    first, second = np.array(pairs).T
    preferences = (np.sign(label[first] - label[second]) + 1) / 2
    return score[first] - score[second], preferences, [prompts[one] for one, _ in pairs]
