"""The compare stage on scores written by hand."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import tiny

from t2i.errors import T2IError
from t2i.records import ScoredImage, read_jsonl, write_jsonl
from t2i.stages.compare import Compare
from t2i.stages.lineage import optimised_against

SCORERS = [
    {
        "label": "judge",
        "name": "judge",
        "version": "1",
        "scale": "0 to 1",
        "higher_is_better": True,
        "role": "held_out",
    },
    {"label": "loss", "name": "loss", "version": "2", "scale": "any", "higher_is_better": False, "role": "control"},
]
PROMPTS = 40


def row(prompt: int, sample: int, judge: float, loss: float) -> ScoredImage:
    category = "even" if prompt % 2 == 0 else "odd"
    scores = {"judge": judge, "loss": loss}
    return ScoredImage(f"p{prompt:03d}", "a cat", 100 * prompt + sample, "x.png", sample, category, scores)


def arm(
    folder: Path, value: Callable[[int, int], tuple[float, float]], scorers: list[dict[str, Any]] = SCORERS
) -> Path:
    """A finished score stage; `value(prompt, sample)` gives its two numbers."""
    folder.mkdir(parents=True)
    rows = [row(prompt, sample, *value(prompt, sample)) for prompt in range(PROMPTS) for sample in range(2)]
    write_jsonl(folder / "scores.jsonl", rows)
    (folder / "scorers.json").write_text(json.dumps(scorers))
    return folder


def base(prompt: int, sample: int) -> tuple[float, float]:
    return 0.01 * prompt + 0.1 * sample, 1.0


def compare(tmp_path: Path, a: Path, b: Path, **fields: object) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """(rows of the table by label, the whole result)."""
    fields = {"resamples": 1000, **fields}
    tiny.run_stage(Compare, tmp_path / "compare", fields, {"a_from": a, "b_from": b})
    result = json.loads((tmp_path / "compare/comparison.json").read_text())
    return {found["label"]: found for found in result["overall"]}, result


def test_other_prompts_under_the_same_ids_are_not_compared(tmp_path: Path) -> None:
    a, b = arm(tmp_path / "a", base), arm(tmp_path / "b", base)
    text = (b / "scores.jsonl").read_text()
    (b / "scores.jsonl").write_text(text.replace('"a cat"', '"a dog"', 1))
    with pytest.raises(T2IError, match=r"prompt p000 is 'a cat' in a and 'a dog' in b \(1 such images\)"):
        compare(tmp_path, a, b)


def test_known_difference_is_found(tmp_path: Path) -> None:
    # Half the prompts gain 0.3, the others 0.1: 0.2 on average; the loss falls by 0.5 everywhere.
    def better(prompt: int, sample: int) -> tuple[float, float]:
        judge, loss = base(prompt, sample)
        return judge + (0.3 if prompt % 2 else 0.1), loss - 0.5

    rows, result = compare(tmp_path, arm(tmp_path / "base", base), arm(tmp_path / "tuned", better))
    judge, loss = rows["judge"], rows["loss"]
    assert (result["a"], result["b"]) == ("base", "tuned")
    assert judge["difference"] == pytest.approx(0.2)
    # The standard error of the mean over 40 prompts is 0.1 / sqrt(40) = 0.0158.
    assert judge["low"] == pytest.approx(0.2 - 1.96 * 0.0158, abs=0.004)
    assert judge["high"] == pytest.approx(0.2 + 1.96 * 0.0158, abs=0.004)
    assert judge["mean_a"] == pytest.approx(0.01 * (PROMPTS - 1) / 2 + 0.05)
    assert judge["mean_b"] == pytest.approx(judge["mean_a"] + 0.2)
    assert (judge["prompts"], judge["images"], judge["wins"], judge["losses"]) == (PROMPTS, 2 * PROMPTS, 2 * PROMPTS, 0)
    assert (judge["verdict"], judge["win_rate"]) == ("better", 1.0)
    assert (loss["verdict"], loss["difference"]) == ("better", pytest.approx(-0.5))
    assert loss["wins"] == 2 * PROMPTS


def test_swapped_arms_swap_the_verdict(tmp_path: Path) -> None:
    a = arm(tmp_path / "base", base)
    b = arm(tmp_path / "tuned", lambda prompt, sample: (base(prompt, sample)[0] + 0.1 + 0.01 * prompt, 2.0))
    rows, _ = compare(tmp_path / "one", a, b)
    swapped, _ = compare(tmp_path / "two", b, a)
    assert (rows["judge"]["verdict"], swapped["judge"]["verdict"]) == ("better", "worse")
    assert (rows["loss"]["verdict"], swapped["loss"]["verdict"]) == ("worse", "better")
    assert swapped["judge"]["difference"] == pytest.approx(-rows["judge"]["difference"])
    assert swapped["judge"]["low"] == pytest.approx(-rows["judge"]["high"])


def test_noise_is_not_distinguishable(tmp_path: Path) -> None:
    def wobbling(prompt: int, sample: int) -> tuple[float, float]:
        judge, loss = base(prompt, sample)
        return judge + (0.2 if prompt % 2 else -0.2), loss

    rows, _ = compare(tmp_path, arm(tmp_path / "base", base), arm(tmp_path / "tuned", wobbling))
    assert rows["judge"]["verdict"] == rows["loss"]["verdict"] == "not distinguishable"
    assert "not distinguishable" in rows["judge"]["sentence"]
    assert rows["loss"]["ties"] == 2 * PROMPTS


def test_pairs_are_made_by_key_not_by_order(tmp_path: Path) -> None:
    a, b = arm(tmp_path / "base", base), arm(tmp_path / "tuned", lambda p, s: (base(p, s)[0] + 0.1, 1.0))
    lines = (b / "scores.jsonl").read_text().splitlines()
    (b / "scores.jsonl").write_text("\n".join(reversed(lines)) + "\n")
    rows, _ = compare(tmp_path, a, b)
    assert rows["judge"]["difference"] == pytest.approx(0.1)
    assert rows["judge"]["low"] == pytest.approx(0.1)


def test_categories_have_rows_of_their_own(tmp_path: Path) -> None:
    gain = {"even": 0.1, "odd": 0.3}
    b = arm(tmp_path / "tuned", lambda p, s: (base(p, s)[0] + (0.3 if p % 2 else 0.1), 1.0))
    _, result = compare(tmp_path, arm(tmp_path / "base", base), b)
    found = {one["category"]: one["difference"] for one in result["categories"] if one["label"] == "judge"}
    assert found == pytest.approx(gain)


def by_category(folder: Path, scores: Mapping[str, Sequence[float]]) -> Path:
    """A finished score stage of the judge alone: category -> its number for each of the category's prompts."""
    folder.mkdir(parents=True)
    rows = [
        ScoredImage(f"{category} {number}", "a cat", number, "x.png", 0, category, {"judge": value})
        for category, values in scores.items()
        for number, value in enumerate(values)
    ]
    write_jsonl(folder / "scores.jsonl", rows)
    (folder / "scorers.json").write_text(json.dumps(SCORERS[:1]))
    return folder


