"""Pixels of every mode and colour profile that image files have, as 8-bit sRGB or grey."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageCms
from PIL.TiffImagePlugin import BITSPERSAMPLE, TiffImageFile

_MODES = {"RGB ": "RGB", "GRAY": "L", "CMYK": "CMYK"}
"""Colour space of a profile -> mode of the pixels that it is about."""


def to_rgb(image: Image.Image) -> Image.Image:
    """8-bit sRGB: deeper grey is scaled down, the file's colour profile applied, transparency laid over white.

    A profile that cannot be read, or is of another colour space, counts as none, as in viewers: the numbers are sRGB.
    Raises ValueError for 32-bit grey.
    """
    colours = _to_srgb(_without_alpha(_eight_bits(image)), image.info.get("icc_profile"))
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


def _to_srgb(image: Image.Image, icc: bytes | None) -> Image.Image:
    """An image without alpha as RGB. icc: its profile."""
    if not icc:
        return image.convert("RGB")
    try:
        source = ImageCms.core.profile_frombytes(icc)
        mode = _plain_mode(image)
        # Most profiles are sRGB by another hand: to convert from these would change the last bits and nothing else.
        if _MODES.get(source.xcolor_space) != mode or (source.profile_description or "").startswith("sRGB"):
            return image.convert("RGB")
        # Relative colorimetric, black to black: what painting programs do with the pictures that they open.
        intent, flags = ImageCms.Intent.RELATIVE_COLORIMETRIC, ImageCms.Flags.BLACKPOINTCOMPENSATION
        transform = ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, "RGB", intent, flags)
        return transform.apply(image.convert(mode))
    except (OSError, ImageCms.PyCMSError):
        return image.convert("RGB")


def _plain_mode(image: Image.Image) -> str:
    """The mode in which a profile would be about the pixels."""
    return {"P": "RGB", "RGBX": "RGB", "YCbCr": "RGB", "1": "L"}.get(image.mode, image.mode)


def _has_alpha(image: Image.Image) -> bool:
    return image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info


def _without_alpha(image: Image.Image) -> Image.Image:
    """The colours alone; grey stays grey. By way of RGBA, as Pillow warns of palettes with degrees of transparency."""
    if not _has_alpha(image):
        return image
    return image.convert("RGBA").convert("L" if image.mode in ("L", "LA") else "RGB")


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
