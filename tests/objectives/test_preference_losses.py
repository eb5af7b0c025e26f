"""Preference losses on plain tensors: values worked out by hand, and what must hold whatever the values."""

from __future__ import annotations

import math

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from t2i.objectives import DiffusionDPO, DiffusionKTO
from t2i.objectives.beta import CONVENTIONS, BetaFrom, Tool
from t2i.objectives.diffusion_dpo import Kind, diffusion_dpo_loss, implicit_accuracy, pair_metrics
from t2i.objectives.kto import kl_reference_point, kto_loss
from t2i.objectives.pairs import PairErrors

LOG_TWO = torch.tensor(math.log(2))
BY_HAND = PairErrors(*(torch.tensor([value]) for value in (0.10, 0.30, 0.20, 0.25)))
"""Half margin: 1/2 ((0.20 - 0.10) - (0.25 - 0.30)) = 0.075."""


def test_half_margin_by_hand() -> None:
    torch.testing.assert_close(BY_HAND.half_margin, torch.tensor([0.075]))


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("sigmoid", math.log(1 + math.exp(-0.75))), ("hinge", 1 - 0.75), ("ipo", (0.075 - 1 / 20) ** 2)],
)
def test_losses_by_hand_at_beta_10(kind: Kind, expected: float) -> None:
    torch.testing.assert_close(diffusion_dpo_loss(BY_HAND.half_margin, 10.0, kind), torch.tensor([expected]))


def test_a_pair_of_three_votes_to_one_by_hand_at_beta_10() -> None:
    share = torch.tensor([0.75])
    expected = 0.75 * math.log(1 + math.exp(-0.75)) + 0.25 * math.log(1 + math.exp(0.75))
    found = diffusion_dpo_loss(BY_HAND.half_margin, 10.0, "sigmoid", share)
    torch.testing.assert_close(found, torch.tensor([expected]))


@pytest.mark.parametrize("kind", ["sigmoid", "hinge", "ipo"])
def test_a_share_of_the_votes_is_the_opposite_share_for_the_flipped_pair(kind: Kind) -> None:
    margins, share = torch.linspace(-0.1, 0.1, 7), torch.linspace(0.51, 1, 7)
    straight = diffusion_dpo_loss(margins, 10.0, kind, share)
    torch.testing.assert_close(diffusion_dpo_loss(-margins, 10.0, kind, 1 - share), straight)
    agreed = diffusion_dpo_loss(margins, 10.0, kind, torch.ones(7))
    assert torch.equal(agreed, diffusion_dpo_loss(margins, 10.0, kind))


def test_the_loss_of_a_share_is_least_where_the_model_is_as_sure_as_the_votes() -> None:
    share, beta = 0.8, 50.0
    margin = torch.tensor([math.log(share / (1 - share)) / beta], requires_grad=True)
    diffusion_dpo_loss(margin, beta, "sigmoid", torch.tensor([share])).sum().backward()
    assert margin.grad is not None
    assert abs(float(margin.grad)) < 1e-5


def test_kto_by_hand_at_beta_10() -> None:
    liked, disliked = 5 * BY_HAND.chosen_gain, 5 * BY_HAND.rejected_gain  # 0.5 and -0.25
    point = kl_reference_point(torch.cat([liked, disliked]))
    torch.testing.assert_close(point, torch.tensor(0.125))
    both_by_hand = torch.tensor([1 / (1 + math.exp(0.375))])
    torch.testing.assert_close(kto_loss(liked, point, 1), both_by_hand)
    torch.testing.assert_close(kto_loss(disliked, point, -1), both_by_hand)


def test_loss_is_log_two_and_accuracy_one_half_where_policy_and_reference_agree() -> None:
    zero = torch.zeros(3)
    assert torch.equal(diffusion_dpo_loss(zero, 5000.0), LOG_TWO.expand(3))
    assert torch.equal(implicit_accuracy(zero), torch.full((3,), 0.5))


def test_kto_is_half_the_weight_where_policy_and_reference_agree() -> None:
    zero = torch.zeros(3)
    point = kl_reference_point(zero)
    assert torch.equal(kto_loss(zero, point, 1, 0.8), torch.full((3,), 0.4))
    assert torch.equal(kto_loss(zero, point, -1), torch.full((3,), 0.5))


def test_reference_point_is_never_negative_and_takes_no_gradient() -> None:
    rewards = torch.tensor([-2.0, 0.5], requires_grad=True)
    point = kl_reference_point(rewards)
    assert float(point) == 0
    assert not point.requires_grad


def test_loss_minus_that_of_the_flipped_pair_is_minus_the_logit() -> None:
    margins = torch.linspace(-0.01, 0.01, 9)
    difference = diffusion_dpo_loss(margins, 500.0) - diffusion_dpo_loss(-margins, 500.0)
    torch.testing.assert_close(difference, -500.0 * margins)


def test_swapping_the_images_flips_the_sign_of_the_logit_exactly() -> None:
    draws = torch.rand(4, 32, generator=torch.Generator().manual_seed(0))
    chosen, rejected, reference_chosen, reference_rejected = draws
    straight = pair_metrics(PairErrors(chosen, rejected, reference_chosen, reference_rejected), 2000.0)
    swapped = pair_metrics(PairErrors(rejected, chosen, reference_rejected, reference_chosen), 2000.0)
    assert torch.equal(straight["logit"], -swapped["logit"])
    assert torch.equal(straight["accuracy"], 1 - swapped["accuracy"])
    assert torch.equal(straight["reward_chosen"], swapped["reward_rejected"])


