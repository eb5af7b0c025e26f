"""Several rewards as one: pure functions on scores, and a `Blend` that is a scorer like any other.

Raw scores have different units, so they are made comparable first: by z-scores with stored statistics (`Statistics`),
never those of the batch, since then an image's score would depend on its neighbours. The Pareto front compares images
with each other by its nature; it is a function on a set of scores and no scorer.

Functions take R rewards of B images as [R, B], NumPy or torch, larger is better, and return [B].
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rewards.base import (
    DifferentiableReward,
    EmbeddingReward,
    Fingerprinted,
    ImageLike,
    Reward,
    Scores1D,
    TextLimited,
    check_prompts,
    check_scores,
    open_batch,
)
from rewards.errors import InputError
from rewards.sharing import SharedEncodings

if TYPE_CHECKING:
    import torch

    from rewards.registry import RewardSpec

    Values = TypeVar("Values", NDArray[np.floating], torch.Tensor)

WAYS = ("harmonic", "minimum", "weighted")


@dataclass(frozen=True)
class Statistics:
    """Mean and standard deviation of one scorer's values on a stored set of images."""

    mean: float
    standard_deviation: float
    images: int
    version: str
    """Of the scorer that gave the values."""
    id: str = ""
    """Its id, `scorer_id(describe(scorer))`, which tells its weights and options too; not compared if empty."""


def measure(values: ArrayLike, version: str, id: str = "") -> Statistics:
    """Statistics of [B] scores. Raises InputError for fewer than 2, one not finite, or all the same."""
    numbers = np.asarray(values, dtype=np.float64)
    if numbers.ndim != 1 or len(numbers) < 2 or not np.isfinite(numbers).all():
        raise InputError("statistics need at least 2 finite scores in a list.")
    deviation = float(numbers.std(ddof=1))
    if deviation == 0.0:
        raise InputError(f"all {len(numbers)} scores are {numbers[0]:g}; a z-score needs a spread.")
    return Statistics(float(numbers.mean()), deviation, len(numbers), version, id)


def z_score(values: Values, statistics: Statistics) -> Values:
    """(value - mean) / standard deviation, by stored statistics."""
    return (values - statistics.mean) / statistics.standard_deviation


def weighted(values: Values, weights: Sequence[float]) -> Values:
    """Weighted mean over rewards; weights are divided by their sum."""
    total = values[0] * 0.0
    for share, row in zip(_shares(weights, len(values)), values, strict=True):
        total = total + share * row
    return cast("Values", total)


def harmonic(values: Values, weights: Sequence[float]) -> Values:
    """Weighted harmonic mean of positive values: 1 / sum(w_r / v_r), sum(w_r) = 1. The weakest reward rules.

    For two rewards and weights (lambda, 1 - lambda) this is the lambda-harmonic reward of RPO (Miao et al. 2024,
    arXiv:2407.12164). Raises InputError for a value that is not positive, for which no such mean exists.
    """
    if not bool((values > 0).all()):
        raise InputError("the harmonic mean needs positive values; map the rewards to (0, 1) first (see `to_unit`).")
    total = values[0] * 0.0
    for share, row in zip(_shares(weights, len(values)), values, strict=True):
        total = total + share / row
    return cast("Values", 1.0 / total)


def minimum(values: Values) -> Values:
    """The smallest of the rewards, image by image."""
    return cast("Values", values.min(axis=0) if isinstance(values, np.ndarray) else values.amin(dim=0))


def to_unit(values: Values) -> Values:
    """The logistic function of z-scores: any number to (0, 1), order and gradient kept."""
    return 1.0 / (1.0 + (np.exp(-values) if isinstance(values, np.ndarray) else (-values).exp()))


def pareto_front(values: ArrayLike) -> NDArray[np.bool_]:
    """[R, B] -> [B]: whether no other image is at least as good in every reward and better in one.

    Equal images are all on the front. Meant for the images of one prompt. Raises InputError for values not finite.
    """
    table = np.asarray(values, dtype=np.float64)
    if table.ndim != 2 or not np.isfinite(table).all():
        raise InputError(f"scores of shape {table.shape}; expected finite [rewards, images].")
    at_least = (table[:, :, None] >= table[:, None, :]).all(axis=0)
    better = (table[:, :, None] > table[:, None, :]).any(axis=0)
    return np.asarray(~(at_least & better).any(axis=0))


