"""The guard against over-optimisation: how soon it stops a run that follows a weak reward, and if sound ones go on.

python benchmarks/guard.py [--write]

Runs the training of recipes/shapes_overoptimised.yaml, guarded and not, and beside it three sound runs of the same
length (shapes_dpo's labels, other training seeds) under the same guard. `--write` puts the table between the markers of
RESULTS.md.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml
from claims import write_between
from machine import describe

from t2i.engine import run
from t2i.recipe import Recipe
from t2i.training.guard import read_readings
from t2i.training.overoptimisation import Reading, mean_score

REPOSITORY = Path(__file__).parent.parent
BEGIN, END = "<!-- guard:begin -->", "<!-- guard:end -->"
KEPT_STAGES = ("candidates", "labels", "pair", "train")
SOUND_SEEDS = (1, 2, 3)
WEAK, SOUND, JUDGE = "brightness", "tiny CLIP", "judge"
CLIP = {"name": "clip_score", "label": SOUND, "model": "pkg:t2i.shapes/assets/clip", "role": "train"}


def main() -> None:
    """Run all arms and print the table."""
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as root:
        found = {item.name: item.folder for item in run(recipe(Path(root)), Path(root) / "runs")}
        folders = {name.partition("/")[2]: folder for name, folder in found.items() if name.startswith("train/")}
        steps = Recipe.load(REPOSITORY / "recipes/shapes_overoptimised.yaml").stages[3].model_dump()["loop"]["steps"]
        text = table(folders, steps)
    text += f"\n\nMeasured with `python benchmarks/guard.py` in {(time.perf_counter() - began) / 60:.0f} minutes: "
    text += f"{describe()}."
    print(text)
    if "--write" in sys.argv:
        write_between(text, BEGIN, END, REPOSITORY / "benchmarks/RESULTS.md")


def recipe(root: Path) -> Recipe:
    """The shipped recipe up to its training, with an arm for each sound run."""
    data = yaml.safe_load((REPOSITORY / "recipes/shapes_overoptimised.yaml").read_text())
    data["stages"] = [stage for stage in data["stages"] if stage.get("name", stage["type"]) in KEPT_STAGES]
    stages = {stage.get("name", stage["type"]): stage for stage in data["stages"]}
    stages["labels"]["scorers"].append(CLIP)
    held_out = [reward for reward in stages["train"]["guard"]["rewards"] if reward["role"] != "train"]
    sound = {"pair.rule.scorers": {SOUND: 40}, "train.guard.rewards": [*held_out, CLIP]}
    data["matrix"]["stages"] = ["pair", "train"]
    data["matrix"]["arms"] |= {f"sound_{seed}": {**sound, "train.seed": seed} for seed in SOUND_SEEDS}
    path = root / "recipe.yaml"
    path.write_text(yaml.safe_dump(data, sort_keys=False))
    return Recipe.load(path)


def table(folders: dict[str, Path], steps: int) -> str:
    """One row for each run, and what the guard is asked to do."""
    lines = [
        "| run | trained reward, start to end | judge at the start, best, end | best step | stopped at | kept |",
        "|---|---|---|---:|---:|---:|",
    ]
    facts = {name: json.loads((folder / "done.json").read_text())["facts"]["guard"] for name, folder in folders.items()}
    for name, folder in folders.items():
        lines.append(row(name, read_readings(folder), facts[name]))
    best = max(read_readings(folders["unguarded"])[1:], key=lambda reading: mean_score(reading, JUDGE)).step
    guarded = facts["guarded"]
    late = (guarded["last_step"] - best) / steps
    sound = sum(facts[f"sound_{seed}"]["stopped"] for seed in SOUND_SEEDS)
    said = "stopped" if guarded["stopped"] else "was not stopped"
    lines += [
        "",
        f"The guarded run {said} {late:.0%} of the run's length after the judge's best step in the unguarded twin "
        f"(target 20 %), and kept step {guarded['best_step']} (the twin's best: {best}). Sound runs stopped: "
        f"{sound} of {len(SOUND_SEEDS)} (target 0).",
    ]
    return "\n".join(lines)


def row(name: str, readings: list[Reading], guard: dict[str, Any]) -> str:
    """One run."""
    trained = guard["trained_on"][0]
    rewards = f"{trained} {mean_score(readings[0], trained):.3g} to {mean_score(readings[-1], trained):.3g}"
    scores = {reading.step: mean_score(reading, JUDGE) for reading in readings}
    best = guard["best_step"]
    judged = f"{scores[0]:.3f}, {scores[best]:.3f}, {scores[readings[-1].step]:.3f}"
    stopped = readings[-1].step if guard["stopped"] else "no"
    kept = best if name != "unguarded" else readings[-1].step
    return f"| {name.replace('_', ' ')} | {rewards} | {judged} | {best} | {stopped} | {kept} |"


if __name__ == "__main__":
    main()
