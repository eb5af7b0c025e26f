"""The generate stage: reproducible from its records, paired between arms, and resumable by whole batches."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from pydantic import ValidationError

from t2i.errors import ConfigError, ModelError, RunError
from t2i.records import GeneratedImage, read_jsonl
from t2i.stages.generate import Generate

PROMPTS = {"type": "list", "prompts": ["a cat", "the moon", "a red cup"]}


def run(
    folder: Path, inputs: dict[str, Path] | None = None, *, seed: int = 7, model: str | None = "", **fields: object
) -> dict[str, Any]:
    chosen = {"model": str(tiny.sd1())} if model == "" else {} if model is None else {"model": model}
    defaults = {
        "prompts": PROMPTS,
        "images_per_prompt": 2,
        "batch_size": 4,
        "sampling": {"steps": 2, "guidance_scale": 7.5},
    }
    return tiny.run_stage(Generate, folder, {**chosen, **defaults, **fields}, inputs, seed=seed)


def rows(folder: Path) -> list[GeneratedImage]:
    return list(read_jsonl(folder / "generations.jsonl", GeneratedImage))


def written(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Finished folder of the untrained model. Do not write into it."""
    folder = tmp_path_factory.mktemp("run") / "base"
    assert run(folder) == {"prompts": 3, "images": 6}
    return folder


def test_prompts_that_the_text_encoder_cuts_are_counted(tmp_path: Path) -> None:
    long = {"type": "list", "prompts": ["a cat", "a cat " * 100, "a dog " * 100]}
    facts = run(tmp_path, prompts=long, images_per_prompt=1)
    assert facts["summary"] == ["2 of 3 prompts are longer than the text_encoder reads"]
    # As after a kill between the last image and the end of the stage.
    assert run(tmp_path, prompts=long, images_per_prompt=1) == facts
    (tmp_path / "cut_prompts.json").unlink()
    assert run(tmp_path, prompts=long, images_per_prompt=1) == facts


def test_every_prompt_gets_its_images(base: Path) -> None:
    found = rows(base)
    assert [(row.prompt_id, row.prompt, row.sample) for row in found] == [
        (f"{number:04d}", prompt, sample) for number, prompt in enumerate(PROMPTS["prompts"]) for sample in (0, 1)
    ]
    assert len({row.seed for row in found}) == 6
    assert all(pixels(base / row.image).shape == (32, 32, 3) for row in found)
    assert len({(base / row.image).read_bytes() for row in found}) == 6