def _shares(weights: Sequence[float], count: int) -> list[float]:
    if len(weights) != count or count == 0:
        raise InputError(f"{len(weights)} weights for {count} rewards; expected one each.")
    if not all(math.isfinite(weight) and weight > 0.0 for weight in weights):
        raise InputError(f"weights {list(weights)}; expected numbers above 0.")
    return [weight / math.fsum(weights) for weight in weights]


class Blend:
    """Several scorers as one, larger is better: parts of which smaller is better enter with their sign turned.

    parts: two or more scorers, or what `rewards.load` takes; way: `weighted` (mean), `harmonic` (mean) or `minimum`;
    weights: one per part, equal if None, not for `minimum`; statistics: scorer name -> `Statistics`, or the file of
    `save_statistics`. With statistics, each part is z-scored first and, for `harmonic`, mapped to (0, 1) by the
    logistic function; without, raw values are blended, which is right only for parts of one unit. device: for parts
    that have one. Raises InputError for parts, weights or statistics that do not fit each other.
    """

    version = "1"
    needs_prompt: bool
    higher_is_better = True

    def __init__(
        self,
        parts: Sequence[Reward | RewardSpec],
        way: str = "weighted",
        weights: Sequence[float] | None = None,
        statistics: Mapping[str, Statistics] | Path | str | None = None,
        name: str = "blend",
        device: str = "cpu",
    ) -> None:
        from rewards.scoring import load_all

        self._parts = load_all(parts, device)
        if way not in WAYS or len(self._parts) < 2:
            raise InputError(
                f"{name}: way {way!r} of {len(self._parts)} parts; expected {', '.join(WAYS)} of 2 or more."
            )
        if way == "minimum" and weights is not None:
            raise InputError(f"{name}: the minimum has no weights; leave them out.")
        self._way = way
        self._weights = list(weights) if weights is not None else [1.0] * len(self._parts)
        _shares(self._weights, len(self._parts))
        self._statistics = load_statistics(statistics) if isinstance(statistics, str | Path) else statistics
        self.name = name
        self._check_parts()
        self.needs_prompt = any(part.needs_prompt for part in self._parts)
        self.differentiable = all(part.differentiable for part in self._parts)
        self.scale = self._describe()
        if all(isinstance(part, Fingerprinted) for part in self._parts):
            # A blend of others has none: its scores are not kept in caches, as theirs are not.
            self.fingerprint = self._fingerprint

    def _check_parts(self) -> None:
        from rewards.score_files import scorer_id
        from rewards.scoring import describe

        for part in self._parts:
            if self._statistics is None:
                if self._way == "harmonic" and not part.higher_is_better:
                    raise InputError(
                        f"{self.name}: of {part.name} smaller is better; a harmonic mean needs statistics."
                    )
                continue
            known = self._statistics.get(part.name)
            if known is None:
                raise InputError(f"{self.name}: no statistics of {part.name}; measure them on its scores.")
            if known.version != part.version:
                raise InputError(
                    f"{self.name}: statistics of {part.name} version {known.version}, the scorer has {part.version}; "
                    "measure them anew."
                )
            if known.id and known.id != scorer_id(describe(part)):
                raise InputError(
                    f"{self.name}: statistics of {part.name} are of {known.id}, with other weights or options than "
                    f"{scorer_id(describe(part))}; measure them anew."
                )

    def _describe(self) -> str:
        unit = "raw values" if self._statistics is None else "z-scores"
        if self._way == "harmonic" and self._statistics is not None:
            unit = "logistic z-scores, 0 to 1"
        shares = [1.0] * len(self._parts) if self._way == "minimum" else _shares(self._weights, len(self._parts))
        signs = ["" if part.higher_is_better else "-" for part in self._parts]
        parts = zip(shares, signs, self._parts, strict=True)
        listed = ", ".join(f"{share:.4g} {sign}{part.name}" for share, sign, part in parts)
        return f"{self._way} of {unit}: {listed}"

    @property
    def token_limit(self) -> int:
        """The smallest limit of the parts; without one, as large as a number gets."""
        return min((part.token_limit for part in self._parts if isinstance(part, TextLimited)), default=sys.maxsize)

    def count_truncated(self, prompts: Sequence[str]) -> int:
        """Number of prompts of which at least one part loses the end."""
        limited = [part for part in self._parts if isinstance(part, TextLimited)]
        return sum(any(part.count_truncated([prompt]) for part in limited) for prompt in prompts)

    def _fingerprint(self) -> dict[str, str]:
        """Fingerprints of all parts, how they are blended, and the statistics."""
        facts = {"name": self.name, "version": self.version, "scale": self.scale, "weights": json.dumps(self._weights)}
        for part in self._parts:
            assert isinstance(part, Fingerprinted)
            known = asdict(self._statistics[part.name]) if self._statistics is not None else None
            facts[part.name] = json.dumps([sorted(part.fingerprint().items()), known])
        return facts

    def score(self, images: Sequence[ImageLike], prompts: Sequence[str] | None = None) -> Scores1D:
        """Score B images, each part once and each image encoding once. Returns [B] float32. Errors as the parts'."""
        texts = check_prompts(self.name, len(images), prompts) if self.needs_prompt else None
        opened = open_batch(images)
        if not opened:
            return np.zeros(0, dtype=np.float32)
        encodings = SharedEncodings()
        rows = [encodings.score(part, opened, texts if part.needs_prompt else None) for part in self._parts]
        return check_scores(self.name, self.blend(np.stack(rows).astype(np.float64)), len(opened))

    def score_tensor(self, pixels: torch.Tensor, prompts: Sequence[str] | None = None) -> torch.Tensor:
        """Score [B, 3, H, W] in [0, 1]. Returns [B] float32 with gradient. InputError if a part has none."""
        import torch

        rows = []
        encoded: dict[object, torch.Tensor] = {}
        for part in self._parts:
            if not isinstance(part, DifferentiableReward) or not part.differentiable:
                raise InputError(f"{self.name}: {part.name} is not differentiable, so the blend is not either.")
            if isinstance(part, EmbeddingReward):
                key = part.encoder.identity
                if key not in encoded:
                    encoded[key] = part.encoder.encode_pixels(pixels)
                rows.append(part.score_embeddings(encoded[key], prompts))
            else:
                rows.append(part.score_tensor(pixels, prompts))
        return self.blend(torch.stack(rows))

    def blend(self, values: Values) -> Values:
        """Raw scores of the parts [R, B], in their order, -> [B]."""
        rows = values.clone() if not isinstance(values, np.ndarray) else values.copy()
        for index, part in enumerate(self._parts):
            row = values[index] if self._statistics is None else z_score(values[index], self._statistics[part.name])
            rows[index] = row if part.higher_is_better else -row
        if self._way == "minimum":
            return minimum(rows)
        if self._way == "weighted":
            return weighted(rows, self._weights)
        return harmonic(rows if self._statistics is None else to_unit(rows), self._weights)


def save_statistics(statistics: Mapping[str, Statistics], path: Path | str) -> None:
    """Write scorer name -> statistics as JSON."""
    rows = {name: asdict(value) for name, value in sorted(statistics.items())}
    Path(path).write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


def load_statistics(path: Path | str) -> dict[str, Statistics]:
    """Read what `save_statistics` wrote. Raises InputError for anything else."""
    try:
        rows = json.loads(Path(path).read_text(encoding="utf-8"))
        found = {str(name): Statistics(**row) for name, row in rows.items()}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: no readable statistics ({error}); write them with save_statistics.") from error
    for name, value in found.items():
        numbers = (value.mean, value.standard_deviation)
        if not all(isinstance(number, int | float) and math.isfinite(number) for number in numbers) or numbers[1] <= 0:
            raise InputError(f"{path}: {name}: expected a finite mean and a positive standard deviation.")
    return found
