"""The lock of a run: the same again gives the same bits, and what is not the same is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from engine_stages import STAGE_TYPES as TEST_STAGES
from PIL import Image
from safetensors.torch import save_file
from typer.testing import CliRunner, Result

from t2i import cli
from t2i.errors import DataError
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
    assert value["code"].keys() == {"t2i", "rewards"}
    assert {"torch", "diffusers", "safetensors"} <= value["environment"]["packages"].keys()
    assert value["environment"]["processes"] == 1
    assert value["stages"]["train"]["outputs"].keys() == {"half.txt", "weights.txt"}
    assert not any("hf_secret" in path.read_text() for path in lock.parent.rglob("*") if path.is_file())


def test_a_changed_image_is_named_and_refused(lock: Path) -> None:
    Path("images/a.txt").write_text("b")
    done = t2i("reproduce", str(lock))
    assert done.exit_code == 2
    assert "read.images: images has other content" in done.stderr
    assert not (lock.parent.parent / "reproduced").exists()


def test_changed_packages_code_and_machines_are_named(lock: Path) -> None:
    edit(lock, {"torch": "0.1"}, "environment", "packages")
    edit(lock, {"t2i": "0" * 64}, "code")
    done = t2i("reproduce", str(lock))
    assert done.exit_code == 2
    assert "packages.torch: 0.1 in the lock" in done.stderr
    assert "code of t2i: other files" in done.stderr
    accepted = t2i("reproduce", str(lock), "--accept")
    assert accepted.exit_code == 0
    assert "accepted: packages.torch: 0.1 in the lock" in accepted.stdout
    assert accepted.stdout.splitlines()[-1] == "bit-identical: 3 files compared"


def test_another_result_is_told_with_the_first_file_that_differs(lock: Path) -> None:
    edit(lock, {"weights.txt": "0" * 64}, "stages", "train", "outputs")
    done = t2i("reproduce", str(lock))
    assert done.exit_code == 1
    assert done.stdout.splitlines()[-1] == "different: 3 files compared, first at train/weights.txt (other content)"


@pytest.mark.parametrize(
    ("change", "keys", "complaint"),
    [
        ({"lock": 2}, (), "not a lock of version 1"),
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
