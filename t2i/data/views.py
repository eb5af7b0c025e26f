"""What is seen of an image: scaled, cropped, perhaps mirrored. Arithmetic first, pixels second.

How this meets the cache: a view is fixed by the image and its number, never by the step, so that each is encoded once.
A step draws which of an image's views it sees. Mirrored views are encoded from mirrored pixels: mirrored latents are
not the latents of the mirrored picture.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from PIL import Image

from t2i.data.buckets import Size
from t2i.data.images import scaled_size
from t2i.data.settings import ViewSettings
from t2i.randomness import generator
from t2i.records import CaptionedImage

DIRECTION_WORDS = (
    "left",
    "right",
    "lefts",
    "rights",
    "leftmost",
    "rightmost",
    "leftward",
    "rightward",
    "leftwards",
    "rightwards",
    "lefthand",
    "righthand",
    "clockwise",
    "counterclockwise",
    "anticlockwise",
    "east",
    "west",
    "eastward",
    "westward",
    "eastern",
    "western",
    "eastwards",
    "westwards",
)
"""Words that are no longer true of a mirrored picture. `right` also has other meanings; the loss is a flip not made."""


@dataclass(frozen=True)
class View:
    """Where a view lies in its image, which is scaled to `scaled`, cut at (left, top), and mirrored if `flipped`."""

    original: Size
    """Width and height of the image as seen, turned as its EXIF orientation says."""
    scaled: Size
    left: int
    top: int
    target: Size
    flipped: bool = False

    @property
    def conditions(self) -> tuple[int, int, int, int, int, int]:
        """SDXL's size conditions in pixels, heights first (Podell et al. 2023, arXiv:2307.01952, section 2.2).

        Original height and width; top and left of the crop in the scaled image; height and width of the crop. A
        mirrored crop lies where it does in the mirrored image: as far from the left as it did from the right.
        """
        left = self.scaled[0] - self.target[0] - self.left if self.flipped else self.left
        return (self.original[1], self.original[0], self.top, left, self.target[1], self.target[0])

    def of(self, image: Image.Image) -> Image.Image:
        """Width and height `target` of an image whose size is `original`."""
        return self._cut(image, Image.Resampling.LANCZOS)

    def of_mask(self, mask: Image.Image) -> Image.Image:
        """The same part of a mask, of the image's size; every pixel the mean of what it covers."""
        return self._cut(mask, Image.Resampling.BOX)

    def _cut(self, image: Image.Image, resampling: Image.Resampling) -> Image.Image:
        scaled = image if image.size == self.scaled else image.resize(self.scaled, resampling)
        box = (self.left, self.top, self.left + self.target[0], self.top + self.target[1])
        cut = scaled.crop(box)
        return cut.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if self.flipped else cut


@dataclass(frozen=True)
class Views:
    """The views that every image has, numbered 0 .. count - 1: its crops, then their mirror images."""

    settings: ViewSettings
    seed: int
    crops_by: Literal["image", "caption"] = "image"
    """Whether random crops are each image's own, or the same for all images of a first caption and size."""

    @property
    def crops(self) -> int:
        """Crops of an image."""
        return self.settings.crops if self.settings.crop == "random" else 1

    def count(self, record: CaptionedImage) -> int:
        """Views of one image."""
        return self.crops * (2 if self.may_flip(record) else 1)

    def may_flip(self, record: CaptionedImage) -> bool:
        """Whether mirroring leaves each of the image's captions true."""
        if not self.settings.flip:
            return False
        pattern = _direction_pattern(self.settings.never_flip)
        return not any(pattern.search(caption.text) for caption in record.captions)

    def view(self, record: CaptionedImage, number: int, target: Size) -> View:
        """The number-th view of an image, at width and height `target`. Crops depend on its id or caption alone."""
        crop, flipped = number % self.crops, number >= self.crops
        original = (record.width, record.height)
        scaled = scaled_size(original, target)
        spare = scaled[0] - target[0], scaled[1] - target[1]
        if self.settings.crop == "centre":
            left, top = spare[0] // 2, spare[1] // 2
        else:
            key = record.id if self.crops_by == "image" else record.captions[0].text
            draw = generator(self.seed, f"crop {key}", crop)
            left, top = int(draw.integers(spare[0] + 1)), int(draw.integers(spare[1] + 1))
        return View(original, scaled, left, top, target, flipped)

    def draw(self, record: CaptionedImage, seed: int, step: int, position: int) -> int:
        """Number of the view for one place in one step: always the same for the same arguments."""
        count = self.count(record)
        return int(generator(seed, "view", step, position).integers(count)) if count > 1 else 0


@lru_cache(maxsize=8)
def _direction_pattern(further: tuple[str, ...]) -> re.Pattern[str]:
    words = "|".join(re.escape(word.strip()) for word in (*DIRECTION_WORDS, *further))
    # Not \b: `left-hand` and `left_hand` hold the word too, `cleft` and `upright` do not.
    return re.compile(rf"(?<![^\W_])(?:{words})(?![^\W_])", re.IGNORECASE)
