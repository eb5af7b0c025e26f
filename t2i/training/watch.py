"""What is looked at while a run trains: the loss on held-out images, and samples. It is the loop's probe."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from t2i.files import write_bytes, write_text
from t2i.training.outputs import SAMPLES_FOLDER

if TYPE_CHECKING:
    from t2i.training.loop import Probe
    from t2i.training.settings import HeldOutSettings, SampleSettings

HELD_OUT_FILE = "held_out.jsonl"
"""One line per measurement: step and loss."""
BEST_FILE = "best.safetensors"
"""The trained weights with the lowest held-out loss so far, beside the checkpoints."""


@dataclass(frozen=True)
class Watch:
    """Called after checkpoints, with the weights that would be saved in the module. Being asked about a step again
    gives the same answer and the same files."""

    folder: Path
    """The stage's."""
    steps: int
    held_out: HeldOutSettings | None = None
    held_out_loss: Callable[[], float] | None = None
    samples: SampleSettings | None = None
    sample: Callable[[Path], None] | None = None
    """Writes samples into a folder."""

    @property
    def intervals(self) -> tuple[int, ...]:
        """Steps between calls that are needed."""
        return tuple(settings.every for settings in (self.held_out, self.samples) if settings is not None)

    def __call__(self, step: int, weights: Path) -> Literal["continue"]:
        """Look at the weights, where it is time to."""
        if self.held_out is not None and self.held_out_loss is not None and self._is_due(step, self.held_out.every):
            self._measure(step, weights, self.held_out_loss())
        if self.samples is not None and self.sample is not None and self._is_due(step, self.samples.every):
            self.sample(self.folder / SAMPLES_FOLDER / f"step-{step:08d}")
        return "continue"

    def _is_due(self, step: int, every: int) -> bool:
        return step % every == 0 or step == self.steps

    def _measure(self, step: int, weights: Path, loss: float) -> None:
        earlier = [row for row in read_held_out(self.folder) if row["step"] < step]
        # A loss that is not a number is below nothing, and nothing need be below it.
        if loss < min(_finite_losses(earlier), default=float("inf")):
            write_bytes(self.folder / "checkpoints" / BEST_FILE, weights.read_bytes())
        rows = [*earlier, {"step": step, "loss": loss}]
        write_text(self.folder / HELD_OUT_FILE, "".join(json.dumps(row) + "\n" for row in rows))


def asked_in_turn(probes: Sequence[Probe]) -> Probe | None:
    """One probe that asks all, and stops if any says so; None if there is none."""

    def ask(step: int, weights: Path) -> Literal["continue", "stop"]:
        return "stop" if "stop" in [probe(step, weights) for probe in probes] else "continue"

    return ask if probes else None


def read_held_out(folder: Path) -> list[dict[str, float]]:
    """All measurements of a stage, in the order of the steps."""
    path = folder / HELD_OUT_FILE
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def held_out_facts(folder: Path) -> dict[str, float]:
    """The last held-out loss, and the lowest with its step; nothing if none was measured."""
    rows = read_held_out(folder)
    if not rows:
        return {}
    best = min(rows, key=lambda row: row["loss"] if math.isfinite(row["loss"]) else math.inf)
    return {"held_out_loss": rows[-1]["loss"], "best_held_out_loss": best["loss"], "best_step": best["step"]}


def _finite_losses(rows: Sequence[dict[str, float]]) -> list[float]:
    return [row["loss"] for row in rows if math.isfinite(row["loss"])]
