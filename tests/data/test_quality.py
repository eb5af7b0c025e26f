"""Checks of captions and images find what they are for, and leave good ones alone."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from t2i.data.quality.captions import count_objects, few_objects, near_texts, shingles
from t2i.data.quality.images import blurred, near_images, perceptual_hash, sharpness
from t2i.data.quality.sieve import Sieve
from t2i.data.quality.texts import TEXT_CHECKS, TextCheck
from t2i.records import Caption, CaptionedImage

GOOD = (
    "A cat sits on a mat. Behind it stands a red lamp.",
    "a small red circle above two blue squares on a white background",
    "Photograph of the image on a museum wall, sorry-looking and grey.",
    "a sign that says 'CALL NOW', in neon letters",
    "two men and two women on a beach in 1985, 35 mm film",
    "cat, mat, indoors",
    "A view of Dr. Smith's house in St. Ives.",
    "a row of row boats, row upon row",
    "Bild einer Katze",
    "a caption-like label under a painting",
)
BAD: dict[TextCheck, tuple[str, ...]] = {
    "refusal": (
        "I'm sorry, but I can't help with that.",
        "As an AI language model I cannot see it.",
        "I am unable to view",
    ),
    "boilerplate": (
        "The image shows a cat.",
        "In this photo, we see a cat",
        "Sure! Here is a caption: a cat",
        "Caption: a cat",
    ),
    "loop": ("a cat on a mat, a cat on a mat, a cat on a mat", "a red red red cat", "very big, very big, very big"),
    "truncated": ("A cat. It sits on a red", "a cat on the", "a cat, a dog,"),
    "private": ("mail ann.b@example.co.uk", "call +49 381 555 0192", "4111 1111 1111 1111", "SSN 078-05-1120"),
    "file_name": ("IMG_0412.jpg", "untitled-3", "stock photo 8812", "clipart", " DSC00412.JPG "),
}


@pytest.mark.parametrize("check", TEXT_CHECKS)
def test_check_finds_its_faults_and_leaves_good_captions_alone(check: TextCheck) -> None:
    find = TEXT_CHECKS[check]
    reasons = [find(text) for text in BAD[check]]
    assert all(reason is not None and reason.startswith(f"{check}: ") for reason in reasons)
    assert [text for text in GOOD if find(text)] == []


def test_reason_never_repeats_what_is_private() -> None:
    assert TEXT_CHECKS["private"]("mail ann@example.org") == "private: e-mail address"


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("a small red circle above two blue squares on a white background", 3),
        ("three dogs, one cat and 12 birds", 16),
        ("cats in a row", 0),
        ('{"objects": [{"name": "cat", "number": 2}, {"name": "mat"}, "lamp"]}', 4),
        ('{"objects": "cat"', 0),
    ],
)
def test_objects_are_counted_by_the_caption(text: str, number: int) -> None:
    assert count_objects(text) == number


def row(path: Path | str, text: str = "") -> CaptionedImage:
    return CaptionedImage(str(path), str(path), 8, 8, (Caption("dense", text),))


def test_images_with_few_objects_are_dropped() -> None:
    rows = [row("a", "a cat and a dog"), row("b", "a cat"), CaptionedImage("c", "c", 8, 8)]
    assert list(few_objects(rows, "dense", 2)) == [(1, "min_objects: 1"), (2, "min_objects: 0")]


def test_nearly_the_same_texts_are_kept_a_few_times() -> None:
    words = [f"word{number}" for number in range(40)]
    base, changed = " ".join(words), " ".join([*words[:-1], "other"])
    # 37 of the 39 word triples that either has are in both: 37 / 39.
    assert len(shingles(base) & shingles(changed)) / len(shingles(base) | shingles(changed)) == pytest.approx(37 / 39)
    rows = [row("a", base), row("b", "a cat on a mat"), row("c", changed), row("d", base)]
    assert [place for place, _ in near_texts(rows, "dense", 0.8, 1)] == [2, 3]
    assert [place for place, _ in near_texts(rows, "dense", 0.8, 2)] == [3]
    assert next(near_texts(rows, "dense", 0.8, 1))[1] == "near_texts: as 1 earlier ones, such as that of a"


@pytest.fixture
def photographs(tmp_path: Path) -> list[Path]:
    """Two photographs, then the first again as a JPEG, a little smaller, and turned left to right."""
    import skimage.data

    cat, cup = (Image.fromarray(np.asarray(getattr(skimage.data, n)())) for n in ("chelsea", "coffee"))
    file = io.BytesIO()
    cat.save(file, "JPEG", quality=60)
    smaller = cat.resize((400, 266))
    images = [cat, cup, Image.open(file), smaller, cat.transpose(Image.Transpose.FLIP_LEFT_RIGHT)]
    for number, image in enumerate(images):
        image.save(tmp_path / f"{number}.png")
    return [tmp_path / f"{number}.png" for number in range(len(images))]


def test_nearly_the_same_images_are_dropped_and_others_are_not(photographs: list[Path]) -> None:
    dropped = dict(near_images([row(path) for path in photographs], 3))
    assert list(dropped) == [2, 3]
    assert all(reason.endswith("bits from 0.png") for reason in dropped.values())


def test_buckets_of_the_hash_find_what_a_full_comparison_finds(monkeypatch: pytest.MonkeyPatch) -> None:
    from t2i.data.quality import images

    draw = np.random.default_rng(3)
    base = [int(value) for value in draw.integers(0, 2**63, 40)]
    flips = [sum(1 << int(bit) for bit in draw.choice(64, size, replace=False)) for size in (1, 2, 3, 4, 5) * 16]
    hashes = base + [base[number % 40] ^ flip for number, flip in enumerate(flips)]
    tables: list[dict[int, list[int]]] = [{} for _ in range(4)]
    for number, value in enumerate(hashes):
        for table, part in zip(tables, images._quarters(value), strict=True):
            table.setdefault(part, []).append(number)
    for value in hashes:
        near = {number for number, other in enumerate(hashes) if (other ^ value).bit_count() <= 3}
        assert near <= set(images._candidates(tables, value))


def test_perceptual_hash_is_64_bits_of_the_library(photographs: list[Path]) -> None:
    import imagehash

    image = Image.open(photographs[0]).convert("RGB")
    assert f"{perceptual_hash(image):016x}" == str(imagehash.phash(image))


def test_blurred_photographs_are_dropped(photographs: list[Path], tmp_path: Path) -> None:
    sharp = Image.open(photographs[0]).convert("RGB")
    sharp.filter(ImageFilter.GaussianBlur(6)).save(tmp_path / "soft.png")
    [(place, reason)] = blurred([row(photographs[0]), row(tmp_path / "soft.png")], 30)
    assert (place, reason.split(":")[0]) == (1, "min_sharpness")


def test_sharpness_is_the_variance_of_the_laplacian() -> None:
    pixels = np.zeros((5, 5), dtype=np.uint8)
    pixels[2, 2] = 10
    # The 3 x 3 Laplacian: -40 in the middle, 10 at its four neighbours, 0 at the corners; mean 0.
    assert sharpness(Image.fromarray(pixels)) == pytest.approx((40**2 + 4 * 10**2) / 9)


def test_sieve_hands_each_check_what_is_left_and_counts_reasons() -> None:
    rows = [row(str(number)) for number in range(6)]
    sieve = Sieve(rows, lambda row: f"name {row.id}")
    first = list(sieve.apply(lambda left: iter([(1, "odd: one"), (3, "odd: three")])))
    assert [row.id for row in sieve.left] == ["0", "2", "4", "5"]
    second = list(sieve.apply(lambda left: ((n, "last") for n, _ in enumerate(left) if n == len(left) - 1)))
    assert [row.id for row in sieve.left[0:9]] == ["0", "2", "4"]
    assert b"".join([*first, *second]).decode().count("name 5") == 1
    assert sieve.reasons == {"odd": 2, "last": 1}


def test_objects_of_the_world_are_counted_rightly() -> None:
    from t2i.shapes import describe as describe_scene
    from t2i.shapes import sample_scene

    scenes = [sample_scene(1, index, "train") for index in range(300)]
    assert all(count_objects(describe_scene(s, "dense")) == sum(g.number or 0 for g in s.groups) for s in scenes)
