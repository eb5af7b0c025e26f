"""Read image files into the form that models take."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from t2i.errors import DataError
from t2i.records import CaptionedImage

if TYPE_CHECKING:
    from torch import Tensor

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"})
MAX_PIXELS = 200_000_000
"""Larger images are refused before decoding."""


def list_images(folder: Path) -> list[Path]:
    """Image files anywhere below a folder, by path. Hidden files and folders are left out.

    Raises DataError if the folder is missing or holds no image.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder of images.")
    files = (path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file())
    found = sorted(path for path in files if not any(part.startswith(".") for part in path.relative_to(folder).parts))
    if not found:
        raise DataError(f"{folder}: no image found; known endings: {', '.join(sorted(IMAGE_SUFFIXES))}.")
    return found


def open_image(path: Path) -> Image.Image:
    """The image as RGB, turned as its EXIF orientation says, alpha laid over white.

    Raises DataError for a missing, unreadable or over-large file.
    """
    try:
        with Image.open(path) as file:
            if file.width * file.height > MAX_PIXELS:
                raise DataError(f"{path}: {file.width}x{file.height} pixels; at most {MAX_PIXELS} are decoded.")
            return to_rgb(ImageOps.exif_transpose(file))
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such image.") from error
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path}: cannot be read as an image ({error}); repair or remove it.") from error


def to_rgb(image: Image.Image) -> Image.Image:
    """8-bit RGB: 16-bit grey is scaled down, transparency is laid over white. Raises ValueError for 32-bit grey."""
    if image.mode.startswith("I;16"):
        image = Image.fromarray(np.rint(np.asarray(image) / 257.0).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError(f"mode {image.mode} has no agreed range in RGB; convert it to 8 or 16 bits first")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        layer = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    return image.convert("RGB")


def crop_to(image: Image.Image, width: int, height: int, name: str) -> Image.Image:
    """Scale down so that the image just covers width x height, then cut out its centre.

    Raises DataError if the image is smaller: nothing is enlarged.
    """
    if image.width < width or image.height < height:
        raise DataError(
            f"{name}: {image.width}x{image.height} pixels; at least {width}x{height} are needed. "
            "Drop such images with a filter stage (min_side), or train at a lower resolution."
        )
    scale = max(width / image.width, height / image.height)
    size = max(width, round(image.width * scale)), max(height, round(image.height * scale))
    resized = image if size == image.size else image.resize(size, Image.Resampling.LANCZOS)
    left, top = (size[0] - width) // 2, (size[1] - height) // 2
    return resized.crop((left, top, left + width, top + height))


def check_sizes(records: Sequence[CaptionedImage], side: int) -> None:
    """Raise DataError that names the images smaller than side x side pixels, before the first one is decoded."""
    small = [f"{row.image} ({row.width}x{row.height})" for row in records if min(row.width, row.height) < side]
    if small:
        shown = ", ".join(small[:5]) + (", ..." if len(small) > 5 else "")
        raise DataError(
            f"{len(small)} of {len(records)} images have less than the {side}x{side} pixels to train on: {shown}. "
            "Drop such images with a filter stage (min_side), or train at a lower resolution."
        )


def to_pixels(image: Image.Image) -> Tensor:
    """RGB image -> float32 [3, H, W] in [-1, 1]."""
    import torch

    array = np.asarray(image, dtype=np.float32) / 127.5 - 1
    return torch.from_numpy(np.ascontiguousarray(array.transpose(2, 0, 1)))


def content_id(path: Path) -> str:
    """First 32 hex digits of the SHA-256 of a file's bytes."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:32]
