"""The score stage: raw numbers, one row per image, from finished batches where there are some."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import tiny
from PIL import Image
from pydantic import ValidationError

from t2i import engine
from t2i.errors import ConfigError, RunError, T2IError
from t2i.recipe import Recipe
from t2i.records import GeneratedImage, ScoredImage, read_jsonl, write_jsonl
from t2i.resources import code_file
from t2i.stages.score import Score, Scorer

GREYS = (0, 51, 102, 153, 255)
BRIGHTNESS = {"name": "brightness", "role": "control"}


class Words:
    """Number of words of the prompt: a scorer of one's own."""

    name: ClassVar[str] = "words"
    version: ClassVar[str] = "3"
    scale: ClassVar[str] = "words"
    needs_prompt: ClassVar[bool] = True
    differentiable: ClassVar[bool] = False
    higher_is_better: ClassVar[bool] = False

    def score(self, images: Sequence[Any], prompts: Sequence[str] | None = None) -> np.ndarray:
        assert prompts is not None
        return np.array([len(prompt.split()) for prompt in prompts], dtype=np.float32)


class Careless(Words):
    """Breaks the promise of a finite number per image."""

    name: ClassVar[str] = "careless"

    def __init__(self, returned: object, **further: object) -> None:
        self.returned = returned

    def score(self, images: Sequence[Any], prompts: Sequence[str] | None = None) -> Any:
        return self.returned if self.returned == 1.0 else [self.returned] * len(images)


class Listed(Words):
    """Number of lines of a file."""

    name: ClassVar[str] = "listed"

    def __init__(self, lines: str, note: str = "", answers: str = "") -> None:
        self.lines, self.answers = lines, answers

    def score(self, images: Sequence[Any], prompts: Sequence[str] | None = None) -> np.ndarray:
        if self.answers:
            Path(self.answers).write_text("asked")
        return np.full(len(images), len(Path(self.lines).read_text().splitlines()), dtype=np.float32)


class Impostor(Words):
    """Calls itself as another scorer does."""

    name: ClassVar[str] = "brightness"


def generated(folder: Path) -> Path:
    """A finished generate stage: grey squares."""
    (folder / "images").mkdir(parents=True)
    found = []
    for number, grey in enumerate(GREYS):
        Image.new("RGB", (8, 8), (grey, grey, grey)).save(folder / f"images/{number}.png")
        found.append(GeneratedImage(f"{number:04d}", "a " * number + "cat", number, f"images/{number}.png", 0, "greys"))
    write_jsonl(folder / "generations.jsonl", found)
    return folder


def run(tmp_path: Path, source: Path, *scorers: dict[str, object], **fields: object) -> dict[str, Any]:
    inputs = {"generations_from": source}
    return tiny.run_stage(Score, tmp_path / "run/score", {"scorers": list(scorers), "batch_size": 2, **fields}, inputs)


def scored(tmp_path: Path) -> list[ScoredImage]:
    return list(read_jsonl(tmp_path / "run/score/scores.jsonl", ScoredImage))


def test_rows_hold_every_scorers_raw_number(tmp_path: Path) -> None:
    source = generated(tmp_path / "run/generate")
    facts = run(tmp_path, source, BRIGHTNESS, {"name": "test_score_stage:Words", "label": "length"})
    found = scored(tmp_path)
    assert [row.scores["brightness"] for row in found] == pytest.approx([grey / 255 for grey in GREYS], abs=1e-6)
    assert [row.scores["length"] for row in found] == [1, 2, 3, 4, 5]
    assert [row.key for row in found] == [row.key for row in read_jsonl(source / "generations.jsonl", GeneratedImage)]
    assert {row.category for row in found} == {"greys"}
    assert facts["images"] == 5
    assert facts["means"] == pytest.approx({"brightness": 561 / 5 / 255, "length": 3})
    # Paths are relative to the stage's own folder.
    assert all((tmp_path / "run/score" / row.image).is_file() for row in found)


def test_what_the_numbers_are_is_written_beside_them(tmp_path: Path) -> None:
    run(tmp_path, generated(tmp_path / "run/generate"), BRIGHTNESS, {"name": "test_score_stage:Words"})
    brightness, words = json.loads((tmp_path / "run/score/scorers.json").read_text())
    assert (brightness["label"], brightness["role"], brightness["higher_is_better"]) == ("brightness", "control", True)
    assert (words["label"], words["version"], words["role"]) == ("words", "3", "held_out")
    assert words["higher_is_better"] is False
    assert words["id"].startswith("words/3/")
    assert len({brightness["id"], words["id"]}) == 2


def test_size_of_the_batches_changes_nothing(tmp_path: Path) -> None:
    source = generated(tmp_path / "run/generate")
    run(tmp_path / "small", source, BRIGHTNESS, batch_size=1)
    run(tmp_path / "large", source, BRIGHTNESS, batch_size=100)
    assert [row.scores for row in scored(tmp_path / "small")] == [row.scores for row in scored(tmp_path / "large")]


