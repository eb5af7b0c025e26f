"""The compare stage on scores written by hand."""

from __future__ import annotations

import json
from collections.abc import Callable
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
