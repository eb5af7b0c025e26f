"""Captions by the concreteness of their words: values by hand, and lists that are broken."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import tiny
from pydantic import ValidationError

from t2i.data.quality.concreteness import ConcretenessRule, concreteness, read_ratings
from t2i.errors import DataError
from t2i.records import Caption, CaptionedImage
from t2i.stages.filter import Filter

RATINGS = {"cat": 4.86, "table": 4.9, "idea": 1.6, "on": 2.0, "well-being": 1.9, "don't": 1.5}


def table(folder: Path, text: str) -> Path:
    path = folder / "ratings.csv"
    path.write_text(text, encoding="utf-8")
    return path


def row(*texts: str, kind: str = "alt") -> CaptionedImage:
    return CaptionedImage(texts[0], "a.png", 8, 8, tuple(Caption(kind, text) for text in texts))


@pytest.mark.parametrize(
    ("text", "mean", "coverage"),
    [
        ("Cat on a TABLE.", (4.86 + 2.0 + 4.9) / 3, 3 / 4),
        ("cat cat idea", (4.86 + 4.86 + 1.6) / 3, 1.0),
        ("well-being, 24 x 36", 1.9, 1 / 2),  # numbers are no words
        ("don\u2019t", 1.5, 1.0),
        ("cats", math.nan, 0.0),
        ("1234 !!", math.nan, 0.0),
    ],
)
def test_mean_and_coverage_by_hand(text: str, mean: float, coverage: float) -> None:
    found = concreteness(text, RATINGS)
    assert found == pytest.approx((mean, coverage), nan_ok=True)


def test_every_caption_of_the_kinds_must_pass_and_the_reason_is_told(tmp_path: Path) -> None:
    path = table(tmp_path, "Word,Conc.M\ncat,4.86\ntable,4.9\nidea,1.6\ngreat,1.5\n")
    rule = ConcretenessRule(ratings=str(path), at_least=3.0)
    rows = [row("cat table"), row("great idea"), row("cat one two"), row("cat", "idea"), row("idea", kind="note")]
    assert list(rule.dropped(rows, ["alt"])) == [
        (1, "concreteness: 1.55"),
        (2, "concreteness: 33% of the words are rated, expected 50%"),
        (3, "concreteness: 1.60"),
    ]


def test_rule_stands_in_a_filter_and_needs_captions(tmp_path: Path) -> None:
    path = table(tmp_path, "w;r\n".replace(";", ",") + "cat,5\nidea,1\n")
    rule = {"ratings": str(path), "word": "w", "rating": "r", "at_least": 3}
    with pytest.raises(ValidationError, match="say in `require` which kinds"):
        tiny.from_recipe(Filter, {"data_from": "x", "concreteness": rule})
    assert tiny.from_recipe(Filter, {"data_from": "x", "require": ["alt"], "concreteness": rule}).concreteness


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("Word,Rating\ncat,5\n", "no column Conc.M; it has Word, Rating"),
        ("Word,Conc.M\ncat,five\n", r"ratings.csv:2: Conc.M of 'cat' is 'five', expected a number"),
        ("Word,Conc.M\ncat,nan\n", r"ratings.csv:2: Conc.M of 'cat' is 'nan', expected a number"),
        ("Word,Conc.M\ncat,5\nCat,4\n", r"ratings.csv:3: 'cat' comes a second time, with another rating"),
        ("Word,Conc.M\ncat,5,6\n", r"ratings.csv:2: another number of values than the 2 of the header"),
        ("Word,Conc.M\n", "holds no words"),
    ],
)
def test_broken_list_is_an_error_with_its_row(tmp_path: Path, text: str, problem: str) -> None:
    with pytest.raises(DataError, match=problem):
        read_ratings(table(tmp_path, text), "Word", "Conc.M")


def test_same_word_twice_with_the_same_rating_is_no_matter(tmp_path: Path) -> None:
    assert read_ratings(table(tmp_path, "Word,Conc.M\ncat,5\nCAT,5.0\n"), "Word", "Conc.M") == {"cat": 5.0}
