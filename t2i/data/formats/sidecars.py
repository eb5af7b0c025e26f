"""A text file beside every image, in the dialect of the tool that will read it."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from t2i.data.formats.texts import Dialect, text_file
from t2i.errors import DataError
from t2i.files import write_text
from t2i.records import CaptionedImage


def write_sidecars(
    records: Iterable[CaptionedImage], weights: Mapping[str, float], dialect: Dialect, extension: str, seed: int
) -> int:
    """Write `picture.txt` beside every `picture.jpg`; returns how many.

    weights: caption kind -> weight. Each image gets the captions of one kind, drawn by weight and keyed by seed and
    image id; with one kind there is nothing to draw. Several captions of it need the dialect `line_each`. A text file
    holds the texts alone: not their kind, nor their origin. Raises DataError for an image without the drawn kind, or
    captions that the dialect cannot hold.
    """
    count = 0
    for record in records:
        path = Path(record.image).with_suffix(extension)
        kind = drawn_kind(record, weights, seed)
        texts = [caption.text for caption in record.captions if caption.kind == kind]
        if not texts:
            raise DataError(f"{record.image}: no caption of kind {kind!r}; drop such images with a filter stage.")
        write_text(path, text_file(texts, dialect, str(path)))
        count += 1
    return count


def drawn_kind(record: CaptionedImage, weights: Mapping[str, float], seed: int) -> str:
    """The kind that this image gets: always the same for the same image, weights and seed."""
    from t2i.randomness import generator

    kinds: Sequence[str] = list(weights)
    bounds = list(itertools.accumulate(weights.values()))
    chosen = generator(seed, "sidecar", int(record.id[:15] or "0", 16)).random() * bounds[-1]
    return kinds[bisect.bisect_right(bounds[:-1], chosen)]
