"""Every kind of image file becomes the RGB picture that a person sees."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from t2i.data.images import (
    crop_to,
    list_images,
    open_image,
    pictures_not_read,
    seen_size,
    to_pixels,
    told_not_read,
)
from t2i.errors import DataError

# Two rows of three pixels, all different.
PIXELS = np.array(
    [[[255, 0, 0], [0, 255, 0], [0, 0, 255]], [[10, 20, 30], [200, 100, 50], [255, 255, 255]]], dtype=np.uint8
)


def saved(folder: Path, image: Image.Image, name: str = "a.png", **options: object) -> np.ndarray:
    image.save(folder / name, **options)  # pyright: ignore[reportArgumentType]
    opened = open_image(folder / name)
    assert opened.mode == "RGB"
    return np.asarray(opened)


def test_rgb_stays_as_it_is(tmp_path: Path) -> None:
    assert np.array_equal(saved(tmp_path, Image.fromarray(PIXELS)), PIXELS)


@pytest.mark.parametrize(
    ("orientation", "expected"),
    [
        (1, PIXELS),
        (2, PIXELS[:, ::-1]),
        (3, PIXELS[::-1, ::-1]),
        (4, PIXELS[::-1]),
        (5, PIXELS.transpose(1, 0, 2)),
        (6, np.rot90(PIXELS, -1)),
        (7, PIXELS[::-1, ::-1].transpose(1, 0, 2)),
        (8, np.rot90(PIXELS)),
    ],
)
def test_image_is_turned_as_its_exif_says(tmp_path: Path, orientation: int, expected: np.ndarray) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert np.array_equal(saved(tmp_path, Image.fromarray(PIXELS), exif=exif), expected)


@pytest.mark.parametrize("orientation", range(10))
@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tif", "a.webp"])
def test_size_from_the_header_is_that_of_the_opened_image(tmp_path: Path, name: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", (40, 20)).save(tmp_path / name, exif=exif)
    expected = (20, 40) if orientation in (5, 6, 7, 8) else (40, 20)
    assert open_image(tmp_path / name).size == seen_size(tmp_path / name) == expected


DAMAGED_EXIF = {
    "compression as a fraction": (">HHII", 0x0103, 5, 1, 8),
    "resolution as text": (">HHI4s", 0x011A, 2, 4, b"72 \0"),
    "maker as a float": (">HHIf", 0x010F, 11, 1, 1.0),
    "place of the GPS data beyond the end": (">HHII", 0x8825, 4, 1, 0xFFFF),
}


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize("field", DAMAGED_EXIF.values(), ids=DAMAGED_EXIF)
def test_image_is_turned_although_other_parts_of_its_exif_are_damaged(tmp_path: Path, field: tuple) -> None:
    fields = struct.pack(">HHIHH", 0x0112, 3, 1, 6, 0) + struct.pack(*field)
    exif = b"Exif\0\0MM\0*" + struct.pack(">IH", 8, 2) + fields + bytes(4)
    assert np.array_equal(saved(tmp_path, Image.fromarray(PIXELS), exif=exif), np.rot90(PIXELS, -1))
    assert seen_size(tmp_path / "a.png") == (2, 3)


def test_orientation_that_is_no_number_turns_nothing(tmp_path: Path) -> None:
    exif = b"Exif\0\0MM\0*" + struct.pack(">IHHHI4s", 8, 1, 0x0112, 2, 4, b"6\0\0\0") + bytes(4)
    assert np.array_equal(saved(tmp_path, Image.fromarray(PIXELS), exif=exif), PIXELS)
    assert seen_size(tmp_path / "a.png") == (3, 2)


def test_image_whose_exif_is_cut_off_is_refused(tmp_path: Path) -> None:
    Image.fromarray(PIXELS).save(tmp_path / "a.png", exif=b"Exif\0\0MM\0*\0\0")
    for read in (open_image, seen_size):
        with pytest.raises(DataError, match=r"a\.png: cannot be read as an image"):
            read(tmp_path / "a.png")


def test_transparency_is_laid_over_white(tmp_path: Path) -> None:
    alpha = np.array([[255, 0, 128], [255, 255, 0]], dtype=np.uint8)
    found = saved(tmp_path, Image.fromarray(np.dstack([PIXELS, alpha])))
    share = alpha[..., None] / 255
    assert np.abs(found - (PIXELS * share + 255 * (1 - share))).max() <= 1


def test_grey_with_transparency_is_laid_over_white(tmp_path: Path) -> None:
    grey = np.array([[[0, 255], [0, 0], [100, 255]]], dtype=np.uint8)
    found = saved(tmp_path, Image.fromarray(grey, "LA"))
    assert found[0, :, 0].tolist() == [0, 255, 100]


def test_palette_and_its_transparent_colour(tmp_path: Path) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putpixel((1, 0), 1)
    assert saved(tmp_path, image)[0].tolist() == [[255, 0, 0], [0, 0, 255]]
    assert saved(tmp_path, image, transparency=1)[0].tolist() == [[255, 0, 0], [255, 255, 255]]
    # A degree for each colour: 255 * (1 - 51 / 255) = 204 of white.
    assert saved(tmp_path, image, transparency=bytes([51, 255]))[0].tolist() == [[255, 204, 204], [0, 0, 255]]


def test_rgb_with_a_transparent_colour(tmp_path: Path) -> None:
    found = saved(tmp_path, Image.fromarray(PIXELS), transparency=(0, 0, 255))
    assert found[0].tolist() == [[255, 0, 0], [0, 255, 0], [255, 255, 255]]


def test_grey_and_black_and_white(tmp_path: Path) -> None:
    grey = np.array([[0, 77, 255]], dtype=np.uint8)
    assert saved(tmp_path, Image.fromarray(grey))[0].tolist() == [[0] * 3, [77] * 3, [255] * 3]
    assert saved(tmp_path, Image.fromarray(grey > 100))[0, :, 0].tolist() == [0, 0, 255]


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_sixteen_bit_grey_is_scaled_down(tmp_path: Path, name: str) -> None:
    values = np.array([[0, 257 * 77, 65535]], dtype=np.uint16)
    assert saved(tmp_path, Image.fromarray(values), name)[0, :, 0].tolist() == [0, 77, 255]


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_dark_sixteen_bit_image_stays_dark(tmp_path: Path, name: str) -> None:
    values = np.array([[0, 100, 255]], dtype=np.uint16)
    assert saved(tmp_path, Image.fromarray(values), name).max() <= 1


def test_sixteen_bit_grey_with_a_transparent_value(tmp_path: Path) -> None:
    values = np.array([[0, 300, 65535]], dtype=np.uint16)
    assert saved(tmp_path, Image.fromarray(values), transparency=300)[0, :, 0].tolist() == [0, 255, 255]


def test_twelve_bit_grey_is_scaled_by_its_own_range(tmp_path: Path) -> None:
    # Pillow writes no 12 bits: four pixels of 0, 2056, 4095 and 16, first bit first.
    data = bytes.fromhex("000808fff010")
    numbers = {256: 4, 257: 1, 258: 12, 259: 1, 262: 1, 273: 8, 277: 1, 278: 1, 279: len(data)}
    fields = b"".join(struct.pack("<HHII", tag, 4, 1, number) for tag, number in numbers.items())
    head = struct.pack("<2sHI", b"II", 42, 8 + len(data))
    (tmp_path / "a.tif").write_bytes(head + data + struct.pack("<H", len(numbers)) + fields + bytes(4))
    # 2056 * 255 / 4095 = 128.03, 16 * 255 / 4095 = 0.996
    assert np.asarray(open_image(tmp_path / "a.tif"))[0, :, 0].tolist() == [0, 128, 255, 1]


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_thirty_two_bit_grey_has_no_agreed_meaning(tmp_path: Path, dtype: type) -> None:
    Image.fromarray(np.array([[0, 100, 70000]], dtype=dtype)).save(tmp_path / "a.tif")
    with pytest.raises(DataError, match=r"a\.tif: .*mode . has no agreed range"):
        open_image(tmp_path / "a.tif")


def test_cmyk(tmp_path: Path) -> None:
    image = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    found = saved(tmp_path, image, "a.jpg", quality=100)
    assert np.abs(found.astype(int) - [255, 0, 0]).max() < 16


@pytest.mark.parametrize("suffix", ["png", "jpg", "jpeg", "jpe", "jfif", "webp", "bmp", "tif", "tiff"])
def test_every_listed_kind_of_file_can_be_read(tmp_path: Path, suffix: str) -> None:
    found = saved(tmp_path, Image.new("RGB", (16, 16), (200, 100, 50)), f"a.{suffix}")
    assert np.abs(found.astype(int) - [200, 100, 50]).max() < 8
    assert list_images(tmp_path) == [tmp_path / f"a.{suffix}"]


def test_missing_image_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.png: no such image"):
        open_image(tmp_path / "none.png")


def test_unreadable_images_are_named(tmp_path: Path) -> None:
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(tmp_path / "whole.png")
    whole = (tmp_path / "whole.png").read_bytes()
    for name, data in {"torn.png": whole[: len(whole) // 2], "empty.png": b"", "text.png": b"not an image"}.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(DataError, match=rf"{name}: cannot be read as an image"):
            open_image(tmp_path / name)
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(DataError, match=r"folder\.png"):
        open_image(tmp_path / "folder.png")


def test_images_are_listed_by_path_without_hidden_ones(tmp_path: Path) -> None:
    for name in ("b/2.PNG", "a.jpg", "b/1.png", ".hidden/x.png", "b/.y.png", "notes.txt", "a.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    assert [str(path.relative_to(tmp_path)) for path in list_images(tmp_path)] == ["a.jpg", "b/1.png", "b/2.PNG"]


def test_pictures_of_other_formats_are_told(tmp_path: Path) -> None:
    for name in ("b/c.HEIC", "a.gif", "a.txt", ".b.avif", "notes.pdf"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    others = pictures_not_read(tmp_path)
    assert others == [f"{tmp_path}/a.gif", f"{tmp_path}/b/c.HEIC"]
    assert told_not_read(others) == (
        f"2 pictures are of formats that are not read: {tmp_path}/a.gif, {tmp_path}/b/c.HEIC"
    )
    assert told_not_read(["a"] * 6).endswith(": a, a, a, a, a, ...")
    assert told_not_read([]) == ""
    with pytest.raises(DataError, match=r"no image found; known endings: .*\. 2 pictures are of formats .*/a\.gif, "):
        list_images(tmp_path)


def test_hidden_parent_folder_hides_nothing(tmp_path: Path) -> None:
    (tmp_path / ".cache/images").mkdir(parents=True)
    (tmp_path / ".cache/images/a.png").write_bytes(b"")
    assert len(list_images(tmp_path / ".cache/images")) == 1


def test_missing_and_empty_folders_are_errors(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder of images"):
        list_images(tmp_path / "none")
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(DataError, match=r"no image found; known endings: \.bmp, \.jfif"):
        list_images(tmp_path)


@pytest.mark.parametrize(
    ("size", "box"),
    [
        ((8, 8), (0, 0, 8, 8)),
        ((12, 8), (2, 0, 10, 8)),
        ((8, 13), (0, 2, 8, 10)),  # (13 - 8) // 2
    ],
)
def test_image_of_the_right_height_or_width_is_cut_in_the_middle(size: tuple[int, int], box: tuple[int, ...]) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8))
    left, top, right, bottom = box
    assert np.array_equal(np.asarray(crop_to(image, 8, 8, "a")), np.asarray(image)[top:bottom, left:right])


@pytest.mark.parametrize(
    ("size", "target", "scaled"),
    [
        ((200, 100), (50, 50), (100, 50)),
        ((100, 200), (50, 50), (50, 100)),
        ((100, 99), (50, 50), (51, 50)),  # 100 * 50 / 99 = 50.5 rounds to 51
        ((640, 480), (64, 32), (64, 48)),
        ((1000, 333), (30, 10), (30, 10)),
    ],
)
def test_larger_image_is_scaled_until_it_just_covers_the_target(
    size: tuple[int, int], target: tuple[int, int], scaled: tuple[int, int]
) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8))
    left, top = (scaled[0] - target[0]) // 2, (scaled[1] - target[1]) // 2
    expected = image.resize(scaled, Image.Resampling.LANCZOS).crop((left, top, left + target[0], top + target[1]))
    found = crop_to(image, *target, "a")
    assert found.size == target
    assert np.array_equal(np.asarray(found), np.asarray(expected))


@pytest.mark.parametrize("size", [(7, 8), (8, 7), (7, 100)])
def test_smaller_image_is_never_enlarged(size: tuple[int, int]) -> None:
    with pytest.raises(DataError, match=rf"a\.png: {size[0]}x{size[1]} pixels; at least 8x8 .*min_side"):
        crop_to(Image.new("RGB", size), 8, 8, "a.png")


def test_pixels_run_from_minus_one_to_one() -> None:
    pixels = to_pixels(Image.fromarray(PIXELS))
    assert (pixels.dtype, pixels.shape) == (torch.float32, (3, 2, 3))
    assert pixels[:, 0, 0].tolist() == [1, -1, -1]
    assert pixels[:, 1, 1].tolist() == pytest.approx([200 / 127.5 - 1, 100 / 127.5 - 1, 50 / 127.5 - 1])
