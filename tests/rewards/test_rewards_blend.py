"""Blends by hand, the Pareto front against its definition, and the blend as a scorer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import rewards
from rewards.base import DifferentiableReward, Fingerprinted, Reward
from rewards.blend import (
    Blend,
    Statistics,
    harmonic,
    load_statistics,
    measure,
    minimum,
    pareto_front,
    save_statistics,
    to_unit,
    weighted,
    z_score,
)
from rewards.errors import InputError
from rewards.registry import load
from rewards.score_files import scorer_id
from rewards.scoring import describe

VALUES = np.array([[0.5, 1.0, 0.25], [0.5, 0.5, 1.0]])
STATISTICS = {
    "brightness": Statistics(0.5, 0.25, 100, "1"),
    "saturation": Statistics(0.2, 0.1, 100, "1"),
    "blank": Statistics(0.1, 0.3, 100, "1"),
}


def test_blends_by_hand():
    np.testing.assert_allclose(weighted(VALUES, [3.0, 1.0]), [0.5, 0.875, 0.4375])
    # 1 / (0.75 / v1 + 0.25 / v2)
    np.testing.assert_allclose(harmonic(VALUES, [3.0, 1.0]), [0.5, 0.8, 1 / 3.25])
    np.testing.assert_allclose(minimum(VALUES), [0.5, 0.5, 0.25])
    np.testing.assert_allclose(z_score(VALUES[0], Statistics(0.5, 0.25, 9, "1")), [0.0, 2.0, -1.0])
    np.testing.assert_allclose(to_unit(np.array([0.0, np.log(3.0)])), [0.5, 0.75])


def test_tensors_blend_as_arrays_do_and_carry_a_gradient():
    for way in (lambda v: weighted(v, [1.0, 2.0]), lambda v: harmonic(v, [1.0, 2.0]), minimum, to_unit):
        tensor = torch.tensor(VALUES, requires_grad=True)
        found = way(tensor)
        np.testing.assert_allclose(found.detach().numpy(), way(VALUES))
        found.sum().backward()
        assert tensor.grad is not None
        assert torch.isfinite(tensor.grad).all()


def test_the_harmonic_mean_is_ruled_by_the_weakest_and_refuses_what_is_not_positive():
    low = harmonic(np.array([[1.0], [1e-6]]), [1.0, 1.0])
    assert low[0] == pytest.approx(2e-6, rel=1e-5)
    for wrong in (0.0, -1.0):
        with pytest.raises(InputError, match="needs positive values"):
            harmonic(np.array([[1.0], [wrong]]), [1.0, 1.0])


def test_the_pareto_front_by_its_definition():
    #                         best in 1; dominated by 3; equal twins; best in 2
    by_hand = np.array([[3.0, 1.0, 2.0, 2.0, 0.0], [0.0, 1.0, 2.0, 2.0, 3.0]])
    assert pareto_front(by_hand).tolist() == [True, False, True, True, True]
    table = np.random.default_rng(0).integers(0, 6, (3, 60)).astype(float)
    expected = [
        not any((table[:, j] >= table[:, i]).all() and (table[:, j] > table[:, i]).any() for j in range(60))
        for i in range(60)
    ]
    assert pareto_front(table).tolist() == expected
    assert pareto_front(np.zeros((2, 0))).shape == (0,)
    with pytest.raises(InputError, match="expected finite"):
        pareto_front([[np.nan]])


def test_statistics_by_hand_and_through_a_file(tmp_path: Path):
    found = measure([1.0, 2.0, 3.0], "7")
    assert found == Statistics(2.0, 1.0, 3, "7")
    save_statistics({"a": found}, tmp_path / "statistics.json")
    assert load_statistics(tmp_path / "statistics.json") == {"a": found}
    for wrong in ([1.0], [1.0, 1.0], [1.0, np.nan]):
        with pytest.raises(InputError):
            measure(wrong, "1")
    (tmp_path / "bad.json").write_text('{"a": {"mean": 1}}')
    with pytest.raises(InputError, match=r"bad\.json: no readable statistics"):
        load_statistics(tmp_path / "bad.json")
    save_statistics({"a": Statistics(0.0, 0.0, 3, "1")}, tmp_path / "flat.json")
    with pytest.raises(InputError, match="positive standard deviation"):
        load_statistics(tmp_path / "flat.json")


def test_a_blend_is_the_formula_on_its_parts(images: list):
    brightness, saturation, blank = (rewards.load(name).score(images) for name in ("brightness", "saturation", "blank"))
    z = [(brightness - 0.5) / 0.25, (saturation - 0.2) / 0.1, -(blank - 0.1) / 0.3]
    names = ["brightness", "saturation", "blank"]
    found = Blend(names, weights=[2, 1, 1], statistics=STATISTICS).score(images)
    np.testing.assert_allclose(found, 0.5 * z[0] + 0.25 * z[1] + 0.25 * z[2], rtol=1e-5, atol=1e-6)
    found = Blend(names, way="minimum", statistics=STATISTICS).score(images)
    np.testing.assert_allclose(found, np.min(z, axis=0), rtol=1e-5, atol=1e-6)
    units = [1 / (1 + np.exp(-row)) for row in z]
    found = Blend(names, way="harmonic", statistics=STATISTICS).score(images)
    np.testing.assert_allclose(found, 3 / sum(1 / unit for unit in units), rtol=1e-5)


def test_a_blend_is_a_scorer_like_any_other(scorer_options: dict, images: list, prompts: list[str]):
    parts = [{"name": name} | scorer_options[name] for name in ("clip_score", "aesthetic")]
    blend = rewards.load({"name": "rewards.blend:Blend", "parts": parts, "weights": [1.0, 20.0]})
    assert isinstance(blend, Reward)
    assert isinstance(blend, Fingerprinted)
    assert isinstance(blend, DifferentiableReward)
    assert (blend.needs_prompt, blend.differentiable) == (True, True)
    whole = blend.score(images, prompts)
    order = [3, 0, 6, 1, 2, 5, 4]
    permuted = blend.score([images[i] for i in order], [prompts[i] for i in order])
    np.testing.assert_allclose(permuted, whole[order], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(blend.score(images[2:3], prompts[2:3]), whole[2:3], rtol=1e-5, atol=1e-5)
    with pytest.raises(InputError, match="one prompt per image"):
        blend.score(images)
    pixels = torch.from_numpy(np.asarray(images[0]) / 255.0).float().permute(2, 0, 1)[None].requires_grad_()
    value = blend.score_tensor(pixels, prompts[:1])
    value.sum().backward()
    assert value.item() == pytest.approx(whole[0], rel=5e-3, abs=5e-3)
    assert pixels.grad is not None
    assert pixels.grad.abs().sum() > 0
    assert blend.count_truncated([prompts[3], "a cat"]) == 1  # pyright: ignore[reportAttributeAccessIssue]


def test_a_blend_with_a_part_without_gradient_says_so(images: list):
    blend = Blend(["brightness", "jpeg_size"])
    assert not blend.differentiable
    with pytest.raises(InputError, match="jpeg_size is not differentiable"):
        blend.score_tensor(torch.zeros(1, 3, 8, 8))


def test_blends_that_make_no_sense_are_refused():
    old = {"brightness": Statistics(0.5, 0.1, 9, "0"), "saturation": STATISTICS["saturation"]}
    for options, message in (
        ({"parts": ["brightness"]}, "of 1 parts; expected harmonic, minimum, weighted of 2 or more"),
        ({"parts": ["brightness", "saturation"], "way": "sum"}, "way 'sum'"),
        ({"parts": ["brightness", "saturation"], "weights": [1.0]}, "1 weights for 2 rewards"),
        ({"parts": ["brightness", "saturation"], "weights": [1.0, 0.0]}, "expected numbers above 0"),
        ({"parts": ["brightness", "saturation"], "way": "minimum", "weights": [1.0, 1.0]}, "has no weights"),
        ({"parts": ["brightness", "sharpness"], "statistics": STATISTICS}, "no statistics of sharpness"),
        ({"parts": ["brightness", "saturation"], "statistics": old}, "version 0, the scorer has 1"),
        ({"parts": ["brightness", "blank"], "way": "harmonic"}, "of blank smaller is better"),
    ):
        with pytest.raises(InputError, match=message):
            Blend(**options)


def test_the_fingerprint_knows_parts_weights_way_and_statistics():
    made = [
        Blend(["brightness", "saturation"]),
        Blend(["brightness", "sharpness"]),
        Blend(["brightness", "saturation"], weights=[1, 2]),
        Blend(["brightness", "saturation"], way="minimum"),
        Blend(["brightness", "saturation"], statistics=STATISTICS),
        Blend(["brightness", "saturation"], statistics=STATISTICS | {"brightness": Statistics(0.5, 0.26, 100, "1")}),
    ]
    assert len({str(blend.fingerprint()) for blend in made}) == len(made)


class Redness:
    """A scorer of one's own, without a fingerprint."""

    name, version, scale = "redness", "1", "0 to 1"
    needs_prompt, differentiable, higher_is_better = False, False, True

    def __init__(self, factor: float = 1.0) -> None:
        self.factor = factor

    def score(self, images: list, prompts: list | None = None) -> np.ndarray:
        return np.full(len(images), self.factor, dtype=np.float32)


def test_scorers_without_a_fingerprint_are_told_apart_by_their_options_and_blend(images: list):
    assert scorer_id(describe(Redness(1.0))) != scorer_id(describe(Redness(2.0)))
    assert scorer_id(describe(Redness(2.0))) == scorer_id(describe(Redness(2.0)))
    blend = Blend([Redness(), "brightness"])
    assert "fingerprint" not in describe(blend)
    assert not isinstance(blend, Fingerprinted)
    assert isinstance(Blend(["brightness", "saturation"]), Fingerprinted)
    assert len(blend.score(images[:2])) == 2


def test_statistics_of_other_weights_are_refused_where_they_say_whose_they_are():
    own = scorer_id(describe(load("brightness")))
    known = {
        name: measure([0.1, 0.5], "1", own if name == "brightness" else "") for name in ("brightness", "saturation")
    }
    Blend(["brightness", "saturation"], statistics=known)
    other = known | {"brightness": measure([0.1, 0.5], "1", "brightness/1/000000000000")}
    with pytest.raises(InputError, match="statistics of brightness are of brightness/1/000000000000"):
        Blend(["brightness", "saturation"], statistics=other)