def test_interrupted_scoring_goes_on_from_its_finished_batches(tmp_path: Path) -> None:
    source = generated(tmp_path / "run/generate")
    run(tmp_path, source, BRIGHTNESS, {"name": "saturation"})
    folder = tmp_path / "run/score"
    before = (folder / "scores.jsonl").read_bytes()
    parts = sorted((folder / "parts").iterdir())
    assert len(parts) == 2 * 3
    (folder / "scores.jsonl").unlink()
    parts[1].unlink()
    (folder / "parts/.00-0000002.json.99.tmp").write_text("[0.")
    run(tmp_path, source, BRIGHTNESS, {"name": "saturation"})
    assert (folder / "scores.jsonl").read_bytes() == before
    # A finished batch is read, not scored again.
    parts[0].write_text("[7.5, 8.5]")
    run(tmp_path, source, BRIGHTNESS, {"name": "saturation"})
    assert [row.scores["brightness"] for row in scored(tmp_path)][:3] == [7.5, 8.5, pytest.approx(0.4)]


def test_number_written_is_the_float32_that_was_computed(tmp_path: Path) -> None:
    run(tmp_path, generated(tmp_path / "run/generate"), BRIGHTNESS)
    for row in scored(tmp_path):
        assert float(np.float32(row.scores["brightness"])) == row.scores["brightness"]


@pytest.mark.parametrize(
    "scorers",
    [
        [BRIGHTNESS, BRIGHTNESS],
        [BRIGHTNESS, {"name": "saturation", "label": "brightness"}],
    ],
)
def test_columns_of_the_same_name_are_refused(scorers: list[dict[str, object]]) -> None:
    with pytest.raises(ValidationError, match="labels repeat"):
        tiny.from_recipe(Score, {"generations_from": "generate", "scorers": scorers})


def test_scorer_that_calls_itself_as_another_is_refused(tmp_path: Path) -> None:
    source = generated(tmp_path / "run/generate")
    with pytest.raises(T2IError, match="brightness"):
        run(tmp_path, source, BRIGHTNESS, {"name": "test_score_stage:Impostor"})
    assert not (tmp_path / "run/score/scores.jsonl").exists()


@pytest.mark.parametrize(
    ("returned", "message"),
    [("nan", "returned nan for image 0"), ("x", "not a list of numbers"), (1.0, r"shape \(\) for 2 images")],
)
def test_scorer_that_returns_no_finite_number_per_image_is_refused(
    tmp_path: Path, returned: object, message: str
) -> None:
    source = generated(tmp_path / "run/generate")
    own: dict[str, object] = {"name": "test_score_stage:Careless", "options": {"returned": returned, "further": 1}}
    with pytest.raises(RunError, match=message):
        run(tmp_path, source, own)
    assert not (tmp_path / "run/score/scores.jsonl").exists()


def test_missing_image_is_an_error_that_names_it(tmp_path: Path) -> None:
    source = generated(tmp_path / "run/generate")
    (source / "images/3.png").unlink()
    with pytest.raises(T2IError, match=r"3\.png"):
        run(tmp_path, source, BRIGHTNESS)
    assert not (tmp_path / "run/score/scores.jsonl").exists()


def test_unknown_option_of_a_scorer_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(T2IError, match="has no option 'colour'"):
        run(tmp_path, generated(tmp_path / "run/generate"), {**BRIGHTNESS, "options": {"colour": "red"}})


OPTIONS_RECIPE = """
name: demo
model: {model}
stages:
  - {{type: generate, prompts: {{type: list, prompts: [a cat]}}, sampling: {{steps: 1}}}}
  - {{type: score, generations_from: generate, scorers: [{{name: "test_score_stage:Listed", options: {options}}}]}}
"""


def mean(folder: Path, lines: str, **options: str) -> float:
    """Of a whole run with a scorer that reads a file."""
    given = json.dumps({"lines": lines, "note": "", **options})
    (folder / "demo.yaml").write_text(OPTIONS_RECIPE.format(model=tiny.sd1(), options=given))
    planned = engine.run(Recipe.load(folder / "demo.yaml"), folder / "runs")
    return json.loads((planned[1].folder / "done.json").read_text())["facts"]["means"]["listed"]


def test_a_file_that_an_option_names_is_watched(tmp_path: Path) -> None:
    questions = tmp_path / "q.jsonl"
    questions.write_text("one\n")
    assert mean(tmp_path, str(questions)) == 1
    questions.write_text("one\ntwo\n")
    said = {item.name: item.reason for item in engine.plan(Recipe.load(tmp_path / "demo.yaml"), tmp_path / "runs")}
    assert said["score"] == f"scorers.0.options.lines: content of {questions} changed"
    assert mean(tmp_path, str(questions)) == 2


