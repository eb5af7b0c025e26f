"""Single steps from the command line: each runs one stage, or one function, without a recipe file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import cast, get_args

from t2i.errors import ConfigError, DataError
from t2i.resources import resolve_path


def generate(
    prompts: str, model: str, adapter: str | None, *, steps: int, guidance: float, images: int, seed: int, root: Path
) -> Path:
    """Run a generate stage under `root/generate`; returns its folder."""
    from t2i.data.prompts import PromptFile
    from t2i.engine import run
    from t2i.recipe import Recipe
    from t2i.sampling import SamplingSettings
    from t2i.stages.generate import Generate

    for path in (prompts, adapter):
        if path is not None and not resolve_path(path).is_file():
            raise ConfigError(f"{path}: no such file.")
    if min(steps, images) < 1 or guidance < 0 or seed < 0:
        raise ConfigError("--steps and --images must be at least 1, --guidance and --seed at least 0.")
    stage = Generate(
        model=model,
        adapter=adapter,
        prompts=PromptFile(path=prompts),
        images_per_prompt=images,
        sampling=SamplingSettings(steps=steps, guidance_scale=float(guidance)),
    )
    [planned] = run(Recipe("generate", seed, (stage,)), root)
    return planned.folder


def score(generations: Path, scorers: Sequence[str], output: Path) -> dict[str, float]:
    """Score the images of a finished generate stage into `output`; returns the mean of each scorer."""
    from t2i.stages.base import StageContext
    from t2i.stages.generate import GENERATIONS_FILE
    from t2i.stages.score import Score, Scorer

    if not (generations / GENERATIONS_FILE).is_file():
        raise DataError(
            f"{generations}: holds no {GENERATIONS_FILE}; expected the folder of a finished generate stage."
        )
    output.mkdir(parents=True, exist_ok=True)
    stage = Score(generations_from="generate", scorers=tuple(Scorer(name=name.strip()) for name in scorers))
    context = StageContext(output, {"generations_from": [("generate", generations)]}, 0, "score")
    return stage.run(context)["means"]


def export(weights: Path, model: str, to: str, output: Path, *, precision: str) -> str:
    """Write a LoRA file of any layout in another one; returns what was found and how the new file was proved."""
    from t2i.export.adapter import Layout, Precision, export_lora
    from t2i.families.loading import load_family, public_model_name
    from t2i.training.outputs import ADAPTER_FOLDER, trained_adapter

    for option, value, known in (("--to", to, get_args(Layout)), ("--precision", precision, get_args(Precision))):
        if value not in known:
            raise ConfigError(f"{option}: {value!r} is not known; expected one of {', '.join(known)}.")
    if (output.suffix == ".safetensors") == (to == "peft"):
        expected = "a folder, without a suffix" if to == "peft" else "a file that ends in .safetensors"
        raise ConfigError(f"--output: {output}: layout {to} is {expected}.")
    source = trained_adapter(weights) if (weights / ADAPTER_FOLDER).is_dir() else weights
    if not source.exists():
        raise DataError(f"{source}: no such LoRA file.")
    output.parent.mkdir(parents=True, exist_ok=True)
    family = load_family(model)
    layout, chosen = cast("Layout", to), cast("Precision", precision)
    metadata = {"t2i_family": family.facts.name, "t2i_model": public_model_name(model), "t2i_layout": to}
    exported = export_lora(source, output, family, layout=layout, precision=chosen, metadata=metadata)
    return f"{exported.read_from} -> {exported}"
