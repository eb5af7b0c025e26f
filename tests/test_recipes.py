"""The shipped recipes: every one reads well and plans, and those for everybody run end to end in small."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import tiny_flow
import torch
import yaml
from PIL import Image
from rich.console import Console
from safetensors import safe_open

import rewards
from t2i.engine import PlannedStage, plan, run
from t2i.recipe import Recipe
from t2i.resources import resolve_path
from t2i.rundir import read_done
from t2i.runlock import LOCK, reproduce

sys.path.append(str(Path(__file__).parent / "rewards"))
import vqa_tiny

REPOSITORY = Path(__file__).parent.parent
RECIPES = sorted((REPOSITORY / "recipes").glob("*.yaml"))
LABELS = ("Shows", "Data", "Hardware", "Command")
"""What the header of a recipe has to tell."""
FAMILY_RECIPES = {
    "sd15_lora": tiny.sd1,
    "sdxl_lora": tiny.sdxl,
    "pixart_lora": lambda: tiny_flow.pixart("sigma"),
    "sd35_lora": tiny_flow.sd3,
    "flux_lora": tiny_flow.flux,
}
"""Recipe for a folder of one's own pictures -> a tiny checkpoint of its family."""
OWN_FOLDERS = dict.fromkeys(["photo_lora", *FAMILY_RECIPES], "caption.data.path")
"""Recipe -> field that names a folder which only the user has."""


DPO_RECIPES = {
    "sd15_dpo": tiny.sd1,
    "sdxl_dpo": tiny.sdxl,
    "pixart_dpo": lambda: tiny_flow.pixart("sigma"),
    "sd35_dpo": tiny_flow.sd3,
    "flux_dpo": tiny_flow.flux,
}
"""Recipe that aligns on the model's own images -> a tiny checkpoint of its family."""
PROMPT_FILES = {"prompts.txt": "a cat\nthe moon\na red cup\n", "evaluation.txt": "a rocket\na photo of the woman\n"}
"""What these recipes read in the folder they are run in."""


def write_prompts(folder: Path) -> None:
    """Also empty folders of pictures."""
    for name, text in PROMPT_FILES.items():
        (folder / name).write_text(text)
    for name in ("my_pictures", "captioned"):
        (folder / name).mkdir(exist_ok=True)


def name_of(path: Path) -> str:
    return path.stem


def header(path: Path) -> list[str]:
    """Comment lines at the top of a recipe, without the mark."""
    lines = path.read_text(encoding="utf-8").splitlines()
    end = next(number for number, line in enumerate(lines) if not line.startswith("#"))
    return [line.removeprefix("#").strip() for line in lines[:end]]


def absent_resources(path: Path) -> list[str]:
    """Files of this package that a recipe names and that are not there."""
    values = [token.value for token in yaml.scan(path.read_text()) if isinstance(token, yaml.ScalarToken)]
    return sorted({value for value in values if value.startswith("pkg:") and not resolve_path(value).exists()})


def require_resources(path: Path) -> None:
    absent = absent_resources(path)
    if absent:
        pytest.skip(f"not there yet: {', '.join(absent)}")


def run_small(path: Path, root: Path, *overrides: str) -> dict[str, PlannedStage]:
    """Run a recipe with overrides; its stages by name. Each is finished, but for rounds that were not needed."""
    planned = run(Recipe.load(path, overrides), root, Console(quiet=True))
    assert all(read_done(item.folder) is not None for item in planned if not item.is_passed_over)
    return {item.name: item for item in planned}


@pytest.mark.parametrize("path", RECIPES, ids=name_of)
def test_a_recipe_says_what_it_is(path: Path) -> None:
    lines = header(path)
    assert lines[0].endswith("."), "the first line is a sentence"
    told = {line.split()[0]: line for line in lines if line}
    assert [label for label in LABELS if label not in told] == []
    assert all(len(told[label].split()) > 2 for label in LABELS)


@pytest.mark.parametrize("path", RECIPES, ids=name_of)
def test_the_command_of_a_recipe_exists(path: Path) -> None:
    [line] = [line for line in header(path) if line.startswith("Command")]
    words = line.split()
    if words[1] == "make":
        assert f"\n{words[2]}:" in (REPOSITORY / "Makefile").read_text()
    else:
        assert words[1:4] == ["t2i", "run", path.stem]


