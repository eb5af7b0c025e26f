"""What a model is shown of an image."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from t2i.data.images import open_image


def shown(path: Path, max_side_px: int) -> tuple[Image.Image, str]:
    """The image, scaled down to a longer side, and that in words: `512x384 of 1024x768`. Raises DataError."""
    image = open_image(path)
    before = f"{image.width}x{image.height}"
    if max(image.size) > max_side_px:
        image.thumbnail((max_side_px, max_side_px), Image.Resampling.LANCZOS)
    return image, f"{image.width}x{image.height} of {before}"
