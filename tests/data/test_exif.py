"""Images without their metadata: the same pixels, standing as before, and nothing else."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps, PngImagePlugin

from t2i.data.formats.exif import without_metadata
from t2i.errors import DataError

SECRET = "54.1 N 12.1 E"
FORMATS = {".jpg": "JPEG", ".png": "PNG", ".webp": "WEBP"}


def photograph(suffix: str, orientation: int) -> bytes:
    """An image with a description, a camera and a place in its Exif, and a comment or text."""
    image = Image.effect_noise((24, 16), 60).convert("RGB")
    exif = Image.Exif()
    exif[0x010E], exif[0x010F], exif[0x0112] = SECRET, SECRET, orientation
    options: dict[str, Any] = {"exif": exif}
    if suffix == ".png":
        info = PngImagePlugin.PngInfo()
        info.add_text("Author", SECRET)
        options["pnginfo"] = info
    if suffix == ".jpg":
        options["comment"] = SECRET
    if suffix == ".webp":
        options["xmp"] = SECRET.encode()
    file = io.BytesIO()
    image.save(file, FORMATS[suffix], **options)
    return file.getvalue()


def seen(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("orientation", [1, 6])
def test_metadata_go_and_pixels_and_orientation_stay(suffix: str, orientation: int) -> None:
    data = photograph(suffix, orientation)
    bare = without_metadata(data, suffix, "a")
    assert SECRET.encode() in data
    assert SECRET.encode() not in bare
    assert np.array_equal(seen(bare), seen(data))
    assert seen(bare).shape == ((16, 24, 3) if orientation == 1 else (24, 16, 3))
    assert without_metadata(bare, suffix, "a") == bare
    if suffix == ".jpg":
        assert [without_metadata(data, other, "a") for other in (".jpeg", ".jpe", ".JFIF")] == [bare] * 3
    with Image.open(io.BytesIO(bare)) as image:
        assert set(image.getexif()) <= {0x0112}


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_rows": 1}])
def test_what_stands_behind_the_end_of_a_jpeg_goes_and_all_scans_stay(options: dict[str, Any]) -> None:
    file = io.BytesIO()
    Image.effect_noise((40, 24), 90).convert("RGB").save(file, "JPEG", quality=95, **options)
    data = file.getvalue()
    assert without_metadata(data + photograph(".jpg", 1) + SECRET.encode(), ".jpg", "a") == data
    comment = b"\xff\xfe" + (2 + len(SECRET)).to_bytes(2, "big") + SECRET.encode()
    assert without_metadata(data[:-2] + comment + data[-2:], ".jpg", "a") == data


def test_further_pictures_of_a_camera_go_with_their_list() -> None:
    file = io.BytesIO()
    first, second = (Image.open(io.BytesIO(photograph(".jpg", 1))) for _ in range(2))
    first.save(file, "MPO", save_all=True, append_images=[second], exif=second.getexif())
    assert file.getvalue().count(b"MPF\0") == 1
    bare = without_metadata(file.getvalue(), ".jpg", "a")
    assert SECRET.encode() not in bare
    assert b"MPF\0" not in bare
    with Image.open(io.BytesIO(bare)) as image:
        assert getattr(image, "n_frames", 1) == 1
        assert image.size == (24, 16)


def test_colour_profile_stays() -> None:
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "JPEG", icc_profile=b"a profile")
    with Image.open(io.BytesIO(without_metadata(file.getvalue(), ".jpg", "a"))) as image:
        assert image.info["icc_profile"] == b"a profile"


def test_other_formats_and_broken_files_are_refused() -> None:
    with pytest.raises(DataError, match=r"a: \.tif files are not rewritten"):
        without_metadata(b"", ".tif", "a")
    for suffix in FORMATS:
        with pytest.raises(DataError, match="a: not a whole"):
            without_metadata(photograph(suffix, 1)[:9], suffix, "a")
