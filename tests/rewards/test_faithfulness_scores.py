"""TIFA, DSG and PN-VQA by hand, from questions and answers alone: no model, no file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import vqa_tiny
from transformers import AutoTokenizer, BertModel

from rewards.errors import InputError
from rewards.faithfulness import Question, dependent_points, dsg_score, pn_points, points_by_category, tifa_score
from rewards.faithfulness.dsg import grade_dependent
from rewards.faithfulness.matching import SentenceNearest, WordNearest, match_choice, plain
from rewards.faithfulness.pn_vqa import NEGATIVE, negative_of, yes_bias
from rewards.faithfulness.questions import ancestors, in_cycles
from rewards.faithfulness.tifa import grade_choices

SURFER = (
    Question("1", "is this a surfer?", category="animal"),
    Question("2", "what color is the board?", "white", ("red", "white", "blue"), "color"),
    Question("3", "how many dogs?", "2", ("1", "2", "3"), "counting"),
    Question("4", "what color is the sky?", "gray", ("gray", "green"), "color"),
)


def chain(*parents: tuple[str, ...]) -> list[Question]:
    return [Question(str(number), f"question {number}?", parents=ones) for number, ones in enumerate(parents, 1)]


def test_tifa_is_the_share_of_right_choices_and_categories_are_over_questions():
    answers = ["Yes.", "white", "two", "blue"]
    assert tifa_score(SURFER, answers) == 0.75
    graded = grade_choices(SURFER, answers, None)
    assert [one.taken for one in graded] == ["yes", "white", "2", None]
    assert points_by_category([*graded, *graded[:1]]) == {"animal": 1.0, "color": 0.5, "counting": 1.0}


def test_tifa_refuses_what_has_no_mean():
    with pytest.raises(InputError, match="no questions"):
        tifa_score([], [])
    with pytest.raises(InputError, match="1 answers to 4 questions"):
        tifa_score(SURFER, ["yes"])


def test_plain_form_drops_case_articles_punctuation_and_number_words():
    assert plain("The Dog's, a  BIG one.") == "dog big 1"
    assert match_choice("Twenty", ("20", "2")) == "20"
    # Two choices alike in plain form: neither is meant for sure.
    assert match_choice("dog", ("a dog", "the dog")) is None


def test_nearest_by_words_takes_the_only_best_choice():
    nearest = WordNearest()
    assert nearest.nearest("a white surf board", ("red board", "white board", "car")) == "white board"
    assert nearest.nearest("a board", ("red board", "white board")) is None
    assert nearest.nearest("sand", ("red board", "white board")) is None


def test_nearest_by_sentences_is_the_cosine_of_mean_states(tmp_path: Path):
    folder = vqa_tiny.encoder(tmp_path)
    tokenizer, model = AutoTokenizer.from_pretrained(folder), BertModel.from_pretrained(folder).eval()

    def embed(text: str) -> np.ndarray:
        with torch.no_grad():
            states = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].numpy()
        mean = states.mean(axis=0)
        return mean / np.linalg.norm(mean)

    choices = ("red cat", "two dogs", "blue")
    for answer in ("cat", "dog", "what color", "many"):
        cosines = [float(embed(answer) @ embed(choice)) for choice in choices]
        best = int(np.argmax(cosines))
        assert SentenceNearest(str(folder)).nearest(answer, choices) == choices[best]
        just_under, just_over = cosines[best] - 1e-3, cosines[best] + 1e-3
        assert SentenceNearest(str(folder), min_similarity=just_under).nearest(answer, choices) == choices[best]
        assert SentenceNearest(str(folder), min_similarity=just_over).nearest(answer, choices) is None


def test_autocast_of_the_caller_does_not_round_the_cosines():
    nearest = SentenceNearest("nowhere")
    vectors = {"answer": [1.0, 0.0], "near": [0.9985, 0.0548], "nearest": [0.9995, 0.0316]}
    nearest._known |= {text: torch.tensor(vector) for text, vector in vectors.items()}
    # To bfloat16 both cosines are 1.
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert nearest.nearest("answer", ("near", "nearest")) == "nearest"


def test_one_hop_looks_at_the_parent_only_and_transitive_at_all_before_it():
    # 1 <- 2 <- 3 <- 4, and 5 by itself; only 1 is wrong.
    questions, right = chain((), ("1",), ("2",), ("3",), ()), [False, True, True, True, True]
    assert dependent_points(questions, right, "one_hop") == [0, 0, 1, 1, 1]
    assert dependent_points(questions, right, "transitive") == [0, 0, 0, 0, 1]
    assert dsg_score(questions, ["no", "yes", "Yes.", "yes", "YES"]) == 3 / 5
    assert dsg_score(questions, ["no", "yes", "Yes.", "yes", "YES"], "transitive") == 1 / 5


def test_every_parent_must_be_right():
    questions = chain((), (), ("1", "2"))
    assert dependent_points(questions, [True, False, True]) == [1, 0, 0]
    assert dependent_points(questions, [True, True, True]) == [1, 1, 1]


@pytest.mark.parametrize("rule", ["one_hop", "transitive"])
def test_order_of_questions_does_not_matter(rule: str):
    questions, right = chain((), ("1",), ("2",), ("1", "3")), [True, False, True, True]
    expected = dict(zip("1234", dependent_points(questions, right, rule), strict=True))
    for order in ([3, 2, 1, 0], [1, 3, 0, 2]):
        points = dependent_points([questions[i] for i in order], [right[i] for i in order], rule)
        assert {questions[i].id: value for i, value in zip(order, points, strict=True)} == expected


def test_cycles_and_self_loops_end():
    # 1 -> 2 -> 3 -> 1, 4 hangs on the cycle, 5 on itself.
    questions = chain(("3",), ("1",), ("2",), ("1",), ("5",))
    right = [True, True, False, True, True]
    assert dependent_points(questions, right, "one_hop") == [0, 1, 0, 1, 1]
    assert dependent_points(questions, right, "transitive") == [0, 0, 0, 0, 1]
    parents = {question.id: question.parents for question in questions}
    assert in_cycles(parents) == ["1", "2", "3"]
    assert ancestors("4", parents) == {"1", "2", "3"}


def test_what_is_neither_yes_nor_no_is_wrong():
    graded = grade_dependent(chain((), ()), ["maybe", "yes"])
    assert [(one.taken, one.points) for one in graded] == [(None, 0.0), ("yes", 1.0)]


def test_dependencies_on_nothing_or_with_one_id_twice_are_refused():
    with pytest.raises(InputError, match="hangs on '7'"):
        dependent_points(chain(("7",)), [True])
    with pytest.raises(InputError, match="ids that are unique"):
        dependent_points([Question("1", "a?"), Question("1", "b?")], [True, True])


def test_pairs_of_opposite_questions_by_hand():
    questions = [Question("1", "Is it red?"), Question("2", "Is it blue?", answer="no")]
    assert pn_points(questions, [0.9, 0.9], [0.3, 0.3]) == pytest.approx([0.8, 0.2])
    assert yes_bias([0.9, 0.7], [0.3, 0.3]) == pytest.approx(0.1)


@pytest.mark.parametrize("habit", [0.0, 0.3, 1.0])
def test_a_model_that_always_says_the_same_gets_one_half(habit: float):
    questions = [Question("1", "Is it red?"), Question("2", "Is it blue?", answer="no")]
    assert pn_points(questions, [habit] * 2, [habit] * 2) == pytest.approx([0.5, 0.5])
    assert yes_bias([habit] * 2, [habit] * 2) == pytest.approx(2 * habit - 1)


def test_a_question_without_an_opposite_gets_one():
    assert negative_of(Question("1", "Is it red?", negative="Is it not red?")) == "Is it not red?"
    assert negative_of(Question("1", "Is it {red}?")) == NEGATIVE.replace("{question}", "Is it {red}?")
