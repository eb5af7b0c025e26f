"""metrics.jsonl and the progress bar of a training run."""

from __future__ import annotations

import json
from pathlib import Path

from t2i.files import write_text


class MetricsLog:
    """One JSON object a line: step and values. Lines after the step a run resumes from are dropped first."""

    def __init__(self, path: Path, *, resumed_step: int) -> None:
        self.path = path
        lines = path.read_text().splitlines() if path.exists() else []
        kept = [line for line in lines if _step_of(line) is not None and (_step_of(line) or 0) <= resumed_step]
        write_text(path, "".join(line + "\n" for line in kept))

    def append(self, step: int, values: dict[str, float]) -> None:
        """Write one line at once; a torn last line is dropped by the next run."""
        line = json.dumps({"step": step, **{name: float(f"{value:.7g}") for name, value in values.items()}})
        with self.path.open("a") as file:
            file.write(line + "\n")


def _step_of(line: str) -> int | None:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return None


def read_metrics(path: Path) -> list[dict[str, float]]:
    """The complete lines of a metrics file, in order; none if there is no file."""
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line) for line in lines if _step_of(line) is not None]
