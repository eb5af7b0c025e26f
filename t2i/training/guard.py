"""The guard of a run against over-optimisation: measures, keeps the best weights, warns, and stops the loop."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from t2i.errors import RunError
from t2i.files import write_bytes, write_text
from t2i.training.overoptimisation import Judgement, Reading, Rule, best_reading, judge, mean_score

GUARD_FILE = "guard.jsonl"
"""One line per reading, step 0 first: every image's scores."""
GUARDED_FILE = "guarded.safetensors"
"""The trained weights with the best held-out score so far, beside the checkpoints."""


@dataclass(frozen=True)
class Guard:
    """Called after checkpoints, with the weights that would be saved in the module. Being asked about a step again
    gives the same answer and the same files."""

    folder: Path
    """The stage's."""
    steps: int
    every: int
    rule: Rule
    measure: Callable[[int], Reading]
    """Samples and scores the model as it is; the argument is its step."""
    may_stop: bool
    say: Callable[[str], None]
    """Shows a warning to the person who runs it."""

    def begin(self) -> None:
        """Measure the model before its first step, unless that is done: called when it still is as it began, so that
        what is wrong with the rewards costs no training."""
        if not read_readings(self.folder):
            self._write([self.measure(0)])

    def __call__(self, step: int, weights: Path) -> Literal["continue", "stop"]:
        """Look at the weights, where it is time to."""
        if step % self.every and step != self.steps:
            return "continue"
        known = [reading for reading in read_readings(self.folder) if reading.step <= step]
        if not known:
            raise RunError(
                f"{self.folder / GUARD_FILE}: gone, with the start that it is about; delete the stage's folder."
            )
        if known[-1].step != step:
            known.append(self.measure(step))
            # The weights first: a reading that is on disk has had its weights kept.
            if best_reading(known[1:], self.rule).step == step:
                write_bytes(self.folder / "checkpoints" / GUARDED_FILE, weights.read_bytes())
        self._write(known)
        verdict = judge(known, self.rule)
        if verdict.signs:
            self.say(f"step {step}: the trained reward rose, but {'; '.join(verdict.signs)}.")
        stops = verdict.is_over and self.may_stop
        if stops:
            self.say(f"step {step}: stopped, the reward is over-optimised; step {verdict.best_step} is the best.")
        return "stop" if stops else "continue"

    def _write(self, readings: Sequence[Reading]) -> None:
        write_text(self.folder / GUARD_FILE, "".join(json.dumps(asdict(reading)) + "\n" for reading in readings))


def read_readings(folder: Path) -> list[Reading]:
    """All readings of a stage, in the order of the steps. Raises RunError for a file that is none."""
    path = folder / GUARD_FILE
    try:
        lines = path.read_text().splitlines() if path.exists() else []
        return [Reading(**json.loads(line)) for line in lines]
    except (ValueError, TypeError) as error:
        raise RunError(f"{path}: not what the guard wrote ({error}); delete the stage's folder.") from error


def guard_facts(readings: Sequence[Reading], rule: Rule, *, stopped: bool) -> dict[str, Any]:
    """What done.json says of a guarded run: the means at the start, at the best step and at the end."""
    verdict = judge(readings, rule)
    best = next(reading for reading in readings if reading.step == verdict.best_step)
    rewards = (*rule.trained, *rule.held_out)
    means = {
        name: {reward: mean_score(reading, reward) for reward in rewards}
        for name, reading in (("start", readings[0]), ("best", best), ("last", readings[-1]))
    }
    guard = {"best_step": best.step, "last_step": readings[-1].step, "stopped": stopped, "means": means}
    guard |= {"signs": list(verdict.signs), "trained_on": list(rule.trained)}
    return {"guard": guard, "summary": [_sentence(means, rule, verdict, readings[-1].step, stopped)]}


def _sentence(means: dict[str, dict[str, float]], rule: Rule, verdict: Judgement, last: int, stopped: bool) -> str:
    first = rule.held_out[0]
    start, best = means["start"][first], means["best"][first]
    text = f"guard: {'stopped at' if stopped else 'ran to'} step {last}; {first} is best at step {verdict.best_step}"
    return f"{text}, {best:.4g} after {start:.4g}" + ("" if best > start else ": no checkpoint is above the start")
