"""Images small enough to be part of a page."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from rewards.errors import ImageError
from rewards.images import open_image

SIDE_PX = 208


@dataclass(frozen=True)
class Thumbnail:
    """An embedded picture; source: None when the image cannot be read any more."""

    source: str | None
    width: int
    height: int


def thumbnail(image: Path) -> Thumbnail:
    """A picture of at most SIDE_PX; smaller images are enlarged by whole factors, without smoothing."""
    try:
        opened = open_image(image)
    except ImageError:
        return Thumbnail(None, SIDE_PX, SIDE_PX)
    factor = max(1, SIDE_PX // max(opened.size))
    if max(opened.size) > SIDE_PX:
        opened.thumbnail((SIDE_PX, SIDE_PX), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    is_small = opened.width * opened.height <= 64 * 64
    opened.save(file, "PNG") if is_small else opened.save(file, "JPEG", quality=88)
    kind = "png" if is_small else "jpeg"
    data = base64.b64encode(file.getvalue()).decode()
    return Thumbnail(f"data:image/{kind};base64,{data}", opened.width * factor, opened.height * factor)
