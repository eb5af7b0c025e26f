"""Images whose embeddings are nearly the same, and concepts that a set has too much of. Cosines of unit vectors."""

from __future__ import annotations

import hashlib
import io
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

from t2i.data.quality.sieve import Dropped
from t2i.errors import DataError
from t2i.files import write_bytes
from t2i.randomness import generator
from t2i.records import CaptionedImage

if TYPE_CHECKING:
    from rewards.clip_encoder import ClipEncoder

Vectors: TypeAlias = NDArray[np.float32]
Name: TypeAlias = Callable[[CaptionedImage], str]
"""What the list of dropped records calls an image."""

MAX_IMAGES = 200_000
"""Of a comparison of all with all: 2e10 cosines, and 600 MB of vectors of 768 numbers."""
BLOCK = 1024
ROUNDING = 1e-6
"""A cosine of float32 unit vectors may miss 1 by this much; without it a threshold of 1 would not find equal images."""
ITERATIONS = 30


@dataclass
class ImageEmbeddings:
    """Embeddings by an encoder, each image encoded once however many checks ask, and however often a run is killed."""

    encoder: ClipEncoder
    folder: Path
    """Where finished batches are kept, under the hash of their images."""
    _known: dict[str, Vectors] = field(default_factory=dict)

    def of(self, records: Sequence[CaptionedImage]) -> Vectors:
        """[n, D] unit vectors, float32. Raises DataError for an image that cannot be read."""
        from t2i.training.progress import progress_bar

        unknown = list({row.image: row for row in records if row.image not in self._known}.values())
        with progress_bar("encoding images", 0, len(unknown)) as advance:
            for start in range(0, len(unknown), self.encoder.batch_size):
                batch = unknown[start : start + self.encoder.batch_size]
                self._known.update(zip((row.image for row in batch), self._batch(batch), strict=True))
                advance(start + len(batch))
        return np.stack([self._known[row.image] for row in records])

    def _batch(self, batch: Sequence[CaptionedImage]) -> Vectors:
        """A batch is encoded whole or read whole: in another one an image's vector could differ in its last bits."""
        from t2i.data.images import open_image

        path = self.folder / f"{hashlib.sha256(chr(10).join(row.id for row in batch).encode()).hexdigest()[:32]}.npy"
        if path.is_file():
            return np.load(path, allow_pickle=False)
        found = self.encoder.encode_images([open_image(Path(row.image)) for row in batch])
        vectors = self.encoder.check_embeddings(found).cpu().numpy()
        file = io.BytesIO()
        np.save(file, vectors, allow_pickle=False)
        self.folder.mkdir(parents=True, exist_ok=True)
        write_bytes(path, file.getvalue())
        return vectors


def near_vectors(vectors: Vectors, at_least: float, *, block: int = BLOCK) -> Iterator[tuple[int, int, float]]:
    """(place, place of the first earlier one that is kept and is this near, their cosine) for each that is not kept.

    vectors: [n, D] of length 1; at_least: cosine in (0, 1]. One that is near only to a dropped one is kept. Exact: all
    are compared with all that are kept, n^2 D / 2 multiplications at most; block: rows at a time, which bounds memory
    (4 MB for 1024) and changes no more than the last bits of a cosine.
    """
    kept: list[int] = []
    for start in range(0, len(vectors), block):
        rows = vectors[start : start + block]
        first = _first_near(rows, vectors, kept, at_least - ROUNDING, block)
        # Inside the block the order decides: only those that are still kept make a later one a copy.
        inside = rows @ rows.T
        fresh: list[int] = []
        for number in range(len(rows)):
            near = first.get(number)
            if near is None:
                hits = (one for one in fresh if inside[number, one] >= at_least - ROUNDING)
                near = next(((start + one, float(inside[number, one])) for one in hits), None)
            if near is None:
                fresh.append(number)
            else:
                yield start + number, *near
        kept.extend(start + number for number in fresh)


def _first_near(
    rows: Vectors, vectors: Vectors, kept: Sequence[int], at_least: float, block: int
) -> dict[int, tuple[int, float]]:
    """Row -> the first of `kept` that is near, and the cosine."""
    found: dict[int, tuple[int, float]] = {}
    for start in range(0, len(kept), block):
        places = kept[start : start + block]
        cosines = rows @ vectors[places].T
        near = cosines >= at_least
        for row in np.flatnonzero(near.any(axis=1)).tolist():
            column = int(near[row].argmax())
            found.setdefault(row, (places[column], float(cosines[row, column])))
    return found


def near_embeddings(
    records: Sequence[CaptionedImage], embed: Callable[[Sequence[CaptionedImage]], Vectors], at_least: float, name: Name
) -> Dropped:
    """Images whose embedding has at least this cosine to that of an earlier one that is kept.

    Raises DataError above 200,000 images, before any is encoded.
    """
    if len(records) > MAX_IMAGES:
        raise DataError(
            f"embeddings.near: {len(records)} images; compares all with all and takes at most {MAX_IMAGES}. "
            "Filter them in parts, or by near_images, which has no such limit."
        )
    if not records:
        return
    for place, kept, cosine in near_vectors(embed(records), at_least):
        yield place, f"embeddings.near: cosine {cosine:.4f} to {name(records[kept])}"


def clusters_of(vectors: Vectors, number: int, seed: int) -> NDArray[np.intp]:
    """[n] cluster of each vector, by k-means (scipy, begun with k-means++); the same for the same seed and vectors.

    vectors: [n, D]. A cluster may end up empty. Raises DataError for fewer distinct vectors than clusters. Time grows
    with n D (30 number + number^2 / 2), memory with 8 n number bytes.
    """
    from scipy.cluster.vq import kmeans2

    distinct = len(np.unique(vectors, axis=0))
    if distinct < number:
        raise DataError(
            f"embeddings.clusters: {number} clusters of {len(vectors)} images with {distinct} different embeddings; "
            "expected at least one for each. Ask for fewer clusters."
        )
    with warnings.catch_warnings():
        # An empty cluster has no image to drop.
        warnings.filterwarnings("ignore", message="One of the clusters is empty")
        draw = generator(seed, "clusters")
        _, labels = kmeans2(vectors.astype(np.float64), number, iter=ITERATIONS, minit="++", rng=draw)
    return np.asarray(labels, dtype=np.intp)


def beyond(labels: Sequence[int], at_most: int) -> Iterator[tuple[int, int]]:
    """(place, label) of each that comes after the first so many with its label."""
    seen: Counter[int] = Counter()
    for place, label in enumerate(labels):
        seen[label] += 1
        if seen[label] > at_most:
            yield place, label


def crowded(
    records: Sequence[CaptionedImage],
    embed: Callable[[Sequence[CaptionedImage]], Vectors],
    number: int,
    at_most: int,
    seed: int,
) -> Dropped:
    """Images after the first so many of their cluster, of which there are `number`."""
    if not records:
        return
    labels: list[int] = clusters_of(embed(records), number, seed).tolist()
    sizes = Counter(labels)
    for place, label in beyond(labels, at_most):
        yield place, f"embeddings.clusters: cluster {label} has {sizes[label]} images"
