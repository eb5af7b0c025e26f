"""The filter stage: what is dropped, and why."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import tiny
from pydantic import ValidationError

from t2i.data.sources import load_records, save_records
from t2i.errors import ConfigError, DataError
from t2i.records import Caption, CaptionedImage
from t2i.stages.filter import Filter


def row(
    name: str, width: int = 100, height: int = 100, alt: str | None = "a red cat", content: str = ""
) -> CaptionedImage:
    captions = () if alt is None else (Caption("alt", alt), Caption("note", "anything goes here"))
    return CaptionedImage(content or name, f"/images/{name}.png", width, height, captions)


def run(
    tmp_path: Path, rows: list[CaptionedImage], **fields: object
) -> tuple[list[str], dict[str, str], dict[str, Any]]:
    """(names kept, name -> reason, facts)."""
    source, folder = tmp_path / "run/caption", tmp_path / "run/filter"
    source.mkdir(parents=True)
    save_records(source, rows)
    facts = tiny.run_stage(Filter, folder, fields, {"data_from": source})
    kept = [Path(found.image).stem for found in load_records(folder / "records.jsonl")]
    lines = [json.loads(line) for line in (folder / "dropped.jsonl").read_text().splitlines()]
    return kept, {Path(line["image"]).stem: line["reason"] for line in lines}, facts


def test_small_sides_are_dropped(tmp_path: Path) -> None:
    rows = [row("fits", 64, 64), row("narrow", 63, 500), row("flat", 500, 63)]
    kept, dropped, facts = run(tmp_path, rows, min_side=64)
    assert kept == ["fits"]
    assert dropped == {"narrow": "min_side: 63x500", "flat": "min_side: 500x63"}
    assert facts == {"images": 3, "kept": 1, "dropped": 2, "reasons": {"min_side": 2}}


def test_long_shapes_are_dropped(tmp_path: Path) -> None:
    rows = [row("square"), row("edge", 200, 100), row("tall", 100, 201), row("wide", 300, 100)]
    kept, dropped, _ = run(tmp_path, rows, max_aspect=2)
    assert kept == ["square", "edge"]
    assert dropped == {"tall": "max_aspect: 100x201", "wide": "max_aspect: 300x100"}


def test_images_without_a_required_caption_are_dropped(tmp_path: Path) -> None:
    rows = [row("good"), row("none", alt=None), row("blank", alt="  ")]
    kept, dropped, facts = run(tmp_path, rows, require=["alt"])
    assert kept == ["good"]
    assert dropped == {"none": "require alt", "blank": "require alt"}
    assert facts["reasons"] == {"require alt": 2}


def test_number_of_words_is_bounded_in_required_captions_alone(tmp_path: Path) -> None:
    rows = [row("two", alt="a cat"), row("one", alt="cat"), row("four", alt="a big red cat")]
    kept, dropped, _ = run(tmp_path, rows, require=["alt"], min_words=2, max_words=3)
    assert kept == ["two"]
    assert dropped == {"one": "min_words: 1", "four": "max_words: 4"}


def test_matching_captions_are_dropped(tmp_path: Path) -> None:
    rows = [row("good"), row("stock", alt="Stock photo 1234"), row("inside", alt="an outstock 99")]
    kept, dropped, _ = run(tmp_path, rows, require=["alt"], drop_matching=r"(?i)\bstock\b")
    assert kept == ["good", "inside"]
    assert dropped == {"stock": "drop_matching: Stock photo 1234"}


def test_first_of_equal_images_is_kept(tmp_path: Path) -> None:
    rows = [row("small", 10, 10, content="x"), row("first", content="x"), row("second", content="x"), row("other")]
    kept, dropped, _ = run(tmp_path, rows, min_side=64)
    # What was dropped for another reason does not count as the first.
    assert kept == ["first", "other"]
    assert dropped["second"] == "same bytes as an earlier image"


def test_equal_images_may_be_kept(tmp_path: Path) -> None:
    rows = [row("first", content="x"), row("second", content="x")]
    assert run(tmp_path, rows, unique_images=False)[0] == ["first", "second"]


def test_reasons_are_the_first_that_apply(tmp_path: Path) -> None:
    rows = [row("good"), row("bad", 10, 100, alt="cat")]
    _, dropped, _ = run(tmp_path, rows, min_side=64, max_aspect=2, require=["alt"], min_words=2)
    assert dropped == {"bad": "min_side: 10x100"}


def test_nothing_left_is_an_error_that_counts_the_reasons(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"all 2 images were dropped: \{'min_side': 2\}"):
        run(tmp_path, [row("a"), row("b")], min_side=1000)


def test_records_are_handed_on_whole(tmp_path: Path) -> None:
    original = row("a")
    run(tmp_path, [original])
    assert load_records(tmp_path / "run/filter/records.jsonl") == [original]


@pytest.mark.parametrize("rule", [{"min_words": 3}, {"max_words": 3}, {"drop_matching": "x"}])
def test_rule_about_captions_needs_to_know_which(rule: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match="require"):
        tiny.from_recipe(Filter, {"data_from": "caption", **rule})


def test_bad_regular_expression_is_refused() -> None:
    with pytest.raises(ValidationError, match="not a regular expression"):
        tiny.from_recipe(Filter, {"data_from": "caption", "require": ["alt"], "drop_matching": "("})


def shapes_rows(folder: Path, texts: Mapping[int, str], count: int = 40) -> list[CaptionedImage]:
    """Scenes as the judge sees them, with true dense captions but for the given ones."""
    from t2i.shapes import describe, render, sample_scene

    folder.mkdir(parents=True)
    rows = []
    for number in range(count):
        scene = sample_scene(5, number, "train", max_objects=2)
        render(scene).save(folder / f"{number}.png")
        caption = Caption("dense", texts.get(number) or describe(scene, "dense"))
        rows.append(CaptionedImage(str(number), str(folder / f"{number}.png"), 64, 64, (caption,)))
    return rows


TIFA = {
    "name": "tifa",
    "label": "vqa",
    "options": {"questions": "t2i.shapes.vqa:ShapesQuestions", "vqa": "t2i.shapes.vqa:JudgeVqa", "nearest": "none"},
}


def test_captions_that_tell_of_what_is_not_there_are_dropped_by_vqa_and_scores_are_kept(tmp_path: Path) -> None:
    other = "a large red star left of a small blue triangle on a gray background"
    wrong = dict.fromkeys(range(0, 40, 5), other)
    rows = shapes_rows(tmp_path / "run/images", wrong)
    scores = [{"scorer": TIFA, "kind": "dense", "at_least": 1.0, "batch_size": 7}]
    kept, dropped, facts = run(tmp_path, rows, require=["dense"], scores=scores)
    found = {int(name) for name in dropped}
    assert len(found & set(wrong)) / len(found) >= 0.9
    assert len(found & set(wrong)) / len(wrong) >= 0.9
    assert facts["reasons"] == {"vqa": len(found)}
    assert all(reason.startswith("vqa: 0") for reason in dropped.values())
    assert len(kept) == 40 - len(found)
    assert all(row.captions[0].scores == {"vqa": 1.0} for row in load_records(tmp_path / "run/filter/records.jsonl"))
    assert not (tmp_path / "run/filter/scores").exists()


def test_of_several_captions_each_must_pass_and_each_keeps_its_score(tmp_path: Path) -> None:
    rows = shapes_rows(tmp_path / "run/images", {}, count=2)
    lie = Caption("dense", "a large red star left of a small blue triangle on a gray background")
    rows = [
        dataclasses.replace(rows[0], captions=(*rows[0].captions, Caption("note", "x"), *rows[0].captions)),
        dataclasses.replace(rows[1], captions=(*rows[1].captions, lie)),
    ]
    kept, dropped, _ = run(
        tmp_path, rows, require=["dense"], scores=[{"scorer": TIFA, "kind": "dense", "at_least": 1.0}]
    )
    assert kept == ["0"]
    assert dropped["1"].startswith("vqa: 0")
    [found] = load_records(tmp_path / "run/filter/records.jsonl")
    assert [caption.scores for caption in found.captions] == [{"vqa": 1.0}, {}, {"vqa": 1.0}]


@pytest.mark.parametrize(
    ("second", "rule", "reason"),
    [
        ("  ", {}, "require alt"),
        ("cat", {"min_words": 2}, "min_words: 1"),
        ("a blue dog", {"drop_matching": "dog"}, "drop_matching: a blue dog"),
    ],
)
def test_second_caption_of_a_kind_is_looked_at_too(
    tmp_path: Path, second: str, rule: dict[str, Any], reason: str
) -> None:
    one = row("bad")
    rows = [row("good"), dataclasses.replace(one, captions=(*one.captions, Caption("alt", second)))]
    kept, dropped, _ = run(tmp_path, rows, require=["alt"], **rule)
    assert (kept, dropped) == (["good"], {"bad": reason})


def test_caption_that_cannot_be_scored_is_dropped_alone_and_says_why(tmp_path: Path) -> None:
    rows = shapes_rows(tmp_path / "run/images", {3: "a cat"}, count=6)
    scores = [{"scorer": TIFA, "kind": "dense", "at_least": 0.0}]
    kept, dropped, _ = run(tmp_path, rows, require=["dense"], scores=scores)
    assert len(kept) == 5
    assert dropped["3"].startswith("vqa: cannot be scored (shapes questions: 'a cat'")


def test_text_checks_come_before_scores_and_look_at_every_required_kind(tmp_path: Path) -> None:
    rows = shapes_rows(tmp_path / "run/images", {1: "I'm sorry, I cannot see it.", 2: "IMG_01.jpg"}, count=5)
    scores = [{"scorer": TIFA, "kind": "dense", "at_least": 0.0}]
    checks = ["refusal", "file_name"]
    kept, dropped, facts = run(tmp_path, rows, require=["dense"], scores=scores, text_checks=checks)
    assert kept == ["0", "3", "4"]
    assert facts["reasons"] == {"refusal": 1, "file_name": 1}
    assert set(dropped) == {"1", "2"}


def test_a_scorer_of_prompts_needs_to_know_which_captions_before_the_first_stage() -> None:
    rule = {"scorer": {"name": "clip_score"}, "at_least": 25}
    with pytest.raises(ConfigError, match="clip_score scores images against prompts; say in `kind` which"):
        tiny.from_recipe(Filter, {"data_from": "caption", "scores": [rule]}).check()
    tiny.from_recipe(Filter, {"data_from": "caption", "require": ["alt"], "scores": [{**rule, "kind": "alt"}]}).check()


def test_image_scores_need_no_caption(tmp_path: Path) -> None:
    rows = shapes_rows(tmp_path / "run/images", {}, count=4)
    scores = [{"scorer": {"name": "brightness"}, "at_least": 0.0}]
    run(tmp_path, rows, scores=scores)
    found = load_records(tmp_path / "run/filter/records.jsonl")
    assert all(0 < row.scores["brightness"] <= 1 for row in found)


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"scores": [{"scorer": TIFA, "kind": "dense"}], "require": ["dense"]}, "at_least"),
        ({"scores": [{"scorer": TIFA, "kind": "dense", "at_least": 1.0}]}, "add dense to `require`"),
        ({"text_checks": ["loop"]}, "text_checks: say in `require`"),
        ({"scores": [{"at_least": 1.0}]}, "give `scorer`, or the label of scores that are there already"),
        ({"scores": [{"scorer": TIFA, "recorded": "x", "at_least": 1.0}]}, "give `scorer`, or the label"),
        ({"near_images": 4}, "less than or equal to 3"),
        ({"scores": [{"scorer": TIFA, "at_least": 1.0}] * 2}, "labels repeat"),
    ],
)
def test_rules_that_cannot_be_meant_are_refused(fields: dict[str, object], complaint: str) -> None:
    with pytest.raises(ValidationError, match=complaint):
        tiny.from_recipe(Filter, {"data_from": "caption", **fields})
