"""The shipped suite is sound, and the published ones are read whole from their real files."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from rewards.errors import InputError
from rewards.faithfulness.questions import in_cycles
from rewards.suites import SUITES, Suite, SuitePrompt, load_suite, write_prompts


def test_the_shipped_suite_has_two_hundred_prompts_in_ten_equal_categories():
    suite = load_suite("compositional")
    assert len(suite) == 200
    assert suite.count_categories() == dict.fromkeys(
        ("colour", "shape", "material", "size", "counting", "spatial", "action", "clothing", "scene", "style"), 20
    )
    assert suite.defects == ()


def test_the_shipped_prompts_and_ids_are_unique_and_plain():
    suite = load_suite("compositional")
    assert len({one.id for one in suite.prompts}) == 200
    assert len({re.sub(r"\W+", " ", one.prompt.lower()) for one in suite.prompts}) == 200
    for one in suite.prompts:
        assert one.prompt == " ".join(one.prompt.split())
        assert not re.search(r"\b(no|not|without|never)\b", one.prompt), one.prompt
        # One token a word and some: well within the 77 tokens of CLIP.
        assert 3 <= len(one.prompt.split()) <= 25


def test_every_shipped_question_is_sound():
    suite = load_suite("compositional")
    assert suite.questions is not None
    for item in suite.questions.items:
        texts = [form for one in item.questions for form in (one.text, one.negative)]
        assert None not in texts
        assert len(set(texts)) == len(texts), item.id
        assert all(str(text)[0].isupper() and str(text).endswith("?") for text in texts)
        assert all(one.answer == "yes" and one.is_yes_no and one.category for one in item.questions)
        assert 3 <= len(item.questions) <= 8
        assert any(one.parents for one in item.questions), item.id
        # A parent comes before its child, so there is no cycle either.
        assert all(int(parent) < int(one.id) for one in item.questions for parent in one.parents)
        assert not in_cycles({one.id: one.parents for one in item.questions})


def test_what_the_shipped_questions_ask_for_is_in_the_prompt():
    suite = load_suite("compositional")
    assert suite.questions is not None
    for item in suite.questions.items:
        for one in item.questions:
            things = re.fullmatch(r"Is there an? (.+)\?", one.text) or re.fullmatch(r"Are there any (.+)\?", one.text)
            if things and item.category not in ("action", "scene", "style"):
                assert things[1] in item.prompt, (item.prompt, one.text)


@pytest.mark.parametrize(
    ("name", "file", "count", "categories"),
    [
        ("partiprompts", "partiprompts/PartiPrompts.tsv", 1632, 12),
        ("drawbench", "drawbench/drawbench.txt", 200, 1),
        ("drawbench", "drawbench/drawbench_upsampled.txt", 200, 1),
        ("t2i_compbench", "t2i-compbench", 2400, 8),
        ("t2i_compbench", "t2i-compbench/color_val.txt", 300, 1),
        ("geneval", "geneval/evaluation_metadata.jsonl", 553, 6),
        ("dsg1k", "dsg/dsg-1k-anns.csv", 1060, 10),
        ("tifa", "tifa/tifa_v1.0_text_inputs.json", 4081, 4),
        ("tifa", "tifa/sample_question_answers.json", 2, 2),
    ],
)
def test_published_files_are_read_whole(
    test_data: Callable[[str], Path], name: str, file: str, count: int, categories: int
):
    suite = load_suite(name, test_data(file))
    assert len(suite) == count
    assert len({one.id for one in suite.prompts}) == count
    assert len(suite.count_categories()) == categories
    assert all(one.prompt and one.prompt == one.prompt.strip() for one in suite.prompts)


def test_facts_of_published_prompts_are_kept(test_data: Callable[[str], Path]):
    geneval = load_suite("geneval", test_data("geneval/evaluation_metadata.jsonl"))
    assert geneval.count_categories()["two_object"] == 99
    assert geneval.prompts[0].facts == {"include": [{"class": "bench", "count": 1}]}
    parti = load_suite("partiprompts", test_data("partiprompts/PartiPrompts.tsv"))
    assert len({one.facts["challenge"] for one in parti.prompts}) == 11
    tifa = load_suite("tifa", test_data("tifa/tifa_v1.0_text_inputs.json"))
    assert tifa.count_categories() == {"coco": 2000, "drawbench": 161, "partiprompt": 1420, "paintskill": 500}


def test_dsg1k_brings_its_questions_and_their_defects(test_data: Callable[[str], Path]):
    suite = load_suite("dsg1k", test_data("dsg/dsg-1k-anns.csv"))
    assert suite.questions is not None
    assert all(one.prompt in suite.questions for one in suite.prompts)
    assert len(suite.defects) == 134


@pytest.mark.parametrize("file", ["drawbench.csv", "DrawBench.CSV"])
def test_a_drawbench_table_gives_categories_and_repeats_are_told(tmp_path: Path, file: str):
    path = tmp_path / file
    path.write_text('Prompts,Category\n"a red, round car.",Colors\na cat,Counting\na cat,Text\n')
    suite = load_suite("drawbench", path)
    assert next((one.prompt, one.category) for one in suite.prompts) == ("a red, round car.", "Colors")
    assert [(defect.kind, defect.item) for defect in suite.defects] == [("repeated_prompt", "drawbench_2")]


def test_prompts_are_written_one_a_line(tmp_path: Path):
    path = tmp_path / "prompts.jsonl"
    write_prompts(load_suite("compositional"), path)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(rows) == 200
    assert rows[0] == {
        "id": "colour_01",
        "prompt": "a green bicycle leaning against a pink fence",
        "category": "colour",
    }


def test_a_lone_surrogate_in_a_prompt_is_escaped(tmp_path: Path):
    suite = Suite("own", "made", "none", (SuitePrompt("1", "a \ud800 cat", ""),))
    write_prompts(suite, tmp_path / "prompts.jsonl")
    assert json.loads((tmp_path / "prompts.jsonl").read_text())["prompt"] == "a \ud800 cat"


@pytest.mark.parametrize(
    ("name", "source", "message"),
    [
        ("drawbnch", None, "did you mean 'drawbench'"),
        ("geneval", None, "needs its published file: evaluation_metadata.jsonl"),
        ("compositional", "x", "takes no source"),
        ("geneval", "nowhere.jsonl", "no such file or folder"),
        ("geneval", "hub:owner/name", "expected hub:owner/name/path"),
        ("geneval", "hub:owner/name/../x", "expected hub:owner/name/path"),
        ("geneval", "hub:owner/name/x.jsonl", "cannot be had from the hub"),
    ],
)
def test_what_cannot_be_had_is_an_error_that_says_why(name: str, source: str | None, message: str):
    with pytest.raises(InputError, match=message):
        load_suite(name, source)


@pytest.mark.parametrize(
    ("name", "file", "content"),
    [
        ("partiprompts", "a.tsv", "Prompt\tCategory\na\tb\n"),
        ("partiprompts", "a.tsv", "Prompt\tCategory\tChallenge\na\tb\n"),
        ("geneval", "a.jsonl", '{"prompt": "a"}\n'),
        ("geneval", "a.jsonl", "\n"),
        ("tifa", "a.json", '[{"id": "a", "caption": "b"}, {"id": "a", "caption": "c"}]'),
        ("drawbench", "a.tsv", "Prompts\tCategory\na cat\tColors\n"),
        ("t2i_compbench", "a.CSV", "Prompts,Category\na cat,color\n"),
    ],
)
def test_files_of_another_format_are_refused(tmp_path: Path, name: str, file: str, content: str):
    (tmp_path / file).write_text(content)
    with pytest.raises(InputError, match=file):
        load_suite(name, tmp_path / file)


def test_names_are_sorted():
    assert list(SUITES) == sorted(SUITES)
