"""Read image files into the form that models take."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from PIL import Image

from rewards.images import OTHER_PICTURES, UNREADABLE, orientation, turned
from t2i.data.colour import is_opaque, to_grey, to_rgb
from t2i.errors import DataError
from t2i.json_values import printable, unwritable
from t2i.records import CaptionedImage
from t2i.resources import files_in

if TYPE_CHECKING:
    from torch import Tensor

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".tif", ".tiff"})
NOT_READ = OTHER_PICTURES | {".gif"}
"""Endings of pictures that are not read; scorers read the first image of a film, nothing is trained on it."""
MASK_ENDING = ".mask.png"
"""`picture.mask.png` is the mask of `picture.jpg` beside it."""
ORIENTATION = 0x0112
"""Tag of Exif."""
MAX_PIXELS = 200_000_000
"""Larger images are refused before decoding."""


def list_images(folder: Path) -> list[Path]:
    """Image files anywhere below a folder, by path. Hidden files and folders, and masks of images, are left out.

    Raises DataError if the folder is missing, holds no image, or one whose name is not UTF-8.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder of images.")
    # The same walk that hashes the folder: what counts for the one counts for the other, linked folders too.
    found = sorted(path for path in files_in(folder) if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file())
    pictured = {path.with_suffix("") for path in found}
    found = [path for path in found if not _is_mask(path, pictured)]
    for path in found:
        if problem := unwritable(str(path)):
            raise DataError(f"{folder}: an image is called {problem}; rename it.")
    if not found:
        others = told_not_read(pictures_not_read(folder))
        known = f"known endings: {', '.join(sorted(IMAGE_SUFFIXES))}"
        raise DataError(f"{folder}: no image found; {known}." + (f" {others}." if others else ""))
    return found


def pictures_not_read(folder: Path) -> list[str]:
    """Files anywhere below a folder that `list_images` leaves out although they are pictures, by their ending."""
    return sorted(printable(str(path)) for path in files_in(folder) if path.suffix.lower() in NOT_READ)


def told_not_read(names: Sequence[str]) -> str:
    """How many pictures are not read, and the first of them; empty for none."""
    shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
    return f"{len(names)} pictures are of formats that are not read: {shown}" if names else ""


def _is_mask(path: Path, pictured: set[Path]) -> bool:
    """Whether it is the mask of an image; without one, a picture with an odd name."""
    return path.name.endswith(MASK_ENDING) and path.with_name(path.name.removesuffix(MASK_ENDING)) in pictured


def open_image(path: Path) -> Image.Image:
    """The image as sRGB, turned as its EXIF orientation says, alpha laid over white; see `to_rgb` for colour profiles.

    Raises DataError for a missing, unreadable or over-large file.
    """
    return _opened(path, lambda image: _upright(image, to_rgb(image)))


def open_grey(path: Path) -> Image.Image:
    """A mask as 8-bit grey, turned as an image is.

    Raises DataError as `open_image`, and for transparency: what white on nothing means, every tool says otherwise.
    """

    def look(image: Image.Image) -> Image.Image:
        if not is_opaque(image):
            raise DataError(
                f"{path}: has transparency; a mask is grey, white where the loss looks. Flatten it over black."
            )
        return _upright(image, to_grey(image))

    return _opened(path, look)


def seen_size(path: Path) -> tuple[int, int]:
    """Width and height of an image turned as its EXIF orientation says, from its header where the format has that."""
    return _opened(path, _turned_size)


def seen_size_of(data: bytes, where: str) -> tuple[int, int]:
    """As `seen_size`, of a file's bytes. where: what messages call it."""
    return _opened(io.BytesIO(data), _turned_size, where)


def image_suffix(data: bytes, where: str) -> str:
    """Ending of the format that a file's bytes are of. Raises DataError for no image, or a format not of the list."""
    # MPO: a JPEG with a further picture behind it, as phones write for depth; readers of JPEG see the first.
    names = {"PNG": ".png", "JPEG": ".jpg", "MPO": ".jpg", "WEBP": ".webp", "BMP": ".bmp", "TIFF": ".tif"}
    found = _opened(io.BytesIO(data), lambda image: image.format or "", where)
    if found not in names:
        raise DataError(f"{where}: an image of the format {found}; known: {', '.join(names)}.")
    return names[found]


def _upright(file: Image.Image, pixels: Image.Image) -> Image.Image:
    return turned(pixels, orientation(file))


def _turned_size(image: Image.Image) -> tuple[int, int]:
    return (image.height, image.width) if orientation(image) >= 5 else image.size


_Seen = TypeVar("_Seen")


def _opened(place: Path | io.BytesIO, look: Callable[[Image.Image], _Seen], name: str = "") -> _Seen:
    path = name or place
    try:
        with Image.open(place) as file:
            if file.width * file.height > MAX_PIXELS:
                raise DataError(f"{path}: {file.width}x{file.height} pixels; at most {MAX_PIXELS} are decoded.")
            return look(file)
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such image.") from error
    except (*UNREADABLE, Image.DecompressionBombError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path}: cannot be read as an image ({error}); repair or remove it.") from error


def crop_to(image: Image.Image, width: int, height: int, name: str) -> Image.Image:
    """Scale down so that the image just covers width x height, then cut out its centre.

    Raises DataError if the image is smaller: nothing is enlarged.
    """
    if image.width < width or image.height < height:
        raise DataError(
            f"{name}: {image.width}x{image.height} pixels; at least {width}x{height} are needed. "
            "Drop such images with a filter stage (min_side), or train at a lower resolution."
        )
    size = scaled_size(image.size, (width, height))
    resized = image if size == image.size else image.resize(size, Image.Resampling.LANCZOS)
    left, top = (size[0] - width) // 2, (size[1] - height) // 2
    return resized.crop((left, top, left + width, top + height))


def scaled_size(original: tuple[int, int], target: tuple[int, int]) -> tuple[int, int]:
    """Width and height at which an image just covers the target, its aspect kept up to rounding."""
    scale = max(target[0] / original[0], target[1] / original[1])
    return max(target[0], round(original[0] * scale)), max(target[1], round(original[1] * scale))


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
