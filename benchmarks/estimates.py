"""What the LoRA recipes take at full size, by arithmetic; with a GPU, the same measured on random weights.

    python benchmarks/estimates.py [RECIPE...]

The models have their published configurations (`published.py`); by arithmetic nothing is downloaded or filled. One row
for each recipe of `recipes/<family>_lora.yaml`, the numbers of their headers.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

import torch
from machine import describe
from random_models import build_family

from t2i import lora
from t2i.data.buckets import square_plan
from t2i.families.outline import ignore_mask
from t2i.objectives import Denoising
from t2i.recipe import Recipe
from t2i.report.numbers import byte_size
from t2i.stages.train import Train
from t2i.training.estimate import Estimate, estimate_run
from t2i.training.inspection import Inspection, measure_step
from t2i.training.measured import Measured
from t2i.training.outline import outline_of
from t2i.training.placement import held_dtypes, release
from t2i.training.tasks import TaskSettings

RECIPES = {"sd15_lora": "sd1", "sdxl_lora": "sdxl", "pixart_lora": "pixart", "sd35_lora": "sd3", "flux_lora": "flux"}
"""Recipe -> name of its model in `published.py`."""
PICTURES = 20
"""Of the data set that the disk is counted for."""


def train_stage(recipe: str) -> Train:
    """The train stage of a shipped recipe."""
    path = Path(__file__).parent.parent / f"recipes/{recipe}.yaml"
    loaded = Recipe.load(path, ["caption.data.path=."])
    return next(stage for stage in loaded.stages if isinstance(stage, Train))


def inspection_of(stage: Train) -> tuple[Inspection, TaskSettings]:
    settings = stage.task_settings("", [[]], 0, Path())
    assert isinstance(stage.objective, Denoising)
    return Inspection(settings, stage.objective, stage.loop, stage.optimizer, has_captions=False), settings


def estimated(recipe: str) -> Estimate:
    """By arithmetic on the meta device."""
    stage = train_stage(recipe)
    inspection, settings = inspection_of(stage)
    family = build_family(RECIPES[recipe], torch.device("meta"), dtype=torch.float32)
    for name, dtype in held_dtypes(family.facts, settings.trained, settings.speed).items():
        torch.nn.Module.to(getattr(family.pipeline, name), dtype)
    for name in family.facts.text_encoders:
        ignore_mask(getattr(family.pipeline, name))
    outline = outline_of(family, settings, inspection.objective)
    # Captions differ in number only, and the disk for them is counted apart.
    settings = dataclasses.replace(settings, records=())
    return estimate_run(outline, settings, stage.loop, stage.optimizer, square_plan(PICTURES, outline.resolution))


def measured(recipe: str) -> Measured:
    """One step of the loop, on random weights on the GPU."""
    stage = train_stage(recipe)
    inspection, settings = inspection_of(stage)
    dtype = torch.bfloat16 if getattr(stage.trained, "base_bits", None) == 16 else torch.float32
    family = build_family(RECIPES[recipe], torch.device("cuda"), dtype=dtype)
    lora.freeze(family)
    # As a loaded model is, so that encoders and denoiser come to the GPU in turn.
    release(family, family.pipeline.components)
    return measure_step(inspection, family, square_plan(1, settings.resolution or family.default_size))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("recipes", nargs="*", default=list(RECIPES))
    chosen = parser.parse_args().recipes
    print(describe())
    heads = ("trained", "encoding", "weights", "trained state", "activations", "memory", "measured", "TFLOP a step")
    print(f"| recipe | {' | '.join(heads)} | s a step |")
    print("|---" + "|---:" * (len(heads) + 1) + "|")
    for recipe in chosen:
        said = estimated(recipe)
        found = measured(recipe) if torch.cuda.is_available() else Measured(None, None)
        sizes = (
            said.encoding_bytes,
            said.weight_bytes,
            said.training_bytes,
            said.activation_bytes,
            said.memory_bytes,
            found.memory_bytes,
        )
        seconds = "n/a" if found.seconds_per_step is None else f"{found.seconds_per_step:.3g}"
        cells = [recipe, f"{said.trained_parameters / 1e6:.2f} M", *map(byte_size, sizes)]
        print(f"| {' | '.join(cells)} | {said.flops_per_step / 1e12:.4g} | {seconds} |", flush=True)
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
