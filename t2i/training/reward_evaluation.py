"""How well a reward model does on pairs it was not trained on, and whether something trivial would do as well."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

import rewards
from rewards.base import Reward, check_scores
from rewards.pairwise import calibration, pairwise_accuracy
from t2i.records import PreferencePair
from t2i.training.progress import progress_bar

CONTROLS = ("brightness", "jpeg_size", "saturation", "sharpness")
"""Formulas on the pixels; a preference that one of them predicts needs no reward model."""
_AT_ONCE = 64


@dataclass(frozen=True)
class Margins:
    """Score of the chosen minus that of the rejected image of each pair, and the pairs' labels and prompts."""

    margins: np.ndarray
    preferences: np.ndarray
    groups: Sequence[Hashable]

    def accuracy(self) -> dict[str, float]:
        """With its 95 % interval."""
        found = pairwise_accuracy(self.margins, self.preferences, self.groups)
        return {"accuracy": found.value, "low": found.low, "high": found.high}


def evaluate(scorer: Reward, pairs: Sequence[PreferencePair]) -> dict[str, Any]:
    """Accuracy with interval on the pairs that are no tie, calibration on all, and the accuracy of each control."""
    own = margins_of(scorer, pairs)
    controls = {name: margins_of(rewards.load(name), pairs).accuracy() for name in CONTROLS}
    ties = sum(pair.is_tie for pair in pairs)
    calibrated = asdict(calibration(own.margins, own.preferences))
    return {"pairs": len(pairs), "ties": ties, **own.accuracy(), **calibrated, "controls": controls}


def summary(name: str, found: Mapping[str, Any]) -> list[str]:
    """An evaluation in lines for people."""
    judged = found["pairs"] - found["ties"]
    lines = [
        f"{name}: accuracy {_with_interval(found)} on {judged} held-out pairs; expected calibration error "
        f"{found['expected_calibration_error']:.3f}, Brier score {found['brier']:.3f}"
    ]
    controls = ", ".join(f"{control} {_with_interval(row)}" for control, row in found["controls"].items())
    return [*lines, f"{name}: accuracy of controls: {controls}"]


def _with_interval(row: Mapping[str, Any]) -> str:
    return f"{row['accuracy']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"


def margins_of(scorer: Reward, pairs: Sequence[PreferencePair]) -> Margins:
    """Score both images of every pair."""
    values: list[float] = []
    with progress_bar(f"held-out pairs: {scorer.name}", 0, len(pairs)) as advance:
        for start in range(0, len(pairs), _AT_ONCE):
            part = pairs[start : start + _AT_ONCE]
            prompts = [pair.prompt for pair in part for _ in (0, 1)] if scorer.needs_prompt else None
            images = [path for pair in part for path in (pair.chosen, pair.rejected)]
            scores = check_scores(scorer.name, scorer.score(images, prompts), len(images))
            values += (scores[0::2].astype(np.float64) - scores[1::2]).tolist()
            advance(start + len(part))
    preferences = np.array([pair.preference for pair in pairs])
    return Margins(np.array(values), preferences, [pair.group for pair in pairs])
