"""Stages whose input is made anew because more is asked of it: they run again from nothing, whenever the run ends."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
from pydantic import JsonValue
from rich.console import Console

from t2i.config import speed_only
from t2i.engine import PlannedStage, plan, run
from t2i.errors import DataError
from t2i.outdated import OUTDATED
from t2i.recipe import Recipe, load_recipe
from t2i.rundir import read_done
from t2i.stages.base import Stage, StageContext

RECIPE = """
name: demo
stages:
  - {type: ask, answers: ANSWERS}
  - {type: keep, data_from: ask}
  - {type: keep, name: last, data_from: keep}
"""
NAMES = "names.txt"


class Ask(Stage):
    """As a caption stage of a server: what it answers is not in the fingerprint, and `no` is a refusal."""

    produces: ClassVar[str] = "captioned_images"
    type: Literal["ask"] = "ask"
    answers: str
    max_refused: float = speed_only(1.0)

    def unmet(self, facts: Mapping[str, JsonValue]) -> str:
        return f"{facts['refused']} refused" if float(str(facts["refused"])) > 2 * self.max_refused else ""

    def run(self, context: StageContext) -> dict[str, Any]:
        names = Path(self.answers).read_text().split()
        facts: dict[str, JsonValue] = {"refused": names.count("no")}
        if self.unmet(facts):
            raise DataError("too many are refused")
        (context.folder / NAMES).write_text(" ".join(name for name in names if name != "no"))
        return facts


class Keep(Stage):
    """As a train stage: a result that is there is not made again."""

    produces: ClassVar[str] = "captioned_images"
    accepts: ClassVar[dict[str, tuple[str, ...]]] = {"data_from": ("captioned_images",)}
    type: Literal["keep"] = "keep"
    data_from: str
    least: int = 0
    fail: bool = speed_only(False)

    def run(self, context: StageContext) -> dict[str, Any]:
        if self.fail:
            raise KeyboardInterrupt
        if not (context.folder / NAMES).exists():
            (context.folder / NAMES).write_text((context.input("data_from") / NAMES).read_text())
        return {}


@pytest.fixture
def answers(tmp_path: Path) -> Path:
    """What the server says; one of two is refused at first."""
    (tmp_path / "answers.txt").write_text("a no")
    return tmp_path / "answers.txt"


def recipe(answers: Path, *overrides: str) -> Recipe:
    path = answers.with_name("demo.yaml")
    path.write_text(RECIPE.replace("ANSWERS", str(answers)))
    return load_recipe(path, overrides, {"ask": Ask, "keep": Keep})


def run_again(answers: Path, *overrides: str) -> list[PlannedStage]:
    return run(recipe(answers, *overrides), answers.parent / "runs", Console(quiet=True))


def said(answers: Path, *overrides: str) -> list[str]:
    return [f"{item.status}: {item.reason}" for item in plan(recipe(answers, *overrides), answers.parent / "runs")]


def names(planned: list[PlannedStage]) -> list[str]:
    return [(item.folder / NAMES).read_text() for item in planned]


def test_what_read_a_stage_that_more_is_asked_of_runs_again_from_nothing(answers: Path) -> None:
    assert names(run_again(answers)) == ["a"] * 3
    answers.write_text("a b")
    assert said(answers, "ask.max_refused=0") == [
        "resume: was finished, but 1 refused",
        "run: input ask is done again",
        "run: input keep is done again",
    ]
    planned = run_again(answers, "ask.max_refused=0")
    assert names(planned) == ["a b"] * 3
    for item in planned:
        done = read_done(item.folder)
        assert done is not None
        assert OUTDATED not in done.files
    assert {item.status for item in run_again(answers, "ask.max_refused=0")} == {"skip"}


def test_planning_marks_nothing(answers: Path) -> None:
    run_again(answers)
    said(answers, "ask.max_refused=0")
    assert all(line.startswith("skip: finished") for line in said(answers))


def test_a_run_that_ends_before_the_readers_ran_leaves_them_to_be_done(answers: Path) -> None:
    run_again(answers)
    with pytest.raises(DataError, match="too many are refused"):
        run_again(answers, "ask.max_refused=0")
    assert said(answers)[1:] == ["run: input ask is done again", "run: input keep is done again"]
    answers.write_text("a b")
    with pytest.raises(KeyboardInterrupt):
        run_again(answers, "ask.max_refused=0", "keep.fail=true")
    ask, keep, last = said(answers, "ask.max_refused=0")
    assert ask.startswith("skip: finished")
    assert [keep, last] == ["resume: interrupted run found", "run: input keep is done again"]
    assert names(run_again(answers)) == ["a b"] * 3


def test_readers_of_another_version_of_the_recipe_run_again_too(answers: Path) -> None:
    run_again(answers)
    assert names(run_again(answers, "keep.least=1")) == ["a"] * 3
    answers.write_text("a b")
    run_again(answers, "ask.max_refused=0")
    assert said(answers, "keep.least=1")[1:] == ["run: input ask is done again", "run: input keep is done again"]
    assert names(run_again(answers, "keep.least=1")) == ["a b"] * 3