def test_ipo_is_least_at_its_margin() -> None:
    beta = 50.0
    margin = torch.tensor([1 / (2 * beta)], requires_grad=True)
    loss = diffusion_dpo_loss(margin, beta, "ipo")
    loss.sum().backward()
    assert float(loss.detach()) == 0
    assert margin.grad is not None
    assert float(margin.grad) == 0
    nearby = diffusion_dpo_loss(torch.tensor([0.009, 0.011]), beta, "ipo")
    assert (nearby > 0).all()


def test_hinge_forgets_pairs_that_are_far_enough_apart() -> None:
    margins = torch.tensor([0.03, 0.01, -0.01], requires_grad=True)
    diffusion_dpo_loss(margins, 50.0, "hinge").sum().backward()
    assert margins.grad is not None
    assert margins.grad.tolist() == [0.0, -50.0, -50.0]


def test_extreme_logits_give_finite_losses_and_gradients() -> None:
    margins = torch.tensor([-10.0, 10.0], requires_grad=True)
    loss = diffusion_dpo_loss(margins, 5000.0)
    loss.sum().backward()
    assert loss.tolist() == [50000.0, 0.0]
    assert margins.grad is not None
    assert torch.isfinite(margins.grad).all()


def their_logit(tool: Tool, value: float, errors: dict[str, Tensor]) -> float:
    """The logit as the tools' own code has it, written down from it: errors are squared errors [D] of four passes."""
    reduced = {name: float(e.sum() if tool == "simpletuner" else e.mean()) for name, e in errors.items()}
    difference = (reduced["rc"] - reduced["c"]) - (reduced["rr"] - reduced["r"])
    return value * difference if tool in ("diffusers_sd15", "diffusion_kto") else 0.5 * value * difference


@pytest.mark.parametrize("tool", CONVENTIONS)
@pytest.mark.parametrize("elements", [64, 4096])
def test_a_converted_beta_gives_the_logit_of_the_tool_it_comes_from(tool: Tool, elements: int) -> None:
    draws = torch.rand(4, elements, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    errors = dict(zip(("c", "r", "rc", "rr"), draws, strict=True))
    ours = PairErrors(*(error.mean()[None] for error in draws))
    beta = BetaFrom(tool=tool, value=300.0).beta(elements)
    assert float(beta * ours.half_margin) == pytest.approx(their_logit(tool, 300.0, errors), rel=1e-9)


def test_the_betas_in_use_by_their_logit_per_mean_squared_error() -> None:
    def scale(tool: Tool, value: float, elements: int = 16384) -> float:
        return BetaFrom(tool=tool, value=value).beta(elements) / 2

    assert scale("diffusion_dpo", 5000) == scale("diffusers_sd15", 2500) == scale("diffusers_sdxl", 5000) == 2500
    assert scale("diffusion_kto", 1000) == 1000
    assert scale("flow_grpo", 100) == 50
    assert scale("simpletuner", 1, 65536) == 32768
    assert scale("simpletuner", 1, 262144) == 131072


def test_exactly_one_beta_is_wanted() -> None:
    for objective in (DiffusionDPO, DiffusionKTO):
        with pytest.raises(ValidationError, match="exactly one of `beta`"):
            objective()
        with pytest.raises(ValidationError, match="exactly one of `beta`"):
            objective(beta=5000, beta_from=BetaFrom(tool="flow_grpo", value=100))


def logits(errors_of: list[Tensor], dtype: torch.dtype, beta: float) -> Tensor:
    """Logit of each pair with every step of the reduction in one dtype."""
    chosen, rejected, reference_chosen, reference_rejected = (error.to(dtype).flatten(1) for error in errors_of)
    gains = [(r.square().mean(1) - p.square().mean(1)) for r, p in
             ((reference_chosen, chosen), (reference_rejected, rejected))]  # fmt: skip
    return (beta / 2 * (gains[0] - gains[1])).double()


def test_fp32_reduction_of_bf16_predictions_keeps_the_logit_and_a_bf16_reduction_does_not() -> None:
    beta, draw = 5000.0, torch.Generator().manual_seed(2)
    shape = (16, 4, 64, 64)  # Stable Diffusion 1.5 at 512 px
    target = torch.randn(shape, generator=draw)
    errors = []
    for _ in range(2):
        reference = (target + 0.3 * torch.randn(shape, generator=draw)).bfloat16()
        policy = (reference.float() + 0.02 * torch.randn(shape, generator=draw)).bfloat16()
        errors += [policy.float() - target, reference.float() - target]
    ordered = [errors[0], errors[2], errors[1], errors[3]]
    exact = logits(ordered, torch.float64, beta)
    assert 0.1 < exact.abs().max() < 5, "logits as they are met in training"
    assert (logits(ordered, torch.float32, beta) - exact).abs().max() < 0.02
    assert (logits(ordered, torch.bfloat16, beta) - exact).square().mean().sqrt() > 0.2


def test_a_share_moves_the_margin_of_ipo_in_proportion_and_is_refused_for_a_hinge() -> None:
    """(2p - 1) / (2 beta) at p = 0.75 and beta 10: 0.025."""
    margin = torch.tensor([0.025], requires_grad=True)
    diffusion_dpo_loss(margin, 10.0, "ipo", torch.tensor([0.75])).sum().backward()
    assert margin.grad is not None
    assert abs(float(margin.grad)) < 1e-8
    with pytest.raises(ValidationError, match="a hinge is least at one margin whatever the share"):
        DiffusionDPO(beta=10.0, loss="hinge", preferences="share")
