"""Reading recipes: references, expansion worked out by hand, fingerprints, and what plan says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from engine_stages import STAGE_TYPES, Table, Train, load
from pydantic import JsonValue

from t2i.changes import describe_change
from t2i.engine import PlannedStage, identity, plan, run
from t2i.errors import ConfigError
from t2i.recipe import Recipe, load_recipe
from t2i.resources import ContentHashes

RECIPE = """
name: demo
seed: 3
stages:
  - type: read
    images: IMAGES
  - type: train
    name: sft
    data_from: read
    model: org/model
    steps: 100
  - type: table
    arms_from: [sft]
"""


def problems(folder: Path, text: str, *overrides: str) -> list[str]:
    """The lines of the error, each from its line number on."""
    with pytest.raises(ConfigError) as error:
        load(folder, text, *overrides)
    return [line.removeprefix(f"{folder}/demo.yaml:") for line in str(error.value).split("\n")]


def names(recipe: Recipe) -> list[str]:
    return [stage.label for stage in recipe.stages]


def reads(recipe: Recipe) -> dict[str, dict[str, tuple[str, ...]]]:
    return {stage.label: stage.references for stage in recipe.stages}


def test_a_recipe_is_its_stages_in_order(tmp_path: Path) -> None:
    recipe = load(tmp_path, RECIPE)
    assert (recipe.name, recipe.seed, names(recipe)) == ("demo", 3, ["read", "sft", "table"])
    assert reads(recipe) == {"read": {}, "sft": {"data_from": ("read",)}, "table": {"arms_from": ("sft",)}}


def test_the_name_of_the_file_names_a_recipe_without_a_name(tmp_path: Path) -> None:
    assert load(tmp_path, RECIPE.replace("name: demo\n", "", 1)).name == "demo"


def test_the_model_goes_to_stages_that_name_none_and_read_none(tmp_path: Path) -> None:
    text = """
model: org/base
revision: v1
stages:
  - {type: train, name: a, steps: 1}
  - {type: train, name: b, steps: 1, model: org/other}
  - {type: train, name: c, steps: 1, model_from: a}
  - {type: train, name: d, steps: 1, revision: v2}
"""
    a, b, c, d = (stage for stage in load(tmp_path, text).stages if isinstance(stage, Train))
    assert (a.model, a.revision) == ("org/base", "v1")
    assert (b.model, b.revision) == ("org/other", None)
    assert (c.model, c.revision) == (None, None)
    assert (d.model, d.revision) == ("org/base", "v2")


def test_all_problems_of_a_recipe_come_at_once(tmp_path: Path) -> None:
    text = """
model: ./absent
sede: 3
stages:
  - type: read
    images: /nowhere/at/all
    batch_size: 0
  - type: train
    data_from: raed
    steps: 0
  - type: trian
  - type: table
    arms_from: [train, read, last, "x/*"]
  - type: train
    name: last
    steps: 1
  - type: train
    name: last
    steps: 1
  - 3
