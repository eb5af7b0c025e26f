"""Which parts of an image the loss looks at."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from t2i.data.images import IMAGE_SUFFIXES, MASK_ENDING, open_grey
from t2i.data.settings import MaskSettings
from t2i.data.views import View
from t2i.errors import DataError
from t2i.records import CaptionedImage

if TYPE_CHECKING:
    from torch import Tensor


def check_mask_names(images: Iterable[str]) -> None:
    """Raise DataError for a mask beside two images of its name: what is white in `a.png` need not be so in `a.jpg`."""
    for folder in sorted({Path(image).parent for image in images}):
        files = sorted(folder.iterdir()) if folder.is_dir() else []
        owners = Counter(path.stem for path in files if path.suffix.lower() in IMAGE_SUFFIXES)
        for path in files:
            stem = path.name.removesuffix(MASK_ENDING)
            if stem != path.name and owners[stem] > 1:
                raise DataError(f"{path}: {owners[stem]} images are called {stem}; rename all but one.")


def mask_path(record: CaptionedImage, settings: MaskSettings) -> Path | None:
    """The mask of an image, or None if it counts as a whole. Raises DataError if it must have one and has none."""
    image = Path(record.image)
    if settings.column is None:
        path, wanted = image.with_name(image.stem + MASK_ENDING), f"no {image.stem}{MASK_ENDING} beside it"
        if path.is_file():
            return path
    else:
        value = record.extra.get(settings.column)
        if isinstance(value, str) and value:
            path = image.parent / value
            if path.is_file():
                return path
            raise DataError(f"{image}: its mask {path} (column {settings.column!r}) is missing.")
        wanted = f"column {settings.column!r} names none"
    if settings.missing == "whole":
        return None
    raise DataError(f"{image}: has no mask ({wanted}). Give it one, or set masks.missing: whole.")


def latent_mask(path: Path | None, view: View, latent_size: tuple[int, int], outside: float) -> Tensor:
    """Weight of each latent position in the loss, float32 [1, h, w]; `outside` where black, 1 where white.

    latent_size: (h, w). Each position has the mean of the pixels that it stands for. Raises DataError for a mask of
    another size than its image, and for one that is black all over the view where black counts nothing.
    """
    import torch

    height, width = latent_size
    if path is None:
        return torch.ones(1, height, width)
    mask = open_grey(path)
    if mask.size != view.original:
        raise DataError(
            f"{path}: {mask.width}x{mask.height} pixels; its image has {view.original[0]}x{view.original[1]} as seen."
        )
    weights = np.asarray(view.of_mask(mask), dtype=np.float32) / 255
    cells = weights.reshape(height, view.target[1] // height, width, view.target[0] // width).mean((1, 3))
    if outside == 0 and not cells.any():
        raise DataError(f"{path}: black all over the part that is trained on; drop the image or set masks.outside.")
    return torch.from_numpy(outside + (1 - outside) * cells)[None]
