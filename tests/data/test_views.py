"""What is seen of an image, and what SDXL is told about it."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from PIL import Image, ImageOps

from t2i.data.images import crop_to
from t2i.data.settings import ViewSettings
from t2i.data.views import View, Views
from t2i.records import Caption, CaptionedImage

IMAGE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 100, 3), dtype=np.uint8))
RECORD = CaptionedImage("ab12", "a.png", 100, 60, (Caption("alt", "a dog"), Caption("dense", "a dog on a beach")))


def views(**fields: object) -> Views:
    return Views(ViewSettings.model_validate(fields), 5)


def captioned(text: str) -> CaptionedImage:
    return dataclasses.replace(RECORD, captions=(*RECORD.captions, Caption("spatial", text)))


def test_centre_view_is_what_square_training_has_always_seen() -> None:
    view = views().view(RECORD, 0, (32, 32))
    assert np.array_equal(np.asarray(view.of(IMAGE)), np.asarray(crop_to(IMAGE, 32, 32, "a")))
    # 100x60 covers 32x32 at 53x32: 100 * 32 / 60 = 53.3; the middle begins at (53 - 32) // 2.
    assert view == View((100, 60), (53, 32), 10, 0, (32, 32))


def test_conditions_are_heights_first_and_the_crop_is_in_the_scaled_image() -> None:
    assert views().view(RECORD, 0, (32, 32)).conditions == (60, 100, 0, 10, 32, 32)
    assert views().view(RECORD, 0, (40, 24)).conditions == (60, 100, 0, 0, 24, 40)


def test_mirrored_view_lies_where_it_does_in_the_mirrored_image() -> None:
    view = views(crop="random", crops=3, flip=True).view(RECORD, 1, (32, 24))
    mirrored = views(crop="random", crops=3, flip=True).view(RECORD, 4, (32, 24))
    assert (mirrored.left, mirrored.top, mirrored.flipped) == (view.left, view.top, True)
    _, _, top, left, height, width = mirrored.conditions
    turned_first = ImageOps.mirror(IMAGE.resize(mirrored.scaled, Image.Resampling.LANCZOS))
    expected = turned_first.crop((left, top, left + width, top + height))
    assert np.array_equal(np.asarray(mirrored.of(IMAGE)), np.asarray(expected))
    assert left == view.scaled[0] - 32 - view.left


def test_random_crops_differ_stay_inside_and_are_the_images_own() -> None:
    chosen = views(crop="random", crops=40)
    found = [chosen.view(RECORD, number, (24, 24)) for number in range(40)]
    assert found == [chosen.view(dataclasses.replace(RECORD, image="elsewhere.png"), n, (24, 24)) for n in range(40)]
    assert all(0 <= view.left <= 40 - 24 and view.top == 0 for view in found)  # scaled to 40x24
    # Both ends can be reached: 17 places, 40 draws.
    assert len({view.left for view in found}) > 10
    for record, seed in ((dataclasses.replace(RECORD, id="cd34"), 5), (RECORD, 6)):
        assert [Views(chosen.settings, seed).view(record, number, (24, 24)) for number in range(40)] != found


@pytest.mark.parametrize(
    "text",
    ["a cup left of a vase", "the RIGHT hand", "right-handed", "left_side", "moving clockwise.", "(left)", "leftmost"],
)
def test_image_with_a_word_of_direction_in_any_caption_is_never_mirrored(text: str) -> None:
    chosen = views(flip=True)
    assert chosen.count(captioned(text)) == 1
    assert {chosen.draw(captioned(text), 1, step, 0) for step in range(200)} == {0}


@pytest.mark.parametrize("text", ["a bright copyright upright cleft", "a dog", "brightest alright"])
def test_words_that_only_contain_a_direction_forbid_nothing(text: str) -> None:
    assert views(flip=True).count(captioned(text)) == 2


def test_further_words_can_be_named() -> None:
    assert views(flip=True, never_flip=("sign", "links von")).count(captioned("a Sign")) == 1
    assert views(flip=True, never_flip=("sign", "links von")).count(captioned("ein Hund links von mir")) == 1
    assert views(flip=True, never_flip=("sign",)).count(captioned("a signal")) == 2


def test_half_of_the_visits_are_mirrored_and_crops_are_drawn_evenly() -> None:
    chosen = views(flip=True, crop="random", crops=2)
    drawn = [chosen.draw(RECORD, 1, step, position) for step in range(1000) for position in range(2)]
    shares = [drawn.count(number) / len(drawn) for number in range(4)]
    # Three standard errors of a share of 1/4 in 2000 draws are 0.029.
    assert shares == pytest.approx([0.25] * 4, abs=0.03)
    assert drawn == [chosen.draw(RECORD, 1, step, position) for step in range(1000) for position in range(2)]


def test_without_flip_nothing_is_drawn_or_mirrored() -> None:
    assert views().count(RECORD) == 1
    assert {views().draw(RECORD, 1, step, 0) for step in range(50)} == {0}
