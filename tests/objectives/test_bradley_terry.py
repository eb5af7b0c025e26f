"""The losses of reward models: values worked out by hand, and what must not change them."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from t2i.objectives.bradley_terry import BradleyTerry, bradley_terry_loss, davidson_loss


def scores(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_a_sure_preference_costs_minus_log_sigmoid_of_the_margin() -> None:
    loss = bradley_terry_loss(scores(math.log(3), 5.0), scores(0.0, 5.0), scores(1.0, 1.0))
    # A margin of log 3 is odds of 3 to 1.
    assert loss.tolist() == pytest.approx([-math.log(3 / 4), math.log(2)], abs=1e-6)


def test_a_tie_is_half_a_win_of_each() -> None:
    loss = bradley_terry_loss(scores(math.log(3)), scores(0.0), scores(0.5))
    assert loss.item() == pytest.approx(-(math.log(3 / 4) + math.log(1 / 4)) / 2, abs=1e-6)
    margins = torch.linspace(-2, 2, 41, dtype=torch.float64)
    tied = bradley_terry_loss(margins, torch.zeros_like(margins), torch.full_like(margins, 0.5))
    assert margins[tied.argmin()].item() == pytest.approx(0.0)


def test_the_likeliest_margin_of_a_soft_preference_is_its_log_odds() -> None:
    margin = torch.tensor([math.log(0.8 / 0.2)], requires_grad=True)
    bradley_terry_loss(margin, torch.zeros(1), torch.tensor([0.8])).sum().backward()
    assert margin.grad is not None
    assert margin.grad.item() == pytest.approx(0.0, abs=1e-7)


def test_davidson_shares_probability_among_win_tie_and_loss() -> None:
    # Strengths 4 and 1, tie weight 1.5: 4 : 1.5 * 2 : 1, of 8.
    chosen, rejected = scores(math.log(4)), scores(0.0)
    win = davidson_loss(chosen, rejected, scores(1.0), 1.5).item()
    tie = davidson_loss(chosen, rejected, scores(0.5), 1.5).item()
    lost = davidson_loss(rejected, chosen, scores(1.0), 1.5).item()
    assert [math.exp(-value) for value in (win, tie, lost)] == pytest.approx([4 / 8, 3 / 8, 1 / 8], abs=1e-6)
    half = davidson_loss(chosen, rejected, scores(0.75), 1.5).item()
    assert half == pytest.approx((win + tie) / 2, abs=1e-6)


@pytest.mark.parametrize("ties", ["half", "davidson"])
@pytest.mark.parametrize("preference", [0.5, 0.75, 1.0])
def test_only_the_margin_counts(ties: str, preference: float) -> None:
    objective = BradleyTerry(ties=ties)  # pyright: ignore[reportArgumentType]
    chosen, rejected = torch.randn(8), torch.randn(8)
    sure = torch.full((8,), preference)
    moved = objective(chosen + 3, rejected + 3, sure).loss
    torch.testing.assert_close(objective(chosen, rejected, sure).loss, moved, atol=1e-5, rtol=1e-5)


def test_a_tie_does_not_say_which_image_comes_first() -> None:
    chosen, rejected, tied = torch.randn(8), torch.randn(8), torch.full((8,), 0.5)
    for loss in (bradley_terry_loss, lambda *pair: davidson_loss(*pair, 0.7)):
        torch.testing.assert_close(loss(chosen, rejected, tied), loss(rejected, chosen, tied))


def test_large_margins_stay_finite() -> None:
    for loss in (bradley_terry_loss, lambda *pair: davidson_loss(*pair, 1.0)):
        far = loss(torch.tensor([-500.0, 500.0]), torch.zeros(2), torch.ones(2))
        assert torch.isfinite(far).all()
        assert far[1] == pytest.approx(0.0, abs=1e-6)


def test_accuracy_counts_equal_scores_half() -> None:
    output = BradleyTerry()(torch.tensor([1.0, 0.0, 2.0]), torch.tensor([0.0, 1.0, 2.0]), torch.ones(3))
    assert output.metrics["accuracy"].tolist() == [1.0, 0.0, 0.5]
    assert output.metrics["margin"].tolist() == [1.0, -1.0, 0.0]


@pytest.mark.parametrize("aspects", [["fidelity", "fidelity"], [""]])
def test_aspects_have_different_names(aspects: list[str]) -> None:
    with pytest.raises(ValueError, match="name every aspect once"):
        BradleyTerry(aspects=tuple(aspects))


def test_a_weight_of_ties_that_would_be_ignored_is_refused() -> None:
    with pytest.raises(ValueError, match="set ties: davidson"):
        BradleyTerry(tie_weight=2.0)
    assert BradleyTerry(ties="davidson", tie_weight=2.0).tie_weight == 2
