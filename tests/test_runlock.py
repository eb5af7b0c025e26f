"""The lock of a run: the same again gives the same bits, and what is not the same is named."""

from __future__ import annotations

import importlib.metadata
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_stages import STAGE_TYPES as TEST_STAGES
from PIL import Image
from safetensors.torch import save_file
from typer.testing import CliRunner, Result

from t2i import cli
from t2i.errors import DataError
from t2i.locked_inputs import commit_mismatches, hub_commits
from t2i.runlock import LOCK, _difference, reproduce
from t2i.stages import STAGE_TYPES

RECIPE = """
stages:
  - {type: read, images: images}
  - {type: train, data_from: read, steps: 100}
"""


@pytest.fixture
def lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The lock of a finished run in a fresh working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("T2I_RUNS", raising=False)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    for name in ("read", "train"):
        monkeypatch.setitem(STAGE_TYPES, name, TEST_STAGES[name])
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.txt").write_text("a")
    (tmp_path / "small.yaml").write_text(RECIPE)
    assert t2i("run", "small.yaml", "seed=7").exit_code == 0
    return tmp_path / "runs/small" / LOCK


def t2i(*arguments: str) -> Result:
    return CliRunner().invoke(cli.app, list(arguments))


def edit(lock: Path, change: dict, *keys: str) -> None:
    value = json.loads(lock.read_text())
    inner = value
    for key in keys:
        inner = inner[key]
    inner.update(change)
    lock.write_text(json.dumps(value))


def test_the_same_again_is_bit_identical(lock: Path) -> None:
    done = t2i("reproduce", str(lock))
    assert done.exit_code == 0, done.output
    assert done.stdout.splitlines()[-1] == "bit-identical: 3 files compared"
    assert (lock.parent.parent / "reproduced/small").is_dir()


def test_the_lock_holds_hashes_of_files_code_packages_seeds_and_machine_but_no_token(lock: Path) -> None:
    value = json.loads(lock.read_text())
    assert value["seed"] == value["stages"]["train"]["seed"] == 7
    assert len(value["stages"]["read"]["files"]["images"]["sha256"]) == 64
    made_with = value["stages"]["train"]["made_with"]
    assert made_with["code"].keys() == {"t2i", "rewards"}
    assert {"torch", "diffusers", "safetensors"} <= made_with["packages"].keys()
    assert made_with["processes"] == 1
    assert value["stages"]["train"]["outputs"].keys() == {"half.txt", "weights.txt"}
    assert not any("hf_secret" in path.read_text() for path in lock.parent.rglob("*") if path.is_file())


def test_a_changed_image_is_named_and_refused(lock: Path) -> None:
    Path("images/a.txt").write_text("b")
    done = t2i("reproduce", str(lock))
    assert done.exit_code == 2
    assert "read.images: images has other content (a.txt has changed)" in done.stderr
    assert not (lock.parent.parent / "reproduced").exists()


def test_added_and_removed_files_of_a_folder_are_named(lock: Path) -> None:
    Path("images/a.txt").rename("images/b.txt")
    stderr = t2i("reproduce", str(lock)).stderr
    assert "images has other content (a.txt was removed, b.txt was added)" in stderr
    for number in range(9):
        Path(f"images/c{number}.txt").write_text("c")
    assert "c1.txt was added, c2.txt was added, and 6 more)" in t2i("reproduce", str(lock)).stderr