"""
    assert problems(tmp_path, text, "train.stepz=3") == [
        f"2  model: no file or folder './absent' ({Path.cwd() / 'absent'})",
        "3  sede: unknown key 'sede'; did you mean 'seed'?",
        "6  read.images: no file or folder '/nowhere/at/all'",
        "7  read.batch_size: input should be greater than 0 (got 0)",
        "9  train.data_from: no stage 'raed'; did you mean 'read'?",
        "10  train.steps: input should be greater than 0 (got 0)",
        "11  trian.type: unknown stage type 'trian'; did you mean 'train'?",
        "13  table.arms_from.1: stage 'read' produces captioned_images, expected weights",
        "13  table.arms_from.2: stage 'last' comes later; move it before 'table'",
        "13  table.arms_from.3: no earlier stage matches 'x/*'; earlier stages: read, train, trian",
        f"18  stages.5.name: the name 'last' is taken ({tmp_path}/demo.yaml:15); "
        "give one of the two stages another `name`",
        "20  stages.6: input should be a mapping (got 3)",
        "command line: train.stepz=3  train.stepz: unknown key 'stepz'; did you mean 'steps'?",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: a/b\nstages: [{type: train, steps: 1}]", "1  name: 'a/b' is not usable as a folder name"),
        ("stages: [{type: train, name: ../x, steps: 1}]", "1  stages.0.name: '../x' is not usable"),
        ("stages: [{type: train, name: seed, steps: 1}]", "1  stages.0.name: 'seed' is a key of the recipe"),
        ("stages: [{steps: 1}]", "1  stages.0.type: required, but missing; one of read, train, table, fill"),
        ("stages: []", "1  stages: list should have at least 1 item"),
        ("stages: [{type: train, model_from: train, steps: 1}]", "'train' is this stage itself; a stage reads earlier"),
        ("name: x", "1  stages: required, but missing"),
        ("stages: [{type: train, steps: 1, model: 'pkg:nowhere/x'}]", "no installed package 'nowhere'"),
    ],
)
def test_single_mistakes(tmp_path: Path, text: str, message: str) -> None:
    assert message in problems(tmp_path, text)[0]


MATRIX = """
stages:
  - {type: read, images: IMAGES}
  - {type: read, name: other, images: IMAGES}
  - {type: train, data_from: read, steps: 1}
  - {type: train, name: more, model_from: train, steps: 1}
  - {type: table, arms_from: ["more/*/s0", train/b/s1]}
matrix:
  stages: [train, more]
  arms:
    a: {}
    b: {train.data_from: other, train.trained.rank: 8}
  seeds: [0, 1]
