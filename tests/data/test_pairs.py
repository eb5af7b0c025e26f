"""Preference pairs come out of a file checked, and what is wrong with one is told with its number."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from t2i.data.images import content_id
from t2i.data.pairs import PairsFile, iterate_pairs, save_pairs
from t2i.errors import DataError
from t2i.records import PreferencePair


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    for number in range(3):
        Image.new("RGB", (8, 8), (60 * number, 0, 0)).save(tmp_path / f"images/{number}.png")
    (tmp_path / "images/copy.png").write_bytes((tmp_path / "images/0.png").read_bytes())
    return tmp_path


def write(folder: Path, **values: object) -> Path:
    row = {"prompt": "a cat", "chosen": "images/0.png", "rejected": "images/1.png"} | values
    path = folder / "mine.jsonl"
    path.write_text("\n" + json.dumps({"prompt": "", "chosen": "images/1.png", "rejected": "images/2.png"}) + "\n")
    with path.open("a") as file:
        file.write(json.dumps(row) + "\n")
    return path


def test_a_file_needs_prompt_and_two_images_only_and_gets_ids_and_absolute_paths(folder: Path) -> None:
    pairs = list(PairsFile(path=str(write(folder))).read(folder, 0))
    assert [pair.prompt for pair in pairs] == ["", "a cat"]
    assert pairs[1].chosen == str(folder / "images/0.png")
    assert pairs[1].chosen_id == content_id(folder / "images/0.png")
    assert pairs[1].preference == 1.0
    assert not pairs[1].is_tie


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({"rejected": "images/0.png"}, "the same image"),
        ({"rejected": "images/copy.png"}, "the same image"),
        ({"rejected": "images/none.png"}, r"there is no image .*none\.png"),
        ({"chosen": ""}, "there is no image"),
        ({"chosen_id": "ab"}, r"has the id [0-9a-f]{32}, the pair says ab"),
        ({"preference": 0.4}, "swap the two images"),
        ({"preference": float("nan")}, "preference is nan"),
        ({"preference": True}, "preference is True"),
        ({"prompt": None}, "prompt is None, expected text"),
        ({"aspect": 3}, "aspect is 3, expected text"),
    ],
)
def test_a_bad_pair_is_named_by_its_number(folder: Path, values: dict[str, object], complaint: str) -> None:
    with pytest.raises(DataError, match=rf"mine\.jsonl, pair 2: .*{complaint}"):
        list(iterate_pairs(write(folder, **values)))


def test_a_file_without_pairs_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.jsonl").write_text("\n")
    with pytest.raises(DataError, match="no pair"):
        list(iterate_pairs(tmp_path / "mine.jsonl"))


def test_saved_pairs_come_back_and_a_runs_folder_can_be_moved(folder: Path, tmp_path: Path) -> None:
    stage = folder / "pair-1"
    stage.mkdir()
    pairs = list(iterate_pairs(write(folder, preference=0.5, aspect="fidelity", extra={"judge": [0.1, 0.1]})))
    path = save_pairs(stage, pairs)
    assert '"chosen": "../images/0.png"' in path.read_text()
    assert list(iterate_pairs(path)) == pairs
    assert pairs[1].is_tie
    assert isinstance(pairs[1], PreferencePair)