def test_a_folder_too_large_to_list_is_still_told_from_another(lock: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("t2i.locked_inputs.LISTED", 0)
    assert t2i("run", "small.yaml", "seed=8").exit_code == 0
    assert json.loads(lock.read_text())["stages"]["read"]["contents"] == {}
    Path("images/a.txt").write_text("b")
    assert "the lock lists no single files of it" in t2i("reproduce", str(lock)).stderr


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub's cache, with one model at one commit."""
    folder = tmp_path / "hub/models--owner--name"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs/main").write_text("a" * 40)
    for commit in ("a" * 40, "b" * 40):
        (folder / "snapshots" / commit).mkdir(parents=True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return folder


def test_a_hub_model_is_locked_at_its_commit_and_another_is_named(hub: Path) -> None:
    values = {"type": "generate", "model": "owner/name", "prompts": {"type": "list", "prompts": ["x"]}}
    found: Any = hub_commits(STAGE_TYPES["generate"].model_validate_json(json.dumps(values)))
    assert found == {"model": {"model": "owner/name", "revision": None, "commit": "a" * 40}}
    assert list(commit_mismatches("generate", found)) == []
    (hub / "refs/main").write_text("b" * 40)
    [line] = commit_mismatches("generate", found)
    assert line == f"generate.model: owner/name at main is commit {'a' * 40} in the lock, commit {'b' * 40} here"
    (hub / "refs/main").unlink()
    [line] = commit_mismatches("generate", found)
    assert line.endswith(f"not in the hub's cache here; get it with --revision {'a' * 40}")


def test_the_hub_model_of_a_scorer_is_locked_with_its_own_revision(hub: Path) -> None:
    scorer = {"name": "clip_score", "model": "owner/name", "revision": "b" * 40}
    values = {"type": "score", "generations_from": "x", "scorers": [{"name": "brightness"}, scorer]}
    found: Any = hub_commits(STAGE_TYPES["score"].model_validate_json(json.dumps(values)))
    assert found == {"scorers.1.model": {"model": "owner/name", "revision": "b" * 40, "commit": "b" * 40}}
    (hub / "snapshots" / ("b" * 40)).rmdir()
    assert list(commit_mismatches("score", found)) == [], "a commit is fetched as it is named"


def test_changed_packages_code_and_machines_are_named(lock: Path) -> None:
    for stage in ("read", "train"):
        edit(lock, {"torch": "0.1"}, "stages", stage, "made_with", "packages")
    edit(lock, {"t2i": "0" * 64}, "stages", "train", "made_with", "code")
    done = t2i("reproduce", str(lock))
    assert done.exit_code == 2
    torch = importlib.metadata.version("torch")
    assert f"  packages.torch: 0.1 in the lock, {torch} here\n" in done.stderr
    assert "  code of t2i: other files than the lock was made with (train)\n" in done.stderr
    accepted = t2i("reproduce", str(lock), "--accept")
    assert accepted.exit_code == 0
    assert "accepted: packages.torch: 0.1 in the lock" in accepted.stdout
    assert accepted.stdout.splitlines()[-1] == "bit-identical: 3 files compared"


def test_every_reproduction_is_made_anew(lock: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What an earlier one left would always be the same."""
    assert t2i("reproduce", str(lock)).exit_code == 0

    def other(self: Any, context: Any) -> dict[str, Any]:
        (context.folder / "weights.txt").write_text("something else")
        return {}

    monkeypatch.setattr(TEST_STAGES["train"], "run", other)
    done = t2i("reproduce", str(lock))
    assert done.exit_code == 1
    assert "different: 3 files compared, first at train/half.txt" in done.stdout


def test_an_interrupted_reproduction_goes_on_if_it_is_of_this_code(lock: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train = TEST_STAGES["train"].run
    read = lock.parent.parent / "reproduced/small"

    def fails(self: Any, context: Any) -> dict[str, Any]:
        raise ZeroDivisionError

    monkeypatch.setattr(TEST_STAGES["train"], "run", fails)
    assert t2i("reproduce", str(lock)).exit_code == 1
    [finished] = read.glob("read-*/done.json")
    before = finished.stat().st_mtime_ns
    monkeypatch.setattr(TEST_STAGES["train"], "run", train)
    assert t2i("reproduce", str(lock)).exit_code == 0
    assert finished.stat().st_mtime_ns == before
    shutil.rmtree(next(read.glob("train-*")))
    provenance = finished.with_name("provenance.json")
    values = json.loads(provenance.read_text())
    provenance.write_text(json.dumps(values | {"code": {"t2i": "0" * 64}}))
    assert t2i("reproduce", str(lock)).exit_code == 0
    assert finished.stat().st_mtime_ns != before


def test_the_lock_is_of_the_run_that_was_asked_for_last(lock: Path) -> None:
    first = json.loads(lock.read_text())
    assert t2i("run", "small.yaml", "seed=8").exit_code == 0
    assert json.loads(lock.read_text())["seed"] == 8
    assert t2i("run", "small.yaml", "seed=7").exit_code == 0
    assert json.loads(lock.read_text()) == first
    before = lock.stat().st_mtime_ns
    assert t2i("run", "small.yaml", "seed=7").exit_code == 0
    assert lock.stat().st_mtime_ns == before


def test_another_result_is_told_with_the_first_file_that_differs(lock: Path) -> None:
    edit(lock, {"weights.txt": "0" * 64}, "stages", "train", "outputs")
    done = t2i("reproduce", str(lock))
    assert done.exit_code == 1
    assert done.stdout.splitlines()[-1] == "different: 3 files compared, first at train/weights.txt (other content)"


@pytest.mark.parametrize(
    ("change", "keys", "complaint"),
    [
        ({"lock": 1}, (), "a lock of version 1; this version reads 2. Run the recipe again to write a new one"),
        ({"stages": []}, (), "`stages` is a list"),
        ({"recipe": "../../escape"}, (), "is no name of a recipe"),
        ({"settings": {"type": "nothing"}}, ("stages", "train"), "cannot be read by this version"),
        ({"settings": {"type": "read", "images": "images", "name": "../x"}}, ("stages", "read"), "unsafe name"),
    ],
)
def test_a_lock_is_read_as_strictly_as_a_recipe(
    lock: Path, change: dict, keys: tuple[str, ...], complaint: str
) -> None:
    edit(lock, change, *keys)
    with pytest.raises(DataError, match=complaint):
        reproduce(lock, lock.parent / "again", accept=True)
    assert not (lock.parent / "again").exists()


def test_rounding_is_told_from_other_results(tmp_path: Path) -> None:
    for name, change in (("a", 0.0), ("b", 1e-5), ("c", 0.1)):
        save_file({"x": torch.ones(10) + change}, tmp_path / f"{name}.safetensors")
        Image.new("L", (8, 8), round(100 + 255 * change)).save(tmp_path / f"{name}.png")
    for kind in ("safetensors", "png"):
        near = _difference(tmp_path / f"a.{kind}", tmp_path / f"b.{kind}")[0]
        far = _difference(tmp_path / f"a.{kind}", tmp_path / f"c.{kind}")[0]
        assert (near, far) == (True, False)
    assert "not beside the lock" in _difference(tmp_path / "none.png", tmp_path / "a.png")[1]
