"""A captioner learns the captions of a few images, and a caption stage wears what it learned."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import yaml
from PIL import Image

from t2i.captioners.adapters import adapter_hash
from t2i.data.sources import RECORDS_FILE, load_records
from t2i.engine import run
from t2i.errors import ConfigError, DataError, MissingDependencyError
from t2i.recipe import Recipe

sys.path.append(str(Path(__file__).parents[1] / "rewards"))
import vqa_tiny

pytest.importorskip("trl", reason="the extra trl is not installed")

CAPTIONS = {"red": "a red one", "navy": "dark blue", "white": "all white"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return vqa_tiny.qwen(tmp_path_factory.mktemp("model"))


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for colour, text in CAPTIONS.items():
        Image.new("RGB", (32, 32), colour).save(folder / f"{colour}.png")
        (folder / f"{colour}.txt").write_text(text)
    return folder


def recipe(folder: Path, model: Path, pictures: Path, steps: int = 60, *, captions: bool = True) -> Recipe:
    asked = {"type": "vlm", "model": str(model), "dtype": "float32", "max_tokens": 12, "kind": "short"}
    asked["wording"] = {"prompt": "what?"}
    source = {"type": "folder", "path": str(pictures)}
    collected = {
        "type": "caption",
        "name": "collected",
        "data": source,
        "captioner": {"type": "files", "kind": "human"},
    }
    tuning = {
        "type": "tune_captioner",
        "data_from": "collected",
        "captions": "human",
        "captioner": asked,
        "held_out": None,
        "loop": {"steps": steps, "batch_size": 3, "learning_rate": 2e-2},
    }
    caption = {"type": "caption", "data_from": "collected", "captioner": asked, "adapter_from": "tune_captioner"}
    path = folder / "recipe.yaml"
    path.write_text(
        yaml.safe_dump({"name": "tuned", "seed": 1, "stages": [collected, tuning, caption][: 3 if captions else 2]})
    )
    return Recipe.load(path)


def test_tuned_captions_are_said_again_and_name_the_adapter(tmp_path: Path, model: Path, pictures: Path) -> None:
    before = {path: path.read_bytes() for path in model.iterdir()}
    stages = run(recipe(tmp_path, model, pictures), tmp_path / "runs")
    rows = load_records(stages[-1].folder / RECORDS_FILE)
    said = {Path(row.image).stem: list(row.texts("short")) for row in rows}
    assert said == {colour: [text] for colour, text in CAPTIONS.items()}
    origins = [caption.origin for row in rows for caption in row.captions if caption.kind == "short"]
    worn = adapter_hash(stages[-2].folder / "adapter")
    assert [origin.adapter if origin else None for origin in origins] == [worn] * 3
    assert {path: path.read_bytes() for path in model.iterdir()} == before, "the model itself is not touched"


def test_the_same_seed_gives_the_same_adapter(tmp_path: Path, model: Path, pictures: Path) -> None:
    files = []
    for name in ("one", "two"):
        [_, tuned] = run(recipe(tmp_path, model, pictures, steps=3, captions=False), tmp_path / name)
        files.append((tuned.folder / "adapter" / "adapter_model.safetensors").read_bytes())
    assert files[0] == files[1]


def test_a_caption_longer_than_is_asked_for_is_refused_by_name(tmp_path: Path, model: Path, pictures: Path) -> None:
    (pictures / "red.txt").write_text("red " * 30)
    with pytest.raises(DataError, match=r"red\.png: \d+ tokens with the end, and captioner\.max_tokens is 12"):
        run(recipe(tmp_path, model, pictures), tmp_path / "runs")


def test_several_processes_are_told_to_run_it_alone_first(
    tmp_path: Path, model: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    [_, tuning] = recipe(tmp_path, model, pictures, captions=False).stages
    tuning.check()
    for name, value in (("LOCAL_RANK", "0"), ("RANK", "0"), ("WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=r"tune_captioner: found 2 processes.* run it without torchrun first"):
        tuning.check()


def test_without_trl_one_line_says_what_to_install(
    tmp_path: Path, model: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "trl", None)
    with pytest.raises(MissingDependencyError) as caught:
        run(recipe(tmp_path, model, pictures), tmp_path / "runs")
    line = "tune_captioner needs the package 'trl', which is not installed: pip install 't2i-toolkit[trl]'"
    assert str(caught.value) == line
