"""Retrain the embedded models by recipes/tiny_pretrain.yaml, put them into t2i/shapes/assets, and print their figures.

python benchmarks/pretrain.py            run (or finish) the recipe, copy, print
python benchmarks/pretrain.py --check    run it, copy nothing, say whether the files in the package are the same
python benchmarks/pretrain.py --twice [KEY=VALUE...]
                                         run it two times with these overrides, the second time killed once in every
                                         training, and say whether both leave the same files
"""

from __future__ import annotations

import filecmp
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from machine import describe

from t2i.engine import PlannedStage, run
from t2i.recipe import Recipe
from t2i.rundir import DONE
from t2i.training.checkpoint import list_checkpoints

REPOSITORY = Path(__file__).parent.parent
ASSETS = REPOSITORY / "t2i/shapes/assets"
RECIPE = REPOSITORY / "recipes/tiny_pretrain.yaml"
EXPORTS = {"pipeline_files": "pipeline", "clip_files": "clip", "reader_files": "reader"}


def main() -> int:
    """Run the recipe; returns 1 if `--check` or `--twice` finds a difference."""
    if "--twice" in sys.argv:
        return twice([word for word in sys.argv[1:] if word != "--twice"])
    stages = {item.name: item for item in run(Recipe.load(RECIPE), Path("runs"))}
    differing: list[str] = []
    for stage, name in EXPORTS.items():
        made, shipped = stages[stage].folder / name, ASSETS / name
        if "--check" in sys.argv:
            differing += [f"{name}/{file}" for file in different_files(made, shipped)]
        else:
            shutil.rmtree(shipped, ignore_errors=True)
            shutil.copytree(made, shipped)
    print(f"{describe()}\n")
    print(table(stages))
    if "--check" in sys.argv:
        verdict = f"different: {', '.join(differing)}" if differing else "the same bits"
        print(f"\nthe files in the package are {verdict}")
    return int(bool(differing))


def twice(overrides: list[str]) -> int:
    """Run the recipe in two folders; returns 1 if the exported models or the painted pictures differ."""
    with tempfile.TemporaryDirectory() as root:
        whole, killed = Path(root, "whole"), Path(root, "killed")
        for folder, kill in ((whole, False), (killed, True)):
            began = time.perf_counter()
            moments = run_in(folder, overrides, kill)
            print(f"{folder.name}: {time.perf_counter() - began:.0f} s, killed {' and '.join(moments) or 'nowhere'}")
        # Finished, so that this only finds the folders.
        recipe = Recipe.load(RECIPE, overrides)
        first, second = ({item.name: item.folder for item in run(recipe, root)} for root in (whole, killed))
        outputs = EXPORTS | {"generate": "images"}
        counts = {
            name: sum(path.is_file() for path in (first[name] / kept).rglob("*")) for name, kept in outputs.items()
        }
        differing = [
            f"{name}/{file}"
            for name, kept in outputs.items()
            for file in different_files(first[name] / kept, second[name] / kept)
        ]
    print(f"\n{' '.join(overrides) or 'as written'}; files of {counts}: {'; '.join(differing) or 'the same bits'}")
    print(describe())
    return int(bool(differing))


def run_in(folder: Path, overrides: list[str], kill: bool) -> list[str]:
    """Run the recipe in a process of its own. kill: once in each training, after its first checkpoint, with SIGKILL.

    Returns where it was killed.
    """
    moments: dict[str, str] = {}
    command = [sys.executable, "-m", "t2i", "run", str(RECIPE), *overrides]
    while True:
        with open(folder.with_suffix(".log"), "ab") as log:
            child = subprocess.Popen(command, env=os.environ | {"T2I_RUNS": str(folder)}, stdout=log, stderr=log)
            while child.poll() is None:
                time.sleep(0.1)
                for stage in folder.glob("tiny_pretrain/*") if kill else ():
                    found = list_checkpoints(stage / "checkpoints")
                    if found and stage.name not in moments and not (stage / DONE).exists():
                        child.kill()
                        moments[stage.name] = f"after {found[-1].name} of {stage.name.rpartition('-')[0]}"
        if child.wait() == 0:
            return list(moments.values())
        if child.returncode > 0:
            raise SystemExit(folder.with_suffix(".log").read_text()[-2000:])


def different_files(made: Path, shipped: Path) -> list[str]:
    """Files that are not byte for byte the same in both folders."""
    names = {path.relative_to(folder) for folder in (made, shipped) for path in folder.rglob("*") if path.is_file()}
    same = {name for name in names if (made / name).is_file() and (shipped / name).is_file()}
    changed = {name for name in same if not filecmp.cmp(made / name, shipped / name, shallow=False)}
    return sorted(str(name) for name in (names - same) | changed)


def table(stages: dict[str, PlannedStage]) -> str:
    """Facts of every stage that has some worth knowing, as a Markdown table."""
    lines = ["| stage | seconds | facts |", "|---|---|---|"]
    for name, item in stages.items():
        facts = json.loads((item.folder / "done.json").read_text())["facts"]
        seconds = json.loads((item.folder / "provenance.json").read_text())["wall_seconds"]
        lines.append(f"| {name} | {seconds:.0f} | {', '.join(f'{key} {value}' for key, value in facts.items())} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
