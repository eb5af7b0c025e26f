"""Preference pairs come out of a file checked, and what is wrong with one is told with its number."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from t2i.data.images import content_id
from t2i.data.pairs import PairsFile, ShapesPairs, check_apart, hold_out, iterate_pairs, save_pairs
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


def test_drawn_pairs_put_the_liked_scene_first_but_for_the_flipped(tmp_path: Path) -> None:
    drawn = list(ShapesPairs(count=60, flip_share=0.25).read(tmp_path, 3))
    for pair in drawn:
        better, worse = pair.extra["liked"]
        assert pair.is_tie == (better == worse)
        assert pair.extra["flipped"] == (better < worse)
        assert (pair.chosen_id, pair.rejected_id) == (content_id(Path(pair.chosen)), content_id(Path(pair.rejected)))
    assert 8 <= sum(pair.extra["flipped"] for pair in drawn) <= 24
    assert not any(pair.extra["flipped"] for pair in ShapesPairs(count=20).read(tmp_path, 3))
    assert list(iterate_pairs(save_pairs(tmp_path, drawn))) == drawn


def test_drawn_pairs_are_a_function_of_seed_and_number(tmp_path: Path) -> None:
    first, again = (list(ShapesPairs(count=4).read(tmp_path / name, 3)) for name in ("a", "b"))
    assert [(p.prompt, p.chosen_id) for p in first] == [(p.prompt, p.chosen_id) for p in again]
    tail = list(ShapesPairs(count=2, first=2).read(tmp_path / "c", 3))
    assert [p.chosen_id for p in tail] == [p.chosen_id for p in first[2:]]
    others = list(ShapesPairs(count=4, split="heldout").read(tmp_path / "d", 3))
    assert not {p.group for p in first} & {p.group for p in others}


def test_a_prompt_is_held_out_with_all_its_pairs_whatever_else_is_there() -> None:
    pairs = [PreferencePair(f"prompt {number % 40}", f"{number}.png", "x.png") for number in range(120)]
    training, held_out = hold_out(pairs, 0.25, seed=1)
    assert len(training) + len(held_out) == 120
    assert not {pair.prompt for pair in training} & {pair.prompt for pair in held_out}
    assert 4 <= len({pair.prompt for pair in held_out}) <= 18
    fewer = hold_out(pairs[:60], 0.25, seed=1)[1]
    assert fewer == [pair for pair in held_out if pair in pairs[:60]]


def test_pairs_of_one_prompt_stay_together_whatever_ids_they_have() -> None:
    prompts = [f"a prompt {number % 10}" for number in range(20)] + [
        f"A  Prompt {number % 10} " for number in range(20)
    ]
    pairs = [
        PreferencePair(prompt, f"{number}.png", "x.png", prompt_id=f"{number:04d}")
        for number, prompt in enumerate(prompts)
    ]
    sides = [{" ".join(pair.prompt.lower().split()) for pair in part} for part in hold_out(pairs, 0.5, seed=1)]
    assert not sides[0] & sides[1]
    assert len(sides[0] | sides[1]) == 10


def test_prompts_are_told_apart_by_their_text_and_not_by_their_id() -> None:
    trained = [PreferencePair("a cat", "1.png", "2.png", "0000", chosen_id="1", rejected_id="2")]
    check_apart(trained, [PreferencePair("a dog", "3.png", "4.png", "0000", chosen_id="3", rejected_id="4")])
    with pytest.raises(DataError, match="1 of 1 held-out pairs share their prompt"):
        check_apart(trained, [PreferencePair("A cat", "3.png", "4.png", "0001", chosen_id="3", rejected_id="4")])
    # Without a prompt, by the id, and without either, by the image.
    assert PreferencePair(" ", "1.png", "2.png", "0000", chosen_id="1").group == "0000"
    assert PreferencePair("", "1.png", "2.png", chosen_id="1").group == "1"


def test_prompts_and_images_on_both_sides_are_refused() -> None:
    trained = [PreferencePair("a", "1.png", "2.png", chosen_id="1", rejected_id="2")]
    check_apart(trained, [PreferencePair("b", "3.png", "4.png", chosen_id="3", rejected_id="4")])
    for shared in (
        PreferencePair("a", "3.png", "4.png", chosen_id="3", rejected_id="4"),
        PreferencePair("b", "3.png", "1.png", chosen_id="3", rejected_id="1"),
    ):
        with pytest.raises(DataError, match="1 of 1 held-out pairs"):
            check_apart(trained, [shared])
