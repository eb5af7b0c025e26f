"""Read a picture back into a scene by classical image analysis, or say that it cannot be read.

Background: median of the border. Objects: connected regions that differ from it. Colour: nearest of the palette. Shape:
overlap with templates of equal area. What is not clearly one thing stays None; a picture that is not clearly a
picture of this world (photograph, noise, blank) gives no scene at all.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from t2i.shapes.render import as_array, draw_object
from t2i.shapes.scenes import (
    BACKGROUNDS,
    COLOURS,
    RADIUS_PX,
    SHAPES,
    Group,
    Scene,
    assemble_scene,
)

# Distances are Euclidean in RGB of 0 to 255. The closest object and background colours are 94 apart, the closest two
# object colours 72, a small autoencoder's error is about 10.
BACKGROUND_TOLERANCE = 32.0
"""Largest distance of a background from its palette colour, and of a clean border pixel from the background."""
CLEAN_BORDER_SHARE = 0.85
FOREGROUND_DISTANCE = 40.0
COLOUR_TOLERANCE = 60.0
COLOUR_MARGIN = 0.9
"""The nearest palette colour must be closer than this share of the distance to the next."""
INNER_SHARE = 0.7
"""A region's inner pixels are this share as far from the background as its farthest ones: the rest is soft edge."""
FLAT_SHARE = 0.7
"""Of a region's inner pixels, how many must be within `COLOUR_TOLERANCE` of its colour."""
SPECK_PX = 10
MAX_SPECKS = 4
MAX_REGIONS = 8
MIN_OVERLAP = 0.65
OVERLAP_MARGIN = 0.01
"""By how much the best shape must beat the next."""
EDGE_BLURS_PX = (0.35, 0.85)
"""Blurs of the templates' edges that are tried: of the renderer's own pixels, and of a soft reconstruction."""
RADIUS_TOLERANCE = 0.2
"""Largest relative difference of an object's radius from that of its size."""

_TEMPLATE_RADIUS_PX = 64
_TEMPLATE_HALF_PX = 128
_Window = tuple[slice, slice]
_Floats = np.ndarray[tuple[int, ...], np.dtype[np.float64]]
_Bools = np.ndarray[tuple[int, ...], np.dtype[np.bool_]]


@dataclass(frozen=True)
class Reading:
    """What was read. scene: None when unsure about the whole image, and then `reason` says why.

    regions: how many painted regions there are; recognised: how many of them are clearly one object. A region that is
    not is a group of its own in the scene, with None for what is unknown of it.
    """

    scene: Scene | None
    regions: int
    recognised: int
    reason: str = ""


@dataclass(frozen=True)
class _Region:
    group: Group
    centre: tuple[float, float]

    @property
    def is_recognised(self) -> bool:
        return self.group.is_complete


def read_scene(image: Image.Image | np.ndarray) -> Reading:
    """Read an image: PIL of any mode, or uint8 [H, W, 3]. Sizes other than 64x64 are box-resampled to 64x64 first.

    In the scene, objects alike in shape, colour and size form a group. With exactly two groups the relation is
    `left of` or `above`, or None where no direction is clear. Raises DataError for an array of another kind.
    """
    pixels: _Floats = as_array(image).astype(np.float64)
    border = np.concatenate([pixels[0], pixels[-1], pixels[1:-1, 0], pixels[1:-1, -1]])
    ground: _Floats = np.median(border, axis=0)
    background, distance, _ = _nearest(ground, BACKGROUNDS)
    if distance > BACKGROUND_TOLERANCE:
        return Reading(None, 0, 0, "the border has no color of a background")
    if np.mean(_distances(border, ground) < BACKGROUND_TOLERANCE) < CLEAN_BORDER_SHARE:
        return Reading(None, 0, 0, "the border is not uniform")
    labels, windows = _label_regions(_distances(pixels, ground) > FOREGROUND_DISTANCE)
    areas = np.bincount(labels.ravel())[1:]
    painted = [(label, window) for label, window in enumerate(windows, 1) if areas[label - 1] >= SPECK_PX]
    problem = _count_problem(len(painted), len(windows) - len(painted))
    if problem:
        return Reading(None, len(painted), 0, problem)
    regions = [_read_region(pixels, ground, labels, label, window) for label, window in painted]
    recognised = sum(region.is_recognised for region in regions)
    if 2 * recognised < len(regions):
        return Reading(None, len(regions), recognised, "most regions are no object of this world")
    scene = assemble_scene([(region.group, region.centre) for region in regions], background)
    return Reading(scene, len(regions), recognised)


