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
    with Image.open(io.BytesIO(bare)) as image:
        assert set(image.getexif()) <= {0x0112}


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
