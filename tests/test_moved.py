"""Images that are moved: what is finished follows them, and nothing is done twice."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny

from t2i.data.sources import load_records
from t2i.engine import PlannedStage, plan, run
from t2i.moved import follow
from t2i.recipe import Recipe
from t2i.rundir import damage, read_done

RECIPE = """
name: demo
stages:
  - {type: caption, data: {type: folder, path: PICTURES}, captioner: {type: files}}
  - {type: filter, data_from: caption, min_side: 1}
"""
DATASET = "  - {type: dataset, data_from: filter, formats: [{type: parquet}]}\n"


def recipe(folder: Path, pictures: Path, more: str = "") -> Recipe:
    path = folder / "demo.yaml"
    path.write_text(RECIPE.replace("PICTURES", str(pictures)) + more)
    return Recipe.load(path)


def images(planned: list[PlannedStage]) -> list[list[str]]:
    """What the records of every stage name."""
    return [[row.image for row in load_records(item.folder / "records.jsonl")] for item in planned]


def test_records_follow_a_folder_that_was_moved_and_later_stages_find_its_images(tmp_path: Path) -> None:
    old = tiny.write_photographs(tmp_path / "pics", count=2)
    first = run(recipe(tmp_path, old), tmp_path / "runs")
    before = images(first)
    new = old.rename(tmp_path / "pics2")
    moved = recipe(tmp_path, new, DATASET)
    said = {item.name: (item.status, item.reason) for item in plan(moved, tmp_path / "runs")}
    for name in ("caption", "filter"):
        status, reason = said[name]
        assert status == "skip"
        assert reason.endswith(f"; {old} is at {new} now")
    planned = run(moved, tmp_path / "runs")
    assert [item.status for item in planned] == ["skip", "skip", "run"]
    assert images(planned[:2]) == [[str(new / Path(image).name) for image in rows] for rows in before]
    assert len(list((planned[2].folder / "images").iterdir())) == 2
    for item in planned:
        done = read_done(item.folder)
        assert done is not None
        assert {"records.jsonl", "config.json"} <= set(done.files)
        assert damage(item.folder, done) == ""
    assert not any("is at" in item.reason for item in plan(moved, tmp_path / "runs"))


def test_a_folder_named_from_another_working_directory_has_moved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "old").mkdir()
    monkeypatch.chdir(tmp_path / "old")
    tiny.write_photographs(Path("pics"), count=1)
    run(recipe(Path(), Path("pics")), Path("runs"))
    (tmp_path / "old").rename(tmp_path / "new")
    monkeypatch.chdir(tmp_path / "new")
    planned = run(recipe(Path(), Path("pics"), DATASET), Path("runs"))
    assert [item.status for item in planned] == ["skip", "skip", "run"]
    assert images(planned[:1]) == [[str(tmp_path / "new/pics/astronaut.png")]]


@pytest.mark.parametrize("is_config_new", [False, True])
def test_following_that_was_interrupted_is_done_again(tmp_path: Path, is_config_new: bool) -> None:
    old = tiny.write_photographs(tmp_path / "pics", count=1)
    run(recipe(tmp_path, old), tmp_path / "runs")
    new = old.rename(tmp_path / "pics2")
    moved = recipe(tmp_path, new)
    item = plan(moved, tmp_path / "runs")[0]
    config = (item.folder / "config.json").read_text()
    follow(item.folder, item.config)
    # As a kill before the last file, or the last two, leaves it.
    if not is_config_new:
        (item.folder / "config.json").write_text(config)
    done = json.loads((item.folder / "done.json").read_text())
    done["files"] = {name: size for name, size in done["files"].items() if name not in ("records.jsonl", "config.json")}
    (item.folder / "done.json").write_text(json.dumps(done))
    again = plan(moved, tmp_path / "runs")[0]
    assert (again.status, again.is_moved) == ("skip", True)
    assert again.reason.endswith(f"{old} is at {new} now") != is_config_new
    assert images(run(moved, tmp_path / "runs")) == [[str(new / "astronaut.png")]] * 2
    found = read_done(item.folder)
    assert found is not None
    assert {"records.jsonl", "config.json"} <= set(found.files)
    assert damage(item.folder, found) == ""
    assert not plan(moved, tmp_path / "runs")[0].is_moved


def test_images_that_are_not_at_the_new_place_keep_their_names(tmp_path: Path) -> None:
    pictures = tiny.write_photographs(tmp_path / "pics", count=1)
    [made, _] = run(recipe(tmp_path, pictures), tmp_path / "runs")
    (tmp_path / "lists").mkdir()
    listed = tmp_path / "lists/r.jsonl"
    listed.write_text((made.folder / "records.jsonl").read_text())
    text = f"name: other\nstages: [{{type: caption, data: {{type: records, path: {listed}}}}}]"
    (tmp_path / "other.yaml").write_text(text)
    run(Recipe.load(tmp_path / "other.yaml"), tmp_path / "runs")
    listed.rename(tmp_path / "r.jsonl")
    (tmp_path / "other.yaml").write_text(text.replace(str(listed), str(tmp_path / "r.jsonl")))
    assert images(run(Recipe.load(tmp_path / "other.yaml"), tmp_path / "runs")) == [[str(pictures / "astronaut.png")]]
