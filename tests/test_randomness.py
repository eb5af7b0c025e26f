"""Every draw is a function of its key alone."""

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch

from t2i.randomness import derive_key, generator, image_seed, sampling_generator, seeded_global

REPOSITORY = Path(__file__).parent.parent


def test_keys_differ_by_seed_purpose_and_every_index() -> None:
    keys = {
        derive_key(seed, purpose, *indices)
        for seed, purpose in itertools.product((0, 1, 2), ("noise", "timestep"))
        for indices in ((), (0,), (1,), (0, 0), (0, 1), (1, 0), (11,), (1, 1), (1, 11), (11, 1))
    }
    assert len(keys) == 3 * 2 * 10
    assert all(0 <= key < 2**128 for key in keys)


def test_numbers_are_frozen() -> None:
    """Another value here means that every recipe gives other results: bump the versions of all stages."""
    assert derive_key(7, "noise", 3, 1) == 338157645853441243480639612853731400733
    assert generator(7, "noise", 3, 1).integers(0, 1000, 4).tolist() == [198, 963, 102, 219]
    assert image_seed(7, 3, 1) == 1049109258


def test_numpy_integers_are_as_good_as_python_ones() -> None:
    assert derive_key(7, "noise", np.int64(3), np.int32(1)) == derive_key(7, "noise", 3, 1)  # pyright: ignore[reportArgumentType]


def test_draw_is_the_same_in_another_process() -> None:
    code = "from t2i.randomness import generator; print(generator(7, 'noise', 3, 1).standard_normal(5).tolist())"
    found = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == str(generator(7, "noise", 3, 1).standard_normal(5).tolist())


def test_draw_depends_on_nothing_that_was_drawn_before() -> None:
    first = generator(7, "noise", 3, 1).standard_normal(8)
    generator(7, "noise", 3, 0).standard_normal(1000)
    np.random.seed(5)
    torch.manual_seed(5)
    assert np.array_equal(generator(7, "noise", 3, 1).standard_normal(8), first)


def test_draw_leaves_the_global_generators_alone() -> None:
    torch.manual_seed(3)
    np.random.seed(3)
    expected = float(torch.rand(1)), float(np.random.random())
    torch.manual_seed(3)
    np.random.seed(3)
    generator(7, "noise", 3, 1).standard_normal(8)
    sampling_generator(4)
    assert (float(torch.rand(1)), float(np.random.random())) == expected


def test_neighbouring_draws_are_not_correlated() -> None:
    draws = np.stack([generator(7, "noise", step, 0).standard_normal(4000) for step in range(6)])
    correlation = np.corrcoef(draws) - np.eye(6)
    assert np.abs(correlation).max() < 0.07
    assert np.abs(draws.mean()) < 0.02
    assert np.abs(draws.std() - 1) < 0.02


def test_image_seeds_fit_a_generator_of_diffusers_and_differ() -> None:
    seeds = [image_seed(7, prompt, sample) for prompt in range(200) for sample in range(5)]
    assert len(set(seeds)) == 1000
    assert all(0 <= seed < 2**31 for seed in seeds)
    drawn = torch.randn(3, generator=sampling_generator(seeds[0]))
    assert torch.equal(drawn, torch.randn(3, generator=torch.Generator("cpu").manual_seed(seeds[0])))


def test_seeded_global_draws_by_key_and_puts_the_global_generator_back() -> None:
    torch.manual_seed(3)
    expected = float(torch.rand(1))
    torch.manual_seed(3)
    with seeded_global(1, "weights", 0):
        first = float(torch.rand(1))
    assert float(torch.rand(1)) == expected
    with seeded_global(1, "weights", 0):
        assert float(torch.rand(1)) == first
    with seeded_global(1, "weights", 1):
        assert float(torch.rand(1)) != first
