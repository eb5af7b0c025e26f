"""An adapter is painted, exported and merged over the model that it was trained over, which a recipe may not name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from PIL import Image
from safetensors.torch import load_file

from t2i.engine import run
from t2i.errors import ConfigError
from t2i.recipe import Recipe
from t2i.sampling import Sampler, SamplingSettings
from t2i.stages.lineage import trained_over

RECIPE = """
model: MODEL
stages:
  - type: train
    name: sft
    data: {type: records, path: RECORDS}
    captions: {caption: 1}
    resolution: 32
    trained: {type: full, components: [unet]}
    optimizer: {learning_rate: 5e-2}
    loop: {steps: 2, batch_size: 2, precision: fp32}
  - type: train
    name: lora
    model_from: sft
    data: {type: records, path: RECORDS}
    captions: {caption: 1}
    resolution: 32
    trained: {type: lora, rank: 2}
    optimizer: {learning_rate: 5e-2}
    loop: {steps: 2, batch_size: 2, precision: fp32}
  - {type: merge, name: halved, weights_from: [lora], weights: [0.5]}
  - type: generate
    weights_from: lora
    prompts: {type: list, prompts: [a cat]}
    sampling: &sampling {steps: 2, guidance_scale: 3}
  - {type: generate, name: half, weights_from: halved, prompts: {type: list, prompts: [a cat]}, sampling: *sampling}
  - {type: export, weights_from: lora, layouts: [merged]}
"""


def recipe(folder: Path, text: str = RECIPE) -> Recipe:
    path = folder / "r.yaml"
    records = tiny.captioned_photographs() / "records.jsonl"
    path.write_text(text.replace("MODEL", str(tiny.sd1())).replace("RECORDS", str(records)))
    return Recipe.load(path)


def test_the_model_of_an_earlier_stage_is_the_base_of_all_that_follows(tmp_path: Path) -> None:
    folders = {item.name: item.folder for item in run(recipe(tmp_path), tmp_path / "runs")}
    base, adapter = folders["sft"] / "model", folders["lora"] / "adapter/pytorch_lora_weights.safetensors"
    settings = tiny.from_recipe(SamplingSettings, {"steps": 2, "guidance_scale": 3})
    [row] = [json.loads(line) for line in (folders["generate"] / "generations.jsonl").read_text().splitlines()]
    for name, scale in (("generate", 1.0), ("half", 0.5)):
        expected = Sampler.load(str(base), settings.model_copy(update={"lora_scale": scale}), adapter=adapter)
        [image] = expected.generate(["a cat"], [row["seed"]])
        painted = Image.open(folders[name] / row["image"]).convert("RGB")
        difference = np.asarray(image, dtype=int) - np.asarray(painted, dtype=int)
        assert np.abs(difference).max() <= (0 if scale == 1 else 1)
    other = Sampler.load(str(tiny.sd1()), settings, adapter=adapter)
    assert other.generate(["a cat"], [row["seed"]])[0].tobytes() != image.tobytes()
    [merged] = folders["export"].glob("*.merged")
    name = "unet/diffusion_pytorch_model.safetensors"
    own, before, first = (load_file(folder / name) for folder in (merged, base, tiny.sd1()))
    untouched = "conv_in.weight"
    assert torch.equal(own[untouched], before[untouched])
    assert not torch.equal(own[untouched], first[untouched])


def test_a_model_is_the_base_after_its_stage_was_renamed(tmp_path: Path) -> None:
    text = RECIPE[: RECIPE.index("  - {type: merge")]
    sft, lora = (item.folder for item in run(recipe(tmp_path, text), tmp_path / "runs"))
    renamed = recipe(tmp_path, text.replace("sft", "full"))
    (lora / "done.json").unlink()  # as a kill leaves it
    run(renamed, tmp_path / "runs")
    assert trained_over([lora]) == sft / "model"
    shutil.rmtree(sft)
    again = run(renamed, tmp_path / "runs")[0].folder
    assert again.name == sft.name.replace("sft", "full")
    assert trained_over([lora]) == again / "model"


def test_adapters_over_different_models_are_not_merged(tmp_path: Path) -> None:
    text = RECIPE.replace("weights_from: [lora]", "weights_from: [lora, plain]").replace("[0.5]", "[0.5, 0.5]")
    plain = RECIPE[RECIPE.index("  - type: train\n    name: lora") : RECIPE.index("  - {type: merge")]
    plain = plain.replace("name: lora", "name: plain").replace("    model_from: sft\n", "")
    with pytest.raises(ConfigError, match="were trained over different models; their adapters do not go together"):
        run(recipe(tmp_path, text.replace("  - {type: merge", f"{plain}  - {{type: merge", 1)), tmp_path / "runs")


def test_a_stage_takes_the_model_of_the_weights_that_it_reads(tmp_path: Path) -> None:
    text = RECIPE.replace("    model_from: sft\n", "    model: other/model\n    revision: abc\n")
    stages = {stage.label: stage for stage in recipe(tmp_path, text).stages}
    found = {name: (stages[name].model, stages[name].revision) for name in ("sft", "generate", "export")}  # pyright: ignore[reportAttributeAccessIssue]
    assert found == {
        "sft": (str(tiny.sd1()), None),
        "generate": ("other/model", "abc"),
        "export": ("other/model", "abc"),
    }


def test_what_is_extracted_stands_over_the_model_that_it_was_extracted_from(tmp_path: Path) -> None:
    sft = RECIPE[: RECIPE.index("  - type: train\n    name: lora")]
    more = sft[sft.index("  - type: train") :].replace("name: sft", "name: more\n    model_from: sft")
    text = f"""{sft}{more}
  - {{type: merge, kind: extract, weights_from: more, rank: 4}}
  - type: generate
    weights_from: merge
    prompts: {{type: list, prompts: [a cat]}}
    sampling: {{steps: 2, guidance_scale: 3}}
"""
    folders = {item.name: item.folder for item in run(recipe(tmp_path, text), tmp_path / "runs")}
    assert trained_over([folders["merge"]]) is None
    [row] = [json.loads(line) for line in (folders["generate"] / "generations.jsonl").read_text().splitlines()]
    settings = tiny.from_recipe(SamplingSettings, {"steps": 2, "guidance_scale": 3})
    adapter = folders["merge"] / "adapter/pytorch_lora_weights.safetensors"
    [image] = Sampler.load(str(tiny.sd1()), settings, adapter=adapter).generate(["a cat"], [row["seed"]])
    painted = Image.open(folders["generate"] / row["image"]).convert("RGB")
    assert image.tobytes() == painted.tobytes()
    own = recipe(tmp_path, text.replace("kind: extract", "kind: extract, model: other/model"))
    assert getattr(own.stages[-1], "model", "") == "other/model"