def _count_problem(painted: int, specks: int) -> str:
    if specks > MAX_SPECKS:
        return f"{specks} specks: noise or texture"
    if painted == 0:
        return "nothing but background"
    return f"{painted} regions: too many" if painted > MAX_REGIONS else ""


def _distances(pixels: _Floats, colour: _Floats) -> _Floats:
    return np.sqrt(((pixels - colour) ** 2).sum(axis=-1))


def _nearest(colour: _Floats, palette: Mapping[str, tuple[int, int, int]]) -> tuple[str, float, float]:
    """Name of the nearest palette colour, its distance and that of the next."""
    distances = _distances(np.array(list(palette.values()), dtype=np.float64), colour)
    first, second = np.argsort(distances)[:2]
    return list(palette)[first], float(distances[first]), float(distances[second])


def _label_regions(mask: _Bools) -> tuple[np.ndarray, list[_Window]]:
    """Labels [64, 64] of the connected regions, from 1, and for each the rows and columns it is in, and 2 px around."""
    from scipy import ndimage

    labels = np.zeros(mask.shape, dtype=np.int32)
    ndimage.label(mask, output=labels)
    found = [window for window in ndimage.find_objects(labels) if window is not None]
    padded = [[slice(max(0, extent.start - 2), extent.stop + 2) for extent in window] for window in found]
    return labels, [(rows, columns) for rows, columns in padded]


def _read_region(pixels: _Floats, ground: _Floats, labels: np.ndarray, label: int, window: _Window) -> _Region:
    """Recognise one region as far as it can be. pixels, labels: of the whole image."""
    from scipy import ndimage

    pixels, labels, left, top = pixels[window], labels[window], window[1].start, window[0].start
    mask = labels == label
    colour, is_flat = _inner_colour(pixels, ground, mask)
    name, distance, next_distance = _nearest(colour, COLOURS)
    is_known = is_flat and distance < min(COLOUR_TOLERANCE, COLOUR_MARGIN * next_distance)
    # Pixels on the edge mix object and background; the share of the object is what the templates hold.
    near = ndimage.binary_dilation(mask) & ((labels == 0) | mask)
    direction = colour - ground
    coverage = np.where(near, np.clip((pixels - ground) @ direction / (direction @ direction), 0, 1), 0)
    # The window ends 2 px outside the region, except where the image ends.
    is_cut = max(coverage[0].max(), coverage[-1].max(), coverage[:, 0].max(), coverage[:, -1].max()) > 0.5
    shape, radius, (x, y) = _fit_shape(coverage)
    if is_cut:
        shape, radius = None, 0.0
    return _Region(Group(shape, name if is_known else None, _size_of(radius), 1), (left + x, top + y))


def _inner_colour(pixels: _Floats, ground: _Floats, mask: _Bools) -> tuple[_Floats, bool]:
    """Median colour of a region without its soft edge, and whether nearly all of the inside has it."""
    from scipy import ndimage

    distances = np.where(mask, _distances(pixels, ground), 0)
    core: _Bools = distances > INNER_SHARE * np.percentile(distances[mask], 80)
    inner: _Bools = np.asarray(ndimage.binary_erosion(core), dtype=np.bool_)
    inside = pixels[inner if inner.sum() >= SPECK_PX else core]
    colour: _Floats = np.median(inside, axis=0)
    return colour, bool(np.mean(_distances(inside, colour) < COLOUR_TOLERANCE) >= FLAT_SHARE)


