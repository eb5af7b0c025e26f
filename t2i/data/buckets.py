"""Aspect buckets: which size each image is brought to. Pure arithmetic on widths and heights."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from pydantic import JsonValue

from t2i.data.settings import BucketSettings
from t2i.errors import ConfigError, DataError

Size = tuple[int, int]
"""Width and height in pixels."""
Reason = Literal["dropped", "upscaled"]


@dataclass(frozen=True)
class Misfit:
    """An image that is not simply scaled down and cropped."""

    image: str
    reason: Reason
    detail: str


@dataclass(frozen=True)
class BucketPlan:
    """The size of every image."""

    sizes: tuple[Size, ...]
    """Width and height of each bucket, from the tallest to the widest."""
    of_record: np.ndarray
    """Number of each record's bucket, or -1 if it is dropped; int16 [n]."""
    misfits: tuple[Misfit, ...] = ()

    def size_of(self, record: int) -> Size:
        """Width and height that a record is brought to. Raises KeyError for a dropped one."""
        bucket = int(self.of_record[record])
        if bucket < 0:
            raise KeyError(record)
        return self.sizes[bucket]

    def records_of(self, bucket: int, first: int = 0, last: int | None = None) -> np.ndarray:
        """Numbers of the bucket's records among first .. last - 1, int32."""
        return (np.flatnonzero(self.of_record[first:last] == bucket) + first).astype(np.int32)

    def counts(self) -> dict[str, int]:
        """Images of each bucket that has some, by its name `widthxheight`."""
        counts = [int((self.of_record == bucket).sum()) for bucket in range(len(self.sizes))]
        return {size_name(size): count for size, count in zip(self.sizes, counts, strict=True) if count}

    def names(self, reason: Reason) -> list[str]:
        """The images that are dropped, or upscaled."""
        return [misfit.image for misfit in self.misfits if misfit.reason == reason]

    def facts(self) -> dict[str, JsonValue]:
        """What `t2i inspect` and done.json say: images of each bucket, and the names of those that do not just fit."""
        facts: dict[str, JsonValue] = {"images per bucket": dict(self.counts())}
        for reason in ("dropped", "upscaled"):
            if names := self.names(reason):
                facts[reason] = list(names)
        return facts

    def check_batch(self, batch_size: int) -> None:
        """Raise DataError unless every bucket in use has images enough for a batch without repeating one."""
        small = [f"{name} ({count})" for name, count in self.counts().items() if count < batch_size]
        if small:
            raise DataError(
                f"a batch of {batch_size} is larger than the number of images in {len(small)} buckets: "
                f"{', '.join(small)}. Lower loop.batch_size, make fewer buckets (buckets.step, buckets.max_aspect), "
                "or drop these images with a filter stage (max_aspect)."
            )


def size_name(size: Size) -> str:
    """`widthxheight`."""
    return f"{size[0]}x{size[1]}"