def compare_categories(
    tmp_path: Path, differences: Mapping[str, Sequence[float]], resamples: int = 1000
) -> dict[str, dict[str, Any]]:
    """Rows by category of an arm that differs from another by so much for each prompt."""
    a = by_category(tmp_path / "base", {category: [0.0] * len(values) for category, values in differences.items()})
    _, result = compare(tmp_path, a, by_category(tmp_path / "tuned", differences), resamples=resamples)
    return {found["category"]: found for found in result["categories"]}


def test_a_category_is_judged_among_all_categories_by_hand(tmp_path: Path) -> None:
    rows = compare_categories(tmp_path, {"gain": [1.0] * 6, "same": [0.0] * 6, "single": [5.0]})
    # Of the 64 patterns of signs 2 reach a sum of 6, all reach one of 0; the single prompt is not measured.
    assert (rows["gain"]["p_value"], rows["same"]["p_value"]) == (2 / 64, 1.0)
    assert (rows["gain"]["adjusted"], rows["same"]["adjusted"]) == (2 * 2 / 64, 1.0)
    assert {row["verdict"] for row in rows.values()} == {"not distinguishable", "not measured"}
    assert rows["gain"]["sentence"].startswith("not distinguishable among all rows of categories (p 0.062 by Holm)")
    assert "on its own, tuned is better" in rows["gain"]["sentence"]
    assert "adjusted" not in rows["single"]


def test_noise_gives_no_category_a_verdict(tmp_path: Path) -> None:
    # Each pattern of six signs once, as noise has them on average: on their own, the two of one sign are clear of 0.
    noise = {"".join(signs): [float(f"{sign}1") for sign in signs] for signs in product("+-", repeat=6)}
    rows = compare_categories(tmp_path, noise)
    clear = {category for category, row in rows.items() if row["low"] > 0 or row["high"] < 0}
    assert clear == {"++++++", "------"}
    assert {row["verdict"] for row in rows.values()} == {"not distinguishable"}


def test_a_strong_effect_in_one_of_five_categories_keeps_its_verdict(tmp_path: Path) -> None:
    gains = {"gain": [1.0 + 0.01 * number for number in range(10)]}
    rows = compare_categories(tmp_path, gains | {f"c{number}": [0.2, -0.2] * 5 for number in range(4)}, resamples=2000)
    assert rows["gain"]["adjusted"] == pytest.approx(5 * 2 / 2**10)
    assert rows["gain"]["verdict"] == "better"
    assert rows["gain"]["sentence"].startswith("tuned is better")
    assert {row["verdict"] for category, row in rows.items() if category != "gain"} == {"not distinguishable"}


