"""What is wrong with an image whatever its captions: blur, and images that are nearly the same."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from t2i.data.quality.sieve import Dropped
from t2i.errors import MissingDependencyError
from t2i.records import CaptionedImage

if TYPE_CHECKING:
    from PIL import Image

HASH_BITS = 64
_BLUR_SIDE_PX = 512
DEDUP = "pip install 't2i-toolkit[dedup]'"


def sharpness(image: Image.Image) -> float:
    """Variance of the Laplacian of the grey image at a longer side of at most 512 px; below about 50 is blurred.

    The number grows with contrast and noise, and a flat drawing has little of it however sharp: set the limit by a
    look at the images around it.
    """
    from PIL import Image as Pillow

    grey = image.convert("L")
    if max(grey.size) > _BLUR_SIDE_PX:
        grey.thumbnail((_BLUR_SIDE_PX, _BLUR_SIDE_PX), Pillow.Resampling.LANCZOS)
    pixels = np.asarray(grey, dtype=np.float64)
    inner = pixels[1:-1, 1:-1]
    laplacian = pixels[:-2, 1:-1] + pixels[2:, 1:-1] + pixels[1:-1, :-2] + pixels[1:-1, 2:] - 4 * inner
    return float(laplacian.var()) if laplacian.size else 0.0


def blurred(records: Sequence[CaptionedImage], at_least: float) -> Dropped:
    """Images with less sharpness."""
    from t2i.data.images import open_image

    for place, row in enumerate(records):
        value = sharpness(open_image(Path(row.image)))
        if value < at_least:
            yield place, f"min_sharpness: {value:.1f}"


def perceptual_hash(image: Image.Image) -> int:
    """64 bits of the image's low frequencies (pHash, by the ImageHash library)."""
    try:
        import imagehash
    except ImportError as error:
        raise MissingDependencyError(f"near-duplicate images need ImageHash: {DEDUP}") from error
    bits: Any = imagehash.phash(image).hash
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


def near_images(records: Sequence[CaptionedImage], max_distance: int) -> Dropped:
    """Images whose perceptual hash differs in at most so many of 64 bits from that of an earlier one that is kept.

    Compares by shared quarters of the hash, then bit by bit: exact for distances below 4, and refused above. Memory:
    about 400 bytes an image.
    """
    from t2i.data.images import open_image

    tables: list[dict[int, list[int]]] = [{} for _ in range(4)]
    hashes: list[int] = []
    kept: list[str] = []
    for place, row in enumerate(records):
        found = perceptual_hash(open_image(Path(row.image)))
        near = next((n for n in _candidates(tables, found) if (hashes[n] ^ found).bit_count() <= max_distance), None)
        if near is not None:
            distance = (hashes[near] ^ found).bit_count()
            yield place, f"near_images: {distance} bits from {Path(kept[near]).name}"
            continue
        for table, part in zip(tables, _quarters(found), strict=True):
            table.setdefault(part, []).append(len(hashes))
        hashes.append(found)
        kept.append(row.image)


def _quarters(value: int) -> list[int]:
    return [value >> shift & 0xFFFF for shift in (48, 32, 16, 0)]


def _candidates(tables: Sequence[dict[int, list[int]]], value: int) -> Iterator[int]:
    """Of two hashes that differ in fewer than four bits, at least one quarter is the same."""
    for table, part in zip(tables, _quarters(value), strict=True):
        yield from table.get(part, ())
