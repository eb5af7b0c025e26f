"""A model's own images as images to train on: prompts become captions, scores stay with them, and choosing is told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny
from PIL import Image

from t2i.data.generated import generated_records
from t2i.data.images import content_id
from t2i.data.sources import load_records
from t2i.errors import DataError
from t2i.records import GeneratedImage, ScoredImage, read_jsonl, write_jsonl
from t2i.stages.best_of import BestOf
from t2i.stages.caption import CaptionStage
from t2i.stages.filter import Filter
from t2i.stages.lineage import optimised_against

SCORES = {"a red cat": [0.1, 0.9], "a dog": [0.4, 0.2]}


def generated(folder: Path) -> Path:
    """Two images of two prompts, as a generate stage leaves them."""
    (folder / "images").mkdir(parents=True)
    rows = []
    for number, (prompt, values) in enumerate(SCORES.items()):
        for sample in range(len(values)):
            name = f"images/{number}-{sample}.png"
            Image.new("RGB", (24, 16), (60 * number, 90 * sample, 7)).save(folder / name)
            rows.append(GeneratedImage(f"p{number}", prompt, 10 * number + sample, name, sample, "animals"))
    write_jsonl(folder / "generations.jsonl", rows)
    return folder


def scored(folder: Path) -> Path:
    """The score stage after it."""
    folder.mkdir(parents=True)
    rows = [
        ScoredImage(f"p{number}", prompt, 10 * number + sample, f"../gen/images/{number}-{sample}.png", sample,
                    scores={"judge": value})
        for number, (prompt, values) in enumerate(SCORES.items())
        for sample, value in enumerate(values)
    ]  # fmt: skip
    write_jsonl(folder / "scores.jsonl", rows)
    described = [{"label": "judge", "id": "judge 1", "name": "judge", "version": "1", "higher_is_better": True}]
    (folder / "scorers.json").write_text(json.dumps([row | {"role": "held_out"} for row in described]))
    return folder


def finished(folder: Path, stage: str, fields: dict[str, Any], source: str) -> None:
    """What the engine writes into a stage's folder about where it comes from."""
    (folder / "config.json").write_text(json.dumps({"identity": {"type": stage, "fields": fields}}))
    (folder / "provenance.json").write_text(json.dumps({"inputs": {"from": source}}))


def test_the_prompt_of_an_image_becomes_its_caption(tmp_path: Path) -> None:
    source = generated(tmp_path / "run/gen")
    facts = tiny.run_stage(CaptionStage, tmp_path / "run/collected", {}, {"generations_from": source})
    assert facts == {"images": 4}
    rows = load_records(tmp_path / "run/collected/records.jsonl")
    assert [row.texts("prompt") for row in rows] == [("a red cat",)] * 2 + [("a dog",)] * 2
    assert [row.id for row in rows] == [content_id(source / f"images/{n}-{k}.png") for n in (0, 1) for k in (0, 1)]
    assert {(row.width, row.height) for row in rows} == {(24, 16)}
    assert rows[3].extra == {"prompt_id": "p1", "seed": 11, "sample": 1, "category": "animals"}


def test_the_best_images_with_their_scores_are_filtered_by_these(tmp_path: Path) -> None:
    generated(tmp_path / "run/gen")
    source = scored(tmp_path / "run/score")
    best, collected, kept = (tmp_path / "run" / name for name in ("best", "collected", "filter"))
    tiny.run_stage(BestOf, best, {"scorer": "judge", "count": 2}, {"scores_from": source})
    tiny.run_stage(CaptionStage, collected, {}, {"generations_from": best})
    found = {row.caption("prompt"): row for row in load_records(collected / "records.jsonl")}
    assert {text: row.captions[0].scores for text, row in found.items()} == {
        "a red cat": {"judge": 0.9},
        "a dog": {"judge": 0.4},
    }
    assert Path(found["a red cat"].image).resolve() == (tmp_path / "run/gen/images/0-1.png").resolve()
    rule = {"recorded": "judge", "kind": "prompt", "at_least": 0.5}
    facts = tiny.run_stage(Filter, kept, {"require": ["prompt"], "scores": [rule]}, {"data_from": collected})
    assert facts["reasons"] == {"judge": 1}
    [row] = load_records(kept / "records.jsonl")
    assert (row.caption("prompt"), row.captions[0].scores) == ("a red cat", {"judge": 0.9})
    assert "judge: 0.4" in (kept / "dropped.jsonl").read_text()


def test_an_image_that_was_chosen_keeps_the_sample_and_seed_it_was_painted_with(tmp_path: Path) -> None:
    generated(tmp_path / "run/gen")
    best, source = tmp_path / "run/best", scored(tmp_path / "run/score")
    tiny.run_stage(BestOf, best, {"scorer": "judge", "count": 2}, {"scores_from": source})
    cat, dog = generated_records(best)
    assert (Path(cat.image).name, cat.extra["sample"], cat.extra["seed"]) == ("0-1.png", 1, 1)
    assert (Path(dog.image).name, dog.extra["sample"], dog.extra["seed"]) == ("1-0.png", 0, 10)
    assert [row.key for row in read_jsonl(best / "scores.jsonl", ScoredImage)] == [("p0", 0, 0), ("p1", 0, 10)]


def test_scores_that_are_not_there_are_told(tmp_path: Path) -> None:
    source, collected = generated(tmp_path / "run/gen"), tmp_path / "run/collected"
    tiny.run_stage(CaptionStage, collected, {}, {"generations_from": source})
    rule = {"recorded": "judge", "kind": "prompt", "at_least": 0.5}
    fields = {"require": ["prompt"], "scores": [rule]}
    with pytest.raises(DataError, match=r"all 4 images were dropped: \{'judge': 4\}"):
        tiny.run_stage(Filter, tmp_path / "run/filter", fields, {"data_from": collected})
    assert "no such score is recorded" in (tmp_path / "run/filter/dropped.jsonl").read_text()


def test_missing_images_and_empty_prompts_are_refused(tmp_path: Path) -> None:
    source = generated(tmp_path / "run/gen")
    (source / "images/1-0.png").unlink()
    with pytest.raises(DataError, match=r"generations\.jsonl: images/1-0\.png is missing"):
        list(generated_records(source))
    write_jsonl(source / "generations.jsonl", [GeneratedImage("p", " ", 1, "images/0-0.png")])
    with pytest.raises(DataError, match=r"images/0-0\.png has an empty prompt"):
        list(generated_records(source))


@pytest.mark.parametrize("chooser", ["best_of", "filter"])
def test_a_scorer_that_chose_the_images_counts_as_trained_on(tmp_path: Path, chooser: str) -> None:
    scored(tmp_path / "score-1")
    fields = {
        "best_of": {"scorer": "judge", "count": 2},
        "filter": {"scores": [{"recorded": "judge", "at_least": 0.5}]},
    }[chooser]
    for name, stage, own, source in (
        ("collected-1", "caption", {}, "score-1"),
        ("chosen-1", chooser, fields, "collected-1" if chooser == "filter" else "score-1"),
        ("train-1", "train", {}, "chosen-1"),
    ):
        (tmp_path / name).mkdir()
        finished(tmp_path / name, stage, own, source)
    assert optimised_against(tmp_path / "train-1") == {"judge 1"}
    finished(tmp_path / "chosen-1", "filter", {"scores": [{"recorded": None, "at_least": 0.5}]}, "collected-1")
    assert optimised_against(tmp_path / "train-1") == set()
