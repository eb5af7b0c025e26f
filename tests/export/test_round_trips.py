"""Random ranks, alphas and choices of modules survive the way through every pair of layouts."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_adapters import CHECKPOINTS, layers

from t2i.export.adapter import write_layout
from t2i.export.factors import Adapter, Factors, largest_error
from t2i.export.fusing import fuse, split
from t2i.export.layouts import LAYOUTS, Layout, ModelLayers, to_layout
from t2i.export.names import Layer, Part
from t2i.export.reading import read_adapter

PAIRS = [
    (name, *pair)
    for name in CHECKPOINTS
    for pair in product(LAYOUTS, LAYOUTS)
    if "kohya" not in pair or name != "pixart"
]


@st.composite
def adapters(draw: st.DrawFn, model: ModelLayers) -> Adapter:
    """An adapter of a few modules, each of its own rank and alpha; inputs are narrower than the model's."""
    known = [
        (f"{component}.{path}", rows) for component, paths in model.components.items() for path, rows in paths.items()
    ]
    # Neighbours, so that parts of one fused layer meet.
    start = draw(st.integers(0, len(known) - 1))
    chosen = draw(st.lists(st.sampled_from(known[start : start + 8]), min_size=1, unique=True))
    random = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
    adapter: Adapter = {}
    for name, rows in chosen:
        rank, alpha = draw(st.integers(1, 5)), draw(st.floats(0.125, 64))
        adapter[name] = Factors(
            torch.randn(rank, 6, generator=random), torch.randn(rows, rank, generator=random), alpha
        )
    return adapter


def through(adapter: Adapter, layout: Layout, model: ModelLayers) -> Adapter:
    """Written and read again."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "peft" if layout == "peft" else "lora.safetensors")
        write_layout(to_layout(adapter, layout, model), path, layout, {})
        return read_adapter(path, model).adapter


@pytest.mark.parametrize(("name", "first", "second"), PAIRS)
def test_adapters_survive_the_way_through_two_layouts(name: str, first: Layout, second: Layout) -> None:
    model = layers(name)

    @settings(max_examples=4, deadline=None, database=None, derandomize=True)
    @given(adapters(model))
    def survive(adapter: Adapter) -> None:
        once = through(adapter, first, model)
        twice = through(once, second, model)
        assert once.keys() == twice.keys() == adapter.keys()
        assert largest_error(adapter, twice) <= 1e-6
        assert all(twice[module].rank <= factors.rank for module, factors in adapter.items())

    survive()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("is_bare", [False, True], ids=["with text_model", "bare"])
def test_layers_of_a_text_encoder_keep_their_ranks_and_alphas(is_bare: bool, layout: Layout) -> None:
    """As older transformers name them, and newer."""
    model = replace(layers("sd1"), bare=frozenset({"text_encoder"} if is_bare else ()))
    names = [name for name in model.components["text_encoder"] if name.endswith(("q_proj", "k_proj"))]
    random = torch.Generator().manual_seed(3)
    adapter = {
        f"text_encoder.{name}": Factors(
            torch.randn(rank, 6, generator=random),
            torch.randn(model.components["text_encoder"][name], rank, generator=random),
            alpha,
        )
        for name, rank, alpha in zip(names, (2, 4, 3, 1), (2.0, 4.0, 1.5, 7.0), strict=False)
    }
    assert len(adapter) >= 3
    found = through(adapter, layout, model)
    assert largest_error(adapter, found) <= 1e-6
    assert {name: one.rank for name, one in found.items()} == {name: one.rank for name, one in adapter.items()}


def layer(*rows: int, swaps: bool = False) -> Layer:
    return Layer("qkv", tuple(Part("qkvm"[number], size) for number, size in enumerate(rows)), swaps)


def test_fusing_worked_out_by_hand() -> None:
    q = Factors(torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0]]), 2.0)
    k = Factors(torch.tensor([[4.0, 5.0]]), torch.tensor([[6.0], [7.0]]), 2.0)
    fused = fuse(layer(1, 2, 1), {"q": q, "k": k})
    assert fused is not None
    assert fused.down.tolist() == [[1, 2], [4, 5]]
    assert fused.up.tolist() == [[3, 0], [0, 6], [0, 7], [0, 0]]
    assert fused.alpha == 4  # 2 / 1 per part, so 4 / 2
    assert fused.delta().tolist() == [[6, 12], [48, 60], [56, 70], [0, 0]]


def test_parts_of_different_strength_keep_theirs() -> None:
    q = Factors(torch.ones(1, 2), torch.ones(1, 1), 4.0)
    k = Factors(torch.ones(1, 2), torch.ones(1, 1), 0.5)
    fused = fuse(layer(1, 1), {"q": q, "k": k})
    assert fused is not None
    assert fused.delta().tolist() == [[4, 4], [0.5, 0.5]]


def test_parts_that_share_a_get_back_the_rank_of_the_fused_adapter() -> None:
    fused = Factors(torch.randn(4, 6), torch.randn(5, 4), 3.0)
    parts = split(layer(2, 2, 1), fused)
    assert [part.rank for part in parts.values()] == [4, 4, 4]
    again = fuse(layer(2, 2, 1), parts)
    assert again is not None
    assert torch.equal(again.down, fused.down)
    assert torch.equal(again.up, fused.up)
    assert again.alpha == fused.alpha


def test_swapped_halves_are_swapped_back() -> None:
    factors = Factors(torch.ones(1, 1), torch.tensor([[1.0], [2.0], [3.0], [4.0]]), 1.0)
    swapping = layer(4, swaps=True)
    fused = fuse(swapping, {"q": factors})
    assert fused is not None
    assert fused.up.flatten().tolist() == [3, 4, 1, 2]
    assert torch.equal(split(swapping, fused)["q"].up, factors.up)


def test_a_fresh_fused_adapter_keeps_its_parts() -> None:
    parts = split(layer(2, 2), Factors(torch.ones(3, 1), torch.zeros(4, 3), 3.0))
    assert {name: part.rank for name, part in parts.items()} == {"q": 3, "k": 3}
