"""One way from anything that may be called an image to 8-bit RGB, so that all scorers see the same pixels."""

from __future__ import annotations

import os
import struct
import sys
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias, TypeGuard

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from rewards.errors import ImageError

if TYPE_CHECKING:
    import torch

ImageLike: TypeAlias = "Image.Image | Path | str | np.ndarray | torch.Tensor"

MAX_PIXELS = 64 * 1024 * 1024
"""Refused before decoding (8192 x 8192; 200 MB as RGB): a file of a few kilobytes can claim billions of pixels."""

MAX_ASPECT = 250
"""Long side over short side. Scorers scale the short side to some 224 pixels: a 1 x 100000 strip gets enormous."""

SUFFIXES = frozenset({".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})
"""Files that count as images in a folder."""

OTHER_PICTURES = frozenset(
    {".ai", ".arw", ".avif", ".cr2", ".cr3", ".dng", ".eps", ".exr", ".heic", ".heif", ".hif", ".ico", ".j2k", ".jp2"}
    | {".jxl", ".nef", ".orf", ".pbm", ".pgm", ".pnm", ".ppm", ".psd", ".qoi", ".raf", ".svg", ".tga", ".xcf"}
)
"""Endings of pictures that are not read: vectors, camera raw, layers, and what not every Pillow decodes."""

UNREADABLE: tuple[type[Exception], ...] = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    TypeError,
    struct.error,
)
"""What Pillow raises for damaged files: its decoders, and its readers of Exif."""

_ORIENTATION = 0x0112
"""Tag of Exif."""
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""Orientation -> what makes the image upright (Exif 2.32, tag 274)."""
_SAY_ORIENTATION = ("exif", "Raw profile type exif", "XML:com.adobe.xmp", "xmp")
"""Metadata in which Pillow looks for it."""

_PLAIN_MODES = frozenset({"RGB", "RGBX", "L", "1", "P", "CMYK", "YCbCr", "HSV"})
_ALPHA_MODES = frozenset({"RGBA", "RGBa", "LA", "La", "PA"})


def open_image(image: ImageLike, name: str = "image") -> Image.Image:
    """Bring an image to RGB, 8 bits a channel, upright. `name` is used in errors when the image has no path.

    - EXIF orientation is applied.
    - Alpha, in a channel or as a transparent colour, is laid over white.
    - Palette, grey and bilevel become RGB. CMYK is converted without a colour profile; embedded profiles are ignored.
    - 16-bit grey is scaled by 255/65535 and rounded; of 16-bit colour files Pillow keeps the high byte.
    - 32-bit integer or float grey and LAB have no agreed range in RGB: an error.
    - Of an animation, the first frame.
    - Arrays: [H, W] or [H, W, 1|3|4], uint8 0..255, uint16 0..65535, or float 0..1. The type decides, never
      the values.
    - Tensors: as arrays, but channels first, [H, W] or [1|3|4, H, W].

    Raises ImageError naming the image: missing, broken, cut off, empty, over MAX_PIXELS or
    MAX_ASPECT, or of no agreed range.
    """
    if isinstance(image, np.ndarray):
        return _to_rgb(_from_array(image, name), name)
    if _is_tensor(image):
        return _to_rgb(_from_array(_channels_last(image, name), name), name)
    if isinstance(image, Image.Image):
        name = str(getattr(image, "filename", "")) or name
        return _decode(image, name)
    if not isinstance(image, str | os.PathLike):
        raise ImageError(f"{name}: found {type(image).__name__}, expected a PIL image, a path, an array or a tensor.")
    try:
        with Image.open(image) as file:
            return _decode(file, str(image))
    except UnidentifiedImageError as error:
        raise ImageError(f"{image}: not an image of a known format.") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(f"{image}: more than {MAX_PIXELS} pixels; make it smaller first.") from error
    except (OSError, ValueError) as error:
        if isinstance(error, ImageError):
            raise
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
        raise ImageError(f"{image}: cannot be read ({reason}).") from error


def _is_tensor(image: object) -> TypeGuard[torch.Tensor]:
    """Whether it is a torch tensor; torch is not imported for the question."""
    module = sys.modules.get("torch")
    return module is not None and isinstance(image, module.Tensor)


def _channels_last(tensor: torch.Tensor, name: str) -> NDArray[np.generic]:
    """[C, H, W] or [H, W] -> array as `_from_array` takes it. Raises ImageError for other shapes."""
    if not (tensor.ndim == 2 or (tensor.ndim == 3 and tensor.shape[0] in (1, 3, 4))):
        raise ImageError(f"{name}: tensor of shape {tuple(tensor.shape)}; expected [H, W], or [1|3|4, H, W].")
    values = tensor.detach().cpu()
    array = (values.float() if values.is_floating_point() else values).numpy()
    return array if array.ndim == 2 else array.transpose(1, 2, 0)


def _check_size(width: int, height: int, name: str) -> None:
    if width < 1 or height < 1:
        raise ImageError(f"{name}: {width}x{height} pixels; expected at least 1x1.")
    if width * height > MAX_PIXELS:
        raise ImageError(f"{name}: {width}x{height} is more than {MAX_PIXELS} pixels; make it smaller first.")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise ImageError(f"{name}: {width}x{height} is longer than {MAX_ASPECT} times its short side; crop it first.")


def _decode(image: Image.Image, name: str) -> Image.Image:
    _check_size(*image.size, name)
    try:
        image.load()
        found = orientation(image)
    except UNREADABLE as error:
        raise ImageError(f"{name}: cannot be decoded ({error}).") from error
    return turned(_to_rgb(image, name), found)


def orientation(image: Image.Image) -> int:
    """How an opened image has still to be turned, by its Exif: 1 (not at all) to 8. What is no number of these is 1.

    Raises one of UNREADABLE for Exif that is none.
    """
    # Pillow turns a TIFF itself, its size already when it is opened.
    found = 1 if image.format == "TIFF" else image.getexif().get(_ORIENTATION, 1)
    return found if found in _TURNS else 1


def turned(pixels: Image.Image, orientation: int) -> Image.Image:
    """Pixels that nobody else holds, upright, without the metadata by which a later reader would turn them again.

    Unlike Pillow's exif_transpose it writes no Exif, which fails where that is damaged.
    """
    turn = _TURNS.get(orientation)
    upright = pixels if turn is None else pixels.transpose(turn)
    for key in _SAY_ORIENTATION:
        upright.info.pop(key, None)
    return upright


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    if image.mode.startswith("I;16"):
        return _to_rgb(_from_array(np.asarray(image).astype(np.uint16), name), name)
    if image.mode in _ALPHA_MODES or (image.mode in _PLAIN_MODES and image.has_transparency_data):
        layer = image.convert("RGBA")
        white = Image.new("RGBA", layer.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, layer).convert("RGB")
    if image.mode not in _PLAIN_MODES:
        raise ImageError(f"{name}: mode {image.mode} has no agreed range in RGB; convert it to 8 or 16 bits first.")
    return image.convert("RGB")


def _from_array(array: NDArray[np.generic], name: str) -> Image.Image:
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    is_colour = array.ndim == 3 and array.shape[2] in (3, 4)
    if not (array.ndim == 2 or is_colour) or array.size == 0:
        raise ImageError(
            f"{name}: array of shape {array.shape}; expected [H, W], or [H, W, C] with 1, 3 or 4 channels."
        )
    _check_size(array.shape[1], array.shape[0], name)
    return Image.fromarray(_to_uint8(array, name))


def _to_uint8(array: NDArray[np.generic], name: str) -> NDArray[np.uint8]:
    if array.dtype == np.uint8:
        return np.ascontiguousarray(array.astype(np.uint8))
    if array.dtype == np.uint16:
        return np.rint(array.astype(np.float64) / 257.0).astype(np.uint8)
    if np.issubdtype(array.dtype, np.floating):
        values = array.astype(np.float64)
        if not (np.isfinite(values).all() and values.min() >= 0.0 and values.max() <= 1.0):
            raise ImageError(f"{name}: float array outside 0..1; scale it, or give uint8 for 0..255.")
        return np.rint(values * 255.0).astype(np.uint8)
    raise ImageError(f"{name}: array of {array.dtype}; expected uint8 (0..255), uint16 (0..65535) or float (0..1).")
