"""Pictures of every colour space become the sRGB that a viewer shows."""

from __future__ import annotations

import io
import itertools
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from t2i.data.images import open_image, seen_size

# One row of three pixels; no channel is like another.
PIXELS = np.array([[[200, 10, 30], [20, 220, 120], [255, 255, 255]]], dtype=np.uint8)


def profile(kind: bytes, space: bytes, connection: bytes, tags: dict[bytes, bytes]) -> bytes:
    """An ICC profile, version 2.1: header, table of tags, tags (ICC.1:2001-04)."""
    tags = {b"desc": b"desc" + struct.pack(">II", 0, 5) + b"test\0" + bytes(78), **tags}
    table, data = struct.pack(">I", len(tags)), b""
    for name, body in tags.items():
        table += struct.pack(">4sII", name, 128 + 4 + 12 * len(tags) + len(data), len(body))
        data += body + bytes(-len(body) % 4)
    head = struct.pack(">I4sI4s4s4s", 128 + len(table) + len(data), b"", 0x02100000, kind, space, connection)
    head += bytes(12) + b"acsp" + bytes(28) + struct.pack(">3i", 63190, 65536, 54061)
    return head.ljust(128, b"\0") + table + data


def srgb() -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def swapped(name: str = "swap") -> bytes:
    """The profile of sRGB whose red is green and whose green is red, under another name of four letters."""
    data = srgb().replace(b"rXYZ", b"____").replace(b"gXYZ", b"rXYZ").replace(b"____", b"gXYZ")
    return data.replace("sRGB".encode("utf-16-be"), name.encode("utf-16-be"))


def linear_grey() -> bytes:
    return profile(b"mntr", b"GRAY", b"XYZ ", {b"kTRC": b"curv" + struct.pack(">II", 0, 0)})


def inks() -> bytes:
    """A printer whose cyan is the red of sRGB, whose black is black, and whose other inks are not seen.

    The table of 8 bits has one Lab colour for each corner of CMYK: L * 2.55, a + 128, b + 128.
    """
    white, red, black = bytes([255, 128, 128]), bytes([138, 209, 198]), bytes([0, 128, 128])
    corners = [black if k else red if c else white for c, _, _, k in itertools.product((0, 1), repeat=4)]
    matrix = struct.pack(">9i", *(65536 * (place % 4 == 0) for place in range(9)))
    ramp = bytes(range(256))
    table = b"mft1" + struct.pack(">I4B", 0, 4, 3, 2, 0) + matrix + ramp * 4 + b"".join(corners) + ramp * 3
    return profile(b"prtr", b"CMYK", b"Lab ", {b"A2B0": table, b"A2B1": table})


def opened(folder: Path, image: Image.Image, icc: bytes, name: str = "a.png") -> np.ndarray:
    image.save(folder / name, icc_profile=icc)
    found = open_image(folder / name)
    assert (found.mode, found.size) == ("RGB", image.size)
    return np.asarray(found).astype(int)


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.webp", "a.jpg"])
def test_colours_are_converted_from_the_profile_of_the_file(tmp_path: Path, name: str) -> None:
    image = Image.fromarray(PIXELS.repeat(16, 0).repeat(16, 1))
    options = {"a.jpg": {"quality": 100, "subsampling": 0}, "a.webp": {"lossless": True}}.get(name, {})
    image.save(tmp_path / name, icc_profile=swapped(), **options)
    found = np.asarray(open_image(tmp_path / name)).astype(int)
    assert np.abs(found - np.asarray(image)[..., [1, 0, 2]]).max() <= (3 if name == "a.jpg" else 1)


def test_image_of_srgb_stays_bit_for_bit(tmp_path: Path) -> None:
    every = np.arange(256, dtype=np.uint8)[None, :, None] * np.array([1, 3, 7], dtype=np.uint8)
    assert np.array_equal(opened(tmp_path, Image.fromarray(every), srgb()), every)
    # By its name: what calls itself sRGB is taken at its word.
    assert np.array_equal(opened(tmp_path, Image.fromarray(every), swapped("sRGB")), every)


def test_alpha_is_kept_and_laid_over_white(tmp_path: Path) -> None:
    alpha = np.array([[255, 0, 51]], dtype=np.uint8)
    found = opened(tmp_path, Image.fromarray(np.dstack([PIXELS, alpha])), swapped())
    assert np.abs(found - [[[10, 200, 30], [255, 255, 255], [255, 255, 255]]]).max() <= 1


def test_palette_is_converted(tmp_path: Path) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putpixel((1, 0), 1)
    assert opened(tmp_path, image, swapped())[0].tolist() == [[0, 255, 0], [0, 0, 255]]
    image.info["transparency"] = 1
    assert opened(tmp_path, image, swapped())[0].tolist() == [[0, 255, 0], [255, 255, 255]]


@pytest.mark.parametrize("deep", [False, True])
def test_grey_of_a_profile(tmp_path: Path, deep: bool) -> None:
    # 55 / 255 = 0.2157 of the light; 1.055 * 0.2157 ** (1 / 2.4) - 0.055 = 0.502.
    values = np.array([[0, 55, 255]])
    image = Image.fromarray((values * 257).astype(np.uint16) if deep else values.astype(np.uint8))
    found = opened(tmp_path, image, linear_grey())
    assert np.abs(found - np.array([0, 128, 255])[None, :, None]).max() <= 1


def test_inks_are_converted_from_the_profile_of_the_printer(tmp_path: Path) -> None:
    image = Image.new("CMYK", (3, 1), (255, 0, 0, 0))
    image.putpixel((1, 0), (0, 255, 255, 0))
    image.putpixel((2, 0), (0, 0, 0, 255))
    found = opened(tmp_path, image, inks(), "a.tif")
    assert np.abs(found - [[[255, 0, 0], [255, 255, 255], [0, 0, 0]]]).max() <= 5


def test_image_is_converted_and_turned(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 8
    Image.fromarray(PIXELS).save(tmp_path / "a.png", icc_profile=swapped(), exif=exif)
    found = np.asarray(open_image(tmp_path / "a.png")).astype(int)
    assert seen_size(tmp_path / "a.png") == (1, 3)
    assert np.abs(found - np.rot90(PIXELS[..., [1, 0, 2]])).max() <= 1


@pytest.mark.parametrize("icc", [b"no profile", b"", swapped()[:200], inks()], ids=["text", "none", "cut", "inks"])
def test_profile_that_says_nothing_about_the_image_is_passed_over(tmp_path: Path, icc: bytes) -> None:
    assert np.array_equal(opened(tmp_path, Image.fromarray(PIXELS), icc, "a.tif"), PIXELS)


def test_opened_image_does_not_carry_the_profile_that_it_was_converted_from(tmp_path: Path) -> None:
    Image.fromarray(PIXELS).save(tmp_path / "a.png", icc_profile=swapped())
    buffer = io.BytesIO()
    open_image(tmp_path / "a.png").save(buffer, "PNG")
    with Image.open(buffer) as again:
        assert again.info.get("icc_profile") != swapped()
