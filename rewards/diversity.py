"""How different the images of one prompt are: what falls when a model is tuned until it paints one picture."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import ArrayLike

from rewards.errors import InputError
from rewards.resampling import Interval
from rewards.statistics import bootstrap_interval


def pairwise_diversity(
    embeddings: ArrayLike, prompts: Sequence[Hashable], level: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> Interval:
    """Mean over prompts of the mean cosine distance between two images of the prompt, 0 (all alike) to 2.

    embeddings: [n, D] of any length, such as a CLIP encoder's; prompts: of each image. Prompts with one image have no
    pair and are left out, so that `clusters` of the result is the number of those that have. Raises InputError for
    other shapes, a vector that is zero or not finite, and fewer than 2 prompts with two images.
    """
    vectors = np.asarray(embeddings, dtype=np.float64)
    if vectors.ndim != 2 or len(vectors) != len(prompts):
        raise InputError(f"diversity: embeddings {vectors.shape} for {len(prompts)} prompts; expected [n, D] and n.")
    lengths = np.linalg.norm(vectors, axis=1)
    if not (np.isfinite(lengths).all() and (lengths > 0).all()):
        raise InputError("diversity: an embedding has length 0 or is not finite; leave out what could not be encoded.")
    units = vectors / lengths[:, None]
    members: dict[Hashable, list[int]] = {}
    for position, prompt in enumerate(prompts):
        members.setdefault(prompt, []).append(position)
    distances = {prompt: [_mean_distance(units[own])] for prompt, own in members.items() if len(own) > 1}
    if len(distances) < 2:
        raise InputError(f"diversity needs 2 prompts with two images each; found {len(distances)}.")
    return bootstrap_interval(distances, level, resamples, seed)


def _mean_distance(units: np.ndarray) -> float:
    """Mean of 1 - cosine over the pairs of [k, D] unit vectors, k >= 2: from the length of their sum."""
    count = len(units)
    return float(1.0 - ((units.sum(axis=0) ** 2).sum() - count) / (count * (count - 1)))