def test_the_code_of_a_scorer_is_watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "q.jsonl").write_text("one\n")
    code = tmp_path / "my_scorers.py"
    code.write_text("from test_score_stage import Listed as Mine\nfrom test_score_stage import Listed as Other\n")
    text = OPTIONS_RECIPE.format(model=tiny.sd1(), options=json.dumps({"lines": str(tmp_path / "q.jsonl"), "note": ""}))
    recipe = tmp_path / "demo.yaml"

    def planned(scorer: str) -> tuple[str, str]:
        recipe.write_text(text.replace("test_score_stage:Listed", scorer))
        item = engine.plan(Recipe.load(recipe), tmp_path / "runs")[1]
        return item.status, item.reason

    planned("my_scorers:Mine")
    [_, score] = engine.run(Recipe.load(recipe), tmp_path / "runs")
    assert planned("my_scorers:Mine")[0] == "skip"
    assert planned("my_scorers:Other") == ("run", "scorers.0.name.class: 'my_scorers:Mine' -> 'my_scorers:Other'")
    files = json.loads((score.folder / "config.json").read_text())["files"]
    assert files["scorers.0.name"]["path"] == "./my_scorers.py"
    code.write_text(code.read_text() + "# other code\n")
    assert planned("my_scorers:Mine") == ("run", "scorers.0.name: content of ./my_scorers.py changed")
    assert code_file("my_scorers:Mine") == code
    # This toolkit's own has stages with versions; and a name, a file or an address is no code.
    for other in ("t2i.shapes.scorers:JudgeFaithfulness", "clip_score", "nowhere:Mine", "cuda:0", "my_scorers:", "a/b"):
        assert code_file(other) is None


@pytest.mark.parametrize(
    ("scorer", "message"),
    [
        ({"name": "clip_score", "options": {"scael": "hessel"}}, "no option 'scael'; did you mean 'scale'"),
        ({"name": "test_score_stage:Mising"}, "Mising"),
    ],
)
def test_a_scorer_that_cannot_be_made_is_found_before_the_first_stage_whatever_its_label(
    scorer: dict[str, object], message: str
) -> None:
    stage = tiny.from_recipe(Score, {"generations_from": "g", "scorers": [{**scorer, "label": "mine"}]})
    with pytest.raises(T2IError, match=message):
        stage.check()


def test_a_cache_that_a_scorer_fills_decides_nothing(tmp_path: Path) -> None:
    (tmp_path / "q.jsonl").write_text("one\n")
    cache = tmp_path / "answers.jsonl"
    assert mean(tmp_path, str(tmp_path / "q.jsonl"), answers=str(cache)) == 1
    assert cache.read_text() == "asked"
    [_, planned] = engine.plan(Recipe.load(tmp_path / "demo.yaml"), tmp_path / "runs")
    assert planned.status == "skip"


def test_options_find_files_as_recipes_write_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "q.jsonl").write_text("one\ntwo\nthree\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert mean(tmp_path, "~/q.jsonl") == 3
    with pytest.raises(ConfigError, match=r"options.lines: no file or folder '~/r.jsonl'"):
        mean(tmp_path, "~/r.jsonl")


@pytest.mark.parametrize(
    ("later", "message"),
    [
        ("{type: score, scorers: [{name: clip_score, options: {scaling: 3}}]}", "has no option 'scaling'"),
        ("{type: score, scorers: [{name: clip_score, options: {scale: 3}}]}", "option 'scale' is 3, expected str"),
        ("{type: score, scorers: [{name: clip_score, options: {scale: cosin}}]}", "unknown scale 'cosin'"),
        (
            '{type: score, scorers: [{name: brightness}, {name: "test_score_stage:Impostor"}]}',
            "labels repeat: brightness, brightness",
        ),
        ("{type: generate, name: more, prompts: {type: suite, name: partyprompts}}", "partyprompts"),
        ("{type: generate, name: more, prompts: {type: file, path: PROMPTS}}", "prompts.txt: no prompt"),
    ],
)
def test_mistakes_are_told_before_an_earlier_stage_runs(tmp_path: Path, later: str, message: str) -> None:
    (tmp_path / "prompts.txt").write_text("")
    later = later.replace("type: score", "type: score, generations_from: generate")
    later = later.replace("PROMPTS", str(tmp_path / "prompts.txt"))
    prompts = "prompts: {type: list, prompts: [a cat]}"
    first = f"{{type: generate, {prompts}, sampling: {{steps: 1}}}}"
    (tmp_path / "demo.yaml").write_text(f"name: demo\nmodel: {tiny.sd1()}\nstages:\n  - {first}\n  - {later}\n")
    with pytest.raises(T2IError, match=message):
        engine.run(Recipe.load(tmp_path / "demo.yaml"), tmp_path / "runs")
    assert not list((tmp_path / "runs").rglob("generate-*"))


@pytest.mark.parametrize("name", ["name", "model", "revision"])
def test_options_do_not_swap_the_scorer(name: str) -> None:
    with pytest.raises(ValidationError, match=f"'{name}' is a field of the scorer"):
        tiny.from_recipe(Scorer, {"name": "sharpness", "options": {name: "brightness"}})
