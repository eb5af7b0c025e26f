"""Which pairs are shown, in which order and on which sides, and which sources are refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import tiny
from painted_pairs import folders, generations
from PIL import Image

from t2i.data.pairs import iterate_pairs
from t2i.errors import DataError
from t2i.label.collect import Collected, collect
from t2i.label.study import Study, open_study
from t2i.label.votes import Choice, Vote
from t2i.records import PreferencePair, write_jsonl
from t2i.stages.pair import Pair


def names(collected: Collected) -> list[tuple[str, str, str]]:
    return [(pair.prompt, Path(pair.chosen).stem, Path(pair.rejected).stem) for pair in collected.pairs]


def test_one_generate_stage_gives_all_pairs_of_a_prompts_images(tmp_path: Path) -> None:
    assert names(collect([generations(tmp_path / "one", prompts=2, samples=3)])) == [
        (f"prompt {prompt}", f"{prompt}-{a}", f"{prompt}-{b}") for prompt in (0, 1) for a, b in ((0, 1), (0, 2), (1, 2))
    ]


def test_two_generate_stages_are_compared_image_by_image(tmp_path: Path) -> None:
    before = generations(tmp_path / "before", prompts=2, samples=2)
    after = generations(tmp_path / "after", prompts=2, samples=2, shade=9)
    found = collect([before, after])
    assert names(found) == [(f"prompt {p}", f"{p}-{s}", f"{p}-{s}") for p in (0, 1) for s in (0, 1)]
    assert {Path(pair.chosen).parts[-3] for pair in found.pairs} == {"before"}
    assert {pair.preference for pair in found.pairs} == {0.5}


def test_two_folders_of_pictures_are_paired_by_name_and_equal_images_left_out(tmp_path: Path) -> None:
    red, blue = folders(tmp_path)
    (blue / "1.png").write_bytes((red / "1.png").read_bytes())
    (blue / "2.txt").unlink()
    found = collect([red, blue])
    assert names(found) == [("prompt <b>0</b>", "0", "0"), ("prompt <b>2</b>", "2", "2")]
    assert found.equal == 1


def test_folder_with_pictures_that_are_not_read_is_refused(tmp_path: Path) -> None:
    red, blue = folders(tmp_path)
    (blue / "1.avif").write_bytes(b"")
    with pytest.raises(DataError, match=r"1 pictures are of formats that are not read: .*1\.avif; convert them"):
        collect([red, blue])


def test_two_pictures_of_one_name_are_refused(tmp_path: Path) -> None:
    red, blue = folders(tmp_path)
    Image.new("RGB", (16, 12)).save(red / "1.jpg")
    with pytest.raises(DataError, match=r"1\.jpg and 1\.png are both 1; rename all but one"):
        collect([red, blue])


def test_a_file_of_pairs_is_shown_without_what_it_says_of_them(tmp_path: Path) -> None:
    red, blue = folders(tmp_path)
    rows = [PreferencePair("p", str(red / "0.png"), str(blue / "0.png"), source="pickscore", extra={"score": 3})]
    write_jsonl(tmp_path / "pairs.jsonl", rows)
    for source in (tmp_path, tmp_path / "pairs.jsonl"):
        [pair] = collect([source]).pairs
        assert (pair.preference, pair.source, pair.extra) == (0.5, "undecided", {})


def test_sources_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    red, blue = folders(tmp_path)
    one = generations(tmp_path / "one", prompts=1, samples=1)
    two = generations(tmp_path / "two", prompts=1, samples=2)
    with pytest.raises(DataError, match="no two different images"):
        collect([one])
    with pytest.raises(DataError, match="1 images have no partner, first \\('p0', 1, 7\\)"):
        collect([one, two])
    with pytest.raises(DataError, match="neither the folder of a generate stage nor a file of pairs"):
        collect([red])
    with pytest.raises(DataError, match="3 sources; expected one, or two"):
        collect([red, blue, one])
    with pytest.raises(DataError, match="no such folder of images"):
        collect([red, tmp_path / "nowhere"])
    (blue / "0.txt").write_text("another prompt")
    with pytest.raises(DataError, match=r"0.txt: 2 prompts beside 0.png, expected one"):
        collect([red, blue])


def test_files_that_are_no_images_are_refused_before_anybody_looks(tmp_path: Path) -> None:
    red, blue = folders(tmp_path)
    (blue / "0.png").write_text("<script>alert(1)</script>")
    with pytest.raises(DataError, match=r"0.png: cannot be opened as an image"):
        collect([red, blue])
    Image.new("RGB", (4, 4)).save(tmp_path / "secret.key", "PNG")
    write_jsonl(tmp_path / "pairs.jsonl", [PreferencePair("p", str(red / "0.png"), str(tmp_path / "secret.key"))])
    with pytest.raises(DataError, match="not an image by its ending"):
        collect([tmp_path / "pairs.jsonl"])


def test_order_and_sides_are_a_raters_own_and_the_same_every_time(tmp_path: Path) -> None:
    pair = PreferencePair("p", "left.png", "right.png")
    study = Study((pair,) * 400, seed=0)
    assert sorted(study.order("ann")) == list(range(400))
    assert study.order("ann") == study.order("ann") != study.order("bob")
    sides = {rater: [study.first(rater, number) for number in range(400)] for rater in ("ann", "bob")}
    assert sides["ann"] == [dataclasses.replace(study).first("ann", number) for number in range(400)]
    for chosen in sides.values():
        assert 160 < chosen.count("left") < 240  # 4 standard deviations of a fair coin
    assert 160 < sum(a == b for a, b in zip(*sides.values(), strict=True)) < 240
    assert Study((pair,) * 400, seed=1).order("ann") != study.order("ann")


def test_each_place_shows_the_image_that_the_side_says(tmp_path: Path) -> None:
    study = Study((PreferencePair("p", "left.png", "right.png"),) * 20, seed=0)
    for number in range(20):
        shown = [study.image("ann", number, "first").stem, study.image("ann", number, "second").stem]
        assert shown[0] == study.first("ann", number)
        assert sorted(shown) == ["left", "right"]


def test_votes_become_pairs_in_a_pair_stage(tmp_path: Path) -> None:
    study, log = open_study(tmp_path / "study", collect(folders(tmp_path)), seed=0)
    votes: list[tuple[str, int, Choice]] = [
        ("ann", 0, "left"), ("bob", 0, "left"), ("ann", 1, "right"), ("bob", 1, "skip"), ("ann", 2, "tie"),
    ]  # fmt: skip
    for rater, pair, choice in votes:
        log.append(Vote(rater, pair, choice, study.first(rater, pair), 1.0, ""))
    files = {"path": str(log.path), "pairs": str(tmp_path / "study" / "pairs.jsonl")}
    tiny.run_stage(Pair, tmp_path / "pair", {"votes": files})
    made = list(iterate_pairs(tmp_path / "pair" / "pairs.jsonl"))
    assert [(Path(pair.chosen).parent.name, Path(pair.chosen).stem, pair.preference) for pair in made] == [
        ("red", "0", 1.0),
        ("blue", "1", 1.0),
    ]


def test_pairs_without_a_vote_are_replaced_by_no_others(tmp_path: Path) -> None:
    sources = folders(tmp_path)
    for _ in range(2):
        open_study(tmp_path / "study", collect(sources), seed=0)[1].close()
    before = (tmp_path / "study/pairs.jsonl").read_bytes()
    with pytest.raises(DataError, match="holds 3 other pairs; give another --output"):
        open_study(tmp_path / "study", collect(sources[::-1]), seed=0)
    assert (tmp_path / "study/pairs.jsonl").read_bytes() == before


def test_a_folder_goes_on_with_the_same_pairs_only(tmp_path: Path) -> None:
    sources = folders(tmp_path)
    study, log = open_study(tmp_path / "study", collect(sources), seed=0)
    log.append(Vote("ann", 0, "left", "left", 1.0, ""))
    log.close()
    again, log = open_study(tmp_path / "study", collect(sources), seed=0)
    assert again.session("ann") == study.session("ann") != again.session("bob")
    assert log.ballots == {"ann": {0: "left"}}
    with pytest.raises(DataError, match="holds votes on 3 other pairs; give another --output"):
        open_study(tmp_path / "study", collect(sources[::-1]), seed=0)
    Image.new("RGB", (16, 12), (1, 2, 3)).save(sources[0] / "0.png")
    with pytest.raises(DataError, match=r"red/0.png has the id \w+, the pair says"):
        open_study(tmp_path / "study", collect(sources), seed=0)
    (tmp_path / "study" / "pairs.jsonl").unlink()
    with pytest.raises(DataError, match="nothing says what the votes are about"):
        open_study(tmp_path / "study", collect(sources), seed=0)