"""


def test_a_matrix_repeats_stages_for_every_arm_and_seed(tmp_path: Path) -> None:
    recipe = load(tmp_path, MATRIX)
    assert reads(recipe) == {
        "read": {},
        "other": {},
        "train/a/s0": {"data_from": ("read",)},
        "train/a/s1": {"data_from": ("read",)},
        "train/b/s0": {"data_from": ("other",)},
        "train/b/s1": {"data_from": ("other",)},
        "more/a/s0": {"model_from": ("train/a/s0",)},
        "more/a/s1": {"model_from": ("train/a/s1",)},
        "more/b/s0": {"model_from": ("train/b/s0",)},
        "more/b/s1": {"model_from": ("train/b/s1",)},
        "table": {"arms_from": ("more/a/s0", "more/b/s0", "train/b/s1")},
    }
    by_name = {stage.label: stage for stage in recipe.stages}
    assert [by_name[name].seed for name in ("train/a/s0", "train/a/s1", "more/b/s1")] == [0, 1, 1]
    ranks = [stage.trained.rank for stage in recipe.stages if isinstance(stage, Train) and stage.trained.type == "lora"]
    assert ranks == [16, 16, 8, 8, 16, 16, 16, 16]


def test_a_matrix_of_seeds_or_of_arms_alone_has_shorter_names(tmp_path: Path) -> None:
    only = "stages: [{type: train, steps: 1}]\nmatrix: {stages: [train], "
    assert names(load(tmp_path, only + "seeds: [4, 5]}")) == ["train/s4", "train/s5"]
    assert names(load(tmp_path, only + "arms: {x: {train.steps: 2}}}")) == ["train/x"]


def test_a_stage_that_states_its_seed_keeps_it_in_a_matrix_of_seeds(tmp_path: Path) -> None:
    text = MATRIX.replace("name: more,", "name: more, seed: 7,")
    by_name = {stage.label: stage for stage in load(tmp_path, text).stages}
    assert [by_name[name].seed for name in ("train/a/s0", "train/a/s1", "more/a/s0", "more/b/s1")] == [0, 1, 7, 7]


def test_a_copy_and_another_stage_cannot_have_one_name(tmp_path: Path) -> None:
    """One of them would not be run."""
    text = "stages: [{type: train, steps: 1}, {type: train, name: train/x, steps: 2}]\n"
    text += "matrix: {stages: [train], arms: {x: {}, y: {}}}"
    message = "stages.1.name: a stage and a copy of another are both called 'train/x'; give one another name"
    assert message in problems(tmp_path, text)[0]


@pytest.mark.parametrize("arm", ["a b", "a*", "../up", "a..b/"])
def test_the_name_of_an_arm_is_part_of_a_folder_name(tmp_path: Path, arm: str) -> None:
    text = f"stages: [{{type: train, steps: 1}}]\nmatrix: {{stages: [train], arms: {{'{arm}': {{}}}}}}"
    assert f"matrix: 'train/{arm}' is not usable as a folder name" in problems(tmp_path, text)[0]


def test_a_star_behind_the_name_of_a_stage_is_every_copy_of_it(tmp_path: Path) -> None:
    """So that a recipe with arms takes seeds too."""
    found = reads(load(tmp_path, MATRIX.replace('"more/*/s0", train/b/s1', '"more/*", "train/*/s1"')))
    copies = ("more/a/s0", "more/a/s1", "more/b/s0", "more/b/s1")
    assert found["table"] == {"arms_from": (*copies, "train/a/s1", "train/b/s1")}


def test_a_wildcard_that_matches_nothing_is_refused_with_the_stages_in_short(tmp_path: Path) -> None:
    text = MATRIX.replace("more/*/s0", "mroe/*")
    message = (
        "7  table.arms_from.0: no earlier stage matches 'mroe/*'; earlier stages: read, other, train/..., more/..."
    )
    assert problems(tmp_path, text) == [message]


def test_a_stage_that_is_written_twice_in_a_list_is_refused_and_wildcards_may_overlap(tmp_path: Path) -> None:
    text = MATRIX.replace("train/b/s1]", "train/b/s1, train/a/s0, train/b/s1]")
    assert problems(tmp_path, text) == ["7  table.arms_from.3: stage 'train/b/s1' is named twice; name it once"]
    text = MATRIX.replace("train/b/s1]", '"more/*", more/a/s0]')
    table = load(tmp_path, text).stages[-1]
    assert table.references["arms_from"] == ("more/a/s0", "more/b/s0", "more/a/s1", "more/b/s1")


def test_an_arm_cannot_rename_its_copies(tmp_path: Path) -> None:
    assert problems(tmp_path, MATRIX.replace("a: {}", "a: {train.name: best}")) == [
        "11  matrix.arms.a.train.name: the copies of 'train' are named after it and their arm; leave `name` out"
    ]


def test_a_list_of_stages_names_at_least_one(tmp_path: Path) -> None:
    text = """
stages:
  - {type: caption, data: {type: shapes, count: 1}}
  - type: train
    data_from: caption
    model: org/model
    captions: {alt: 1}
    optimizer: {learning_rate: 1e-4}
    loop: {steps: 1, batch_size: 1}
"""
    (tmp_path / "real.yaml").write_text(text)
    Recipe.load(tmp_path / "real.yaml")
    with pytest.raises(ConfigError) as caught:
        Recipe.load(tmp_path / "real.yaml", ["train.data_from=[]"])
    message = "train.data_from: an empty list; name a stage, or leave the field out"
    assert str(caught.value) == f"command line: train.data_from=[]  {message}"


def test_mistakes_in_a_matrix_are_found_where_they_stand(tmp_path: Path) -> None:
    text = MATRIX.replace("stages: [train, more]", "stages: [train, mroe]")
    assert problems(tmp_path, text)[-1] == "9  matrix.stages.1: no stage 'mroe'; did you mean 'more'?"
    text = MATRIX.replace("a: {}", "a: {trian.steps: 3, train: 1}").replace("rank: 8", "rank: 0")
    assert problems(tmp_path, text) == [
        "11  matrix.arms.a.trian.steps: no repeated stage 'trian'; did you mean 'train'?",
        "11  matrix.arms.a.train: write what an arm changes as stage.path.to.key: value",
        "12  train.trained.rank: input should be greater than 0 (got 0)",
    ]
    text = "stages: [{type: train, steps: 1}]\nmatrix: {stages: [train]}"
    assert problems(tmp_path, text) == ["2  matrix: give `arms`, `seeds`, or both"]


ROUNDS = """
stages:
  - {type: train, name: sft, steps: 1}
  - {type: train, name: collect, model_from: improve, steps: 1}
  - {type: train, name: improve, model_from: collect, steps: 1}
  - {type: table, arms_from: [improve]}
