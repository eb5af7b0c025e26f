"""Draw a scene. Four-fold supersampling and box averaging: smooth edges without the ringing of sharper filters."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image, ImageDraw

from t2i.errors import DataError
from t2i.shapes.scenes import BACKGROUNDS, COLOURS, IMAGE_SIZE_PX, RADIUS_PX, Scene

_SUPERSAMPLING = 4


def render(scene: Scene) -> Image.Image:
    """The scene as a 64x64 RGB image; the same scene gives the same pixels. Raises DataError for a partial scene."""
    if not scene.is_complete or not scene.positions:
        raise DataError(f"shapes scene: {scene} is partial, expected a complete one with positions to render.")
    side = IMAGE_SIZE_PX * _SUPERSAMPLING
    image = Image.new("RGB", (side, side), BACKGROUNDS[str(scene.background)])
    draw = ImageDraw.Draw(image)
    for group, points in zip(scene.groups, scene.positions, strict=True):
        radius = RADIUS_PX[str(group.size)] * _SUPERSAMPLING
        for x, y in points:
            # Pillow puts pixel centres on whole numbers, scenes put pixel corners there.
            centre = (x * _SUPERSAMPLING - 0.5, y * _SUPERSAMPLING - 0.5)
            draw_object(draw, str(group.shape), COLOURS[str(group.colour)], centre, radius)
    return image.reduce(_SUPERSAMPLING)


def draw_object(
    draw: ImageDraw.ImageDraw, shape: str, fill: tuple[int, int, int] | int, centre: tuple[float, float], radius: float
) -> None:
    """Paint one object. It reaches at most 1.05 radii from its centre, except for the corners of a square."""
    x, y = centre
    # Pillow paints the pixels under the outline too, which adds half a pixel all round.
    radius -= 0.5
    if shape == "circle":
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=fill)
    else:
        draw.polygon([(x + radius * dx, y + radius * dy) for dx, dy in _outline(shape)], fill=fill)


def _outline(shape: str) -> list[tuple[float, float]]:
    """Corners for radius 1, y downwards. The factors give the four shapes about the same visual weight."""
    if shape == "square":
        return [(-0.88, -0.88), (0.88, -0.88), (0.88, 0.88), (-0.88, 0.88)]
    if shape == "triangle":
        return [(0.0, -1.0), (1.0, 0.85), (-1.0, 0.85)]
    angles = [-math.pi / 2 + corner * math.pi / 5 for corner in range(10)]
    lengths = [1.05 if corner % 2 == 0 else 0.45 for corner in range(10)]
    return [(length * math.cos(angle), length * math.sin(angle)) for length, angle in zip(lengths, angles, strict=True)]


def as_array(image: Image.Image | np.ndarray) -> np.ndarray:
    """A picture as its readers see it: uint8 [64, 64, 3], other sizes box-resampled.

    image: PIL of any mode, or uint8 [H, W, 3]. Raises DataError for an array of another kind.
    """
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
            raise DataError(f"image: found an array {image.dtype} {image.shape}, expected uint8 of shape [H, W, 3].")
        image = Image.fromarray(image)
    image = image.convert("RGB")
    if image.size != (IMAGE_SIZE_PX, IMAGE_SIZE_PX):
        image = image.resize((IMAGE_SIZE_PX, IMAGE_SIZE_PX), Image.Resampling.BOX)
    return np.asarray(image)
