"""DPO, KTO, fine-tuning on the chosen and best-of-n at equal compute, with two controls, over several seeds.

python benchmarks/alignment.py [--write] [SEED...]     seeds 1 2 3 if none is given

Runs recipes/shapes_dpo.yaml with more arms. Held-out prompts and their noise are the same for every seed; candidates,
pairs and training differ. A difference is that of a prompt's mean over the seeds, its interval a bootstrap by prompt.
`--write` puts the table between the markers of README.md.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from claims import write_between
from machine import describe

from rewards.statistics import paired_comparison
from t2i.engine import run
from t2i.recipe import Recipe
from t2i.records import ScoredImage, read_jsonl
from t2i.stages.score import SCORERS_FILE, SCORES_FILE

REPOSITORY = Path(__file__).parent.parent
BEGIN, END = "<!-- alignment:begin -->", "<!-- alignment:end -->"
SEEDS = (1, 2, 3)
PASSES = {"dpo": 8, "kto": 8, "sft": 3}
"""Forward passes that a pair costs, a backward pass counted as two: two images with gradients and two without, or one
with."""
ARMS: dict[str, dict[str, Any]] = {
    "dpo": {},
    "kto": {"train.objective": {"type": "diffusion_kto", "beta": 50}},
    "sft": {"train.objective": {"type": "chosen_denoising"}},
    "dpo, labels flipped": {"pair.labels": "flipped"},
    "dpo, labels shuffled": {"pair.labels": "shuffled"},
}
BEST_OF = "best of n"


def main() -> None:
    """Run every seed and print the table."""
    arguments = [word for word in sys.argv[1:] if word != "--write"]
    seeds = [int(word) for word in arguments] or list(SEEDS)
    runs: list[dict[str, Path]] = []
    minutes = []
    with tempfile.TemporaryDirectory() as root:
        for seed in seeds:
            began = time.perf_counter()
            runs.append(score_folders(seed, Path(root)))
            minutes.append((time.perf_counter() - began) / 60)
        text = f"{table(runs)}\n\n{footnote(seeds, minutes)}"
    print(text)
    if "--write" in sys.argv:
        write_between(text, BEGIN, END)


def score_folders(seed: int, root: Path) -> dict[str, Path]:
    """Arm -> its folder of scores, `base` among them."""
    recipe = REPOSITORY / "recipes/shapes_dpo.yaml"
    plain = Recipe.load(recipe)
    stages = {stage.label: stage for stage in plain.stages}
    train = stages["train/true"].model_dump()
    steps, batch = train["loop"]["steps"], train["loop"]["batch_size"]
    arms = {name: dict(values) for name, values in ARMS.items()}
    arms["sft"]["train.loop.steps"] = round(steps * PASSES["dpo"] / PASSES["sft"])
    count = best_of_count(stages, steps * batch * PASSES["dpo"])
    named = {slug(name): values for name, values in arms.items()}
    drawn = {**stages["base_images"].model_dump(mode="json"), "name": "more_images", "images_per_prompt": count}
    scored = {**stages["base"].model_dump(mode="json"), "name": "more", "generations_from": "more_images"}
    best = {"type": "best_of", "name": "best", "scores_from": "more", "scorer": "tiny CLIP", "count": count}
    overrides = [f"seed={seed}", f"matrix.arms={json.dumps(named)}"]
    # As best-of-n gives: one image of each prompt.
    overrides += ["base_images.images_per_prompt=1", "tuned_images.images_per_prompt=1"]
    made = run(with_stages(recipe, overrides, [drawn, scored, best]), root / "runs")
    folders = {item.name: item.folder for item in made}
    found = {name: folders[f"tuned/{slug(name)}"] for name in ARMS}
    return {"base": folders["base"], **found, BEST_OF: folders["best"]}


def with_stages(path: Path, overrides: list[str], further: list[dict[str, Any]]) -> Recipe:
    """The recipe without its report and frontier, which name arms, and with further stages at its end."""
    import yaml

    data = yaml.safe_load(path.read_text())
    data["stages"] = [stage for stage in data["stages"] if stage["type"] not in ("report", "frontier")] + further
    with tempfile.NamedTemporaryFile("w", suffix=".yaml", delete=False) as file:
        file.write(yaml.safe_dump(data, sort_keys=False))
    try:
        return Recipe.load(Path(file.name), overrides)
    finally:
        Path(file.name).unlink()


def best_of_count(stages: dict[str, Any], training: int) -> int:
    """Images of a prompt that cost what candidates, training and one image cost; guidance doubles a step."""
    candidates, base = stages["candidates"].model_dump(), stages["base_images"].model_dump()
    an_image = (2 if base["sampling"]["guidance_scale"] > 1 else 1) * base["sampling"]["steps"]
    spent = candidates["prompts"]["count"] * candidates["images_per_prompt"] * an_image + training
    return 1 + round(spent / (base["prompts"]["count"] * an_image))


def slug(name: str) -> str:
    """A name that a stage may have."""
    return name.replace(", labels ", "_").replace(" ", "_")


def table(runs: list[dict[str, Path]]) -> str:
    """One row for each arm, a pair of columns for each scorer."""
    scorers = json.loads((runs[0]["base"] / SCORERS_FILE).read_text())
    heads = [f"{row['label']}{' (trained on)' if row['role'] == 'train' else ''}" for row in scorers]
    lines = [f"| arm | {' | '.join(heads)} | judge, seed by seed |", "|---" * (len(heads) + 2) + "|"]
    means = " | ".join(f"{mean(runs[0]['base'], row['label']):.3f}" for row in scorers)
    lines.append(f"| base | {means} | |")
    for arm in (*ARMS, BEST_OF):
        cells = [difference(runs, arm, row) for row in scorers]
        single = ", ".join(f"{mean(r[arm], 'judge') - mean(r['base'], 'judge'):+.3f}" for r in runs)
        lines.append(f"| {arm} | {' | '.join(cells)} | {single} |")
    return "\n".join(lines)


def difference(runs: list[dict[str, Path]], arm: str, scorer: dict[str, Any]) -> str:
    """Mean difference from the base with its interval."""
    label = scorer["label"]
    base = over_seeds([run["base"] for run in runs], label)
    found = paired_comparison(
        over_seeds([run[arm] for run in runs], label), base, higher_is_better=scorer["higher_is_better"], seed=0
    )
    return f"{found.difference:+.3f} [{found.low:+.3f}, {found.high:+.3f}]"


def over_seeds(folders: list[Path], label: str) -> dict[tuple[str, int, int], float]:
    """Image -> its score, the mean over the seeds."""
    columns = [column(folder, label) for folder in folders]
    return {key: statistics.fmean(values[key] for values in columns) for key in columns[0]}


def column(folder: Path, label: str) -> dict[tuple[str, int, int], float]:
    """Image -> its score."""
    return {row.key: row.scores[label] for row in read_jsonl(folder / SCORES_FILE, ScoredImage)}


def mean(folder: Path, label: str) -> float:
    """Mean score of a folder."""
    return statistics.fmean(column(folder, label).values())


def footnote(seeds: list[int], minutes: list[float]) -> str:
    """How it was measured."""
    spent = ", ".join(f"{value:.0f}" for value in minutes)
    return (
        f"Differences from the base with 95 % intervals (bootstrap by prompt, mean over seeds {seeds}; each interval "
        f"for its own comparison). Measured with `python benchmarks/alignment.py` in {spent} minutes: {describe()}."
    )


if __name__ == "__main__":
    main()
