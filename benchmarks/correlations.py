"""How the scorers with real weights of the shapes world agree with its judge, on images of the shipped pipeline.

python benchmarks/correlations.py               print the table
python benchmarks/correlations.py 60            with 60 prompts instead of 120

The reward model is that of recipes/reward_model.yaml: it was taught a hidden taste, so it should not agree with a judge
of faithfulness. Controls should not either. Prompts are held out, with two images each, and are what the bootstrap
draws; the judge's number is the share of questions about the prompt that an image answers rightly.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from machine import describe
from PIL import Image

import rewards
from rewards.pairwise import label_pairs, pairwise_accuracy
from rewards.resampling import Interval
from rewards.statistics import kendall, spearman
from t2i.data.prompts import ShapesPrompts
from t2i.engine import run
from t2i.randomness import image_seed
from t2i.recipe import Recipe
from t2i.resources import resolve_path
from t2i.sampling import Sampler, SamplingSettings

REPOSITORY = Path(__file__).parent.parent
CONTROLS = ("brightness", "jpeg_size", "saturation", "sharpness")
JUDGE = "t2i.shapes.scorers:JudgeFaithfulness"
PROMPTS, SAMPLES, BATCH, SEED = 120, 2, 48, 5


def main() -> None:
    """Train the reward model, generate, score, and print the table."""
    with tempfile.TemporaryDirectory() as root:
        print(measure(Path(root), int(sys.argv[1]) if len(sys.argv) > 1 else PROMPTS))
    print(f"\nMeasured with `python benchmarks/correlations.py`: {describe()}.")


def measure(root: Path, prompts: int = PROMPTS) -> str:
    """The table, and a line on what it was measured on. root: folder for the runs."""
    [trained] = run(Recipe.load(REPOSITORY / "recipes/reward_model.yaml"), root)
    clip = str(resolve_path("pkg:t2i.shapes/assets/clip"))
    scorers = {
        "second reader": rewards.load("t2i.shapes.scorers:ReaderFaithfulness"),
        "tiny CLIP score": rewards.load({"name": "clip_score", "model": clip}),
        "reward model (hidden taste)": rewards.load({"name": "reward_model", "model": str(trained.folder / "model")}),
        **{name: rewards.load(name) for name in CONTROLS},
    }
    texts, images = generate(prompts)
    judged = rewards.load(JUDGE).score(images, texts)
    rows = [row(label, scorer.score(images, texts), judged, texts) for label, scorer in scorers.items()]
    head = "| scorer | Spearman with the judge | Kendall tau-b | right about two images of a prompt |"
    facts = f"{prompts} held-out prompts, {SAMPLES} images each; the judge's mean is {judged.mean():.3f}."
    return "\n".join([head, "|---" * 4 + "|", *rows, "", facts])


def generate(count: int) -> tuple[list[str], list[Image.Image]]:
    """Prompts, one for each image, and images of the shipped pipeline."""
    sampler = Sampler.load("pkg:t2i.shapes/assets/pipeline", SamplingSettings(steps=20))
    prompts = ShapesPrompts(count=count, split="heldout", max_objects=2).read(SEED)
    texts = [prompt.text for prompt in prompts for _ in range(SAMPLES)]
    seeds = [image_seed(SEED, number, sample) for number in range(count) for sample in range(SAMPLES)]
    images: list[Image.Image] = []
    for start in range(0, len(texts), BATCH):
        images += sampler.generate(texts[start : start + BATCH], seeds[start : start + BATCH])
    return texts, images


def row(label: str, scores: np.ndarray, judged: np.ndarray, prompts: Sequence[str]) -> str:
    """One scorer against the judge, every figure with its 95 % interval over prompts."""
    margins, preferences, clusters = label_pairs(scores, judged, prompts)
    found = [spearman(scores, judged, prompts), kendall(scores, judged, prompts, resamples=2000)]
    right = shown(pairwise_accuracy(margins, preferences, clusters), "")
    return f"| {label} | {' | '.join(shown(one, '+') for one in found)} | {right} |"


def shown(interval: Interval, sign: str) -> str:
    """A value and its interval; sign: "+" marks positive numbers too."""
    return " ".join([f"{interval.value:{sign}.2f}", f"[{interval.low:{sign}.2f},", f"{interval.high:{sign}.2f}]"])


if __name__ == "__main__":
    main()
