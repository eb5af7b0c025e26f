"""Which caption a training step sees."""

from __future__ import annotations

from collections import Counter

import pytest

from t2i.data.captions import CaptionMix, Phase
from t2i.data.diffusion import Texts
from t2i.data.examples import Dataset
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
    with pytest.raises(
        DataError, match=r"2 of 3 images have no caption of kind 'dense', or an empty one: 0\.png, blank\.png\. Drop"
    ):
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


def test_captions_of_one_kind_are_drawn_alike() -> None:
    several = CaptionedImage("1", "a.png", 8, 8, (*RECORD.captions, Caption("alt", "ALT 2"), Caption("alt", "ALT 3")))
    mix = CaptionMix({"alt": 3, "dense": 1}, dropout=0.2)
    counts = Counter(mix.draw(several, 1, step, 0) for step in range(DRAWS))
    found = {text: count / DRAWS for text, count in counts.items()}
    assert found == pytest.approx({"": 0.2, "ALT": 0.2, "ALT 2": 0.2, "ALT 3": 0.2, "DENSE": 0.2}, abs=0.02)
    assert mix.texts(several) == ["ALT", "ALT 2", "ALT 3", "DENSE"]


def test_each_caption_of_a_kind_must_hold_something() -> None:
    half = CaptionedImage("h", "half.png", 8, 8, (Caption("alt", "x"), Caption("alt", " ")))
    with pytest.raises(DataError, match="no caption of kind 'alt', or an empty one"):
        CaptionMix({"alt": 1}).check([half])


def test_texts_of_a_data_set_are_those_of_its_records_one_after_the_other() -> None:
    several = CaptionedImage("1", "a.png", 8, 8, (*RECORD.captions, Caption("alt", "ALT 2")))
    first, second = CaptionMix({"alt": 1, "dense": 1}), CaptionMix({"alt": 1}, trigger_words="sks")
    texts = Texts([RECORD, several, RECORD, several], [Dataset(0, 2, first), Dataset(2, 4, second)])
    expected = ["ALT", "DENSE", "ALT", "ALT 2", "DENSE", "sks, ALT", "sks, ALT", "sks, ALT 2"]
    assert list(texts) == [texts[number] for number in range(len(texts))] == texts[:] == expected


def test_weights_change_at_their_step_and_not_before() -> None:
    mix = CaptionMix({"alt": 1}, schedule=(Phase(10, {"dense": 1}), Phase(20, {"short": 1, "alt": 1})))
    drawn = [{mix.draw(RECORD, 1, step, position) for position in range(32)} for step in (0, 9, 10, 19, 20, 99)]
    assert drawn == [{"ALT"}, {"ALT"}, {"DENSE"}, {"DENSE"}, {"SHORT", "ALT"}, {"SHORT", "ALT"}]
    assert mix.kinds == ("alt", "dense", "short")
    assert mix.texts(RECORD) == ["ALT", "DENSE", "SHORT"]


def test_later_kinds_must_be_there_too() -> None:
    bare = CaptionedImage("b", "b.png", 8, 8, (Caption("alt", "x"),))
    with pytest.raises(DataError, match="no caption of kind 'dense'"):
        CaptionMix({"alt": 1}, schedule=(Phase(10, {"dense": 1}),)).check([bare])


LONG = CaptionedImage("1", "a.png", 8, 8, (Caption("dense", "A cat. It sleeps! On a mat?\nEnd."),))


def test_first_sentences_come_in_every_number_as_often() -> None:
    mix = CaptionMix({"dense": 1}, parts="first_sentences", trigger_words="sks")
    found = Counter(mix.draw(LONG, 1, step, 0) for step in range(4000))
    starts = ["A cat.", "A cat. It sleeps!", "A cat. It sleeps! On a mat?", "A cat. It sleeps! On a mat? End."]
    assert set(found) == {f"sks, {start}" for start in starts}
    # Three standard errors: 3 * sqrt(3 / 16 / 4000) = 0.021.
    assert all(count / 4000 == pytest.approx(0.25, abs=0.022) for count in found.values())


def test_one_sentence_is_any_of_them_and_a_single_one_is_whole() -> None:
    mix = CaptionMix({"dense": 1}, parts="one_sentence")
    assert {mix.draw(LONG, 1, step, 0) for step in range(100)} == {"A cat.", "It sleeps!", "On a mat?", "End."}
    single = CaptionedImage("1", "a.png", 8, 8, (Caption("dense", "a cat, a dog"),))
    assert {mix.draw(single, 1, step, 0) for step in range(20)} == {"a cat, a dog"}


def test_parts_leave_the_kinds_that_are_drawn_alone() -> None:
    whole = CaptionMix({"alt": 1, "dense": 1}, dropout=0.3)
    parts = CaptionMix({"alt": 1, "dense": 1}, dropout=0.3, parts="one_sentence")
    kinds = [whole.kind_at(3, step, position) for step in range(50) for position in range(4)]
    assert kinds == [parts.kind_at(3, step, position) for step in range(50) for position in range(4)]


def test_exposures_are_what_was_drawn() -> None:
    from dataclasses import dataclass

    import numpy as np

    from t2i.data.batches import KeyedBatches
    from t2i.data.examples import Dataset, LatentExamples
    from t2i.data.exposure import count_exposures
    from t2i.data.order import Stream

    @dataclass(frozen=True)
    class Streams(LatentExamples):
        """Records without latents: what is counted needs none."""

        def __len__(self) -> int:
            return 10

        def streams(self) -> list[Stream]:
            return [Stream(np.arange(10))]

    mixes = (CaptionMix({"alt": 1}, 0.5), CaptionMix({"dense": 3, "short": 1}, schedule=(Phase(5, {"alt": 1}),)))
    datasets = (Dataset(0, 4, mixes[0]), Dataset(4, 10, mixes[1]))
    batches = KeyedBatches(Streams(None, None, datasets, 9), 9, 4, 4)  # pyright: ignore[reportArgumentType]
    drawn: list[Counter[str]] = [Counter(), Counter()]
    for step in range(12):
        for position, record in enumerate(batches.records(step)):
            number = int(record >= 4)
            drawn[number][mixes[number].draw(RECORD, 9, step, position).lower() or "dropped"] += 1
    assert count_exposures(batches, 12) == [dict(count) for count in drawn]
    assert sum(sum(count.values()) for count in drawn) == 48
