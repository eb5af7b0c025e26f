"""Merging is a sum of weight changes, to the last bit that float32 has; what is cut off is what is reported."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_adapters import adapter

from t2i.errors import ModelError
from t2i.export.factors import Adapter, Factors, largest_error
from t2i.export.merge import MergeKind, Size, dora_change, dora_to_lora, extract, merge, shrink

KINDS: tuple[MergeKind, ...] = ("linear", "cat", "svd", "factors")


def random_adapter(seed: int, rank: int, alpha: float, modules: tuple[str, ...] = ("unet.a", "unet.b")) -> Adapter:
    draw = torch.Generator().manual_seed(seed)
    return {
        name: Factors(torch.randn(rank, 7, generator=draw), torch.randn(9, rank, generator=draw), alpha)
        for name in modules
    }


def always(*weights: float) -> list[Any]:
    return [lambda module, weight=weight: weight for weight in weights]


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=15, deadline=None, database=None, derandomize=True)
@given(st.integers(1, 6), st.integers(1, 5), st.floats(0.1, 30))
def test_copies_of_one_adapter_merged_are_that_adapter(kind: MergeKind, copies: int, rank: int, alpha: float) -> None:
    one = random_adapter(0, rank, alpha)
    merged = merge([one] * copies, always(*[1 / copies] * copies), kind, Size(rank=rank))
    assert largest_error(one, merged.adapter) <= 1e-6
    assert merged.error <= 1e-6
    expected = rank * copies if kind == "cat" else rank
    assert {factors.rank for factors in merged.adapter.values()} == {expected}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["sd1", "flux"])
def test_copies_of_a_trained_adapter_merged_are_that_adapter(name: str, kind: MergeKind) -> None:
    merged = merge([adapter(name)] * 3, always(*[1 / 3] * 3), kind, Size(rank=4))
    assert largest_error(adapter(name), merged.adapter) <= 1e-6


@pytest.mark.parametrize("kind", ["linear", "cat"])
def test_a_merge_is_the_weighted_sum_of_the_changes(kind: MergeKind) -> None:
    one, two = random_adapter(1, 2, 3.0), random_adapter(2, 3, 1.5, ("unet.b", "unet.c"))
    merged = merge([one, two], always(0.25, -2), kind).adapter
    expected = {"unet.a": 0.25 * one["unet.a"].delta(), "unet.c": -2 * two["unet.c"].delta()}
    expected["unet.b"] = 0.25 * one["unet.b"].delta() - 2 * two["unet.b"].delta()
    assert merged.keys() == expected.keys()
    for module, delta in expected.items():
        torch.testing.assert_close(merged[module].delta(), delta, atol=1e-5, rtol=1e-5)
    assert merged["unet.b"].rank == 5


def test_merging_factors_has_cross_terms_by_hand() -> None:
    def single(a: float, b: float) -> Adapter:
        return {"m": Factors(torch.tensor([[a]]), torch.tensor([[b]]), 1.0)}

    merged = [
        merge([single(1, 2), single(3, 4)], always(0.5, 0.5), kind).adapter["m"] for kind in ("linear", "factors")
    ]
    assert [round(float(factors.delta()), 5) for factors in merged] == [(2 + 12) / 2, 2 * 3]


def test_weights_can_differ_by_module() -> None:
    one, two = random_adapter(1, 2, 2.0), random_adapter(2, 2, 2.0)
    weights = [lambda module: float(module == "unet.a"), lambda module: float(module == "unet.b")]
    merged = merge([one, two], weights, "linear").adapter
    assert largest_error({"unet.a": one["unet.a"], "unet.b": two["unet.b"]}, merged) <= 1e-6


def test_svd_keeps_the_largest_directions_and_reports_the_rest() -> None:
    values = torch.tensor([4.0, 2.0, 1.0])
    one = {"m": Factors(torch.eye(3, 7), torch.eye(9, 3) * values, 3.0)}
    cut = shrink(one, Size(rank=2))
    assert cut.adapter["m"].rank == 2
    assert cut.error == pytest.approx(1 / math.sqrt(21))
    assert float(cut.adapter["m"].delta().norm()) == pytest.approx(math.sqrt(20))
    # 16/21 = 0.76, 20/21 = 0.95
    assert [shrink(one, Size(energy=share)).adapter["m"].rank for share in (0.7, 0.9, 0.99)] == [1, 2, 3]
    assert shrink(one, Size(rank=1, energy=0.99)).adapter["m"].rank == 1


def test_convolutions_keep_their_kernels() -> None:
    conv = {"m": Factors(torch.randn(4, 5, 3, 3), torch.randn(6, 4, 1, 1), 2.0)}
    merged = merge([conv, conv], always(0.5, 0.5), "linear").adapter
    assert (merged["m"].down.shape, merged["m"].up.shape) == ((4, 5, 3, 3), (6, 4, 1, 1))
    assert largest_error(conv, merged) <= 1e-6


def test_extracting_gives_back_the_adapter_that_was_put_in() -> None:
    one = random_adapter(0, 3, 6.0)
    base = {module: torch.randn(9, 7).double() for module in one} | {"unet.same": torch.ones(2, 2).double()}
    tuned = base | {module: base[module] + factors.delta() for module, factors in one.items()}
    found = extract(base, tuned, Size(rank=3))
    assert found.adapter.keys() == one.keys()
    assert largest_error(one, found.adapter) <= 1e-6
    assert extract(base, tuned, Size(rank=1)).error > 0.1
    with pytest.raises(ModelError, match="the same weights"):
        extract(base, base, Size(rank=1))
    with pytest.raises(ModelError, match="different architecture"):
        extract(base, {**tuned, "unet.a": torch.ones(3, 3)}, Size(rank=1))


def test_a_dora_at_full_rank_is_a_lora_and_below_it_the_error_is_told() -> None:
    weight = torch.randn(9, 7)
    dora = {"m": Factors(torch.randn(2, 7), torch.randn(9, 2), 2.0, magnitude=torch.rand(9) + 1)}
    change = dora_change(dora["m"], weight)
    torch.testing.assert_close((weight.double() + change).norm(dim=1), dora["m"].magnitude.double())
    full = dora_to_lora(dora, {"m": weight}, Size(rank=7))
    torch.testing.assert_close(full.adapter["m"].delta(), change, atol=1e-5, rtol=1e-5)
    cut = dora_to_lora(dora, {"m": weight}, Size(rank=2))
    assert cut.error == pytest.approx(float((cut.adapter["m"].delta() - change).norm() / change.norm()), rel=1e-4)


@pytest.mark.parametrize(
    ("others", "kind", "complaint"),
    [
        ({"unet.a": Factors(torch.ones(2, 5), torch.ones(9, 2), 1.0)}, "linear", "different widths"),
        ({"unet.a": Factors(torch.ones(3, 7), torch.ones(9, 3), 1.0)}, "factors", "different ranks or modules"),
        ({"unet.a": Factors(torch.ones(2, 7), torch.ones(9, 2), 1.0, torch.ones(9))}, "linear", "a DoRA"),
    ],
)
def test_adapters_that_cannot_be_merged_are_refused(others: Adapter, kind: MergeKind, complaint: str) -> None:
    one = random_adapter(0, 2, 1.0, ("unet.a",))
    with pytest.raises(ModelError, match=complaint):
        merge([one, others], always(0.5, 0.5), kind)
