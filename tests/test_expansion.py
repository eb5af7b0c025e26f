"""Rounds and matrices with overrides, models and what is read: what would be passed over in silence is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from engine_stages import Train, load

from t2i.engine import identity
from t2i.errors import ConfigError
from t2i.recipe import Recipe
from t2i.resources import ContentHashes
from t2i.stages.score import Score

ARMS = """
stages:
  - {type: train, name: sft, steps: 1}
  - {type: train, steps: 1}
  - {type: table, arms_from: [sft]}
matrix:
  stages: [train, table]
  arms:
    a: {train.steps: 2}
    b: {train.steps: 3, table.arms_from.0: sfft}
"""


def complaint(folder: Path, text: str, *overrides: str) -> str:
    with pytest.raises(ConfigError) as error:
        load(folder, text, *overrides)
    return str(error.value).removeprefix(f"{folder}/demo.yaml:")


def test_a_wildcard_in_a_repeated_stage_stays_in_its_arm(tmp_path: Path) -> None:
    text = """
stages: [{type: train, steps: 1}, {type: table, arms_from: ["train/*"]}]
rounds: {stages: [train], count: 2}
matrix: {stages: [train, table], arms: {a: {}, b: {train.steps: 2}}, seeds: [0, 1]}
"""
    found = {stage.label: stage.references for stage in load(tmp_path, text).stages}
    assert found["table/a/s0"] == {"arms_from": ("train/round1/a/s0", "train/round2/a/s0")}
    assert found["table/b/s1"] == {"arms_from": ("train/round1/b/s1", "train/round2/b/s1")}


def test_an_override_of_what_every_arm_sets_is_refused_and_of_what_one_sets_is_for_the_others(tmp_path: Path) -> None:
    text = ARMS.replace(", table.arms_from.0: sfft", "")
    assert complaint(tmp_path, text, "train.steps=9") == (
        "command line: train.steps=9  stages.1.steps: every arm of the matrix sets it, so this would change nothing; "
        "change the arms"
    )
    one = load(tmp_path, text.replace("a: {train.steps: 2}", "a: {}"), "train.steps=9")
    assert [stage.steps for stage in one.stages if isinstance(stage, Train)] == [1, 9, 3]


def test_a_mistake_is_told_at_the_line_of_the_arm_or_of_the_first_round(tmp_path: Path) -> None:
    assert complaint(tmp_path, ARMS) == "10  table.arms_from.0: no stage 'sfft'; did you mean 'sft'?"
    text = """
stages:
  - {type: train, name: sft, steps: 1}
  - {type: train, model_from: train, steps: 1}
rounds:
  stages: [train]
  count: 2
  first: {train.model_from: sfft}
