"""Which size each image is brought to."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from t2i.data.buckets import Misfit, bucket_sizes, nearest_bucket, plan_buckets, square_plan
from t2i.data.settings import BucketSettings
from t2i.errors import ConfigError, DataError

# Podell et al. 2023, appendix I, which also has shorter ones for some short sides (832x1152); these are the longest.
SDXL = [(768, 1344), (832, 1216), (896, 1152), (960, 1088), (1024, 1024)]
EIGHTS = BucketSettings(step=8)


def plan(*sizes: tuple[int, int], resolution: int = 32, **fields: object):
    settings = BucketSettings.model_validate({"step": 8, **fields})
    return plan_buckets(np.array(sizes, dtype=np.int32), resolution, settings, "{}.png".format)


def test_sizes_at_1024_are_among_those_of_sdxl() -> None:
    expected = SDXL + [(height, width) for width, height in reversed(SDXL[:-1])]
    assert list(bucket_sizes(1024, BucketSettings())) == expected


@pytest.mark.parametrize(("resolution", "step", "aspect"), [(512, 64, 2.0), (1024, 32, 4.0), (768, 8, 3.0), (32, 8, 1)])
def test_sizes_keep_to_the_area_the_step_and_the_aspect(resolution: int, step: int, aspect: float) -> None:
    sizes = bucket_sizes(resolution, BucketSettings(step=step, max_aspect=aspect))
    assert (resolution, resolution) in sizes
    for width, height in sizes:
        short, long = sorted((width, height))
        assert width % step == height % step == 0
        assert short * long <= resolution**2 < short * (long + step)
        assert long <= aspect * short
        assert (height, width) in sizes
    aspects = [width / height for width, height in sizes]
    assert aspects == sorted(set(aspects))


def test_resolution_must_be_a_multiple_of_the_step() -> None:
    with pytest.raises(ConfigError, match=r"resolution: 500 is not a multiple of buckets.step, 64"):
        bucket_sizes(500, BucketSettings())


def test_image_goes_to_the_bucket_of_the_nearest_aspect() -> None:
    generator = np.random.default_rng(0)
    sizes = bucket_sizes(1024, BucketSettings(max_aspect=4))
    images = generator.integers(300, 3000, (500, 2))
    found = nearest_bucket(sizes, images[:, 0], images[:, 1])
    for (width, height), bucket in zip(images.tolist(), found.tolist(), strict=True):
        distances = [abs(math.log(width / height * h / w)) for w, h in sizes]
        assert distances[bucket] == pytest.approx(min(distances), abs=1e-12)


def test_tie_goes_to_the_bucket_nearer_to_the_square() -> None:
    sizes = [(8, 32), (16, 16), (32, 8)]
    # 4:1 and 1:1 meet at 2:1, exactly; beside it, each has its own.
    widths, heights = np.array([200, 201, 199, 100, 99, 101]), np.array([100, 100, 100, 200, 200, 200])
    assert nearest_bucket(sizes, widths, heights).tolist() == [1, 2, 1, 1, 0, 1]


def test_every_tie_of_neighbours_is_recognised() -> None:
    sizes = bucket_sizes(64, BucketSettings(step=8, max_aspect=8))
    for (w, h), (w2, h2) in itertools.pairwise(sizes):
        # An image of aspect sqrt(p q) exactly, where that is rational.
        root = math.isqrt(w * w2 * h * h2)
        if root**2 == w * w2 * h * h2:
            [found] = nearest_bucket(sizes, np.array([root]), np.array([h * h2]))
            assert sizes[found] == max((w, h), (w2, h2), key=min)


def test_assignment_depends_on_the_image_alone() -> None:
    sizes = [(64, 64), (80, 50), (50, 80), (64, 63), (70, 40)]
    forward, backward = plan(*sizes), plan(*reversed(sizes))
    assert forward.of_record.tolist() == backward.of_record.tolist()[::-1]
    assert forward.size_of(1) == (40, 24)
    assert forward.counts() == {"24x40": 1, "32x32": 2, "40x24": 2}
    assert [forward.records_of(bucket).tolist() for bucket in range(3)] == [[2], [0, 3], [1, 4]]
    assert forward.records_of(2, 2, 5).tolist() == [4]


def test_images_that_fit_no_bucket_are_refused_by_name() -> None:
    with pytest.raises(
        DataError, match=r"(?s)2 of 4 .*1\.png: 31x40: smaller than its bucket 32x32.*2\.png: 90x40: an"
    ) as error:
        plan((64, 64), (31, 40), (90, 40), (32, 32))
    assert "buckets.upscale" in str(error.value)


def test_dropped_images_are_named_and_in_no_bucket() -> None:
    found = plan((64, 64), (31, 40), (90, 40), (32, 32), unfit="drop")
    assert found.of_record.tolist() == [1, -1, -1, 1]
    assert found.names("dropped") == ["1.png", "2.png"]
    assert found.facts() == {"images per bucket": {"32x32": 2}, "dropped": ["1.png", "2.png"]}
    with pytest.raises(KeyError):
        found.size_of(1)


def test_small_images_are_enlarged_only_when_asked_for_and_named() -> None:
    found = plan((64, 64), (31, 40), upscale=True)
    assert found.of_record.tolist() == [1, 1]
    assert found.misfits == (Misfit("1.png", "upscaled", "31x40: smaller than its bucket 32x32"),)
    with pytest.raises(DataError, match="an aspect above 2"):
        plan((90, 40), upscale=True)


def test_batch_larger_than_a_bucket_is_refused_by_the_buckets_name() -> None:
    found = plan((64, 64), (64, 64), (80, 50), (50, 80))
    found.check_batch(1)
    with pytest.raises(
        DataError, match=r"a batch of 2 .* 2 buckets: 24x40 \(1\), 40x24 \(1\)\. Lower loop\.batch_size"
    ):
        found.check_batch(2)


def test_square_plan_has_one_bucket() -> None:
    found = square_plan(3, 32)
    assert (found.size_of(2), found.counts()) == ((32, 32), {"32x32": 3})
