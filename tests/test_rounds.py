"""Rounds that are stopped early: what is not run, what later stages read, and that asking again changes nothing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from engine_stages import load

from t2i.engine import PlannedStage, plan, run
from t2i.errors import ConfigError
from t2i.recipe import Recipe
from t2i.runlock import LOCK

TEXT = """
name: demo
stages:
  - {type: train, name: collect, model_from: improve, steps: 1}
  - {type: train, name: improve, model_from: collect, steps: 1}
  - {type: choose, enough: 2, arms_from: [improve/round1, improve/round2, improve/round3, improve/round4]}
  - {type: table, arms_from: ["improve/*", choose]}
rounds:
  stages: [collect, improve]
  count: 4
  stop_by: choose
  first: {collect.model_from: null}
"""
NEEDLESS = "not needed: 2 are enough"


def recipe(folder: Path, *overrides: str, text: str = TEXT) -> Recipe:
    return load(folder, text, *overrides)


def said(planned: list[PlannedStage]) -> dict[str, str]:
    return {item.name: item.reason for item in planned}


def folders(root: Path) -> set[str]:
    return {path.name.partition("-")[0] for path in (root / "demo").iterdir() if path.is_dir()}


def written(planned: list[PlannedStage], name: str, file: str) -> list[str]:
    return (next(item.folder for item in planned if item.name == name) / file).read_text().splitlines()


def test_rounds_after_the_decision_are_not_run(tmp_path: Path) -> None:
    planned = run(recipe(tmp_path), tmp_path / "runs")
    assert folders(tmp_path / "runs") == {
        *("collect.round1", "improve.round1", "collect.round2", "improve.round2", "choose", "table")
    }
    assert {name for name, reason in said(planned).items() if reason == NEEDLESS} == {
        *("collect/round3", "improve/round3", "collect/round4", "improve/round4")
    }
    assert [item.is_passed_over for item in planned] == [False] * 4 + [True] * 4 + [False] * 2
    assert written(planned, "choose", "chosen.txt") == ["improve/round1", "improve/round2"]
    assert written(planned, "table", "table.txt") == ["improve/round1", "improve/round2", "choose"]


def test_the_lock_leaves_out_what_an_earlier_recipe_wrote_in_rounds_that_are_not_run(tmp_path: Path) -> None:
    run(recipe(tmp_path, text=TEXT.replace("  stop_by: choose\n", "")), tmp_path)
    run(recipe(tmp_path), tmp_path)
    stages = json.loads((tmp_path / "demo" / LOCK).read_text())["stages"]
    assert stages["improve/round2"]["outputs"]
    assert not stages["improve/round3"]["outputs"]


def test_what_stands_before_the_rounds_counts(tmp_path: Path) -> None:
    start = "stages:\n  - {type: train, name: start, steps: 1}\n"
    text = TEXT.replace("stages:\n", start, 1).replace("[improve/round1, ", "[start, improve/round1, ")
    planned = run(recipe(tmp_path, text=text), tmp_path / "runs")
    assert said(planned)["improve/round2"] == NEEDLESS
    assert written(planned, "choose", "chosen.txt") == ["start", "improve/round1"]
    assert {item.status for item in plan(recipe(tmp_path, text=text), tmp_path / "runs")} == {"skip"}


def test_before_the_rounds_are_run_nothing_is_known(tmp_path: Path) -> None:
    assert {item.status for item in plan(recipe(tmp_path), tmp_path / "runs")} == {"run"}


def test_running_again_runs_nothing(tmp_path: Path) -> None:
    run(recipe(tmp_path), tmp_path / "runs")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs/demo").rglob("*.txt")}
    planned = plan(recipe(tmp_path), tmp_path / "runs")
    assert {item.status for item in planned} == {"skip"}
    assert said(planned)["improve/round4"] == NEEDLESS
    run(recipe(tmp_path), tmp_path / "runs")
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "runs/demo").rglob("*.txt")} == before


def test_a_later_decision_runs_the_rounds_it_needs_and_keeps_the_others(tmp_path: Path) -> None:
    run(recipe(tmp_path), tmp_path / "runs")
    more = recipe(tmp_path, "choose.enough=3")
    status = {item.name: item.status for item in plan(more, tmp_path / "runs")}
    assert (status["improve/round2"], status["improve/round3"], status["choose"]) == ("skip", "run", "run")
    planned = run(more, tmp_path / "runs")
    assert written(planned, "choose", "chosen.txt") == [f"improve/round{number}" for number in (1, 2, 3)]
    assert said(planned)["improve/round4"] == "not needed: 3 are enough"


def test_what_was_made_of_the_first_rounds_is_made_again_when_the_others_are_run(tmp_path: Path) -> None:
    first = run(recipe(tmp_path), tmp_path / "runs")
    without_stop = recipe(tmp_path, "rounds.stop_by=null")
    found = {item.name: f"{item.status}: {item.reason}" for item in plan(without_stop, tmp_path / "runs")}
    assert found["improve/round4"] == "run: first run"
    assert found["table"] == (
        "run: input improve/round3 was not run before; input improve/round4 was not run before; input choose changed"
    )
    planned = run(without_stop, tmp_path / "runs")
    rounds = [f"improve/round{number}" for number in (1, 2, 3, 4)]
    assert written(planned, "table", "table.txt") == [*rounds, "choose"]
    assert {item.status for item in plan(without_stop, tmp_path / "runs")} == {"skip"}
    again = plan(recipe(tmp_path), tmp_path / "runs")
    assert {item.status for item in again} == {"skip"}
    assert again[-1].folder == first[-1].folder, "what was made of the first two is still there"


def test_what_reads_rounds_and_not_the_judge_follows_a_later_decision(tmp_path: Path) -> None:
    tables = '["improve/*"]}\n  - {type: table, name: last, arms_from: [improve/round1]}'
    text = TEXT.replace('["improve/*", choose]}', tables)
    run(recipe(tmp_path, text=text), tmp_path / "runs")
    more = recipe(tmp_path, "choose.enough=3", text=text)
    planned = run(more, tmp_path / "runs")
    assert written(planned, "table", "table.txt") == [f"improve/round{number}" for number in (1, 2, 3)]
    assert {item.status for item in plan(more, tmp_path / "runs")} == {"skip"}
    assert said(planned)["last"].startswith("finished"), "it reads nothing that has changed"


def test_a_decision_that_an_unfinished_round_brings_counts_for_what_was_finished_with_more(tmp_path: Path) -> None:
    first = run(recipe(tmp_path), tmp_path / "runs")
    run(recipe(tmp_path, "choose.enough=9"), tmp_path / "runs")
    (next(item.folder for item in first if item.name == "improve/round2") / "weights.txt").unlink()
    planned = run(recipe(tmp_path), tmp_path / "runs")
    assert said(planned)["improve/round3"] == NEEDLESS
    assert written(planned, "table", "table.txt") == ["improve/round1", "improve/round2", "choose"]
    assert {item.status for item in plan(recipe(tmp_path), tmp_path / "runs")} == {"skip"}


def test_what_stands_before_the_rounds_and_is_gone_decides_nothing(tmp_path: Path) -> None:
    start = "stages:\n  - {type: train, name: start, steps: 3}\n"
    text = TEXT.replace("stages:\n", start, 1).replace("[improve/round1, ", "[start, improve/round1, ")
    planned = run(recipe(tmp_path, text=text), tmp_path / "runs")
    shutil.rmtree(planned[0].folder)
    assert plan(recipe(tmp_path, text=text), tmp_path / "runs")[0].status == "run"
    again = run(recipe(tmp_path, text=text), tmp_path / "runs")
    assert said(again)["improve/round2"] == NEEDLESS


def test_a_decision_that_never_comes_runs_all_rounds(tmp_path: Path) -> None:
    planned = run(recipe(tmp_path, "choose.enough=9"), tmp_path / "runs")
    assert not any(item.is_passed_over for item in planned)
    assert len(written(planned, "choose", "chosen.txt")) == 4


def test_an_interrupted_run_ends_as_an_uninterrupted_one(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        run(recipe(tmp_path, "improve.fail=error"), tmp_path / "runs")
    planned = run(recipe(tmp_path), tmp_path / "runs")
    whole = run(recipe(tmp_path), tmp_path / "whole")
    assert said(planned)["improve/round3"] == said(whole)["improve/round3"] == NEEDLESS
    assert written(planned, "table", "table.txt") == written(whole, "table", "table.txt")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("stop_by: choose", "stop_by: chose", "no stage 'chose' outside the rounds; did you mean 'choose'?"),
        ("stop_by: choose", "stop_by: improve", "no stage 'improve' outside the rounds"),
        ("stop_by: choose", "stop_by: table", "a stage of type table cannot decide; expected choose"),
        (
            "rounds:\n",
            "matrix: {stages: [collect, improve], seeds: [0, 1]}\nrounds:\n",
            "rounds that a matrix repeats cannot be stopped; leave `stop_by` out",
        ),
        (
            '["improve/*", choose]}',
            "[choose]}\n  - {type: train, name: more, model_from: improve, steps: 1}",
            "improve/round4 may not be run, because of rounds.stop_by; read choose, or a list with the first round",
        ),
        (
            '["improve/*", choose]}',
            "[choose]}\n  - {type: train, name: more, model_from: improve/round2, steps: 1}",
            "improve/round2 may not be run, because of rounds.stop_by; read choose, or a list with the first round",
        ),
        (
            '["improve/*", choose]}',
            "[improve/round3, improve/round4]}",
            "improve/round4 may not be run, because of rounds.stop_by; read choose, or a list with the first round",
        ),
    ],
)
def test_a_stop_that_cannot_work_is_a_mistake_of_the_recipe(tmp_path: Path, old: str, new: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        recipe(tmp_path, text=TEXT.replace(old, new))
    assert message in str(caught.value)
