"""Facts about captions: what they say, that they parse back, and how wrong alt text is."""

from __future__ import annotations

from dataclasses import replace

import pytest

from t2i.errors import ConfigError, DataError
from t2i.shapes import WORDS, CaptionKind, Group, Scene, describe, parse_caption, sample_scene, write_caption
from t2i.shapes.captions import (
    DROPPED_ATTRIBUTE_RATE,
    FILE_NAME_RATE,
    FIRST_GROUP_ONLY_RATE,
    WRONG_ATTRIBUTE_RATE,
)

SCENES = [sample_scene(0, index, "train") for index in range(2000)]
PAIR = Scene((Group("circle", "red", "small", 2), Group("square", "orange", "large", 1)), "left of", "gray")
ONE = Scene((Group("star", "orange", "large", 1),), None, "black")


def _without(scene: Scene) -> Scene:
    """What short and spatial captions tell of a scene."""
    groups = tuple(replace(group, size=None) for group in scene.groups)
    return Scene(groups, scene.relation)


def test_captions_by_hand() -> None:
    assert describe(PAIR, "dense") == "two small red circles left of a large orange square on a gray background"
    assert describe(PAIR, "short") == "two red circles left of an orange square"
    assert describe(PAIR, "spatial") == "two red circles are left of an orange square"
    assert describe(ONE, "dense") == "a large orange star on a black background"
    assert describe(ONE, "spatial") == "an orange star in the center of the picture"
    three = Scene((replace(ONE.groups[0], number=3),), None, "black")
    assert describe(three, "spatial") == "three orange stars spread over the picture"


def test_a_dense_caption_tells_the_whole_scene() -> None:
    for index, scene in enumerate(SCENES):
        assert parse_caption(write_caption(scene, "dense", 0, index)) == scene.without_positions()


@pytest.mark.parametrize("kind", ["short", "spatial"])
def test_a_shorter_caption_tells_all_but_size_and_background(kind: CaptionKind) -> None:
    for scene in SCENES:
        assert parse_caption(describe(scene, kind)) == _without(scene)


def test_partial_scenes_survive_a_dense_caption() -> None:
    partial = [
        Scene((Group("circle"),)),
        Scene((Group(number=2),), None, "navy"),
        Scene((Group(colour="orange", number=1), Group("star", size="small")), "above"),
        Scene((Group("circle", number=1), Group("star", number=4))),
    ]
    for scene in partial:
        assert parse_caption(describe(scene, "dense")) == scene


def test_dense_captions_have_at_most_sixteen_words() -> None:
    assert max(len(describe(scene, "dense").split()) for scene in SCENES) <= 16


def test_words_are_exactly_those_that_captions_use() -> None:
    texts = [describe(scene, "spatial") for scene in SCENES] + [describe(scene, "dense") for scene in SCENES]
    alts = (write_caption(scene, "alt", 0, index) for index, scene in enumerate(SCENES))
    texts += [text for text in alts if parse_caption(text)]
    assert {word for text in texts for word in text.split()} == set(WORDS)
    assert tuple(sorted(WORDS)) == WORDS


@pytest.mark.parametrize(
    "text",
    [
        "A small red circle left of a large blue square, on a gray background.",
        "a  small red circle left of a large blue square on a gray background . ",
        "one small red circle is left of a large blue square on a gray background",
    ],
)
def test_case_commas_and_a_final_dot_do_not_matter(text: str) -> None:
    first, second = Group("circle", "red", "small", 1), Group("square", "blue", "large", 1)
    assert parse_caption(text) == Scene((first, second), "left of", "gray")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "IMG_2041.jpg",
        "clipart",
        "a dog",
        "two red circle",
        "a red circles",
        "a red circle left of",
        "red",
        "a a circle",
        "a circle on a pink background",
        "two circles in the center of the picture",
        "a circle and a star and a square",
    ],
)
def test_other_text_is_not_understood(text: str) -> None:
    assert parse_caption(text) is None


def test_and_leaves_the_relation_open() -> None:
    parsed = parse_caption("a red circle and two squares")
    assert parsed == Scene((Group("circle", "red", number=1), Group("square", number=2)))


def test_alt_text_is_keyed_by_seed_and_index() -> None:
    texts = [write_caption(PAIR, "alt", 0, index) for index in range(50)]
    assert texts == [write_caption(PAIR, "alt", 0, index) for index in range(50)]
    assert texts != [write_caption(PAIR, "alt", 1, index) for index in range(50)]


def test_alt_text_is_wrong_and_vague_at_the_stated_rates() -> None:
    count = 4000
    parsed = [parse_caption(write_caption(ONE, "alt", 0, index)) for index in range(count)]
    told = [scene.groups[0] for scene in parsed if scene is not None]
    assert 1 - len(told) / count == pytest.approx(FILE_NAME_RATE, abs=0.02)
    assert sum(group.colour is None for group in told) / len(told) == pytest.approx(DROPPED_ATTRIBUTE_RATE, abs=0.03)
    wrong = sum(group.colour not in (None, "orange") for group in told)
    assert wrong / len(told) == pytest.approx(WRONG_ATTRIBUTE_RATE, abs=0.03)


def test_alt_text_of_two_groups_often_misses_one_or_their_relation() -> None:
    parsed = [parse_caption(write_caption(PAIR, "alt", 0, index)) for index in range(2000)]
    told = [scene for scene in parsed if scene is not None]
    single = sum(len(scene.groups) == 1 for scene in told) / len(told)
    assert single == pytest.approx(FIRST_GROUP_ONLY_RATE, abs=0.03)
    assert 0.35 < sum(scene.relation == "left of" for scene in told) / len(told) < 0.5


def test_what_the_grammar_cannot_say_is_refused() -> None:
    with pytest.raises(DataError, match="two at most"):
        describe(Scene((ONE.groups[0], *PAIR.groups)), "dense")
    with pytest.raises(DataError, match="count to four"):
        describe(Scene((Group("circle", number=5),)), "dense")
    with pytest.raises(ConfigError, match="'alt', expected dense, short or spatial"):
        describe(ONE, "alt")