def _size_of(radius: float) -> str | None:
    close = [size for size, own in RADIUS_PX.items() if abs(radius / own - 1) < RADIUS_TOLERANCE]
    return close[0] if len(close) == 1 else None


def _fit_shape(coverage: _Floats) -> tuple[str | None, float, tuple[float, float]]:
    """Shape, radius and centre of the template of equal area and centroid that overlaps most; shape None if unclear."""
    area, (height, width) = coverage.sum(), coverage.shape
    middle_x = float(coverage.sum(axis=0) @ (np.arange(width) + 0.5) / area)
    middle_y = float(coverage.sum(axis=1) @ (np.arange(height) + 0.5) / area)
    fits: list[tuple[float, str, float, tuple[float, float]]] = []
    for shape in SHAPES:
        unit_area, unit_drop = _area_and_drop(shape)
        radius = float(np.sqrt(area / unit_area))
        centre = (middle_x, middle_y - unit_drop * radius)
        size = min(RADIUS_PX, key=lambda size: abs(RADIUS_PX[size] - radius))
        overlap = max(
            _overlap(coverage, _place(_template(shape, size, blur), coverage.shape, centre, radius))
            for blur in EDGE_BLURS_PX
        )
        fits.append((overlap, shape, radius, centre))
    best, second = sorted(fits, reverse=True)[:2]
    is_clear = best[0] >= MIN_OVERLAP and best[0] - second[0] >= OVERLAP_MARGIN
    return best[1] if is_clear else None, best[2], best[3]


def _overlap(coverage: _Floats, expected: _Floats) -> float:
    """Intersection over union of two soft masks of equal area, also if the window cuts off some of the expected one."""
    shared = np.minimum(coverage, expected).sum()
    return float(shared / (2 * coverage.sum() - shared))


def _place(template: _Floats, shape: tuple[int, ...], centre: tuple[float, float], radius: float) -> _Floats:
    """Coverage [height, width] of a template moved to a centre and scaled to a radius, both in pixels."""
    scale, last = _TEMPLATE_RADIUS_PX / radius, 2 * _TEMPLATE_HALF_PX - 1
    rows, columns = (
        np.clip((_TEMPLATE_HALF_PX + (np.arange(length) + 0.5 - middle) * scale).astype(int), 0, last)
        for length, middle in zip(shape, centre[::-1], strict=True)
    )
    return template[np.ix_(rows, columns)]


@functools.cache
def _template(shape: str, size: str, blur_px: float) -> _Floats:
    """Coverage [256, 256] around an object drawn with radius 64.

    blur_px: of its edge, in pixels of the 64x64 image for an object of that size.
    """
    from scipy import ndimage

    return ndimage.gaussian_filter(_inside(shape).astype(np.float64), blur_px * _TEMPLATE_RADIUS_PX / RADIUS_PX[size])


@functools.cache
def _area_and_drop(shape: str) -> tuple[float, float]:
    """Area of a shape of radius 1, and how far its centroid lies below its centre."""
    inside = _inside(shape)
    drop = float(np.nonzero(inside)[0].mean()) - (_TEMPLATE_HALF_PX - 0.5)
    return float(inside.sum()) / _TEMPLATE_RADIUS_PX**2, drop / _TEMPLATE_RADIUS_PX


def _inside(shape: str) -> _Bools:
    image = Image.new("L", (2 * _TEMPLATE_HALF_PX, 2 * _TEMPLATE_HALF_PX), 0)
    middle = _TEMPLATE_HALF_PX - 0.5
    draw_object(ImageDraw.Draw(image), shape, 1, (middle, middle), _TEMPLATE_RADIUS_PX)
    return np.asarray(image) > 0