rounds:
  stages: [collect, improve]
  count: 2
  first: {collect.model_from: sft}
"""


def test_rounds_read_the_round_before_and_the_first_reads_what_is_said(tmp_path: Path) -> None:
    assert reads(load(tmp_path, ROUNDS)) == {
        "sft": {},
        "collect/round1": {"model_from": ("sft",)},
        "improve/round1": {"model_from": ("collect/round1",)},
        "collect/round2": {"model_from": ("improve/round1",)},
        "improve/round2": {"model_from": ("collect/round2",)},
        "table": {"arms_from": ("improve/round2",)},
    }


def test_a_stage_may_read_itself_of_the_round_before_or_nothing_in_the_first(tmp_path: Path) -> None:
    text = """
stages: [{type: train, model_from: train, steps: 1}]
rounds: {stages: [train], count: 3, first: {train.model_from: null}}
"""
    assert reads(load(tmp_path, text)) == {
        "train/round1": {},
        "train/round2": {"model_from": ("train/round1",)},
        "train/round3": {"model_from": ("train/round2",)},
    }


def test_rounds_inside_a_matrix(tmp_path: Path) -> None:
    text = ROUNDS + "matrix: {stages: [sft, collect, improve], seeds: [0, 1]}\n"
    text = text.replace("arms_from: [improve]", 'arms_from: ["improve/round2/*"]')
    found = reads(load(tmp_path, text))
    assert found["collect/round1/s1"] == {"model_from": ("sft/s1",)}
    assert found["collect/round2/s0"] == {"model_from": ("improve/round1/s0",)}
    assert found["table"] == {"arms_from": ("improve/round2/s0", "improve/round2/s1")}


def test_mistakes_in_rounds_are_found(tmp_path: Path) -> None:
    assert problems(tmp_path, ROUNDS.replace("first: {collect.model_from: sft}", "first: {}"))[0] == (
        "7  rounds: collect.model_from reads the round before; say under `first` what round 1 reads (a stage, or null)"
    )
    text = ROUNDS.replace("first: {", "first: {improve.model_from: sft, ")
    assert problems(tmp_path, text) == [
        "10  rounds.first.improve.model_from: reads no earlier round, so `first` does not apply; "
        "did you mean 'collect.model_from'?"
    ]
    text = ROUNDS.replace("stages: [collect, improve]", "stages: [sft, improve]")
    assert "must stand next to each other" in problems(tmp_path, text)[-1]


def prints(recipe: Recipe, root: Path) -> dict[str, str]:
    return {item.name: item.fingerprint for item in plan(recipe, root)}


def test_names_speed_and_the_order_of_keys_do_not_change_a_fingerprint(tmp_path: Path) -> None:
    first = list(prints(load(tmp_path, RECIPE), tmp_path / "runs").values())
    renamed = RECIPE.replace("sft", "tuned").replace("name: demo", "name: other")
    assert list(prints(load(tmp_path, renamed), tmp_path / "runs").values()) == first
    faster = load(tmp_path, RECIPE, "read.batch_size=64", "sft.trained={type: lora, rank: 16, threads: 9}")
    assert list(prints(faster, tmp_path / "runs").values()) == first
    reordered = RECIPE.replace("    model: org/model\n    steps: 100\n", "    steps: 100\n    model: org/model\n")
    assert list(prints(load(tmp_path, reordered), tmp_path / "runs").values()) == first
    assert list(prints(load(tmp_path, RECIPE, "sft.learning_rate=0.0001"), tmp_path / "runs").values()) == first


@pytest.mark.parametrize("change", ["seed=4", "sft.seed=4", "sft.steps=101", "sft.trained.rank=8", "sft.model=org/b"])
def test_a_field_changes_its_stage_and_what_follows(tmp_path: Path, change: str) -> None:
    first, second = (prints(load(tmp_path, RECIPE, *items), tmp_path / "runs") for items in ([], [change]))
    assert {name for name in first if first[name] != second[name]} == (
        {"read", "sft", "table"} if change == "seed=4" else {"sft", "table"}
    )


def test_content_of_an_input_changes_everything_after_it_and_its_place_nothing(tmp_path: Path) -> None:
    root = tmp_path / "runs"
    first = prints(load(tmp_path, RECIPE), root)
    (tmp_path / "images").rename(tmp_path / "pictures")
    moved = load(tmp_path, RECIPE, f"read.images={tmp_path}/pictures")
    assert prints(moved, root) == first
    (tmp_path / "pictures" / "a.txt").write_text("other")
    assert all(prints(moved, root)[name] != first[name] for name in first)


def test_a_local_model_is_hashed_and_a_hub_id_is_a_name(tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "weights.bin").write_bytes(b"1")
    hashes = ContentHashes()

    def fields(name: str) -> object:
        return identity(Train(steps=1, model=name), 0, {}, hashes)[0]["fields"]

    local = fields(str(model))
    assert isinstance(local, dict)
    assert list(local["model"]) == ["sha256"]  # type: ignore[arg-type]
    (model / "weights.bin").write_bytes(b"2")
    assert fields(str(model)) != local
    hub = fields("org/model")
    assert isinstance(hub, dict)
    assert hub["model"] == "org/model"


def test_a_fingerprint_stays_the_same_over_versions_of_the_engine(tmp_path: Path) -> None:
    """If this fails, every finished run of every user runs again: only with a line in the changelog."""
    body, _ = identity(Train(steps=5, model="org/model", data_from="x"), 3, {"x": "0" * 16}, ContentHashes())
    assert json.dumps(body, sort_keys=True) == (
        '{"fields": {"learning_rate": 0.0001, "model": "org/model", "model_from": null, "revision": null, "steps": 5, '
        '"trained": {"rank": 16, "type": "lora"}}, "inputs": {"data_from": ["0000000000000000"]}, "seed": 3, '
        '"type": "train", "version": 1}'
    )


def statuses(planned: list[PlannedStage]) -> list[tuple[str, str, str]]:
    return [(item.name, item.status, item.reason) for item in planned]


def reasons(recipe: Recipe, root: Path) -> dict[str, str]:
    return {item.name: f"{item.status}: {item.reason}" for item in plan(recipe, root)}


def test_a_name_that_another_type_of_stage_had_is_no_earlier_version(tmp_path: Path) -> None:
    root = tmp_path / "runs"
    run(load(tmp_path, RECIPE), root)
    changed = RECIPE.replace("name: sft", "name: table").replace("steps: 100", "steps: 200")
    changed = changed.replace(
        "type: table\n    arms_from: [sft]", "type: table\n    name: last\n    arms_from: [table]"
    )
    assert reasons(load(tmp_path, changed), root)["table"] == "run: first run"


def test_plan_before_and_after_a_run(tmp_path: Path) -> None:
    root = tmp_path / "runs"
    recipe = load(tmp_path, RECIPE)
    assert statuses(plan(recipe, root)) == [(name, "run", "first run") for name in ("read", "sft", "table")]
    assert not root.exists(), "planning makes nothing"
    run(recipe, root)
    after = reasons(recipe, root)
    assert all(reason.startswith("skip: finished 20") for reason in after.values())
    assert after["sft"].endswith(", 4 files")


def test_plan_names_the_field_that_differs(tmp_path: Path) -> None:
    root = tmp_path / "runs"
    run(load(tmp_path, RECIPE), root)
    found = reasons(load(tmp_path, RECIPE, "sft.steps=200", "sft.trained={type: full}"), root)
    assert found["read"].startswith("skip")
    assert found["sft"] == "run: steps: 100 -> 200; trained.type: 'lora' -> 'full'; trained.rank: 16 -> (absent)"
    assert found["table"] == "run: input sft changed"
    assert reasons(load(tmp_path, RECIPE, "seed=9"), root)["read"] == "run: seed: 3 -> 9"
    (tmp_path / "images" / "c.txt").write_text("c")
    assert reasons(load(tmp_path, RECIPE), root)["read"] == f"run: images: content of {tmp_path}/images changed"
    other = load(tmp_path, RECIPE, "table.arms_from=[first]", "sft.name=first")
    assert reasons(other, root)["table"] == "run: arms_from: sft -> first"


def test_plan_names_a_new_version_of_a_stage(tmp_path: Path) -> None:
    root = tmp_path / "runs"
    run(load(tmp_path, RECIPE), root)

    class Train2(Train):
        version = 2

    recipe = load_recipe(tmp_path / "demo.yaml", [], {**STAGE_TYPES, "train": Train2})
    assert reasons(recipe, root)["sft"] == "run: version of the stage: 1 -> 2"


def test_a_renamed_stage_is_not_done_again(tmp_path: Path) -> None:
    root = tmp_path / "runs"
    run(load(tmp_path, RECIPE), root)
    assert {item.status for item in plan(load(tmp_path, RECIPE.replace("sft", "tuned")), root)} == {"skip"}


def test_a_stage_that_shows_names_runs_again_when_they_change(tmp_path: Path) -> None:
    class Named(Table):
        shows_names = True

    def planned(text: str) -> dict[str, str]:
        load(tmp_path, text)
        return reasons(load_recipe(tmp_path / "demo.yaml", [], {**STAGE_TYPES, "table": Named}), tmp_path / "runs")

    load(tmp_path, RECIPE)
    run(load_recipe(tmp_path / "demo.yaml", [], {**STAGE_TYPES, "table": Named}), tmp_path / "runs")
    assert planned(RECIPE)["table"].startswith("skip")
    assert planned(RECIPE.replace("sft", "tuned"))["table"] == "run: arms_from: sft -> tuned"


def test_the_same_work_twice_in_a_recipe_is_done_once(tmp_path: Path) -> None:
    text = RECIPE.replace("arms_from: [sft]", "arms_from: [sft, again]").replace(
        "  - type: table",
        "  - {type: train, name: again, data_from: read, model: org/model, steps: 100}\n  - type: table",
    )
    planned = run(load(tmp_path, text), tmp_path / "runs")
    assert statuses(planned)[2] == ("again", "skip", "the same work as sft")
    assert (planned[3].folder / "table.txt").read_text() == "sft\nagain"


def test_a_folder_whose_files_are_gone_or_cut_is_not_finished(tmp_path: Path) -> None:
    root = tmp_path / "runs"
    recipe = load(tmp_path, RECIPE)
    folder = run(recipe, root)[1].folder
    (folder / "weights.txt").write_text("3")
    assert reasons(recipe, root)["sft"] == "resume: was finished, but weights.txt has 1 bytes instead of 5"
    (folder / "weights.txt").unlink()
    assert reasons(recipe, root)["sft"] == "resume: was finished, but weights.txt is missing"
    run(recipe, root)
    assert (folder / "weights.txt").read_text() == "3 100"
    assert {item.status for item in plan(recipe, root)} == {"skip"}


def test_a_file_in_place_of_nothing_is_one_change() -> None:
    without: dict[str, JsonValue] = {"identity": {"fields": {"adapter": None}}, "files": {}}
    fields: JsonValue = {"adapter": {"sha256": "0"}}
    given: dict[str, JsonValue] = {"identity": {"fields": fields}, "files": {"adapter": {"path": "a.safetensors"}}}
    assert describe_change(without, given) == "adapter: null -> 'a.safetensors'"
    assert describe_change(given, without) == "adapter: 'a.safetensors' -> null"