def test_plain_diffusers_paints_the_same_pixels_from_the_records(base: Path) -> None:
    record = json.loads((base / "sampling.json").read_text())
    pipeline = StableDiffusionPipeline.from_pretrained(record["model"], safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    found = rows(base)
    for start in range(0, len(found), record["batch_size"]):
        batch = found[start : start + record["batch_size"]]
        images = pipeline(
            [row.prompt for row in batch],
            negative_prompt=[record["sampling"]["negative_prompt"]] * len(batch),
            generator=[torch.Generator("cpu").manual_seed(row.seed) for row in batch],
            num_inference_steps=record["sampling"]["steps"],
            guidance_scale=record["sampling"]["guidance_scale"],
        ).images
        for row, image in zip(batch, images, strict=True):
            assert np.array_equal(np.asarray(image), pixels(base / row.image))


@pytest.mark.parametrize("missing", [[0], [1, 2], [4], [3, 5], [0, 1, 2, 3, 4, 5]])
def test_interrupted_run_ends_with_the_same_bytes(base: Path, tmp_path: Path, missing: list[int]) -> None:
    folder = Path(shutil.copytree(base, tmp_path / "run"))
    for row in [rows(base)[number] for number in missing]:
        (folder / row.image).unlink()
    for name in ("generations.jsonl", "sampling.json"):
        (folder / name).unlink()
    (folder / "images/.00000-00.png.99.tmp").write_bytes(b"half")
    run(folder)
    (folder / "images/.00000-00.png.99.tmp").unlink()
    assert written(folder) == written(base)


def test_guidance_that_is_left_to_the_family_is_recorded_as_a_number(base: Path, tmp_path: Path) -> None:
    run(tmp_path / "run", sampling={"steps": 2})
    assert written(tmp_path / "run") == written(base)


def test_finished_images_are_not_painted_again(base: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(base, tmp_path / "run"))
    # A model that does not exist would be an error, were it asked for.
    run(folder, model=str(tmp_path / "none"))
    assert written(folder)["generations.jsonl"] == written(base)["generations.jsonl"]


def adapter_folder(tmp_path: Path) -> Path:
    tiny.write_adapter(tmp_path / "train/adapter/pytorch_lora_weights.safetensors")
    return tmp_path / "train"


def test_stages_with_the_same_prompts_are_paired(base: Path, tmp_path: Path) -> None:
    run(tmp_path / "tuned", {"weights_from": adapter_folder(tmp_path)})
    tuned = rows(tmp_path / "tuned")
    assert [row.key for row in tuned] == [row.key for row in rows(base)]
    assert all((tmp_path / "tuned" / row.image).read_bytes() != (base / row.image).read_bytes() for row in tuned)


def test_adapter_of_a_train_stage_and_its_file_paint_the_same(tmp_path: Path) -> None:
    train = adapter_folder(tmp_path)
    run(tmp_path / "a", {"weights_from": train})
    run(tmp_path / "b", adapter=str(train / "adapter/pytorch_lora_weights.safetensors"))
    images = [{name: data for name, data in written(tmp_path / arm).items() if "images" in name} for arm in "ab"]
    assert images[0] == images[1]


def test_whole_model_of_a_train_stage_is_used_instead(base: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny.sd1(), tmp_path / "train/model")
    # The revision is that of the recipe's model, which was trained: what was trained has none.
    run(tmp_path / "whole", {"weights_from": tmp_path / "train"}, model=None, revision="abc123")
    images = {name: data for name, data in written(tmp_path / "whole").items() if "images" in name}
    assert images == {name: data for name, data in written(base).items() if "images" in name}


def test_seeds_follow_the_stage_and_the_number_of_the_prompt(base: Path, tmp_path: Path) -> None:
    seeds = {(row.prompt_id, row.sample): row.seed for row in rows(base)}
    more = {"type": "list", "prompts": [*PROMPTS["prompts"], "a rocket"]}
    run(tmp_path / "more", prompts=more, images_per_prompt=3)
    extended = {(row.prompt_id, row.sample): row.seed for row in rows(tmp_path / "more")}
    assert seeds.items() <= extended.items()
    assert len(extended) == 12
    run(tmp_path / "other", seed=8)
    assert not {row.seed for row in rows(tmp_path / "other")} & set(seeds.values())


def test_categories_and_ids_of_the_prompts_are_kept(tmp_path: Path) -> None:
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "a cat", "id": "x1", "category": "animals"}\n')
    run(tmp_path / "run", prompts={"type": "file", "path": str(tmp_path / "prompts.jsonl")}, images_per_prompt=1)
    [row] = rows(tmp_path / "run")
    assert (row.prompt_id, row.category) == ("x1", "animals")


def test_train_stage_without_weights_and_missing_models_are_errors(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    with pytest.raises(RunError, match="holds neither"):
        run(tmp_path / "a", {"weights_from": tmp_path / "train"})
    with pytest.raises(ConfigError, match="no model"):
        run(tmp_path / "b", model=None)
    with pytest.raises(ModelError, match="no such folder"):
        run(tmp_path / "c", model=str(tmp_path / "none"))
    for folder in "abc":
        assert not (tmp_path / folder / "generations.jsonl").exists()


def test_stage_and_file_cannot_both_give_the_adapter() -> None:
    with pytest.raises(ValidationError, match="not both"):
        tiny.from_recipe(Generate, {"prompts": PROMPTS, "weights_from": "train", "adapter": "x.safetensors"})
