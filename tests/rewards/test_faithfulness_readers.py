"""Question files: the real ones whole with every defect counted, the own format there and back, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from rewards.errors import InputError
from rewards.faithfulness import Defect, PromptQuestions, Question, QuestionBook, load_questions, write_questions
from rewards.faithfulness.dsg import dependent_points

DSG_HEAD = "item_id,text,keywords,proposition_id,dependency,category_broad,category_detailed,tuple,"
DSG_HEAD += "question_natural_language\n"


def dsg_file(folder: Path, *rows: tuple[str, str, str, str]) -> Path:
    """rows: item, proposition, dependency, question."""
    path = folder / "dsg.csv"
    lines = [f'{item},a text,k,{number},"{parents}",entity,whole,t,{text}\n' for item, number, parents, text in rows]
    path.write_text(DSG_HEAD + "".join(lines))
    return path


def test_dsg_defects_are_told_and_only_the_bad_parent_is_dropped(tmp_path: Path):
    book = load_questions(
        dsg_file(
            tmp_path,
            ("a_1", "1", "0", "Is there a cat?"),
            ("a_1", "2", "1, right", "Is it red?"),
            ("a_1", "3", "3,1", "Is it red?"),
            ("a_1", "4", "9", "Is it big?"),
            ("b_1", "1", "2", "Is there a dog?"),
            ("b_1", "2", "1", "Is it old?"),
        )
    )
    assert [question.parents for question in book.items[0].questions] == [(), ("1",), ("1",), ()]
    assert book.defects == (
        Defect("non_numeric_parent", "a_1", "2", "1, right"),
        Defect("self_dependency", "a_1", "3", "3, 1"),
        Defect("missing_parent", "a_1", "4", "9"),
        Defect("repeated_question", "a_1", "3", "Is it red?"),
        Defect("repeated_prompt", "b_1", "", "prompt of a_1, whose questions are asked"),
        Defect("cycle", "b_1", "1", "1 -> 2"),
    )
    assert book.count_defects()["cycle"] == 1
    assert book.lookup(["a text"]) == [book.items[0]]


def test_the_real_dsg_file_is_read_whole(test_data: Callable[[str], Path]):
    book = load_questions(test_data("dsg/dsg-1k-anns.csv"))
    assert len(book) == 1060
    assert sum(len(item.questions) for item in book.items) == 8182
    assert max(len(item.questions) for item in book.items) == 52
    assert book.count_defects() == {
        "cycle": 3,
        "missing_parent": 8,
        "non_numeric_parent": 10,
        "repeated_prompt": 1,
        "repeated_question": 68,
        "self_dependency": 44,
    }
    assert set(book.defective("cycle")) == {"drawtext_45", "diffusiondb_16", "localized_narratives_50"}
    assert book.defective("missing_parent") == ("tifa160_134",)
    assert len(book.defective("non_numeric_parent")) == 8
    assert len(book.defective("self_dependency")) == 35
    assert len(book.defective("repeated_question")) == 39
    for item in book.items:
        count = len(item.questions)
        for rule in ("one_hop", "transitive"):
            assert dependent_points(item.questions, [True] * count, rule) == [1.0] * count


def test_the_real_tifa_questions_are_read_whole(test_data: Callable[[str], Path]):
    book = load_questions(test_data("tifa/sample_question_answers.json"))
    assert [(item.id, len(item.questions)) for item in book.items] == [("coco_301091", 11), ("drawbench_52", 8)]
    assert book.defects == ()
    second = book.items[0].questions[1]
    assert second.text == "who is on the beach?"
    assert (second.answer, second.choices) == ("surfer", ("surfer", "swimmer", "diver", "skier"))
    assert second.category == "animal/human"


def test_tifa_defects_are_told(tmp_path: Path):
    def row(question: str, choices: list[str], answer: str, caption: str = "a cat") -> dict[str, object]:
        head = {"id": "x_1", "caption": caption, "element_type": "object"}
        return head | {"question": question, "choices": choices, "answer": answer}

    rows = [row("q?", ["1", "2"], "3"), row("q?", ["1", "1"], "1"), row("r?", ["1", "2"], "1", caption="a dog")]
    path = tmp_path / "tifa.json"
    path.write_text(json.dumps(rows))
    kinds = [defect.kind for defect in load_questions(path).defects]
    assert kinds == [
        "several_prompts",
        "answer_not_a_choice",
        "repeated_question",
        "repeated_choice",
        "too_few_choices",
    ]


def test_own_format_there_and_back(tmp_path: Path):
    questions = (
        Question("1", "Is there a “cat”?", category="entity", negative="Is there no cat?"),
        Question("2", "how many?", "2", ("1", "2"), "counting", ("1",)),
    )
    book = QuestionBook("made", (PromptQuestions("p1", "a cat\u2028 or two", questions, "animals"),))
    path = tmp_path / "own.jsonl"
    write_questions(book, path)
    again = load_questions(path)
    assert again.items == book.items
    assert again.digest == book.digest
    assert [entry.name for entry in tmp_path.iterdir()] == ["own.jsonl"]


def test_a_lone_surrogate_is_written_and_read_again(tmp_path: Path):
    book = QuestionBook("made", (PromptQuestions("1", "a \ud800 cat", (Question("1", "Is it \ud800?"),)),))
    write_questions(book, tmp_path / "own.jsonl")
    assert load_questions(tmp_path / "own.jsonl").items == book.items


def test_a_changed_question_changes_the_digest():
    def book(text: str) -> QuestionBook:
        return QuestionBook("", (PromptQuestions("1", "a cat", (Question("1", text),)),))

    assert book("Is it?").digest == book("Is it?").digest
    assert book("Is it?").digest != book("Is it so?").digest


def test_a_prompt_without_questions_is_an_error_that_counts():
    book = QuestionBook("mine.jsonl", (PromptQuestions("1", "a cat", (Question("1", "Is it?"),)),))
    with pytest.raises(InputError, match=r"mine.jsonl: no questions for 2 of 3 prompts, first 'a dog'"):
        book.lookup(["a cat", "a dog", "a dog", "a cow"])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", '{"id": "1", "prompt": "x"}', r"a.jsonl:1: expected an object"),
        ("a.jsonl", '{"id": "1", "prompt": "x", "questions": [{"id": 1, "text": "x"}]}', "no 'text'"),
        ("a.jsonl", '{"id": "1", "prompt": "x", "questions": [{"id": 1, "question": "x", "parents": [2]}]}', "'2'"),
        ("a.jsonl", '{"id": "1", "prompt": "x", "questions": [{"id": 1, "question": "x", "answer": "so"}]}', "'so'"),
        ("a.jsonl", "", "no questions"),
        ("a.json", "{}", "expected a list"),
        ("a.json", '[{"id": "1"}]', "row 0: 'choices'"),
        ("a.csv", "a,b\n1,2\n", "lacks the columns item_id"),
        ("a.csv", DSG_HEAD + "a,b\n", "record 2 has not 9 columns"),
        ("a.txt", "x", "expected questions as .json"),
    ],
)
def test_what_is_not_of_its_format_is_refused_with_the_place(tmp_path: Path, name: str, content: str, message: str):
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=message):
        load_questions(tmp_path / name)


def test_a_missing_file_is_named(tmp_path: Path):
    with pytest.raises(InputError, match=r"none.csv: cannot be read \(No such file"):
        load_questions(tmp_path / "none.csv")
