"""Retrain the embedded models by recipes/tiny_pretrain.yaml, put them into t2i/shapes/assets, and print their figures.

python benchmarks/pretrain.py            run (or finish) the recipe, copy, print
python benchmarks/pretrain.py --check    run it, copy nothing, say whether the files in the package are the same
"""

from __future__ import annotations

import filecmp
import json
import shutil
import sys
from pathlib import Path

from machine import describe

from t2i.engine import PlannedStage, run
from t2i.recipe import Recipe

REPOSITORY = Path(__file__).parent.parent
ASSETS = REPOSITORY / "t2i/shapes/assets"
EXPORTS = {"pipeline_files": "pipeline", "clip_files": "clip", "reader_files": "reader"}


def main() -> int:
    """Run the recipe; returns 1 if `--check` finds a difference."""
    stages = {item.name: item for item in run(Recipe.load(REPOSITORY / "recipes/tiny_pretrain.yaml"), Path("runs"))}
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
