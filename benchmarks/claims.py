"""Recompute the results tables of the README: run each recipe from nothing in a folder of its own, and print the table.

python benchmarks/claims.py              print
python benchmarks/claims.py --write      and put it between the markers in README.md
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path

import correlations
from machine import describe

from t2i.engine import run
from t2i.recipe import Recipe

REPOSITORY = Path(__file__).parent.parent
BEGIN, END = "<!-- claims:begin -->", "<!-- claims:end -->"
RECIPES = ("quickstart",)


def main() -> None:
    """Run every claimed recipe and print its table."""
    parts = []
    with tempfile.TemporaryDirectory() as root:
        for name in RECIPES:
            began = time.perf_counter()
            stages = run(Recipe.load(REPOSITORY / f"recipes/{name}.yaml"), Path(root))
            minutes = (time.perf_counter() - began) / 60
            comparison = next(item.folder for item in stages if item.stage.type == "compare") / "comparison.json"
            rows = table(json.loads(comparison.read_text()))
            parts.append(f"`recipes/{name}.yaml`, {minutes:.1f} minutes:\n\n{rows}")
        parts.append(f"Scorers against the judge of the shapes world:\n\n{correlations.measure(Path(root))}")
    text = "\n\n".join([*parts, f"Measured with `make claims`: {describe()}."])
    print(text)
    if "--write" in sys.argv:
        write_between(text, BEGIN, END)


def table(result: dict[str, object]) -> str:
    """One row per scorer."""
    lines = ["| scorer | base | tuned | difference, 95 % interval | tuned wins | prompts |", "|---" * 6 + "|"]
    for row in result["overall"]:  # type: ignore[union-attr]
        difference = f"{row['difference']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}]"
        rate = f"{row['win_rate']:.0%} [{row['win_low']:.0%}, {row['win_high']:.0%}]"
        means = f"{row['mean_a']:.3f} | {row['mean_b']:.3f}"
        lines.append(f"| {row['label']} | {means} | {difference} {row['verdict']} | {rate} | {row['prompts']} |")
    return "\n".join(lines)


def write_between(text: str, begin: str, end: str, path: Path = REPOSITORY / "README.md") -> None:
    """Replace what stands between two markers of a file. Raises SystemExit where it has none."""
    before, found, rest = path.read_text().partition(begin)
    _, _, after = rest.partition(end)
    if not found:
        raise SystemExit(f"{path}: has no {begin}; the table is printed above.")
    path.write_text(f"{before}{begin}\n{text}\n{end}{after}")


if __name__ == "__main__":
    main()
