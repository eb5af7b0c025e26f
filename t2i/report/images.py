"""Images as a report shows them: read strictly, small ones magnified by whole numbers, large ones reduced."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import TYPE_CHECKING

from t2i.errors import DataError

if TYPE_CHECKING:
    from PIL import Image

WIDEST_PX = 512
"""No image is embedded or pasted wider than this."""
MAGNIFIED_PX = 256
"""Small images are magnified up to this width, so that every image is at least half as wide: 128 px."""
WEBP_QUALITY = 85
EIGHT_BIT_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr")


def magnification(width: int) -> int:
    """Whole number by which an image of that width is enlarged for view: 64 -> 4, 128 -> 2, above 128 -> 1."""
    return max(1, MAGNIFIED_PX // width)


def read_image(path: Path) -> Image.Image:
    """Read an image upright (EXIF applied) as RGB, transparency over white.

    Raises DataError naming the file if it is missing, is no image, is cut short, or has more than 8 bits a channel.
    """
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as file:
            file.load()
            image = ImageOps.exif_transpose(file)
    except FileNotFoundError as error:
        raise DataError(f"{path}: image not found; the report expects every image that a panel names.") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{path}: cannot be read as an image ({error}); generate it again.") from error
    if image.mode not in EIGHT_BIT_MODES:
        raise DataError(f"{path}: image mode is {image.mode}; a report shows 8-bit images. Convert it to RGB.")
    if "A" not in image.getbands() and "transparency" not in image.info:
        return image.convert("RGB")
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


def reduced(image: Image.Image) -> Image.Image:
    """The image itself, or a copy of width 512 (Lanczos) of a wider one."""
    from PIL import Image

    if image.width <= WIDEST_PX:
        return image
    height = max(1, round(image.height * WIDEST_PX / image.width))
    return image.resize((WIDEST_PX, height), Image.Resampling.LANCZOS)


def data_uri(image: Image.Image) -> str:
    """PNG, exact to the pixel, of an image up to 256 px wide; WebP of a larger one."""
    buffer = io.BytesIO()
    if image.width <= MAGNIFIED_PX:
        mime = "image/png"
        image.save(buffer, "PNG", optimize=True)
    else:
        mime = "image/webp"
        image.save(buffer, "WEBP", quality=WEBP_QUALITY, method=4)
    return f"data:{mime};base64,{base64.b64encode(buffer.getvalue()).decode()}"