def test_overall_rows_are_corrected_without_the_controls_and_keep_their_verdicts(tmp_path: Path) -> None:
    def better(prompt: int, sample: int) -> tuple[float, float]:
        judge, loss = base(prompt, sample)
        return judge + 0.1 + 0.01 * prompt, loss - 0.5

    both = [row | {"role": "held_out"} for row in SCORERS]
    rows, _ = compare(tmp_path / "one", arm(tmp_path / "a", base), arm(tmp_path / "b", better))
    assert rows["judge"]["adjusted"] == rows["judge"]["p_value"] == pytest.approx(1 / 1001)
    assert "adjusted" not in rows["loss"]
    rows, _ = compare(tmp_path / "two", arm(tmp_path / "c", base, both), arm(tmp_path / "d", better, both))
    assert [rows[label]["adjusted"] for label in ("judge", "loss")] == pytest.approx([2 / 1001] * 2)
    assert [rows[label]["verdict"] for label in ("judge", "loss")] == ["better", "better"]


def drop_last(folder: Path) -> None:
    lines = (folder / "scores.jsonl").read_text().splitlines()
    (folder / "scores.jsonl").write_text("\n".join(lines[:-1]) + "\n")


@pytest.mark.parametrize("arm_without", ["base", "tuned"])
def test_image_without_a_partner_is_an_error_that_names_it(tmp_path: Path, arm_without: str) -> None:
    a, b = arm(tmp_path / "base", base), arm(tmp_path / "tuned", base)
    drop_last(tmp_path / arm_without)
    with pytest.raises(T2IError, match=rf"{arm_without} lacks 1 of the keys of .*p039.*3901"):
        compare(tmp_path, a, b)
    assert not (tmp_path / "compare/comparison.json").exists()


def test_arms_with_other_seeds_are_an_error(tmp_path: Path) -> None:
    a, b = arm(tmp_path / "base", base), arm(tmp_path / "tuned", base)
    text = (b / "scores.jsonl").read_text().replace('"seed": 3901', '"seed": 3902')
    (b / "scores.jsonl").write_text(text)
    with pytest.raises(T2IError, match=r"base lacks 1 of the keys of tuned: .*3902"):
        compare(tmp_path, a, b)


def test_a_single_prompt_without_its_partner_is_named_too(tmp_path: Path) -> None:
    """Of one prompt there are no statistics, which would look for partners."""
    a, b = arm(tmp_path / "a", base), arm(tmp_path / "b", base)
    for folder, kept in ((a, 0), (b, 1)):
        rows = [row for row in read_jsonl(folder / "scores.jsonl", ScoredImage) if row.prompt_id == "p000"]
        write_jsonl(folder / "scores.jsonl", rows[kept : kept + 1])
    with pytest.raises(T2IError, match="lacks 1 of the keys of"):
        compare(tmp_path, a, b)


def test_a_filter_that_scored_by_itself_marks_its_scorer(tmp_path: Path) -> None:
    scorers = [row | {"id": f"id of {row['label']}", "role": "held_out"} for row in SCORERS]
    kept = made(tmp_path / "filter", [], "filter", {"scores": [{"scorer": {"name": "loss"}, "at_most": 1}]})
    (kept / "done.json").write_text(json.dumps({"facts": {"chosen_by": ["id of loss"]}}))
    a, b = (arm(tmp_path / name, base, scorers) for name in ("a", "b"))
    made(a, [])
    rows, _ = compare(tmp_path, a, made(b, [made(tmp_path / "train", [kept], "train")]))
    assert {label: found["role"] for label, found in rows.items()} == {"judge": "held_out", "loss": "train"}


def test_image_that_was_scored_twice_is_an_error(tmp_path: Path) -> None:
    a, b = arm(tmp_path / "base", base), arm(tmp_path / "tuned", base)
    text = (b / "scores.jsonl").read_text()
    (b / "scores.jsonl").write_text(text + text.splitlines()[0] + "\n")
    with pytest.raises(T2IError, match="p000"):
        compare(tmp_path, a, b)


@pytest.mark.parametrize(
    "other",
    [
        [SCORERS[0]],
        [{**SCORERS[0], "version": "9"}, SCORERS[1]],
        [{**SCORERS[0], "name": "other"}, SCORERS[1]],
        [{**SCORERS[0], "id": "other/1/weights"}, SCORERS[1]],
    ],
    ids=["one less", "version", "name", "weights"],
)
def test_arms_that_were_scored_differently_are_refused(tmp_path: Path, other: list[dict[str, Any]]) -> None:
    a, b = arm(tmp_path / "base", base), arm(tmp_path / "tuned", base, other)
    with pytest.raises(T2IError, match="base and tuned were scored differently"):
        compare(tmp_path, a, b)


