"""Facts about questions: what is asked, how it is answered, and that neither silence nor clutter scores."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from t2i.errors import DataError
from t2i.shapes import (
    CATEGORIES,
    Group,
    Question,
    Scene,
    answer,
    describe,
    faithfulness,
    faithfulness_by_category,
    graded,
    parse_caption,
    questions,
    sample_scene,
)
from t2i.shapes.scenes import opposite

SCENES = [sample_scene(0, index, "heldout") for index in range(1000)]
CIRCLE, SQUARE = Group("circle", "red", "small", 1), Group("square", "blue", "large", 2)
PAIR = Scene((CIRCLE, SQUARE), "left of", "gray")


def _by_text(scene: Scene) -> dict[str, Question]:
    return {question.text: question for question in questions(scene)}


def test_questions_by_hand() -> None:
    assert {question.text: question.answer for question in questions(PAIR)} == {
        "is there a small red circle?": "yes",
        "what shape is the red object?": "circle",
        "what color is the circle?": "red",
        "is the circle small or large?": "small",
        "how many small red circles are there?": "1",
        "is there a large blue square?": "yes",
        "what shape are the blue objects?": "square",
        "what color are the squares?": "blue",
        "are the squares small or large?": "large",
        "how many large blue squares are there?": "2",
        "is there a blue circle?": "no",
        "how many objects are there?": "3",
        "where is the red circle, seen from the blue squares?": "left of",
        "what color is the background?": "gray",
    }


def test_a_scene_answers_its_own_questions() -> None:
    for scene in SCENES:
        assert faithfulness(scene, scene) == 1.0
        assert faithfulness(scene, scene.without_positions()) == 1.0


def test_a_dense_caption_answers_every_question_and_a_short_one_misses_sizes_and_background() -> None:
    for scene in SCENES[:200]:
        assert faithfulness(scene, parse_caption(describe(scene, "dense"))) == 1.0
        shares = faithfulness_by_category(scene, parse_caption(describe(scene, "short")))
        assert shares["size"] == shares["background"] == 0.0
        assert shares.get("spatial", 1.0) == 1.0


def test_two_groups_give_twelve_to_fourteen_questions_and_one_gives_nine() -> None:
    counts = {(len(scene.groups), len(questions(scene))) for scene in SCENES}
    assert counts == {(1, 9), (2, 12), (2, 14)}


def test_every_question_offers_its_answer_and_is_asked_once() -> None:
    for scene in SCENES:
        asked = questions(scene)
        assert all(question.answer in question.choices for question in asked)
        assert len({question.text for question in asked}) == len(asked)
        assert asked == questions(scene)


def test_every_category_is_asked_and_negatives_are_few() -> None:
    asked = [questions(scene) for scene in SCENES]
    assert {question.category for each in asked for question in each} == set(CATEGORIES)
    assert {Counter(question.answer for question in each)["no"] for each in asked} <= {1, 2}


def test_what_cannot_be_told_apart_is_not_asked() -> None:
    squares = Scene((replace(CIRCLE, shape="square", size="large"), SQUARE), "left of", "gray")
    texts = set(_by_text(squares))
    assert not any(text.startswith("what color are the") for text in texts)
    sized = Scene((replace(CIRCLE, shape="square"), SQUARE), "left of", "gray")
    assert "what color is the small square?" in _by_text(sized)


def test_an_unread_picture_answers_nothing() -> None:
    assert answer(questions(PAIR)[0], None) is None
    assert all(faithfulness(scene, None) == 0.0 for scene in SCENES)


def test_another_scene_scores_low() -> None:
    shares = [faithfulness(scene, other) for scene, other in pairwise(SCENES)]
    assert np.mean(shares) < 0.3


def test_a_turned_relation_costs_exactly_the_spatial_question() -> None:
    turned = replace(PAIR, relation=opposite("left of"))
    wrong = [question.category for question, is_right in graded(PAIR, turned) if not is_right]
    assert wrong == ["spatial"]


def test_exchanged_colours_do_not_pass() -> None:
    swapped = Scene((replace(CIRCLE, colour="blue"), replace(SQUARE, colour="red")), "left of", "gray")
    shares = faithfulness_by_category(PAIR, swapped)
    assert shares["object"] == shares["colour"] == shares["shape"] == shares["spatial"] == 0.0


def test_clutter_does_not_pass() -> None:
    every = [
        Group(shape, colour, size, 1)
        for shape in ("circle", "square")
        for colour in ("red", "blue")
        for size in ("small", "large")
    ]
    cluttered = Scene(tuple(every), None, "gray", tuple(((8.0 * step, 32.0),) for step in range(8)))
    shares = faithfulness_by_category(PAIR, cluttered)
    assert shares["colour"] == shares["shape"] == shares["size"] == 0.0
    assert answer(_by_text(PAIR)["is there a blue circle?"], cluttered) == "yes"
    assert answer(_by_text(PAIR)["how many objects are there?"], cluttered) is None


def test_an_extra_object_is_noticed() -> None:
    extra = Scene((*PAIR.groups, Group("star", "green", "small", 1)), None, "gray")
    by_text = _by_text(PAIR)
    assert answer(by_text["how many objects are there?"], extra) == "4"
    assert answer(by_text["is there a small red circle?"], extra) == "yes"


def test_an_unknown_attribute_leaves_unsure_what_hangs_on_it() -> None:
    observed = Scene(
        (CIRCLE, replace(SQUARE, shape=None)), None, "gray", (((16.0, 32.0),), ((48.0, 16.0), (48.0, 48.0)))
    )
    by_text = _by_text(PAIR)
    assert answer(by_text["is there a small red circle?"], observed) == "yes"
    assert answer(by_text["is there a large blue square?"], observed) is None
    assert answer(by_text["is there a blue circle?"], observed) is None
    assert answer(by_text["what color is the circle?"], observed) is None
    assert answer(by_text["how many objects are there?"], observed) is None
    assert answer(by_text["where is the red circle, seen from the blue squares?"], observed) is None


def test_positions_decide_the_relation_among_more_than_two_groups() -> None:
    groups = (CIRCLE, replace(SQUARE, number=1), Group("star", "green", "small", 1))
    observed = Scene(groups, None, "gray", (((50.0, 32.0),), ((12.0, 32.0),), ((32.0, 8.0),)))
    assert answer(_by_text(PAIR)["where is the red circle, seen from the blue squares?"], observed) == "right of"


def test_a_vague_caption_asks_only_what_it_tells() -> None:
    scene = parse_caption("a circle")
    assert scene is not None
    assert [question.text for question in questions(scene)] == [
        "is there a circle?",
        "what shape is the object?",
        "how many circles are there?",
        "how many objects are there?",
    ]


def test_a_scene_without_any_question_has_no_score() -> None:
    with pytest.raises(DataError, match="too vague"):
        faithfulness(Scene((Group(),)), PAIR)