@pytest.mark.parametrize("path", RECIPES, ids=name_of)
def test_the_settings_of_a_command_in_a_header_are_read(path: Path, tmp_path: Path, monkeypatch: Any) -> None:
    require_resources(path)
    monkeypatch.chdir(tmp_path)
    write_prompts(tmp_path)
    (tmp_path / "my_photos").mkdir()
    commands = [line.split(f"t2i run {path.stem}", 1)[1].split() for line in header(path) if "t2i run" in line]
    for words in commands:
        Recipe.load(path, [word for word in words if "=" in word])
    assert commands or "make" in path.read_text()


@pytest.mark.parametrize("path", RECIPES, ids=name_of)
def test_a_recipe_plans(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    require_resources(path)
    monkeypatch.chdir(tmp_path)
    write_prompts(tmp_path)
    own = OWN_FOLDERS.get(path.stem)
    recipe = Recipe.load(path, [f"{own}={tmp_path}"] if own else [])
    assert recipe.name == path.stem
    assert recipe.description
    planned = plan(recipe, tmp_path / "runs")
    assert {(item.status, item.reason) for item in planned} == {("run", "first run")}
    assert len({item.folder for item in planned}) == len(recipe.stages), "no stage repeats another's work"


def write_photographs(folder: Path) -> None:
    """Photographs of several sizes, wide and tall, and one that is too small."""
    tiny.write_photographs(folder, longer_side=80)
    with Image.open(folder / "coffee.png") as image:
        image.rotate(90, expand=True).save(folder / "coffee.png")
    with Image.open(folder / "moon.png") as image:
        image.resize((90, 33)).save(folder / "moon.png")
    with Image.open(folder / "camera.png") as image:
        image.resize((31, 80)).save(folder / "camera.png")


def sample(lora: Path) -> np.ndarray:
    """Two images of the tiny checkpoint with a LoRA file, by plain diffusers."""
    from diffusers import StableDiffusionPipeline

    pipeline: Any = StableDiffusionPipeline.from_pretrained(tiny.sd1())
    pipeline.set_progress_bar_config(disable=True)
    pipeline.load_lora_weights(str(lora.parent), weight_name=lora.name)
    assert pipeline.get_list_adapters() == {"unet": ["default_0"]}
    generators = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
    return pipeline(["a cat", "the moon"], generator=generators, num_inference_steps=2, output_type="np").images


def test_photo_lora_ends_in_files_that_plain_diffusers_loads(tmp_path: Path) -> None:
    write_photographs(tmp_path / "photographs")
    stages = run_small(
        REPOSITORY / "recipes/photo_lora.yaml",
        tmp_path / "runs",
        f"caption.data.path={tmp_path / 'photographs'}",
        f"model={tiny.sd1()}",
        "filter.min_side=32",
        "train.resolution=32",
        "train.loop.steps=3",
        "train.loop.workers=0",
        "train.optimizer={learning_rate: 1e-2}",
    )
    [dropped] = [json.loads(line) for line in (stages["filter"].folder / "dropped.jsonl").read_text().splitlines()]
    assert (Path(dropped["image"]).name, dropped["reason"]) == ("camera.png", "min_side: 31x80")
    layouts = {
        layout: stages["export"].folder / f"photo_lora.{layout}.safetensors" for layout in ("diffusers", "kohya")
    }
    images = {layout: sample(path) for layout, path in layouts.items()}
    assert np.array_equal(images["diffusers"], images["kohya"])


@pytest.mark.parametrize("name", FAMILY_RECIPES)
def test_the_lora_recipe_of_a_family_ends_in_files_that_its_model_takes(tmp_path: Path, name: str) -> None:
    from t2i import lora
    from t2i.families import load_family

    tiny.write_photographs(tmp_path / "pictures", longer_side=80)
    model, path = FAMILY_RECIPES[name](), REPOSITORY / f"recipes/{name}.yaml"
    overrides = (
        f"caption.data.path={tmp_path / 'pictures'}",
        f"model={model}",
        "revision=null",
        "filter.min_side=32",
        "train.resolution=32",
        "train.loop.steps=2",
        "train.loop.workers=0",
        # Adapters start at nothing: a large step shows that they arrive.
        "train.optimizer={learning_rate: 1e-1}",
    )
    stages = run_small(path, tmp_path / "runs", *overrides)
    done = read_done(stages["train"].folder)
    assert done is not None
    assert done.facts["images"] == 6
    exported = sorted(path.name.split(".")[1] for path in stages["export"].folder.glob(f"{name}.*"))
    assert exported == sorted(stages["export"].stage.model_dump()["layouts"])
    lora.load_into(load_family(str(model)).pipeline, stages["train"].folder / str(done.facts["adapter"]))
    again = plan(Recipe.load(path, overrides), tmp_path / "runs")
    assert {item.status for item in again} == {"skip"}


@pytest.mark.parametrize("name", FAMILY_RECIPES)
def test_the_lora_recipe_of_a_family_tells_what_it_takes_and_how_that_was_found(name: str) -> None:
    lines = header(REPOSITORY / f"recipes/{name}.yaml")
    told = {line.split()[0] for line in lines if line}
    assert {"Source", "Weights", "Memory", "Time"} <= told
    assert any("by arithmetic" in line or "measured" in line for line in lines)


CLIP_ALONE = [{"name": "clip_score", "label": "pickscore", "model": "pkg:t2i.shapes/assets/clip"}]


@pytest.mark.parametrize("name", DPO_RECIPES)
def test_the_dpo_recipe_of_a_family_runs_to_its_end(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a tiny checkpoint, and one small scorer in the place of the large ones."""
    monkeypatch.chdir(tmp_path)
    write_prompts(tmp_path)
    path = REPOSITORY / f"recipes/{name}.yaml"
    scorers = json.dumps(CLIP_ALONE)
    overrides = (
        f"model={DPO_RECIPES[name]()}",
        "revision=null",
        *(f"{stage}.scorers={scorers}" for stage in ("labels", "base", "tuned")),
        *(f"{stage}.sampling.steps=2" for stage in ("candidates", "base_images", "tuned_images")),
        "train.resolution=32",
        "train.loop={steps: 2, batch_size: 2, micro_batch_size: 1, precision: bf16}",
        "train.optimizer={learning_rate: 1e-2}",
        "compare.resamples=1000",
    )
    stages = run_small(path, tmp_path / "runs", *overrides)
    done = read_done(stages["train"].folder)
    assert done is not None
    facts: Any = done.facts
    assert facts["pairs"] + facts["ties_left_out"] <= 3
    assert facts["logit_per_mean_squared_error"] in (2500, 500)
    assert list(stages["export"].folder.rglob("*.safetensors"))
    comparison = json.loads((stages["compare"].folder / "comparison.json").read_text())
    assert [row["prompts"] for row in comparison["overall"]] == [2]


@pytest.mark.parametrize("name", DPO_RECIPES)
def test_the_dpo_recipe_of_a_family_tells_what_it_takes_and_how_that_was_found(name: str) -> None:
    lines = header(REPOSITORY / f"recipes/{name}.yaml")
    told = {line.split()[0] for line in lines if line}
    assert {"Source", "Weights", "Memory", "Time"} <= told
    assert any("by arithmetic" in line or "measured" in line for line in lines)


@pytest.mark.parametrize("name", ["shapes_dpo", "shapes_kto"])
def test_alignment_on_shapes_ends_in_a_comparison_for_each_arm(tmp_path: Path, name: str) -> None:
    path = REPOSITORY / f"recipes/{name}.yaml"
    require_resources(path)
    recipe = Recipe.load(path)
    labels = {stage.label for stage in recipe.stages}
    images = [label for label in labels if label.startswith(("base_images", "tuned_images", "candidates"))]
    small = [f"{label}.sampling.steps=2" for label in sorted({label.partition("/")[0] for label in images})]
    counts = ("candidates.prompts.count=8", "base_images.prompts.count=4", "tuned_images.prompts.count=4")
    loop = ("pair.rule.scorers={tiny CLIP: 0}", "train.loop={steps: 2, batch_size: 4}")
    stages = run_small(path, tmp_path, *small, *counts, *loop)
    arms = [stage for label, stage in stages.items() if label.startswith("compare")]
    assert len(arms) == (3 if name == "shapes_dpo" else 1)
    for stage in arms:
        comparison = json.loads((stage.folder / "comparison.json").read_text())
        roles = {row["label"]: row["role"] for row in comparison["overall"]}
        assert roles == {"judge": "held_out", "second reader": "held_out", "tiny CLIP": "train"}
    assert "</html>" in (stages["report"].folder / "report.html").read_text()


def test_a_weak_reward_is_followed_with_and_without_the_guard(tmp_path: Path) -> None:
    path = REPOSITORY / "recipes/shapes_overoptimised.yaml"
    require_resources(path)
    images = ("candidates", "base_images", "tuned_images")
    small = [f"{name}.{change}" for name in images for change in ("prompts.count=4", "sampling.steps=1")]
    guard = ("train.guard.prompts.count=4", "train.guard.every=1", "train.guard.sampling.steps=1")
    loop = ("pair.rule.scorers={brightness: 0}", "train.loop={steps: 2, batch_size: 4}")
    stages = run_small(path, tmp_path, *small, *guard, *loop)
    for arm in ("guarded", "unguarded"):
        folder = stages[f"train/{arm}"].folder
        facts = json.loads((folder / "done.json").read_text())["facts"]["guard"]
        assert facts["trained_on"] == ["brightness"]
        assert facts["best_step"] in (1, 2)
        comparison = json.loads((stages[f"compare/{arm}"].folder / "comparison.json").read_text())
        roles = {row["label"]: row["role"] for row in comparison["overall"]}
        judge = "train" if arm == "guarded" else "held_out"  # it chose the guarded run's checkpoint
        assert roles == {"judge": judge, "second reader": "control", "brightness": "train"}


def test_rounds_on_shapes_end_in_the_round_that_is_kept(tmp_path: Path) -> None:
    path = REPOSITORY / "recipes/shapes_rounds.yaml"
    require_resources(path)
    counts = [f"{name}.prompts.count={count}" for name, count in (("candidates", 8), ("round_images", 4))]
    steps = [f"{name}.sampling.steps=2" for name in ("candidates", "round_images", "base_images")]
    loop = ("base_images.prompts.count=4", "pair.rule.scorers={tiny CLIP: 0}", "train.loop={steps: 2, batch_size: 4}")
    stages = run_small(path, tmp_path, *counts, *steps, *loop)
    picked = json.loads((stages["pick"].folder / "pick.json").read_text())
    assert picked["kept"] in [f"train/round{number}" for number in (1, 2, 3)]
    kept = next((stages[picked["kept"]].folder / "adapter").iterdir()).read_bytes()
    assert next((stages["pick"].folder / "adapter").iterdir()).read_bytes() == kept
    ran = [name for name, item in stages.items() if name.startswith("train/") and not item.is_passed_over]
    assert list(picked["means"]) == ran
    assert picked["stopped_after"] == ran[-1]
    verdict, differences = reproduce(tmp_path / "shapes_rounds" / LOCK, tmp_path / "again", accept=False)
    assert (verdict.word, differences) == ("bit-identical", [])
    first, second = (json.loads((stages[f"candidates/round{n}"].folder / "sampling.json").read_text()) for n in (1, 2))
    assert first["weights"] == []
    assert second["weights"] == [stages["train/round1"].folder.name]


def test_the_whole_way_ends_in_an_aligned_lora(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a tiny checkpoint, captions from files, and a small scorer in the place of the large ones."""
    monkeypatch.chdir(tmp_path)
    write_prompts(tmp_path)
    tiny.write_photographs(tmp_path / "my_pictures", longer_side=80)
    small = [{"name": "clip_score", "label": name, "model": "pkg:t2i.shapes/assets/clip"} for name in ("hpsv2", "jpeg")]
    pick = {"name": "clip_score", "label": "pickscore", "model": "pkg:t2i.shapes/assets/clip", "role": "train"}
    scorers = json.dumps([*small, pick])
    images = ("candidates", "base_images", "tuned_images", "aligned_images")
    stages = run_small(
        REPOSITORY / "recipes/align_full.yaml",
        tmp_path / "runs",
        f"model={tiny.sd1()}",
        "revision=null",
        "caption.captioner={type: files, kind: short, extension: .txt}",
        "filter.min_side=32",
        *(f"{stage}.scorers={scorers}" for stage in ("labels", "base", "tuned", "aligned")),
        *(f"{stage}.sampling.steps=2" for stage in images),
        *(f"{stage}.resolution=32" for stage in ("tuning", "aligning")),
        *(f"{stage}.loop={{steps: 2, batch_size: 2, precision: bf16}}" for stage in ("tuning", "aligning")),
        *(f"{stage}.resamples=1000" for stage in ("compare", "frontier")),
    )
    assert len(list(stages["export"].folder.glob("*.safetensors"))) == 2
    found = json.loads((stages["frontier"].folder / "frontier.json").read_text())
    assert [arm["name"] for arm in found["arms"]] == ["tuned", "aligned"]


def test_selma_ends_in_a_merge_compared_skill_by_skill(tmp_path: Path) -> None:
    """Two of its three skills: every arm trains and paints."""
    require_resources(REPOSITORY / "recipes/selma.yaml")
    values = yaml.safe_load((REPOSITORY / "recipes/selma.yaml").read_text())
    del values["matrix"]["arms"]["counting"]
    path = tmp_path / "selma.yaml"
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    images = ("candidates", "base_images", "own_images", "merged_images", "joint_images")
    small = [f"{name}.{change}" for name in images for change in ("prompts.count=2", "sampling.steps=1")]
    rules = "filter.scores=[{recorded: second reader, kind: prompt, at_least: 0}]"
    loops = [f"{name}.loop={{steps: 1, batch_size: 2}}" for name in ("train", "together")]
    loops += [f"{name}.trained={{type: lora, rank: 2}}" for name in ("train", "together")]
    gains = ("own_gain", "merged_gain", "joint_gain", "merged_or_joint")
    short = [f"{name}.resamples=1000" for name in gains]
    stages = run_small(path, tmp_path / "runs", *small, rules, *loops, *short)
    for gain in gains:
        for skill in ("colour", "spatial"):
            comparison = json.loads((stages[f"{gain}/{skill}"].folder / "comparison.json").read_text())
            assert [(row["label"], row["role"], row["prompts"]) for row in comparison["overall"]] == [
                ("judge", "held_out", 2),
                ("second reader", "train", 2),
                ("judge, all questions", "held_out", 2),
            ]
            assert {row["category"] for row in comparison["categories"]} == {skill}
    assert len(list(stages["merge"].folder.glob("adapter/*.safetensors"))) == 1
    assert read_done(stages["together"].folder).facts["images"] == 4  # pyright: ignore[reportOptionalMemberAccess]


def test_selma_trains_the_baseline_for_as_many_steps_as_the_skills_together() -> None:
    stages = {stage.label: stage for stage in Recipe.load(REPOSITORY / "recipes/selma.yaml").stages}
    skills: list[Any] = [stage for label, stage in stages.items() if label.startswith("train/")]
    together: Any = stages["together"]
    assert together.loop.steps == sum(stage.loop.steps for stage in skills)
    assert {(stage.trained, stage.optimizer, stage.loop.batch_size) for stage in skills} == {
        (together.trained, together.optimizer, together.loop.batch_size)
    }


def test_captioner_sft_ends_in_captions_by_the_tuned_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a tiny image-text model, which learns one caption so well that it writes it."""
    pytest.importorskip("trl", reason="the extra trl is not installed")
    monkeypatch.chdir(tmp_path)
    tiny.write_photographs(tmp_path / "captioned", longer_side=32)
    (tmp_path / "my_pictures").mkdir()
    for number, path in enumerate(sorted((tmp_path / "captioned").glob("*.txt"))):
        path.write_text("A photo.\n")
        Image.new("RGB", (32, 32), (number, 0, 0)).save(tmp_path / f"my_pictures/{number}.png")
    model = vqa_tiny.idefics(tmp_path / "model")
    small = [f"model={model}", "revision=null", "dtype=float32", "max_tokens=12", "wording={prompt: say}"]
    stages = run_small(
        REPOSITORY / "recipes/captioner_sft.yaml",
        tmp_path / "runs",
        *(f"{stage}.captioner.{change}" for stage in ("tune_captioner", "caption") for change in small),
        "tune_captioner.held_out=0.3",
        "tune_captioner.loop={steps: 30, batch_size: 2, learning_rate: 2e-2}",
    )
    done = read_done(stages["tune_captioner"].folder)
    assert done is not None
    facts: Any = done.facts
    assert facts["held_out_loss_after"] < 0.5 * facts["held_out_loss_before"]
    written = sorted((stages["dataset"].folder / "images").glob("*.txt"))
    assert [path.read_text() for path in written] == ["A photo.\n"] * 6


def test_quickstart_ends_in_a_comparison_and_a_report(tmp_path: Path) -> None:
    path = REPOSITORY / "recipes/quickstart.yaml"
    require_resources(path)
    arms = [stage.label for stage in Recipe.load(path).stages if stage.type == "generate"]
    arms = [f"{arm}.{change}" for arm in arms for change in ("prompts.count=6", "sampling.steps=2")]
    small = ("caption.data.count=24", "train.loop.steps=2", "train.loop.batch_size=8", "compare.resamples=1000")
    stages = run_small(path, tmp_path, *small, *arms)
    comparison = json.loads((stages["compare"].folder / "comparison.json").read_text())
    assert [row["label"] for row in comparison["overall"]] == ["judge", "second reader", "tiny CLIP"]
    assert all(row["prompts"] == 6 for row in comparison["overall"])
    assert "</html>" in (stages["report"].folder / "report.html").read_text()
    exported = stages["export"].folder / "quickstart.diffusers.safetensors"
    assert exported.stat().st_size > 10_000
    with safe_open(exported, "pt") as file:
        scores = json.loads(file.metadata()["t2i_scores"])
    assert [row["mean_b"] for row in scores] == [row["mean_b"] for row in comparison["overall"]]


SMALL_RUN = {"loop.steps": 2, "loop.batch_size": 4, "loop.checkpoint_every": 2, "trained.rank": 2}
SMALL_IMAGES = {"prompts.count": 3, "sampling.steps": 1, "batch_size": 3}


@pytest.mark.parametrize(
    ("name", "counts", "arms", "comparisons"),
    [
        ("quality_tuning", {"caption": 60}, ["base", "tuned"], ["compare"]),
        ("spatial_few_shot", {"described": 90}, ["base", "tuned"], ["compare"]),
        (
            "recap_ablation",
            {"collected": 40},
            ["base_short", "base_long", "short", "long"],
            ["long_gain/alt", "long_gain/dense_cep", "short_gain/mix", "short_gain/random_length"],
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_recipe_about_data_ends_in_comparisons_and_a_report(
    tmp_path: Path, name: str, counts: dict[str, int], arms: list[str], comparisons: list[str]
) -> None:
    path = REPOSITORY / f"recipes/{name}.yaml"
    require_resources(path)
    overrides = {f"{stage}.data.count": count for stage, count in counts.items()}
    overrides |= {f"train.{field}": value for field, value in SMALL_RUN.items()}
    overrides |= {f"{arm}_images.{field}": value for arm in arms for field, value in SMALL_IMAGES.items()}
    overrides |= {f"{comparison.partition('/')[0]}.resamples": 1000 for comparison in comparisons}
    stages = run_small(path, tmp_path, *(f"{field}={value}" for field, value in overrides.items()))
    for comparison in comparisons:
        rows = json.loads((stages[comparison].folder / "comparison.json").read_text())["overall"]
        assert [(row["label"], row["prompts"]) for row in rows][:2] == [("judge", 3), ("second reader", 3)]
    assert (stages["report"].folder / "report.html").stat().st_size > 1000


def test_reward_model_ends_in_a_scorer_and_its_figures(tmp_path: Path) -> None:
    path = REPOSITORY / "recipes/reward_model.yaml"
    require_resources(path)
    counts = ("train.pairs.count=24", "train.held_out_pairs.count=12")
    stages = run_small(path, tmp_path, *counts, "train.loop.steps=2", "train.loop.batch_size=8")
    folder = stages["train"].folder
    found = json.loads((folder / "evaluation.json").read_text())["held_out"]
    assert 0 <= found["low"] <= found["accuracy"] <= found["high"] <= 1
    scorer = rewards.load({"name": "reward_model", "model": str(folder / "model")})
    images = sorted((folder / "held_out_pairs/images").iterdir())
    assert len(images) == 24
    assert np.ptp(scorer.score(images)) > 0
