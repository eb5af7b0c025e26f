"""Worn pictures for the second reader to learn from: softened, noisy, off in colour, and some without any object.

A reader that has seen clean renders alone is sure of everything. This one also sees what a small autoencoder does to
pictures, and blobs, noise and blanks that are no object. All of it follows from the given noise.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from t2i.shapes.scenes import COLOURS, IMAGE_SIZE_PX

NOISE_SHAPE = (4, IMAGE_SIZE_PX, IMAGE_SIZE_PX)
"""Three planes of colour noise, and one from which everything else is drawn."""
CLEAN_SHARE = 0.25
"""Pictures without noise."""
MAX_NOISE = 0.08
"""Largest deviation of the pixel noise, where black to white is 2: about 10 of 255."""
MAX_COLOUR_SHIFT = 0.06
"""Largest shift of a channel of the whole picture."""
EMPTIED_SHARE = 0.2
"""Pictures replaced by something that holds no object."""
BLOB_GRIDS = (7, 14)
"""Cells per side of the random fields that blobs are cut from: coarse and fine."""
_BLOB_ROWS = slice(8, 8 + max(BLOB_GRIDS))


def wear(pixels: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """pixels: [B, 3, 64, 64] in [-1, 1]; noise: [B, 4, 64, 64], standard normal.

    Returns worn pixels in [-1, 1], and [B] whether a picture was emptied, so that nothing in it is an object.
    """
    # Uniform draws in [0, 1] for each picture, from one row of the plane that is not pixel noise.
    uniform = torch.special.ndtr(noise[:, 3, 0, :14])[..., None, None, None]
    is_emptied = uniform[:, 0] < EMPTIED_SHARE
    pixels = torch.where(is_emptied, _empty(pixels, noise, uniform), pixels)
    pixels = torch.lerp(pixels, _soften(pixels), uniform[:, 1])
    shift = MAX_COLOUR_SHIFT * (2 * uniform[:, 2:5, 0] - 1)
    strength = MAX_NOISE * (uniform[:, 5] - CLEAN_SHARE).clamp(min=0) / (1 - CLEAN_SHARE)
    # Partly smooth, as an autoencoder's errors are; softening leaves a third of the deviation.
    grain = torch.lerp(noise[:, :3], 3 * _soften(noise[:, :3]), uniform[:, 6])
    return (pixels + shift + strength * grain).clamp(-1, 1), is_emptied.flatten()


def _empty(pixels: Tensor, noise: Tensor, uniform: Tensor) -> Tensor:
    """Blobs of one colour, noise, or nothing, half of them on the background of each picture, half on any colour."""
    ground = torch.where(uniform[:, 10] < 0.5, pixels[:, :, :1, :1], 2 * uniform[:, 11:14, 0] - 1)
    palette = torch.tensor(list(COLOURS.values()), dtype=pixels.dtype).to(pixels.device, non_blocking=True) / 127.5 - 1
    colour = palette[(uniform[:, 7].flatten() * len(palette)).long().clamp(max=len(palette) - 1)][..., None, None]
    fields = [
        functional.interpolate(noise[:, 3:, _BLOB_ROWS, :][..., :grid, :grid], size=pixels.shape[-2:], mode="bicubic")
        for grid in BLOB_GRIDS
    ]
    field = torch.where(uniform[:, 8] < 0.5, fields[0], fields[1])
    # Half blobs, from many to few; a quarter noise, from weak to strong; a quarter blank.
    kind = uniform[:, 9]
    blobs = torch.where(field > 0.6 + 2 * kind, colour, ground)
    noisy = ground + (4 * kind - 2) * noise[:, :3]
    return torch.where(kind < 0.5, blobs, torch.where(kind < 0.75, noisy, ground.expand_as(pixels)))


def _soften(values: Tensor) -> Tensor:
    """3x3 box blur, edges repeated."""
    return functional.avg_pool2d(functional.pad(values, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
