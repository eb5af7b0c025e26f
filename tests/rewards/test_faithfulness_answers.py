"""Questions are asked once, in batches over images, and never again once answered; scorers are their aggregators."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import vqa_tiny
from asking import EveryPrompt, Guessing
from PIL import Image

from rewards.errors import InputError, ScoringError
from rewards.faithfulness import (
    PromptQuestions,
    Question,
    QuestionBook,
    YesNo,
    dsg_score,
    pn_points,
    points_by_category,
    tifa_score,
)
from rewards.faithfulness.answers import AnswerCache, Interrogator
from rewards.faithfulness.dsg import Dsg
from rewards.faithfulness.pn_vqa import PnVqa, negative_of
from rewards.faithfulness.tifa import Tifa
from rewards.faithfulness.vqascore import VqaScore

QUESTIONS = ["a?", "b?", "c?"]


@pytest.fixture
def pictures() -> list[Image.Image]:
    """Three grey squares: dark, light, middling."""
    return [Image.new("RGB", (8, 8), (level,) * 3) for level in (10, 200, 140)]


def test_questions_are_batched_over_images_and_asked_once(pictures: list[Image.Image]):
    backend = vqa_tiny.Counting()
    asked = [QUESTIONS, [*QUESTIONS, "a?"], ["a?"], QUESTIONS]
    found = Interrogator(backend, batch_size=4).answer([*pictures, pictures[0]], asked)
    assert found == [["no"] * 3, ["yes"] * 4, ["yes"], ["no"] * 3]
    # Seven distinct pairs, four at a time; the fourth image is the first again.
    assert [len(batch) for batch in backend.asked] == [4, 3]


@pytest.mark.parametrize("batch_size", [1, 2, 32])
def test_the_batch_size_changes_no_answer(pictures: list[Image.Image], batch_size: int):
    found = Interrogator(Guessing(), batch_size=batch_size).yes_no(pictures, [QUESTIONS] * 3)
    assert found == [[Guessing().yes_no([image], [text])[0] for text in QUESTIONS] for image in pictures]


class Failing(vqa_tiny.Counting):
    """Breaks down at the third batch."""

    def answer(self, images: list, questions: list[str]) -> list[str]:
        if len(self.asked) == 2:
            raise ConnectionError("gone")
        return super().answer(images, questions)


def test_what_was_answered_before_a_breakdown_is_not_asked_again(pictures: list[Image.Image], tmp_path: Path):
    path = tmp_path / "answers.jsonl"
    with pytest.raises(ConnectionError):
        Interrogator(Failing(), batch_size=2, answers=path).answer(pictures, [QUESTIONS] * 3)
    backend = vqa_tiny.Counting()
    found = Interrogator(backend, batch_size=2, answers=path).answer(pictures, [QUESTIONS] * 3)
    assert found == [["no"] * 3, ["yes"] * 3, ["yes"] * 3]
    assert sum(len(batch) for batch in backend.asked) == 9 - 4
    again = vqa_tiny.Counting()
    assert Interrogator(again, answers=path).answer(pictures, [QUESTIONS] * 3) == found
    assert again.asked == []


def test_another_backend_or_another_kind_of_question_is_asked_anew(pictures: list[Image.Image], tmp_path: Path):
    path = tmp_path / "answers.jsonl"
    Interrogator(vqa_tiny.Counting("1"), answers=path).answer(pictures, [["a?"]] * 3)
    for backend, mode in ((vqa_tiny.Counting("2"), "answer"), (vqa_tiny.Counting("1"), "yes_no")):
        getattr(Interrogator(backend, answers=path), mode)(pictures, [["a?"]] * 3)
        assert len(backend.asked) == 1


def test_a_torn_line_is_asked_again_and_another_file_is_refused(pictures: list[Image.Image], tmp_path: Path):
    path = tmp_path / "answers.jsonl"
    whole = Interrogator(vqa_tiny.Counting(), answers=path).yes_no(pictures, [["a?"]] * 3)
    path.write_bytes(path.read_bytes()[:-20])
    assert AnswerCache(path).torn_lines == 1
    backend = vqa_tiny.Counting()
    assert Interrogator(backend, answers=path).yes_no(pictures, [["a?"]] * 3) == whole
    assert len(backend.asked) == 1
    assert len(AnswerCache(path)) == 3
    other = tmp_path / "other.jsonl"
    other.write_text(json.dumps({"image": "a.png"}) + "\n")
    with pytest.raises(InputError, match=r"other\.jsonl:1: not a line of a file of answers"):
        AnswerCache(other)


class Short(vqa_tiny.Counting):
    """Leaves out an answer."""

    def answer(self, images: list, questions: list[str]) -> list[str]:
        return super().answer(images, questions)[:-1]


class Loud(vqa_tiny.Counting):
    """Is surer than sure."""

    def yes_no(self, images: list, questions: list[str]) -> list[YesNo]:
        return [YesNo(1.5, 0.0) for _ in images]


def test_backends_that_do_not_answer_are_an_error(pictures: list[Image.Image]):
    with pytest.raises(ScoringError, match="gave 2 answers to 3 questions"):
        Interrogator(Short()).answer(pictures[:1], [QUESTIONS])
    with pytest.raises(ScoringError, match="expected probabilities"):
        Interrogator(Loud()).yes_no(pictures[:1], [QUESTIONS])


@pytest.mark.parametrize("rule", ["one_hop", "transitive"])
def test_dsg_is_its_aggregator_on_the_answers(images: list, prompts: list[str], rule: str):
    found = Dsg("asking:EveryPrompt", "asking:Guessing", rule, batch_size=5).score(images, prompts)
    assert found.tolist() == pytest.approx(_expected(images, prompts, lambda q, a: dsg_score(q, a, rule)))
    assert np.ptp(found) > 0


def test_tifa_is_its_aggregator_on_the_answers_and_so_are_its_categories(images: list, prompts: list[str]):
    scorer = Tifa("asking:EveryPrompt", "asking:Guessing", nearest="none", batch_size=5)
    found = scorer.score(images, prompts)
    assert found.tolist() == pytest.approx(_expected(images, prompts, tifa_score))
    graded = [one for own in scorer.grade(images, prompts) for one in own]
    assert points_by_category(graded)[""] == pytest.approx(found.mean())


def test_pn_vqa_is_its_aggregator_on_both_forms(images: list, prompts: list[str]):
    scorer = PnVqa("asking:EveryPrompt", "asking:Guessing", batch_size=5)
    expected = []
    for image, item in zip(images, EveryPrompt().ask(prompts).items, strict=True):
        yes = [_share(image, question.text) for question in item.questions]
        no = [_share(image, negative_of(question)) for question in item.questions]
        expected.append(np.mean(pn_points(item.questions, yes, no)))
    assert scorer.score(images, prompts).tolist() == pytest.approx(expected)


class VersionedVqa(Guessing):
    """A plug-in with a name and a version of its own."""

    def __init__(self, version: str) -> None:
        self.version = version

    def fingerprint(self) -> dict[str, str]:
        return super().fingerprint() | {"name": "mine", "version": self.version}


class VersionedAsker(EveryPrompt):
    """As `VersionedVqa`."""

    def fingerprint(self) -> dict[str, str]:
        return super().fingerprint() | {"name": "asker", "version": "7"}


def test_names_and_versions_of_plug_ins_stand_beside_those_of_the_scorer():
    asker = "asking:EveryPrompt"
    made = {version: VersionedVqa(version) for version in ("1", "2")}
    for first, second in (
        (Dsg(asker, made["1"]), Dsg(asker, made["2"])),
        (Tifa(asker, made["1"], nearest="none"), Tifa(asker, made["2"], nearest="none")),
        (PnVqa(asker, made["1"]), PnVqa(asker, made["2"])),
        (VqaScore(made["1"]), VqaScore(made["2"])),
    ):
        assert first.fingerprint() != second.fingerprint()
        told = second.fingerprint()
        assert (told["name"], told["version"]) == (second.name, "1")
        assert (told["vqa.name"], told["vqa.version"]) == ("mine", "2")
    rules = [Dsg(f"{__name__}:VersionedAsker", Guessing(), rule).fingerprint() for rule in ("one_hop", "transitive")]
    assert [told["name"] for told in rules] == ["dsg", "dsg_transitive"]
    assert [told["questions.name"] for told in rules] == ["asker", "asker"]


def test_keys_that_do_not_clash_stay_as_they_are():
    expected = {"name": "dsg", "version": "1", "questions": "every prompt/8", "backend": "guessing/1"}
    assert Dsg("asking:EveryPrompt", "asking:Guessing").fingerprint() == expected


def test_a_prompt_without_questions_is_named_not_scored_zero(images: list):
    book = QuestionBook("mine", (PromptQuestions("1", "a cat", (Question("1", "Is there a cat?"),)),))
    with pytest.raises(InputError, match="mine: no questions for 1 of 2 prompts, first 'a dog'"):
        Dsg(book, Guessing()).score(images[:2], ["a cat", "a dog"])
    choices = QuestionBook("mine", (PromptQuestions("1", "a cat", (Question("1", "What?", "a", ("a", "b")),)),))
    with pytest.raises(InputError, match="dsg asks yes/no questions"):
        Dsg(choices, Guessing()).score(images[:1], ["a cat"])


def _expected(
    images: list, prompts: list[str], aggregate: Callable[[Sequence[Question], Sequence[str]], float]
) -> list[float]:
    items = EveryPrompt().ask(prompts).items
    return [
        aggregate(item.questions, Guessing().answer([image] * 8, [question.text for question in item.questions]))
        for image, item in zip(images, items, strict=True)
    ]


def _share(image: Image.Image, text: str) -> float:
    [answer] = Guessing().yes_no([image], [text])
    return answer.p_yes
