"""The filter stage: what is dropped, and why."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny
from pydantic import ValidationError

from t2i.data.sources import load_records, save_records
from t2i.errors import DataError
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
