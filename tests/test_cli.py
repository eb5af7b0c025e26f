"""The command line: its frozen options, its exit codes, and one readable message for every error."""

from __future__ import annotations

import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny
import tiny_flow
import typer.main
from engine_stages import STAGE_TYPES as TEST_STAGES
from PIL import Image
from typer.core import TyperGroup
from typer.testing import CliRunner, Result

from t2i import cli
from t2i.recipe import Recipe
from t2i.stages import STAGE_TYPES

REPOSITORY = Path(__file__).parent.parent
RECIPE = """
description: A small run.
stages:
  - {type: read, images: images}
  - {type: train, data_from: read, steps: 100}
"""
OPTIONS = {
    "": ["--traceback"],
    "run": ["recipe", "overrides"],
    "plan": ["recipe", "overrides"],
    "inspect": ["recipe", "overrides", "--probe"],
    "init": ["folder", "--model", "--output"],
    "generate": [
        "--model",
        "prompts",
        "--suite",
        "--adapter",
        "--expand",
        "--steps",
        "--guidance",
        "--images",
        "--seed",
        "--precision",
        "--offload",
    ],
    "score": ["generations", "--scorers", "--output", "--option", "--report", "--strict"],
    "label": ["sources", "--output", "--port", "--seed"],
    "export": ["weights", "--model", "--to", "--output", "--precision", "--dora-rank"],
    "merge": ["adapters", "--model", "--output", "--kind", "--weights", "--rank", "--energy"],
    "reproduce": ["lock", "--accept"],
    "doctor": ["model"],
    "recipes": [],
    "recipes list": [],
    "recipes show": ["name"],
    "recipes prune": ["recipes", "--yes"],
}
"""Every argument and option there is. `run` and `plan` never get an option: what they do stands in the recipe."""


def options(command: object, path: str = "") -> dict[str, list[str]]:
    """Command -> names of its arguments and options, for a command and those below it."""
    found = {path: [parameter.opts[0] for parameter in command.params if parameter.name != "help"]}  # type: ignore[attr-defined]
    if isinstance(command, TyperGroup):
        for name, inner in command.commands.items():
            found |= options(inner, f"{path} {name}".strip())
    return found


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fresh working directory with a recipe `small.yaml` of small stages."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("T2I_RUNS", raising=False)
    for name in ("read", "train"):
        monkeypatch.setitem(STAGE_TYPES, name, TEST_STAGES[name])
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.txt").write_text("a")
    (tmp_path / "small.yaml").write_text(RECIPE)
    return tmp_path


def t2i(*arguments: str) -> Result:
    return CliRunner().invoke(cli.app, list(arguments))


def test_the_options_are_frozen() -> None:
    assert options(typer.main.get_command(cli.app)) == OPTIONS


def test_the_package_itself_is_the_command(tmp_path: Path) -> None:
    bad = tmp_path / "r.yaml"
    bad.write_text("stages: []\n")
    words = [sys.executable, "-m", "t2i", "plan", str(bad)]
    ended = subprocess.run(words, cwd=REPOSITORY, capture_output=True, text=True)
    assert ended.returncode == 2
    assert "stages" in ended.stderr


def test_help_is_quick_and_imports_nothing_heavy() -> None:
    code = "import sys; from t2i.cli import app\ntry: app(['--help'])\nexcept SystemExit: pass\n"
    code += "print(sorted({'torch', 'pydantic', 't2i.recipe'} & set(sys.modules)))"
    seconds = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        ended = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        assert ended.stdout.endswith("[]\n")
    # Processor time: what a person waits on an idle machine, whatever else this one is doing.
    assert min(seconds) < 0.6


def test_run_and_run_again(folder: Path) -> None:
    first = t2i("run", "small.yaml", "train.steps=5")
    assert first.exit_code == 0, first.stderr
    assert "[2/2] train: run (first run)" in first.stdout
    again = t2i("run", "small.yaml", "train.steps=5")
    assert "[2/2] train: skip (finished 20" in again.stdout
    assert sorted(path.name for path in (folder / "runs").iterdir()) == ["small"]


