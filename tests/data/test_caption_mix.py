"""Which caption a training step sees."""

from __future__ import annotations

from collections import Counter

import pytest

from t2i.data.captions import CaptionMix
from t2i.errors import DataError
from t2i.records import Caption, CaptionedImage

KINDS = ("alt", "short", "dense")
RECORD = CaptionedImage("1", "a.png", 8, 8, tuple(Caption(kind, kind.upper()) for kind in KINDS))
DRAWS = 6000


def frequencies(mix: CaptionMix) -> dict[str, float]:
    counts = Counter(mix.draw(RECORD, 1, step, position) for step in range(DRAWS // 6) for position in range(6))
    return {text: count / DRAWS for text, count in counts.items()}


def test_kinds_are_drawn_by_weight() -> None:
    found = frequencies(CaptionMix({"alt": 1, "dense": 5, "short": 2}))
    # Three standard errors are at most 3 * sqrt(0.25 / 6000) = 0.019.
    assert found == pytest.approx({"ALT": 1 / 8, "DENSE": 5 / 8, "SHORT": 2 / 8}, abs=0.02)


def test_dropout_gives_the_empty_prompt_and_leaves_the_mix_alone() -> None:
    found = frequencies(CaptionMix({"alt": 1, "dense": 3}, dropout=0.2))
    assert found == pytest.approx({"": 0.2, "ALT": 0.2, "DENSE": 0.6}, abs=0.02)


@pytest.mark.parametrize(("dropout", "texts"), [(0.0, {"ALT"}), (1.0, {""})])
def test_dropout_of_none_and_of_all(dropout: float, texts: set[str]) -> None:
    assert set(frequencies(CaptionMix({"alt": 1}, dropout))) == texts


def test_draw_is_a_function_of_seed_step_and_position() -> None:
    mix = CaptionMix({"alt": 1, "dense": 1}, dropout=0.3)
    first = [mix.draw(RECORD, 1, step, position) for step in range(20) for position in range(4)]
    again = [mix.draw(RECORD, 1, step, position) for step in range(20) for position in range(4)]
    other = [mix.draw(RECORD, 2, step, position) for step in range(20) for position in range(4)]
    assert first == again != other


def test_records_that_lack_a_kind_are_listed() -> None:
    bare = [CaptionedImage(str(n), f"{n}.png", 8, 8, (Caption("alt", "x"),)) for n in range(7)]
    blank = CaptionedImage("b", "blank.png", 8, 8, (Caption("alt", "x"), Caption("dense", " \n")))
    mix = CaptionMix({"alt": 1, "dense": 1})
    with pytest.raises(DataError, match=r"2 of 3 images have no caption of kind 'dense': 0\.png, blank\.png\. Drop"):
        mix.check([bare[0], RECORD, blank])
    with pytest.raises(DataError, match=r"7 of 7 .* 4\.png, \.\.\.\."):
        mix.check(bare)
    mix.check([RECORD])


def test_trigger_words_stand_before_every_caption_but_not_before_the_empty_prompt() -> None:
    found = frequencies(CaptionMix({"alt": 1, "dense": 3}, dropout=0.2, trigger_words="sks dog"))
    assert found == pytest.approx({"": 0.2, "sks dog, ALT": 0.2, "sks dog, DENSE": 0.6}, abs=0.02)


def test_texts_are_all_that_can_be_drawn() -> None:
    mix = CaptionMix({"alt": 1, "dense": 3}, trigger_words="sks")
    assert mix.texts(RECORD) == ["sks, ALT", "sks, DENSE"]
    assert set(frequencies(mix)) == set(mix.texts(RECORD))
