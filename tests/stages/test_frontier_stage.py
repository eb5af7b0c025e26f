"""Several arms against a base: the figures of each comparison, the front, and the chart."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest
import tiny

from t2i.errors import ConfigError
from t2i.records import ScoredImage, write_jsonl
from t2i.stages.frontier import Frontier

BASE = (0.5, 10.0)
ARMS = {"strong": (0.7, 9.0), "weak": (0.6, 11.0), "worse": (0.55, 10.5)}
"""Arm -> (judge, loss), of which less is better: `weak` is beaten by `worse` in the loss, and by none in both."""


def scored(folder: Path, judge: float, loss: float) -> Path:
    folder.mkdir()
    rows = [
        ScoredImage(f"p{n}", "a cat", n, f"{n}.png", scores={"judge": judge + 0.01 * n, "loss": loss}) for n in range(5)
    ]
    write_jsonl(folder / "scores.jsonl", rows)
    described = [
        {"label": name, "name": name, "version": "1", "higher_is_better": name == "judge", "role": "held_out"}
        for name in ("judge", "loss")
    ]
    (folder / "scorers.json").write_text(json.dumps(described))
    return folder


def run(folder: Path, **fields: Any) -> dict[str, Any]:
    context = tiny.context(folder / "frontier")
    context.inputs["base_from"] = [("base", scored(folder / "base", *BASE))]
    context.inputs["arms_from"] = [(name, scored(folder / name, *values)) for name, values in ARMS.items()]
    values = {"base_from": "base", "arms_from": list(ARMS), "axes": ["judge", "loss"], "resamples": 1000, **fields}
    tiny.from_recipe(Frontier, values).run(context)
    return json.loads((folder / "frontier/frontier.json").read_text())


def test_every_arm_is_compared_with_the_base(tmp_path: Path) -> None:
    found = run(tmp_path)
    differences = {arm["name"]: [row["difference"] for row in arm["overall"]] for arm in found["arms"]}
    for name, (judge, loss) in ARMS.items():
        assert differences[name] == pytest.approx([judge - BASE[0], loss - BASE[1]])


def test_front_holds_what_no_other_beats_in_both(tmp_path: Path) -> None:
    assert run(tmp_path)["front"] == ["strong"]


def test_base_is_on_the_front_where_nothing_beats_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ARMS, "strong", (0.7, 12.0))
    assert run(tmp_path)["front"] == ["base", "strong", "weak", "worse"]


def test_chart_is_a_picture_with_every_arm_and_the_base(tmp_path: Path) -> None:
    run(tmp_path)
    root = ElementTree.parse(tmp_path / "frontier/frontier.svg").getroot()
    texts = {element.text for element in root.iter() if element.tag.endswith("text")}
    assert {"base", *ARMS} <= texts
    circles = [element for element in root.iter() if element.tag.endswith("circle")]
    assert len(circles) == 4
    assert [circle.get("class") for circle in circles].count("baseline") == 1


def test_unknown_scorer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no scorer 'juge'"):
        run(tmp_path, axes=["juge", "loss"])
