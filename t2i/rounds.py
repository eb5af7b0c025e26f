"""Stopping the rounds of a recipe early: once the stage that chooses among them has decided, later ones are not run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from t2i.stages.base import Stage


@dataclass(frozen=True)
class RoundStop:
    """by: name of the stage that decides; rounds: names of the stages of each round, in order."""

    by: str
    rounds: tuple[tuple[str, ...], ...]

    def round_of(self, name: str) -> int:
        """Number of the round that a stage is of, from 1; 0 for a stage outside the rounds."""
        return next((number for number, names in enumerate(self.rounds, 1) if name in names), 0)

    def reason(self, name: str, stages: Sequence[Stage], finished: Mapping[str, Path]) -> str:
        """Why a stage need not run, in words; empty if it must, or if that is not known yet.

        finished: name -> folder of every finished stage. Only what stands before the rounds and what the rounds before
        this one wrote counts, so that the answer is the same whenever it is asked for.
        """
        number = self.round_of(name)
        if number < 2:
            return ""
        judge = next(stage for stage in stages if stage.label == self.by)
        labels = [stage.label for stage in stages]
        start = set(labels[: next(place for place, label in enumerate(labels) if self.round_of(label))])
        known: dict[str, list[tuple[str, Path]]] = {}
        for field, names in judge.references.items():
            before = [one for one in names if one in start or 0 < self.round_of(one) < number]
            known[field] = [(one, finished[one]) for one in before if one in finished]
            # A round that was passed over itself has been decided about; anything else that is missing has yet to run.
            if any(one in start and one not in finished for one in names):
                return ""
        if any(not any(map(self.round_of, dict(rows))) for rows in known.values()):
            return ""
        return judge.decided(known)
