"""Every kind of image becomes the documented RGB, or an error that names it."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from rewards.errors import ImageError, InputError
from rewards.images import open_image

RED = (255, 0, 0)


def _pixel(image: Image.Image, at: tuple[int, int] = (0, 0)) -> tuple[int, ...]:
    assert image.mode == "RGB"
    return tuple(np.asarray(image)[at[1], at[0]].tolist())


def test_path_text_pil_and_arrays_agree(images: list[Image.Image], tmp_path: Path):
    for image in images:
        path = tmp_path / "image.png"
        image.save(path)
        expected = np.asarray(image)
        for given in (path, str(path), image, expected, expected / 255.0, (expected / 255.0).astype(np.float32)):
            np.testing.assert_array_equal(np.asarray(open_image(given)), expected)


def test_tensors_are_arrays_with_channels_first(images: list[Image.Image]):
    expected = np.asarray(images[2])
    tensor = torch.from_numpy(expected.copy()).permute(2, 0, 1)
    for given in (tensor, tensor / 255.0, (tensor / 255.0).double().requires_grad_()):
        np.testing.assert_array_equal(np.asarray(open_image(given)), expected)
    grey = torch.full((2, 2), 0.5, dtype=torch.bfloat16)
    assert _pixel(open_image(grey)) == _pixel(open_image(grey[None])) == (128, 128, 128)
    for wrong in (torch.zeros(8, 8, 3), torch.zeros(1, 3, 4, 4), torch.zeros(3, 4, 4, dtype=torch.int64)):
        with pytest.raises(ImageError, match=r"images\[1\]"):
            open_image(wrong, "images[1]")


def test_alpha_is_laid_over_white(tmp_path: Path):
    assert _pixel(open_image(Image.new("RGBA", (2, 2), (255, 0, 0, 0)))) == (255, 255, 255)
    assert _pixel(open_image(Image.new("RGBA", (2, 2), (255, 0, 0, 255)))) == RED
    assert _pixel(open_image(np.full((2, 2, 4), (255, 0, 0, 0), dtype=np.uint8))) == (255, 255, 255)
    assert _pixel(open_image(Image.new("LA", (2, 2), (0, 0)))) == (255, 255, 255)
    palette = Image.new("P", (2, 2), 0)
    palette.putpalette([255, 0, 0, 0, 255, 0])
    palette.putpixel((1, 0), 1)
    path = tmp_path / "palette.png"
    palette.save(path, transparency=1)
    assert [_pixel(open_image(path)), _pixel(open_image(path), (1, 0))] == [RED, (255, 255, 255)]


def test_grey_bilevel_palette_and_cmyk_become_rgb():
    assert _pixel(open_image(Image.new("L", (2, 2), 7))) == (7, 7, 7)
    assert _pixel(open_image(Image.new("1", (2, 2), 1))) == (255, 255, 255)
    assert _pixel(open_image(Image.new("CMYK", (2, 2), (0, 255, 255, 0)))) == RED
    assert _pixel(open_image(Image.new("RGB", (2, 2), RED).quantize(4))) == RED
    assert _pixel(open_image(np.full((2, 2), 7, dtype=np.uint8))) == (7, 7, 7)
    assert _pixel(open_image(np.full((2, 2, 1), 7, dtype=np.uint8))) == (7, 7, 7)


def test_sixteen_bits_are_scaled_not_clipped(tmp_path: Path):
    path = tmp_path / "grey16.png"
    array = np.array([[0, 257, 32768, 65535]], dtype=np.uint16)
    Image.fromarray(array).save(path)
    for given in (path, array):
        assert np.asarray(open_image(given))[0, :, 0].tolist() == [0, 1, 128, 255]


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_exif_orientation_is_applied(tmp_path: Path, suffix: str):
    image = Image.new("RGB", (3, 2), (0, 0, 0))
    image.putpixel((0, 0), RED)
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate 90 degrees clockwise to display
    path = tmp_path / f"turned.{suffix}"
    image.save(path, exif=exif)
    upright = open_image(path)
    assert upright.size == (2, 3)
    assert _pixel(upright, (1, 0)) == RED
    # Scorers open what was opened already.
    assert _pixel(open_image(upright), (1, 0)) == RED


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_an_image_is_turned_although_its_exif_cannot_be_written_again(
    tmp_path: Path, make_image: Callable[..., Image.Image], suffix: str
):
    turn, resolution = struct.pack(">HHIHH", 0x0112, 3, 1, 6, 0), struct.pack(">HHI4s", 0x011A, 2, 4, b"72 \0")
    exif = b"Exif\0\0MM\0*" + struct.pack(">IH", 8, 2) + turn + resolution + bytes(4)
    plain, turned = tmp_path / f"plain.{suffix}", tmp_path / f"turned.{suffix}"
    make_image(1, 30, 20).save(plain)
    make_image(1, 30, 20).save(turned, exif=exif)
    expected = np.rot90(np.asarray(open_image(plain)), -1)
    found = open_image(turned)
    np.testing.assert_array_equal(np.asarray(found), expected)
    np.testing.assert_array_equal(np.asarray(open_image(found)), expected)


def test_an_image_whose_exif_is_cut_off_is_named(tmp_path: Path, make_image: Callable[..., Image.Image]):
    make_image(1).save(tmp_path / "short.png", exif=b"Exif\0\0MM\0*\0\0")
    with pytest.raises(ImageError, match=r"short\.png: cannot be decoded"):
        open_image(tmp_path / "short.png")


def test_first_frame_of_an_animation(tmp_path: Path):
    frames = [Image.new("RGB", (4, 4), RED), Image.new("RGB", (4, 4), (0, 0, 255))]
    frames[0].save(tmp_path / "frames.gif", save_all=True, append_images=frames[1:])
    assert _pixel(open_image(tmp_path / "frames.gif")) == RED


def test_given_images_are_not_changed():
    image = Image.new("RGBA", (2, 2), (255, 0, 0, 0))
    open_image(image)
    assert image.mode == "RGBA"


@pytest.mark.parametrize("mode", ["I", "F", "LAB"])
def test_modes_without_an_agreed_range_are_refused(mode: str):
    with pytest.raises(ImageError, match=f"image 3: mode {mode}"):
        open_image(Image.new(mode, (2, 2)), "image 3")


def test_broken_files_are_named(tmp_path: Path, make_image: Callable[..., Image.Image]):
    text, cut, folder = tmp_path / "text.png", tmp_path / "cut.jpg", tmp_path / "folder.png"
    text.write_text("no image")
    make_image(1, 64, 64).save(cut)
    cut.write_bytes(cut.read_bytes()[:-200])
    folder.mkdir()
    for path in (text, cut, folder, tmp_path / "absent.png"):
        with pytest.raises(ImageError, match=path.name):
            open_image(path)


def test_a_small_file_that_claims_a_huge_image_is_refused_before_decoding(tmp_path: Path):
    for side in (9000, 60000):
        path = tmp_path / f"bomb{side}.png"
        path.write_bytes(_png_header(side, side))
        with pytest.raises(ImageError, match=rf"bomb{side}.png: .*more than \d+ pixels"):
            open_image(path)


def test_a_long_strip_is_refused():
    with pytest.raises(ImageError, match="1x1000 is longer than 250 times"):
        open_image(Image.new("RGB", (1, 1000)))


@pytest.mark.parametrize(
    "array",
    [
        np.full((2, 2, 3), 255.0),
        np.full((2, 2, 3), np.nan),
        np.full((2, 2, 3), -0.1),
        np.zeros((2, 2, 3), dtype=np.int64),
        np.zeros((2, 2), dtype=bool),
        np.zeros((3, 8, 8), dtype=np.uint8),
        np.zeros((0, 4, 3), dtype=np.uint8),
    ],
)
def test_arrays_of_another_kind_are_refused_not_guessed(array: np.ndarray):
    with pytest.raises(ImageError, match=r"images\[2\]"):
        open_image(array, "images[2]")


def test_errors_can_be_caught_as_value_errors():
    assert issubclass(ImageError, InputError)
    with pytest.raises(ValueError, match="found int"):
        open_image(3)  # pyright: ignore[reportArgumentType]


def _png_header(width: int, height: int) -> bytes:
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = b"IDAT" + zlib.compress(b"\0" * 100)
    chunks = [struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in (header, data)]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)
