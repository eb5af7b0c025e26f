"""The best of several images: which are chosen, what they are compared with, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny

from t2i.errors import ConfigError, DataError
from t2i.records import ScoredImage, read_jsonl, write_jsonl
from t2i.stages.best_of import BestOf
from t2i.stages.compare import Compare

SCORES = {"a": [0.1, 0.9, 0.5], "b": [0.4, 0.2, 0.8]}


def scored(folder: Path, samples: int = 3) -> Path:
    folder.mkdir(parents=True)
    rows = [
        ScoredImage(prompt, prompt, 10 + sample, f"{prompt}{sample}.png", sample, scores={"judge": s, "loss": 1 - s})
        for prompt, values in SCORES.items()
        for sample, s in enumerate(values[:samples])
    ]
    write_jsonl(folder / "scores.jsonl", rows)
    described = [
        {"label": name, "name": name, "version": "1", "higher_is_better": name == "judge", "role": "held_out"}
        for name in ("judge", "loss")
    ]
    (folder / "scorers.json").write_text(json.dumps(described))
    (folder / "sampling.json").write_text(json.dumps({"sampling": {}, "images_per_prompt": samples, "batch_size": 4}))
    return folder


def chosen(folder: Path, source: Path, **fields: Any) -> list[str]:
    tiny.run_stage(BestOf, folder, fields, {"scores_from": source})
    return [Path(row.image).stem for row in read_jsonl(folder / "scores.jsonl", ScoredImage)]


def test_best_of_the_first_few_by_the_scorer(tmp_path: Path) -> None:
    source = scored(tmp_path / "score")
    assert chosen(tmp_path / "three", source, scorer="judge", count=3) == ["a1", "b2"]
    assert chosen(tmp_path / "two", source, scorer="judge", count=2) == ["a1", "b0"]
    assert chosen(tmp_path / "one", source, scorer="judge", count=1) == ["a0", "b0"]
    assert chosen(tmp_path / "loss", source, scorer="loss", count=3) == ["a1", "b2"]


def test_the_chosen_rows_are_written_as_painted_and_as_compared(tmp_path: Path) -> None:
    chosen(tmp_path / "best", scored(tmp_path / "score"), scorer="judge", count=3)
    painted, compared = (
        list(read_jsonl(tmp_path / "best" / name, ScoredImage)) for name in ("chosen.jsonl", "scores.jsonl")
    )
    assert [row.key for row in painted] == [("a", 1, 11), ("b", 2, 12)]
    assert [row.key for row in compared] == [("a", 0, 10), ("b", 0, 10)]
    assert [row.image for row in painted] == [row.image for row in compared]


def test_compared_with_one_draw_of_each_prompt_and_marked_as_optimised(tmp_path: Path) -> None:
    chosen(tmp_path / "best", scored(tmp_path / "score"), scorer="judge", count=3)
    base = scored(tmp_path / "base", samples=1)
    tiny.run_stage(Compare, tmp_path / "compare", {"resamples": 1000}, {"a_from": base, "b_from": tmp_path / "best"})
    [row, _] = json.loads((tmp_path / "compare/comparison.json").read_text())["overall"]
    assert row["difference"] == pytest.approx(((0.9 - 0.1) + (0.8 - 0.4)) / 2)
    roles = {row["label"]: row["role"] for row in json.loads((tmp_path / "best/scorers.json").read_text())}
    assert roles == {"judge": "train", "loss": "held_out"}


def test_unknown_scorer_and_too_few_images_are_refused(tmp_path: Path) -> None:
    source = scored(tmp_path / "score")
    with pytest.raises(ConfigError, match="no scorer 'juge'"):
        chosen(tmp_path / "a", source, scorer="juge", count=2)
    with pytest.raises(DataError, match="prompt a has 3 images, count asks for 4"):
        chosen(tmp_path / "b", source, scorer="judge", count=4)
