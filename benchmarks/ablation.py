"""Which captions help: every arm of recipes/recap_ablation.yaml over several seeds of training, in one table.

python benchmarks/ablation.py [--write] [SEED...]     seeds 1 2 3 if none is given

Pictures, captions, held-out prompts and the noise that images are painted from are the same for all arms and seeds. A
difference is that of a prompt's mean over the seeds from the model that was not trained, its interval a bootstrap by
prompt. `--write` puts the table between the markers of README.md.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path

from alignment import mean, over_seeds
from claims import REPOSITORY, write_between
from machine import describe

from rewards.statistics import paired_comparison
from t2i.engine import run
from t2i.recipe import Recipe

BEGIN, END = "<!-- ablation:begin -->", "<!-- ablation:end -->"
SEEDS = (1, 2, 3)
ARMS = {
    "alt": "alt, as found in the web",
    "short": "short",
    "dense": "dense",
    "mix": "half alt, half dense",
    "random_length": "short, spatial and dense by lot",
    "dense_cep": "dense, noise on the condition (CEP)",
}
PROMPTS = {"short": "short prompts", "long": "expanded prompts"}
SCORERS = ("judge", "second reader")


def main() -> None:
    """Run every arm and seed, and print the table."""
    seeds = [int(word) for word in sys.argv[1:] if word != "--write"] or list(SEEDS)
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as root:
        recipe = Recipe.load(REPOSITORY / "recipes/recap_ablation.yaml", [f"matrix.seeds={json.dumps(seeds)}"])
        folders = {item.name: item.folder for item in run(recipe, Path(root))}
        minutes = (time.perf_counter() - began) / 60
        text = f"{table(folders, seeds)}\n\n{footnote(seeds, minutes)}"
    print(text)
    if "--write" in sys.argv:
        write_between(text, BEGIN, END)


def table(folders: dict[str, Path], seeds: list[int]) -> str:
    """One row for each arm; for both kinds of prompts, what both readers say, and the judge seed by seed."""
    heads = [f"{PROMPTS[kind]}: {scorer}" for kind in PROMPTS for scorer in SCORERS]
    lines = [f"| captions | {' | '.join(heads)} | judge, seed by seed: short; expanded |", "|---" * 6 + "|"]
    bases = " | ".join(f"{mean(folders[f'base_{kind}'], scorer):.3f}" for kind in PROMPTS for scorer in SCORERS)
    lines.append(f"| none: not trained | {bases} | |")
    for arm, words in ARMS.items():
        found = {kind: [folders[f"{kind}/{arm}/s{seed}"] for seed in seeds] for kind in PROMPTS}
        cells = [difference(found[kind], folders[f"base_{kind}"], scorer) for kind in PROMPTS for scorer in SCORERS]
        single = "; ".join(by_seed(found[kind], folders[f"base_{kind}"]) for kind in PROMPTS)
        lines.append(f"| {words} | {' | '.join(cells)} | {single} |")
    return "\n".join(lines)


def difference(tuned: list[Path], base: Path, scorer: str) -> str:
    """Mean difference from the untrained model with its interval."""
    found = paired_comparison(over_seeds(tuned, scorer), over_seeds([base], scorer), higher_is_better=True, seed=0)
    return f"{found.difference:+.3f} [{found.low:+.3f}, {found.high:+.3f}]"


def by_seed(tuned: list[Path], base: Path) -> str:
    """The judge's differences, one for each seed."""
    return ", ".join(f"{mean(folder, SCORERS[0]) - mean(base, SCORERS[0]):+.3f}" for folder in tuned)


def footnote(seeds: list[int], minutes: float) -> str:
    """How it was measured."""
    return (
        f"Differences from the model that was not trained with 95 % intervals (bootstrap by prompt, mean over seeds "
        f"{seeds} of training; each interval for its own comparison). Measured with `python benchmarks/ablation.py` in "
        f"{minutes:.0f} minutes: {describe()}."
    )


if __name__ == "__main__":
    main()
