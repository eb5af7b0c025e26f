"""Which of several adapters is kept, by a score that nothing was trained on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny

from t2i.errors import ConfigError, DataError
from t2i.records import ScoredImage, write_jsonl
from t2i.stages.pick import Pick, first_peak
from t2i.training.outputs import trained_adapter


@pytest.mark.parametrize(
    ("values", "patience", "expected"),
    [
        ([0.1, 0.2, 0.3], 1, (2, 3)),
        ([0.1, 0.3, 0.2, 0.9], 1, (1, 3)),
        ([0.1, 0.3, 0.2, 0.9], 2, (3, 4)),
        ([0.3, 0.3, 0.4], 1, (0, 2)),
        ([0.5], 1, (0, 1)),
    ],
)
def test_search_ends_where_nothing_gets_better(values: list[float], patience: int, expected: tuple[int, int]) -> None:
    assert first_peak(values, patience) == expected


def run(folder: Path, values: list[float], *, better: bool = True, role: str = "held_out", **fields: Any) -> Path:
    """Pick among adapters whose file holds their number."""
    context = tiny.context(folder / "pick")
    context.inputs["weights_from"], context.inputs["scores_from"] = [], []
    for number, value in enumerate(values):
        train, score = folder / f"train{number}", folder / f"score{number}"
        (train / "adapter").mkdir(parents=True)
        (train / "adapter/pytorch_lora_weights.safetensors").write_text(str(number))
        score.mkdir()
        write_jsonl(score / "scores.jsonl", [ScoredImage("p", "p", 1, "x.png", scores={"judge": value})])
        (score / "scorers.json").write_text(json.dumps([{"label": "judge", "higher_is_better": better, "role": role}]))
        context.inputs["weights_from"].append((f"train/round{number}", train))
        context.inputs["scores_from"].append((f"score/round{number}", score))
    given = {"weights_from": ["train/*"], "scores_from": ["score/*"], "scorer": "judge", **fields}
    tiny.from_recipe(Pick, given).run(context)
    return context.folder


def test_adapter_of_the_best_round_is_copied_and_the_reason_written(tmp_path: Path) -> None:
    folder = run(tmp_path, [0.5, 0.7, 0.6, 0.9])
    assert trained_adapter(folder).read_text() == "1"
    found = json.loads((folder / "pick.json").read_text())
    assert (found["kept"], found["stopped_after"]) == ("train/round1", "train/round2")
    assert found["means"]["train/round3"] == 0.9


def test_rounds_are_over_as_soon_as_the_search_is_and_stay_so(tmp_path: Path) -> None:
    run(tmp_path, [0.5, 0.7, 0.6, 0.9])
    stage = tiny.from_recipe(Pick, {"weights_from": ["train/*"], "scores_from": ["score/*"], "scorer": "judge"})
    rounds = {
        field: [(f"{name}/round{number}", tmp_path / f"{name}{number}") for number in range(4)]
        for field, name in (("weights_from", "train"), ("scores_from", "score"))
    }
    verdicts = [stage.decided({field: rows[:count] for field, rows in rounds.items()}) for count in (1, 2, 3, 4)]
    assert verdicts[:2] == ["", ""]
    assert verdicts[2] == verdicts[3] == "not needed: train/round2 is no better, judge 0.6 after 0.7"
    stage = stage.model_copy(update={"patience": 2})
    assert stage.decided(rounds) == ""


def test_less_is_better_where_the_scorer_says_so(tmp_path: Path) -> None:
    assert trained_adapter(run(tmp_path, [0.5, 0.7, 0.6], better=False)).read_text() == "0"


def test_score_that_was_trained_on_cannot_decide(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="was trained on"):
        run(tmp_path, [0.5, 0.7], role="train")


def test_score_that_chose_the_pairs_cannot_decide_although_nobody_said_so(tmp_path: Path) -> None:
    run(tmp_path, [0.5, 0.7])
    for number in (0, 1):
        folder = tmp_path / f"score{number}"
        described = json.loads((folder / "scorers.json").read_text())
        (folder / "scorers.json").write_text(json.dumps([row | {"id": "the judge"} for row in described]))
        (folder / "provenance.json").write_text(json.dumps({"inputs": {"generations_from": "pairs"}}))
    pairs = tmp_path / "pairs"
    pairs.mkdir()
    fields = {"rule": {"scorers": {"judge": 0.0}}}
    (pairs / "config.json").write_text(json.dumps({"identity": {"type": "pair", "fields": fields}}))
    (pairs / "provenance.json").write_text(json.dumps({"inputs": {"scores_from": "score0"}}))
    stage = tiny.from_recipe(Pick, {"weights_from": ["train/*"], "scores_from": ["score/*"], "scorer": "judge"})
    context = tiny.context(tmp_path / "again")
    for field, name in (("weights_from", "train"), ("scores_from", "score")):
        context.inputs[field] = [(f"{name}/round{number}", tmp_path / f"{name}{number}") for number in (0, 1)]
    with pytest.raises(ConfigError, match="was trained on"):
        stage.run(context)


def test_means_of_another_scorer_or_of_other_images_are_not_compared(tmp_path: Path) -> None:
    folder = run(tmp_path, [0.5, 0.7])
    score = folder.parent / "score1"
    context = tiny.context(tmp_path / "again")
    for name in ("train", "score"):
        context.inputs["weights_from" if name == "train" else "scores_from"] = [
            (f"{name}/round{number}", tmp_path / f"{name}{number}") for number in range(2)
        ]
    stage = tiny.from_recipe(Pick, {"weights_from": ["train/*"], "scores_from": ["score/*"], "scorer": "judge"})
    described = json.loads((score / "scorers.json").read_text())
    (score / "scorers.json").write_text(json.dumps([described[0] | {"id": "other weights"}]))
    with pytest.raises(DataError, match="'judge' is another scorer in score1 than in score0"):
        stage.run(context)
    (score / "scorers.json").write_text(json.dumps(described))
    write_jsonl(score / "scores.jsonl", [ScoredImage("q", "q", 1, "x.png", scores={"judge": 0.7})])
    with pytest.raises(DataError, match="score1 and score0 hold other prompts"):
        stage.run(context)


def test_unknown_scorer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no scorer 'juge'"):
        run(tmp_path, [0.5], scorer="juge")