def test_the_root_of_runs_can_be_set(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("T2I_RUNS", str(folder / "elsewhere"))
    assert t2i("run", "small.yaml").exit_code == 0
    assert (folder / "elsewhere" / "small").is_dir()
    assert not (folder / "runs").exists()


def test_plan_is_one_line_per_stage_and_makes_nothing(folder: Path) -> None:
    result = t2i("plan", "small.yaml")
    assert result.stdout == "run     read   first run\nrun     train  first run\n"
    assert not (folder / "runs").exists()


def test_inspect_adds_what_stages_say_of_their_sources(folder: Path) -> None:
    assert t2i("inspect", "small.yaml").stdout.endswith("  read.files: 1\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "smal"], "ConfigError: smal: no such file, and no shipped recipe of that name"),
        (["run", "small.yaml", "train.stepz=1"], "command line: train.stepz=1  train.stepz: unknown key 'stepz'"),
        (["run", "small.yaml", "train.data_from=later"], "no stage 'later'; earlier stages: read"),
        (["plan", "small.yaml", "read.images=nowhere"], "no file or folder 'nowhere'"),
        (["plan", "small.yaml", "nonsense"], "write an override as path.to.key=value"),
    ],
)
def test_bad_input_is_a_message_and_exit_code_two(folder: Path, arguments: list[str], message: str) -> None:
    result = t2i(*arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert "Traceback" not in result.output
    assert not (folder / "runs").exists()


@pytest.mark.parametrize("arguments", [["run"], ["run", "small.yaml", "--steps", "3"], ["rnu", "small.yaml"]])
def test_a_wrong_command_is_exit_code_two(folder: Path, arguments: list[str]) -> None:
    assert t2i(*arguments).exit_code == 2


def test_a_failed_run_is_one_line_and_exit_code_one(folder: Path) -> None:
    (folder / "runs").write_text("a file where the folder should be")
    result = t2i("run", "small.yaml")
    assert result.exit_code == 1
    assert result.stderr.startswith("RunError: runs/small: the run folder cannot be written (Not a directory)")
    assert result.stderr.count("\n") == 1


def test_an_unexpected_error_is_one_line_unless_its_traceback_is_wanted(folder: Path) -> None:
    result = t2i("run", "small.yaml", "train.fail=error")
    assert (result.exit_code, result.stderr) == (
        1,
        "unexpected ZeroDivisionError: nothing planned for this (t2i --traceback ... shows where)\n",
    )
    shown = t2i("--traceback", "run", "small.yaml", "train.fail=error")
    assert shown.exit_code == 1
    assert "Traceback" in shown.stderr


def test_an_interrupted_run_exits_with_130_and_goes_on(folder: Path) -> None:
    result = t2i("run", "small.yaml", "train.fail=interrupt")
    assert (result.exit_code, result.stderr) == (
        130,
        "interrupted; what is finished is kept, the same command goes on from here.\n",
    )
    assert "resume  train  interrupted run found" in t2i("plan", "small.yaml").stdout
    assert t2i("run", "small.yaml").exit_code == 0


def test_init_writes_a_recipe_that_plans(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my pictures").mkdir()
    for name in ("a", "b"):
        Image.new("RGB", (8, 8)).save(tmp_path / "my pictures" / f"{name}.png")
    (tmp_path / "my pictures" / "a.txt").write_text('a "dark" square: nothing else\n')
    (tmp_path / "my pictures" / "c.heic").write_bytes(b"")
    written = t2i("init", "my pictures", "--model", "org/model")
    assert written.exit_code == 0, written.output
    assert written.stdout.startswith("2 pictures, 1 of them with a caption")
    assert "; 1 pictures are of formats that are not read: my pictures/c.heic; " in written.stdout
    assert 'a \\"dark\\" square: nothing else' in (tmp_path / "recipe.yaml").read_text()
    names = [line.split()[1] for line in t2i("plan", "recipe.yaml").stdout.splitlines()]
    assert names == ["caption", "filter", "train", "before", "after", "export"]
    again = t2i("init", "my pictures", "--model", "org/model")
    assert (again.exit_code, again.stderr[:42]) == (2, "ConfigError: --output: recipe.yaml exists;")
    assert t2i("init", "nowhere", "--model", "org/model", "--output", "b.yaml").exit_code == 2
    assert t2i("init", "my pictures", "--model", "org/model", "--output", "my new/recipe.yaml").stdout.endswith(
        "then t2i plan 'my new/recipe.yaml'.\n"
    )
    assert "#     t2i run 'my new/recipe.yaml'  " in (tmp_path / "my new/recipe.yaml").read_text()
    assert t2i("plan", "my new/recipe.yaml").exit_code == 0
    blocked = t2i("init", "my pictures", "--model", "org/model", "--output", "recipe.yaml/b.yaml")
    assert (blocked.exit_code, blocked.stderr[:47]) == (2, "ConfigError: --output: recipe.yaml is no folder")


@pytest.mark.parametrize("name", ["my recipe.yaml", ".yaml", "größe.yaml", "new/a b.yaml"])
def test_init_refuses_a_name_that_no_recipe_can_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pictures").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "pictures/a.png")
    refused = t2i("init", "pictures", "--model", "org/model", "--output", name)
    assert (refused.exit_code, refused.stderr.count("\n")) == (2, 1), refused.output
    assert refused.stderr.startswith(f"ConfigError: --output: {name}: ")
    assert [path.name for path in tmp_path.iterdir()] == ["pictures"]


@pytest.mark.parametrize(
    ("model", "family", "size", "guidance"),
    [
        (tiny.sd1, "sd1", 32, 7.5),
        (tiny.sdxl, "sdxl", 32, 5.0),
        (tiny_flow.pixart, "pixart", 32, 4.5),
        (tiny_flow.sd3, "sd3", 32, 7.0),
        (tiny_flow.flux, "flux", 256, 3.5),
    ],
)
def test_init_recognises_the_checkpoint_and_the_recipe_passes_inspection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: Callable[[], Path], family: str, size: int, guidance: float
) -> None:
    from t2i.stages.generate import Generate
    from t2i.stages.train import Train

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("T2I_RUNS", raising=False)
    for number in range(4):
        (tmp_path / "pictures").mkdir(exist_ok=True)
        Image.new("RGB", (300, 300), (number, 0, 0)).save(tmp_path / f"pictures/{number}.png")
        (tmp_path / f"pictures/{number}.txt").write_text("a cat\n")
    written = t2i("init", "pictures", "--model", str(model()))
    assert written.exit_code == 0, written.output
    assert f"is of family {family}, made for {size} px" in written.stdout
    stages = {stage.label: stage for stage in Recipe.load(tmp_path / "recipe.yaml").stages}
    assert isinstance(train := stages["train"], Train)
    assert train.resolution == size
    for name in ("before", "after"):
        assert isinstance(generate := stages[name], Generate)
        assert generate.sampling.guidance_scale == guidance
    inspected = t2i("inspect", "recipe.yaml")
    assert inspected.exit_code == 0, inspected.output
    assert f"train.family: {family}" in inspected.stdout


def test_init_refuses_a_local_model_that_cannot_be_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pictures").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "pictures/a.png")
    (tmp_path / "model.ckpt").write_bytes(b"\x80\x02 a pickle")
    result = t2i("init", "pictures", "--model", "./model.ckpt")
    assert result.exit_code == 2
    assert "pickled checkpoint" in result.stderr
    assert not (tmp_path / "recipe.yaml").exists()


def test_shipped_recipes_are_found_by_name(folder: Path) -> None:
    shipped = cli.shipped_recipes()
    listed = t2i("recipes").stdout.splitlines()
    assert [line.split()[0] for line in listed] == list(shipped)
    for name, path in shipped.items():
        assert cli.find_recipe(name) == path
        assert t2i("recipes", "show", name).stdout == path.read_text(encoding="utf-8")


def test_prune_lists_first_and_deletes_when_told(folder: Path) -> None:
    t2i("run", "small.yaml", "train.steps=5")
    t2i("run", "small.yaml")
    [unused] = [
        path
        for path in (folder / "runs" / "small").glob("train-*")
        if '"steps": 5' in (path / "config.json").read_text()
    ]
    listed = t2i("recipes", "prune", "small.yaml")
    assert listed.stdout == f"{unused.relative_to(folder)}\n1 folders are not referred to; --yes deletes them.\n"
    assert unused.exists()
    assert t2i("recipes", "prune", "small.yaml", "--yes").exit_code == 0
    assert not unused.exists()
    assert t2i("plan", "small.yaml").stdout.count("skip") == 2
