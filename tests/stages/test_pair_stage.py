"""The pair stage: from scores, files and votes to pairs, the controls, the health report, and what is refused."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import tiny
from PIL import Image
from pydantic import ValidationError

from t2i.data.pair_tables import PairTable
from t2i.data.pairs import PAIRS_FILE, iterate_pairs
from t2i.engine import plan
from t2i.engine import run as run_recipe
from t2i.errors import ConfigError, DataError
from t2i.recipe import Recipe
from t2i.records import PreferencePair, ScoredImage, write_jsonl
from t2i.stages.pair import HEALTH_FILE, Pair

SCORES = {"a": [0.1, 0.9, 0.5], "b": [0.4, 0.4, 0.4], "c": [0.3, 0.2, 0.25]}
"""Prompt -> the scores of its images."""


def paint(path: Path, seed: int, level: int = 0) -> str:
    noise = np.random.default_rng(seed).integers(0, 100, (8, 8, 3)) + level
    Image.fromarray(noise.astype(np.uint8)).save(path)
    return path.name


def scored(folder: Path, scores: dict[str, list[float]] = SCORES, **further: dict[str, list[float]]) -> Path:
    """Finished folder of a score stage. further: more scorers; `loss` is one of which less is better."""
    folder.mkdir(parents=True, exist_ok=True)
    columns = {"judge": scores, **further}
    rows = []
    for number, (prompt, values) in enumerate(scores.items()):
        for sample in range(len(values)):
            image = paint(folder / f"{prompt}{sample}.png", 10 * number + sample, level=int(100 * values[sample]))
            own = {name: column[prompt][sample] for name, column in columns.items()}
            rows.append(ScoredImage(prompt, f"prompt {prompt}", sample, image, sample, scores=own))
    write_jsonl(folder / "scores.jsonl", rows)
    described = [{"label": name, "higher_is_better": name != "loss"} for name in columns]
    (folder / "scorers.json").write_text(json.dumps(described))
    return folder


def run(folder: Path, source: Path, rule: dict[str, Any], **fields: Any) -> list[tuple[str, str, str]]:
    """(prompt, chosen, rejected) of every pair."""
    tiny.run_stage(Pair, folder, {"rule": rule, **fields}, {"scores_from": source})
    return found(folder)


def found(folder: Path) -> list[tuple[str, str, str]]:
    pairs = iterate_pairs(folder / PAIRS_FILE)
    return [(pair.prompt, Path(pair.chosen).stem, Path(pair.rejected).stem) for pair in pairs]


def health(folder: Path) -> dict[str, Any]:
    return json.loads((folder / HEALTH_FILE).read_text())


def test_best_and_worst_of_each_prompt_without_the_tie(tmp_path: Path) -> None:
    assert run(tmp_path / "pair", scored(tmp_path / "score"), {"scorers": {"judge": 0}}) == [
        ("prompt a", "a1", "a0"),
        ("prompt c", "c0", "c1"),
    ]
    report = health(tmp_path / "pair")
    assert (report["pairs"], report["ties"], report["prompts"]) == (2, 1, 2)
    assert report["margins"]["judge"]["largest"] == pytest.approx(0.8)


def test_all_pairs_above_a_margin(tmp_path: Path) -> None:
    rule = {"scorers": {"judge": 0.3}, "take": "all"}
    assert run(tmp_path / "pair", scored(tmp_path / "score"), rule) == [
        ("prompt a", "a1", "a0"),
        ("prompt a", "a2", "a0"),
        ("prompt a", "a1", "a2"),
    ]
    assert health(tmp_path / "pair")["tie_rate"] == pytest.approx(6 / 9)


def test_less_is_better_where_the_scorer_says_so(tmp_path: Path) -> None:
    source = scored(tmp_path / "score", {"a": [0, 1]}, loss={"a": [3.0, 7.0]})
    assert run(tmp_path / "pair", source, {"scorers": {"loss": 0}}) == [("prompt a", "a0", "a1")]


def test_majority_of_scorers_decides(tmp_path: Path) -> None:
    source = scored(tmp_path / "score", {"a": [1, 0]}, second={"a": [0, 1]}, third={"a": [0, 5]})
    rule = {"scorers": {"judge": 0, "second": 0, "third": 0}}
    assert run(tmp_path / "pair", source, rule) == [("prompt a", "a1", "a0")]
    [pair] = iterate_pairs(tmp_path / "pair" / PAIRS_FILE)
    assert pair.preference == pytest.approx(2 / 3)
    assert pair.source == "judge, second, third"


def test_scorers_that_disagree_evenly_make_a_tie(tmp_path: Path) -> None:
    source = scored(tmp_path / "score", {"a": [1, 0]}, second={"a": [0, 1]})
    with pytest.raises(DataError, match="all 1 pairs are ties"):
        run(tmp_path / "pair", source, {"scorers": {"judge": 0, "second": 0}})


def test_aspects_give_pairs_of_their_own(tmp_path: Path) -> None:
    source = scored(tmp_path / "score", {"a": [1, 0]}, second={"a": [0, 1]})
    rule = {"scorers": {"judge": 0, "second": 0}, "combine": "aspects"}
    assert run(tmp_path / "pair", source, rule) == [("prompt a", "a0", "a1"), ("prompt a", "a1", "a0")]
    assert [pair.aspect for pair in iterate_pairs(tmp_path / "pair" / PAIRS_FILE)] == ["judge", "second"]


def many(prompts: int = 40) -> dict[str, list[float]]:
    draws = np.random.default_rng(1).random((prompts, 3))
    return {f"p{number:02d}": row.tolist() for number, row in enumerate(draws)}


def test_controls_swap_all_or_exactly_half(tmp_path: Path) -> None:
    source, rule = scored(tmp_path / "score", many()), {"scorers": {"judge": 0}}
    true = run(tmp_path / "true", source, rule)
    flipped = run(tmp_path / "flipped", source, rule, labels="flipped")
    shuffled = run(tmp_path / "shuffled", source, rule, labels="shuffled")
    swapped = [(prompt, rejected, chosen) for prompt, chosen, rejected in true]
    assert flipped == swapped
    assert sum(pair in true for pair in shuffled) == sum(pair in swapped for pair in shuffled) == 20
    straight, turned = (health(tmp_path / name)["margins"]["judge"] for name in ("true", "flipped"))
    assert turned["median"] == -straight["median"] < 0


def test_equal_images_do_not_win_by_being_first(tmp_path: Path) -> None:
    scores = {f"p{number:02d}": [1.0, 1.0, 0.0] for number in range(40)}
    pairs = run(tmp_path / "pair", scored(tmp_path / "score", scores), {"scorers": {"judge": 0}})
    first = sum(chosen.endswith("0") for _, chosen, _ in pairs)
    assert 8 < first < 32


def test_leaking_brightness_is_told_and_noise_is_not(tmp_path: Path) -> None:
    """Images are as bright as they are good; size, and when they were made, say nothing."""
    source = scored(tmp_path / "score", many())
    facts = tiny.run_stage(Pair, tmp_path / "pair", {"rule": {"scorers": {"judge": 0}}}, {"scores_from": source})
    leakage = health(tmp_path / "pair")["leakage"]
    assert leakage["brighter"]["leaks"]
    assert leakage["brighter"]["winner"] > 0.9
    assert not leakage["later"]["leaks"]
    assert "larger" not in leakage
    assert any("is brighter on average" in text for text in facts["warnings"])


def test_prompts_of_evaluation_among_the_pairs_are_counted(tmp_path: Path) -> None:
    evaluation = [{"type": "list", "prompts": ["prompt a", "prompt z"]}]
    run(tmp_path / "pair", scored(tmp_path / "score"), {"scorers": {"judge": 0}}, evaluation=evaluation)
    report = health(tmp_path / "pair")
    assert report["prompts_also_in_evaluation"] == {"count": 1, "first": ["prompt a"]}
    assert any("measures memory" in text for text in report["warnings"])


def test_scores_of_different_weights_are_not_compared_with_each_other(tmp_path: Path) -> None:
    context = tiny.context(tmp_path / "pair")
    context.inputs["scores_from"] = [(name, scored(tmp_path / name)) for name in ("one", "two")]
    described = [{"label": "judge", "higher_is_better": True, "id": "other weights"}]
    (tmp_path / "two/scorers.json").write_text(json.dumps(described))
    stage = tiny.from_recipe(Pair, {"scores_from": ["one", "two"], "rule": {"scorers": {"judge": 0}}})
    with pytest.raises(DataError, match="'judge' is another scorer in two than in one"):
        stage.run(context)


def test_images_of_several_models_are_compared_with_each_other(tmp_path: Path) -> None:
    first = scored(tmp_path / "one", {"a": [0.2]})
    second = scored(tmp_path / "two", {"a": [0.7]})
    fields = {"rule": {"scorers": {"judge": 0}}, "scores_from": ["one", "two"]}
    context = tiny.context(tmp_path / "pair")
    context.inputs["scores_from"] = [("one", first), ("two", second)]
    tiny.from_recipe(Pair, fields).run(context)
    [pair] = iterate_pairs(tmp_path / "pair" / PAIRS_FILE)
    assert (Path(pair.chosen).parent.name, Path(pair.rejected).parent.name) == ("two", "one")


def test_prompts_that_differ_under_one_id_are_refused(tmp_path: Path) -> None:
    source = scored(tmp_path / "score", {"a": [0.2, 0.7]})
    text = (source / "scores.jsonl").read_text().splitlines()
    (source / "scores.jsonl").write_text("\n".join([text[0], text[1].replace("prompt a", "another prompt")]))
    with pytest.raises(DataError, match=r"images of different prompts cannot be compared"):
        run(tmp_path / "pair", source, {"scorers": {"judge": 0}})


def test_unknown_scorer_gets_a_suggestion(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no scorer 'juge'.*judge"):
        run(tmp_path / "pair", scored(tmp_path / "score"), {"scorers": {"juge": 0}})


def test_prompts_with_one_image_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no prompt has two images"):
        run(tmp_path / "pair", scored(tmp_path / "score", {"a": [1.0]}), {"scorers": {"judge": 0}})


@pytest.mark.parametrize(
    "fields",
    [{}, {"rule": {"scorers": {"judge": 0}}}, {"table": {"path": "x.csv"}, "scores_from": "score"}],
)
def test_exactly_one_source_is_wanted(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=r"exactly one of|give it with"):
        tiny.from_recipe(Pair, {"type": "pair", **fields})


# Files of others


def images(folder: Path, count: int = 4) -> list[str]:
    folder.mkdir(exist_ok=True)
    return [paint(folder / f"{number}.png", number) for number in range(count)]


def from_table(folder: Path, rows: list[dict[str, Any]], kind: str, layout: str = "plain") -> list[PreferencePair]:
    """Write a table of some kind, and the pairs that the stage makes of it."""
    path = folder / f"table.{kind}"
    if kind == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif kind == "json":
        path.write_text(json.dumps(rows))
    elif kind == "csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    else:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    tiny.run_stage(Pair, folder / "pair", {"table": {"path": str(path), "layout": layout}})
    return list(iterate_pairs(folder / "pair" / PAIRS_FILE))


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "parquet"])
def test_plain_tables_of_every_kind(tmp_path: Path, kind: str) -> None:
    names = images(tmp_path)
    rows = [
        {"prompt": f"p{n}", "chosen": names[n], "rejected": names[n + 1], "preference": 0.5 + n / 4} for n in (1, 2)
    ]
    pairs = from_table(tmp_path, rows, kind)
    assert [(pair.prompt, Path(pair.chosen).name, pair.preference) for pair in pairs] == [
        ("p1", names[1], 0.75),
        ("p2", names[2], 1.0),
    ]


def test_pick_a_pic_layout(tmp_path: Path) -> None:
    names = images(tmp_path)
    rows = [
        {"caption": "p", "image_0": names[0], "image_1": names[1], "label_0": first, "label_1": 1 - first}
        for first in (1.0, 0.0, 0.5)
    ]
    pairs = from_table(tmp_path, rows, "parquet", "pick_a_pic")
    assert [Path(pair.chosen).name for pair in pairs] == [names[0], names[1]]
    report = health(tmp_path / "pair")
    assert (report["ties"], report["contradictions"]) == (1, 1)


def test_hpd_layout_of_two_images_and_of_ranks(tmp_path: Path) -> None:
    names = images(tmp_path)
    rows = [
        {"prompt": "p", "image_path": names[:2], "human_preference": [0, 1]},
        {"prompt": "q", "image_path": names[:3], "human_preference": [2, 1, 3]},
        {"prompt": "r", "image_path": names[:2], "human_preference": [1, 2]},
        {"prompt": "s", "file_path": names[:2], "rank": [2, 1]},
        {"prompt": "t", "image_path": names[:2], "human_preference": [1, 0]},
    ]
    pairs = from_table(tmp_path, rows, "json", "hpd")
    assert [(p.prompt, Path(p.chosen).stem, Path(p.rejected).stem) for p in pairs] == [
        ("p", "1", "0"),
        ("q", "1", "0"),
        ("q", "0", "2"),
        ("q", "1", "2"),
        ("r", "0", "1"),
        ("s", "1", "0"),
        ("t", "0", "1"),
    ]


def test_hpd_marks_of_more_than_two_images_are_marks_and_no_ranks(tmp_path: Path) -> None:
    names = images(tmp_path)
    rows = [{"prompt": "p", "image_path": names[:3], "human_preference": [0, 1, 0]}]
    pairs = from_table(tmp_path, rows, "json", "hpd")
    liked = [(Path(p.chosen).stem, Path(p.rejected).stem) for p in pairs if p.preference == 1]
    assert liked == [("1", "0"), ("1", "2")]
    rows = [{"prompt": "p", "image_path": names[:3], "human_preference": [0, 1, 2]}]
    (tmp_path / "again").mkdir()
    with pytest.raises(DataError, match="expected marks 0 and 1, or ranks from 1 on"):
        from_table(tmp_path / "again", rows, "json", "hpd")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "p", "chosen": "0.png", "rejected": "0.png"}, "same image"),
        ({"prompt": "p", "chosen": "0.png", "rejected": "absent.png"}, "there is no image"),
        ({"prompt": "p", "chosen": "0.png"}, "rejected is None"),
        ({"prompt": " ", "chosen": "0.png", "rejected": "1.png"}, "prompt is ' '"),
        ({"prompt": "p", "chosen": "0.png", "rejected": "1.png", "rejected_prompt": "q"}, "both images must be of one"),
        ({"prompt": "p", "chosen": "0.png", "rejected": "1.png", "preference": "high"}, "preference is 'high'"),
        ({"prompt": "p", "chosen": "0.png", "rejected": "1.png", "preference": 0.5}, "all 1 pairs are ties"),
        ({"prompt": "p", "chosen": "0.png", "rejected": "1.png", "preference": 0.2}, "below 0.5, swap"),
    ],
)
def test_wrong_rows_are_refused_by_name(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    images(tmp_path)
    with pytest.raises(DataError, match=message):
        from_table(tmp_path, [row], "jsonl")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('"a cat" and a dog,1.png,2.png', r"not CSV \(',' expected after"),
        ('"a cat and a dog,1.png,2.png', r"not CSV \(unexpected end of data"),
        ("LONG,1.png,2.png", r"not CSV \(field larger than field limit"),
        ("a cat, and a dog,1.png,2.png", "more values than the 3 columns"),
    ],
)
def test_csv_rows_that_would_be_read_otherwise_than_meant_are_refused(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "table.csv"
    # Readers of captions raise the module's limit for all that come after them.
    line = line.replace("LONG", "a" * (csv.field_size_limit() + 1))
    path.write_text(f"prompt,chosen,rejected\np,0.png,1.png\n{line}\nq,2.png,3.png\n")
    with pytest.raises(DataError, match=rf"table\.csv:3: {message}"):
        list(PairTable(path=str(path)).read())


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_plan_sees_another_image_under_a_name_in_a_table(tmp_path: Path, kind: str) -> None:
    names = images(tmp_path)
    rows = [{"prompt": "p", "image_path": json.dumps(names[:2]), "human_preference": "[0, 1]"}]
    from_table(tmp_path, rows, kind, "hpd")
    table = {"path": str(tmp_path / f"table.{kind}"), "layout": "hpd"}
    stages = [{"type": "pair", "table": table}]
    (tmp_path / "pairs.yaml").write_text(json.dumps({"name": "pairs", "stages": stages}))
    recipe = Recipe.load(tmp_path / "pairs.yaml")
    before = run_recipe(recipe, tmp_path / "runs")[0]
    assert plan(recipe, tmp_path / "runs")[0].status == "skip"
    paint(tmp_path / names[3], 33)
    assert plan(recipe, tmp_path / "runs")[0].status == "skip", "an image that the table does not name"
    for change in (lambda: paint(tmp_path / names[1], 17), (tmp_path / names[1]).unlink):
        change()
        after = plan(recipe, tmp_path / "runs")[0]
        assert (after.status, after.reason) == ("run", f"table.path: images that {table['path']} names changed")
        assert after.folder != before.folder


def test_table_of_an_unknown_kind_or_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x")
    (tmp_path / "a.parquet").write_text("x")
    (tmp_path / "a.jsonl").write_text("{")
    for name, message in (("a.txt", "expected one of"), ("a.parquet", "not a Parquet"), ("a.jsonl", "not JSON")):
        with pytest.raises(DataError, match=message):
            tiny.run_stage(Pair, tmp_path / "pair", {"table": {"path": str(tmp_path / name)}})


# Votes


def voted(folder: Path, votes: list[dict[str, Any]]) -> list[PreferencePair]:
    names = images(folder, 4)
    rows = [PreferencePair("p", names[0], names[1]), PreferencePair("q", names[2], names[3])]
    write_jsonl(folder / "candidates.jsonl", rows)
    (folder / "votes.jsonl").write_text("".join(json.dumps(vote) + "\n" for vote in votes))
    files = {"path": str(folder / "votes.jsonl"), "pairs": str(folder / "candidates.jsonl")}
    tiny.run_stage(Pair, folder / "pair", {"votes": files})
    return list(iterate_pairs(folder / "pair" / PAIRS_FILE))


def vote(rater: str, pair: Any, choice: str) -> dict[str, Any]:
    return {"rater": rater, "pair": pair, "choice": choice}


def test_majority_of_raters_with_ties_as_halves_and_the_last_vote_counting(tmp_path: Path) -> None:
    pairs = voted(
        tmp_path,
        [
            vote("ann", 0, "left"),
            vote("bob", 0, "right"),
            vote("eve", 0, "right"),
            vote("joe", 0, "tie"),
            vote("ann", 1, "right"),
            vote("ann", 1, "left"),
            vote("bob", 1, "skip"),
        ],
    )
    assert [(Path(pair.chosen).stem, pair.preference) for pair in pairs] == [("1", 0.625), ("2", 1.0)]


def test_votes_that_are_none_are_refused(tmp_path: Path) -> None:
    for bad in (vote("ann", 2, "left"), vote("ann", 0, "middle"), vote("ann", "0", "left"), {"pair": 0}):
        with pytest.raises(DataError, match=r"votes.jsonl:1: not a vote on one of 2 pairs"):
            voted(tmp_path, [bad])
    with pytest.raises(DataError, match="no vote"):
        voted(tmp_path, [])
