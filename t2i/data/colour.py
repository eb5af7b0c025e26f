"""Pixels of every mode that image files have, as 8-bit RGB or grey."""

from __future__ import annotations

import numpy as np
from PIL import Image
from PIL.TiffImagePlugin import BITSPERSAMPLE, TiffImageFile


def to_rgb(image: Image.Image) -> Image.Image:
    """8-bit RGB: deeper grey is scaled down, transparency is laid over white. Raises ValueError for 32-bit grey."""
    colours = _without_alpha(_eight_bits(image)).convert("RGB")
    if not _has_alpha(image):
        return colours
    layer = colours.convert("RGBA")
    layer.putalpha(_alpha(image))
    return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")


def to_grey(image: Image.Image) -> Image.Image:
    """8-bit grey of a mask: its numbers are weights, which transparency leaves alone. Raises ValueError for 32 bits."""
    return _without_alpha(_eight_bits(image)).convert("RGB").convert("L")


def is_opaque(image: Image.Image) -> bool:
    """Whether no pixel lets anything through."""
    return not _has_alpha(image) or _alpha(image).getextrema()[0] == 255


def _has_alpha(image: Image.Image) -> bool:
    return image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info


def _without_alpha(image: Image.Image) -> Image.Image:
    """The colours alone. By way of RGBA, as Pillow warns of palettes with degrees of transparency otherwise."""
    return image.convert("RGBA").convert("RGB") if _has_alpha(image) else image


def _alpha(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):  # Pillow would compare what it has cut down to 8 bits
        return Image.fromarray(np.asarray(image) != image.info["transparency"]).convert("L")
    return image.convert("RGBA").getchannel("A")


def _eight_bits(image: Image.Image) -> Image.Image:
    """Grey of up to 16 bits as 8 bits, other modes as they are. Raises ValueError for 32 bits."""
    if image.mode in ("I", "F"):
        raise ValueError(f"mode {image.mode} has no agreed range in RGB; convert it to 8 or 16 bits first")
    if not image.mode.startswith("I;16"):
        return image
    # Pillow keeps the values of a TIFF of 12 bits as they are.
    bits = image.tag_v2.get(BITSPERSAMPLE, (16,))[0] if isinstance(image, TiffImageFile) else 16
    return Image.fromarray(np.rint(np.asarray(image) * (255 / (2**bits - 1))).astype(np.uint8))