def test_comparison_is_the_same_every_time(tmp_path: Path) -> None:
    a, b = arm(tmp_path / "base", base), arm(tmp_path / "tuned", lambda p, s: (base(p, s)[0] + 0.01 * (p % 7), 1.0))
    assert compare(tmp_path / "one", a, b) == compare(tmp_path / "two", a, b)


def test_arms_that_were_sampled_differently_are_refused(tmp_path: Path) -> None:
    arms = [arm(tmp_path / name, base) for name in "ab"]
    for folder, steps, scale in zip(arms, (20, 30), (1.0, 0.5), strict=True):
        record = {"sampling": {"steps": steps, "lora_scale": scale}, "images_per_prompt": 2, "batch_size": 8}
        (folder / "sampling.json").write_text(json.dumps(record))
    with pytest.raises(T2IError, match=r"sampled differently \(steps: 20 and 30\)"):
        compare(tmp_path, *arms)


def made(folder: Path, inputs: list[Path], kind: str = "other", fields: dict[str, Any] | None = None) -> Path:
    """Give a folder the files by which the engine says what it was made from."""
    folder.mkdir(exist_ok=True)
    (folder / "provenance.json").write_text(json.dumps({"inputs": {path.name: path.name for path in inputs}}))
    (folder / "config.json").write_text(json.dumps({"identity": {"type": kind, "fields": fields or {}}}))
    return folder


def test_a_scorer_that_chose_the_pairs_is_marked_although_nobody_said_so(tmp_path: Path) -> None:
    scorers = [row | {"id": f"id of {row['label']}", "role": "held_out"} for row in SCORERS]
    # Another label in the stage that the pairs came from: it is the same scorer by its id.
    renamed = [row | {"label": f"{row['label']} of candidates"} for row in scorers]
    candidates = arm(tmp_path / "candidates", base, renamed)
    rule = {"rule": {"scorers": {"loss of candidates": 0.0}}}
    pair = made(tmp_path / "pair", [candidates], "pair", rule)
    train = made(tmp_path / "train", [pair], "train")
    a, b = (arm(tmp_path / name, base, scorers) for name in ("a", "b"))
    made(a, [])
    rows, _ = compare(tmp_path, a, made(b, [made(tmp_path / "images", [train])]))
    assert {label: found["role"] for label, found in rows.items()} == {"judge": "held_out", "loss": "train"}
    made(b, [made(tmp_path / "images", [candidates])])
    rows, _ = compare(tmp_path, a, b)
    assert {found["role"] for found in rows.values()} == {"held_out"}


def test_a_scorer_that_picked_the_weights_is_marked_and_those_of_their_training_are_not(tmp_path: Path) -> None:
    scorers = [row | {"id": f"id of {row['label']}", "role": "held_out"} for row in SCORERS]
    rounds = arm(tmp_path / "rounds", base, scorers)
    earlier = made(arm(tmp_path / "earlier", base, [row | {"id": f"old {row['label']}"} for row in scorers]), [])
    train = made(tmp_path / "train", [earlier], "train")
    pick = made(tmp_path / "pick", [train, rounds], "pick", {"scorer": "judge"})
    a, b = (arm(tmp_path / name, base, scorers) for name in ("a", "b"))
    rows, _ = compare(tmp_path, made(a, []), made(b, [made(tmp_path / "images", [pick])]))
    assert {label: found["role"] for label, found in rows.items()} == {"judge": "train", "loss": "held_out"}
    assert optimised_against(b) == {"id of judge"}
    assert optimised_against(b, picks=False) == set()


@pytest.mark.parametrize("result", ["best", "last"])
def test_a_scorer_by_which_a_guard_chose_the_checkpoint_is_marked_and_may_pick_all_the_same(
    tmp_path: Path, result: str
) -> None:
    scorers = [row | {"id": f"id of {row['label']}", "role": "held_out"} for row in SCORERS]
    train = made(tmp_path / "train", [], "train")
    facts = {"chosen_by": ["id of loss"], **({"picked_by": ["id of judge"]} if result == "best" else {})}
    (train / "done.json").write_text(json.dumps({"facts": facts}))
    a, b = (arm(tmp_path / name, base, scorers) for name in ("a", "b"))
    rows, _ = compare(tmp_path, made(a, []), made(b, [made(tmp_path / "images", [train])]))
    judge = "train" if result == "best" else "held_out"
    assert {label: found["role"] for label, found in rows.items()} == {"judge": judge, "loss": "train"}
    assert optimised_against(b, picks=False) == {"id of loss"}