def bucket_sizes(resolution: int, settings: BucketSettings) -> tuple[Size, ...]:
    """All sizes of at most resolution^2 pixels, multiples of the step, as long as possible for their shorter side.

    From the tallest to the widest, with resolution x resolution among them. At 1024 px, step 64 and aspects up to 2
    these are 9 sizes from 768x1344 to 1344x768, all among those of SDXL (Podell et al. 2023, arXiv:2307.01952,
    appendix I). Raises ConfigError if the resolution is not a multiple of the step.
    """
    step = settings.step
    if resolution % step:
        raise ConfigError(f"resolution: {resolution} is not a multiple of buckets.step, {step}.")
    sides = [(short, resolution**2 // short // step * step) for short in range(step, resolution + 1, step)]
    fitting = [(short, long) for short, long in sides if long <= settings.max_aspect * short]
    return (*fitting, *((long, short) for short, long in reversed(fitting) if long != short))


def nearest_bucket(sizes: Sequence[Size], widths: np.ndarray, heights: np.ndarray) -> np.ndarray:
    """Number of the bucket whose aspect is nearest to each image's, int16.

    Nearest is by ratio: |log(aspect / bucket's aspect)| is least. Of two that are equally near, the one nearer to the
    square is taken, which has the larger short side. sizes: as `bucket_sizes` gives them.
    """
    # Between neighbours p < q the border is sqrt(p q). Its square, and the image's, are quotients of whole numbers,
    # rounded once: equal quotients stay equal, so that a tie is a tie.
    borders = np.array([(w * w2) / (h * h2) for (w, h), (w2, h2) in itertools.pairwise(sizes)], dtype=np.float64)
    squares = (widths.astype(np.float64) ** 2) / (heights.astype(np.float64) ** 2)
    places = np.searchsorted(borders, squares, side="left")
    tied = places < len(borders)
    tied[tied] = borders[places[tied]] == squares[tied]
    upright = tied & (squares < 1)
    return (places + upright).astype(np.int16)


def plan_buckets(
    sizes: np.ndarray, resolution: int, settings: BucketSettings, name_of: Callable[[int], str]
) -> BucketPlan:
    """Assign images to buckets. sizes: width and height of each as seen, int32 [n, 2]; name_of: record -> its name.

    Raises DataError that names the images that do not fit, where these are not to be dropped or enlarged.
    """
    buckets = bucket_sizes(resolution, settings)
    # In blocks: the arithmetic takes ten times the memory of its result.
    blocks = np.split(sizes, range(_BLOCK, len(sizes), _BLOCK))
    fits = [_fit(buckets, block, settings.max_aspect) for block in blocks]
    chosen, too_long, too_small = (np.concatenate(parts) for parts in zip(*fits, strict=True))

    def misfit(record: int, reason: Reason) -> Misfit:
        size = size_name((int(sizes[record, 0]), int(sizes[record, 1])))
        if too_long[record]:
            return Misfit(name_of(record), reason, f"{size}: an aspect above {settings.max_aspect:g}")
        return Misfit(name_of(record), reason, f"{size}: smaller than its bucket {size_name(buckets[chosen[record]])}")

    unfit = too_long if settings.upscale else too_long | too_small
    dropped = [misfit(int(record), "dropped") for record in np.flatnonzero(unfit)]
    if dropped and settings.unfit == "refuse":
        raise DataError(_refusal(dropped, len(sizes)))
    upscaled = [misfit(int(record), "upscaled") for record in np.flatnonzero(too_small & ~unfit)]
    return BucketPlan(buckets, np.where(unfit, np.int16(-1), chosen), (*dropped, *upscaled))


_BLOCK = 16384


def _fit(buckets: Sequence[Size], sizes: np.ndarray, max_aspect: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each image: the number of its bucket, whether it is too long, and else whether it is too small for it."""
    widths, heights = sizes[:, 0].astype(np.int64), sizes[:, 1].astype(np.int64)
    chosen = nearest_bucket(buckets, widths, heights)
    targets = np.array(buckets, dtype=np.int64)[chosen]
    too_long = np.maximum(widths, heights) > max_aspect * np.minimum(widths, heights)
    too_small = ((widths < targets[:, 0]) | (heights < targets[:, 1])) & ~too_long
    return chosen, too_long, too_small


def square_plan(count: int, resolution: int) -> BucketPlan:
    """Every record at resolution x resolution."""
    return BucketPlan(((resolution, resolution),), np.zeros(count, dtype=np.int16))


def _refusal(misfits: Sequence[Misfit], count: int) -> str:
    shown = "".join(f"\n  {misfit.image}: {misfit.detail}" for misfit in misfits[:20])
    more = f"\n  ... and {len(misfits) - 20} more" if len(misfits) > 20 else ""
    return (
        f"{len(misfits)} of {count} images fit no bucket:{shown}{more}\n"
        "Leave them out (buckets.unfit: drop), enlarge the small ones (buckets.upscale: true), "
        "or train at a lower resolution."
    )