"""
    assert complaint(tmp_path, text).startswith("8  train.model_from: no stage 'sfft'; did you mean 'sft'?")


TRAIN = (
    "{type: train, name: NAME, MORE, data: {type: shapes, count: 4, captions: [alt]}, captions: {alt: 1}, "
    "optimizer: {learning_rate: 1e-3}, loop: {steps: 1, batch_size: 1}}"
)
PROMPTS = "prompts: {type: list, prompts: [a cat]}"


def trained(name: str, more: str) -> str:
    return f"  - {TRAIN.replace('NAME', name).replace('MORE', more)}\n"


def recipe(folder: Path, *stages: str, top: str = "model: org/base") -> Recipe:
    path = folder / "demo.yaml"
    path.write_text(f"{top}\nstages:\n" + "".join(stage if stage[0] == " " else f"  - {stage}\n" for stage in stages))
    return Recipe.load(path)


def test_weights_go_with_the_model_that_they_were_trained_over_through_merge_and_pick(tmp_path: Path) -> None:
    found = recipe(
        tmp_path,
        trained("a", "model: org/tuned, revision: v1"),
        "{type: merge, weights_from: [a]}",
        f"{{type: generate, weights_from: merge, {PROMPTS}}}",
        "{type: score, generations_from: generate, scorers: [{name: brightness}]}",
        "{type: pick, weights_from: [a], scores_from: [score], scorer: brightness}",
        f"{{type: generate, name: picked, weights_from: pick, {PROMPTS}}}",
        "{type: export, weights_from: pick}",
        trained("more", "adapter_from: pick"),
    )
    models = {stage.label: getattr(stage, "model", "") for stage in found.stages}
    assert {models[name] for name in ("merge", "generate", "picked", "export", "more")} == {"org/tuned"}
    assert {getattr(stage, "revision", "v1") for stage in found.stages} == {"v1"}


def test_weights_of_different_models_need_to_be_told_which_one_they_go_with(tmp_path: Path) -> None:
    both = trained("a", "model: org/tuned"), trained("b", "init: pretrained")
    with pytest.raises(ConfigError, match=r"merge\.weights_from: trained over different models \('org/tuned', 'org/ba"):
        recipe(tmp_path, *both, "{type: merge, weights_from: [a, b]}")
    merged = recipe(tmp_path, *both, "{type: merge, weights_from: [a, b], model: org/tuned}")
    assert getattr(merged.stages[-1], "model", "") == "org/tuned"


WHOLE = trained("whole", "trained: {type: full, components: [unet]}")
LORA = trained("lora", "trained: {type: lora}")
GENERATE = f"{{type: generate, weights_from: lora, {PROMPTS}}}"
SCORED = "{type: score, generations_from: generate, scorers: [{name: brightness}]}"


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ([trained("next", "model_from: lora")], "next.model_from: lora trains an adapter, and this takes a whole"),
        ([trained("next", "adapter_from: whole")], "next.adapter_from: whole trains a whole model, and this takes an"),
        (["{type: merge, weights_from: [lora, whole]}"], "merge.weights_from: whole trains a whole model"),
        (["{type: merge, kind: extract, rank: 2, weights_from: lora}"], "merge.weights_from: lora trains an adapter"),
        (
            [GENERATE, SCORED, "{type: pick, weights_from: [whole], scores_from: [score], scorer: brightness}"],
            "pick.weights_from: whole trains a whole model",
        ),
        (
            [GENERATE, "{type: score, generations_from: generate, reward_models_from: lora}"],
            "score.reward_models_from: lora trains no reward model; its objective is denoising",
        ),
    ],
)
def test_stages_that_train_something_else_are_refused_when_the_recipe_is_read(
    tmp_path: Path, stages: list[str], message: str
) -> None:
    with pytest.raises(ConfigError) as error:
        recipe(tmp_path, WHOLE, LORA, *stages)
    assert message in str(error.value)


@pytest.mark.parametrize("source", ["lora", "merge", "pick"])
def test_an_adapter_goes_on_over_the_model_of_the_stage_that_it_was_trained_over(tmp_path: Path, source: str) -> None:
    stages = [
        WHOLE,
        trained("lora", "model_from: whole"),
        "{type: merge, weights_from: [lora]}",
        GENERATE,
        SCORED,
        "{type: pick, weights_from: [merge], scores_from: [score], scorer: brightness}",
    ]
    with pytest.raises(ConfigError) as error:
        recipe(tmp_path, *stages, trained("more", f"adapter_from: {source}"))
    message = f"more.adapter_from: {source} was trained over the model of stage whole; set `model_from: whole`"
    assert message in str(error.value)
    found = recipe(tmp_path, *stages, trained("more", f"adapter_from: {source}, model_from: whole"))
    assert getattr(found.stages[-1], "model", "") is None


def test_what_is_extracted_from_a_whole_model_goes_on_over_the_model_of_the_recipe(tmp_path: Path) -> None:
    second = trained("second", "model_from: whole, trained: {type: full, components: [unet]}")
    extract = "{type: merge, kind: extract, rank: 2, weights_from: second}"
    found = recipe(tmp_path, WHOLE, second, extract, trained("more", "adapter_from: merge"))
    assert getattr(found.stages[-1], "model", "") == "org/base"


SCALED = "sampling: {lora_scale: 0.5}"
ENDS_IN_NOISE = "objective: {type: denoising, zero_terminal_snr: true}"


@pytest.mark.parametrize("weights", ["", "weights_from: whole, "])
def test_the_strength_of_an_adapter_is_refused_where_there_is_none(tmp_path: Path, weights: str) -> None:
    with pytest.raises(ConfigError, match=r"generate\.sampling: lora_scale: 0\.5 scales an adapter, and there is none"):
        recipe(tmp_path, WHOLE, f"{{type: generate, {weights}{PROMPTS}, {SCALED}}}")
    (tmp_path / "a.safetensors").touch()
    for adapter in ("weights_from: lora", f"adapter: {tmp_path / 'a.safetensors'}"):
        recipe(tmp_path, LORA, f"{{type: generate, {adapter}, {PROMPTS}, {SCALED}}}")


@pytest.mark.parametrize("source", ["lora", "merge"])
def test_an_adapter_that_was_trained_to_the_end_in_noise_is_sampled_from_there(tmp_path: Path, source: str) -> None:
    stages = trained("lora", ENDS_IN_NOISE), "{type: merge, weights_from: [lora]}"
    generate = f"{{type: generate, weights_from: {source}, {PROMPTS}, sampling: {{zero_terminal_snr: ENDS}}}}"
    with pytest.raises(
        ConfigError, match=r"generate\.sampling: zero_terminal_snr: the objective of lora trains with it"
    ):
        recipe(tmp_path, *stages, generate.replace("ENDS", "false"))
    recipe(tmp_path, *stages, generate.replace("ENDS", "true"))
    # A whole model says so in its own scheduler's config.
    whole = trained("whole", f"trained: {{type: full, components: [unet]}}, {ENDS_IN_NOISE}")
    recipe(tmp_path, whole, f"{{type: generate, weights_from: whole, {PROMPTS}}}")


@pytest.mark.parametrize("stage", [f"{{type: generate, {PROMPTS}}}", "{type: merge, adapters: [LORA]}"])
def test_a_stage_without_any_model_is_refused_when_the_recipe_is_read(tmp_path: Path, stage: str) -> None:
    (tmp_path / "a.safetensors").touch()
    with pytest.raises(ConfigError, match="model: no model; set `model` here or at the top of the recipe"):
        recipe(tmp_path, stage.replace("LORA", str(tmp_path / "a.safetensors")), top="seed: 1")


def test_columns_that_are_called_after_a_stage_are_scored_anew_when_it_is_renamed() -> None:
    def names(**fields: object) -> object:
        stage = Score.model_validate_json(json.dumps({"generations_from": "g", **fields}))
        return identity(stage, 0, {"g": "0" * 16, "taste": "1" * 16}, ContentHashes())[0].get("names")

    assert names(reward_models_from="taste") == {"reward_models_from": ["taste"]}
    assert names(scorers=[{"name": "brightness"}]) is None
