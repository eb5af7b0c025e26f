"""What must hold of preference objectives on a model, whatever its weights: for epsilon, v and flow."""

from __future__ import annotations

import copy
import gc
import math
from contextlib import suppress
from dataclasses import replace
from typing import Any

import peft
import pytest
import tiny_pairs
import torch
from diffusers import SD3Transformer2DModel, UNet2DConditionModel
from torch import Tensor, nn

from t2i import lora
from t2i.errors import ConfigError
from t2i.objectives import ChosenDenoising, DiffusionDPO, DiffusionKTO
from t2i.objectives.denoising import denoising_loss, noisy_latents
from t2i.objectives.pairs import PairBatch, paired_errors
from t2i.training.diffusion import DiffusionModule
from t2i.training.settings import FullSettings, LoraSettings
from tests.tiny_pairs import CHECKPOINTS, batch_for, gradients, module_of, spoil, swapped, trained

BETA = 200.0
DPO = DiffusionDPO(beta=BETA)
KINDS = pytest.mark.parametrize("kind", CHECKPOINTS)
FULL = {"epsilon": "unet", "v_prediction": "unet", "flow": "transformer"}


def full(kind: str) -> FullSettings:
    return FullSettings(components=(FULL[kind],))


def single_errors(module: DiffusionModule, batch: PairBatch) -> list[Tensor]:
    """Errors on the chosen and on the rejected, each by an ordinary forward pass of its own."""
    errors = []
    for latents in (batch.chosen, batch.rejected):
        alone = PairBatch(latents, latents, batch.noise, batch.uniform, batch.prompts).of_chosen()
        noisy = noisy_latents(module.noise, alone)
        prediction = module.denoiser(noisy.latents, noisy.timesteps, module.denoiser.encode(alone))
        errors.append(denoising_loss(prediction, noisy.target))
    return errors


def assert_near(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = 1e-4) -> None:
    """Equal up to rounding, relative to the size of the whole gradient."""
    size = max(float(value.abs().max()) for value in expected.values())
    assert size > 0
    assert max(float((found[name] - expected[name]).abs().max()) for name in expected) < tolerance * size


@KINDS
def test_fresh_adapter_gives_log_two_to_the_last_bit(kind: str) -> None:
    module = module_of(kind, DPO)
    output = module(batch_for(module))
    assert torch.equal(output.loss.detach(), torch.full((3,), math.log(2)))
    assert torch.equal(output.metrics["accuracy"], torch.full((3,), 0.5))
    assert not output.metrics["reward_chosen"].any()
    assert not output.metrics["reward_rejected"].any()


@KINDS
def test_full_training_starts_at_log_two(kind: str) -> None:
    module = module_of(kind, DPO, full(kind))
    output = module(batch_for(module))
    torch.testing.assert_close(output.loss.detach(), torch.full((3,), math.log(2)), atol=1e-5, rtol=0)


@KINDS
def test_first_gradient_is_beta_over_four_times_the_difference(kind: str) -> None:
    module = module_of(kind, DPO)
    batch = batch_for(module)
    found = gradients(module, module(batch).loss.sum())
    chosen, rejected = single_errors(module, batch)
    assert_near(found, gradients(module, BETA / 4 * (chosen - rejected).sum()))


@KINDS
def test_first_gradient_of_ipo_and_kto(kind: str) -> None:
    """IPO: 1/(2 beta) of the difference; KTO: beta/16 of it for each pair's mean of two images."""
    for objective, factor in (
        (DiffusionDPO(beta=BETA, loss="ipo"), 1 / (2 * BETA)),
        (DiffusionDPO(beta=BETA, loss="hinge"), BETA / 2),
        (DiffusionKTO(beta=BETA), BETA / 16),
    ):
        module = module_of(kind, objective)
        batch = batch_for(module)
        found = gradients(module, module(batch).loss.sum())
        chosen, rejected = single_errors(module, batch)
        assert_near(found, gradients(module, factor * (chosen - rejected).sum()))


@KINDS
def test_fresh_adapter_gives_half_the_weight_under_kto(kind: str) -> None:
    module = module_of(kind, DiffusionKTO(beta=BETA, liked_weight=0.6, disliked_weight=1.0))
    loss = module(batch_for(module)).loss
    torch.testing.assert_close(loss.detach(), torch.full((3,), 0.4))


@KINDS
def test_swapped_labels_flip_the_sign_of_the_logit(kind: str) -> None:
    module = module_of(kind, DPO, spoiled=0.05)
    batch = batch_for(module)
    straight, flipped = module(batch), module(swapped(batch))
    logit = straight.metrics["logit"]
    assert logit.abs().min() > 1e-4
    torch.testing.assert_close(flipped.metrics["logit"], -logit, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close((straight.loss - flipped.loss).detach(), -logit, rtol=1e-3, atol=1e-4)


@KINDS
def test_pair_of_equal_images_teaches_nothing(kind: str) -> None:
    module = module_of(kind, DPO, spoiled=0.05)
    batch = batch_for(module)
    same = PairBatch(batch.chosen, batch.chosen, batch.noise, batch.uniform, batch.prompts)
    output = module(same)
    torch.testing.assert_close(output.loss.detach(), torch.full((3,), math.log(2)), atol=1e-4, rtol=0)
    [usual, none] = [gradients(module, module(pairs).loss.sum()) for pairs in (batch, same)]
    size = max(float(value.abs().max()) for value in usual.values())
    assert max(float(value.abs().max()) for value in none.values()) < 1e-4 * size


def prepare_hard(module: DiffusionModule) -> None:
    """Training mode, gradient checkpointing, and dropout in the adapters."""
    module.train()
    for component in module.components.values():
        if isinstance(component, UNet2DConditionModel | SD3Transformer2DModel):
            component.enable_gradient_checkpointing()
        for layer in component.modules():
            if isinstance(layer, peft.tuners.lora.LoraLayer):
                layer.lora_dropout[lora.adapters.NAME] = nn.Dropout(0.3)


@KINDS
def test_adapter_switched_off_is_a_frozen_copy_even_in_training_mode(kind: str) -> None:
    module = module_of(kind, DPO)
    untouched = module_of(kind, DPO).denoiser
    batch = batch_for(module)
    prepare_hard(module)
    optimizer = torch.optim.SGD(trained(module).values(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        module(batch).loss.mean().backward()
        optimizer.step()
    noisy = batch.noisy(module.noise, None)
    with module.denoiser.reference(), torch.no_grad():
        conditioning = module.denoiser.encode(batch.of_chosen())
        ours = module.denoiser(noisy.latents[:3], noisy.timesteps[:3], conditioning)
        theirs = untouched(noisy.latents[:3], noisy.timesteps[:3], untouched.encode(batch.of_chosen()))
    assert torch.equal(ours, theirs)
    with torch.no_grad():
        policy = module.denoiser(noisy.latents[:3], noisy.timesteps[:3], module.denoiser.encode(batch.of_chosen()))
    assert not torch.equal(policy, theirs), "the steps must have changed something"


def state_of(module: DiffusionModule) -> list[tuple[Any, ...]]:
    """What a reference pass may not change: gradients asked for, modes, adapters on."""
    layers = [layer for layer in module.modules() if isinstance(layer, peft.tuners.tuners_utils.BaseTunerLayer)]
    return [
        *((name, value.requires_grad) for name, value in module.named_parameters()),
        *((name, child.training) for name, child in module.named_modules()),
        *((number, layer.disable_adapters, tuple(layer.active_adapters)) for number, layer in enumerate(layers)),
        (id(module.denoiser.family), torch.is_grad_enabled()),
    ]


@KINDS
@pytest.mark.parametrize("whole", [False, True])
def test_reference_pass_leaves_no_trace_even_after_an_exception(kind: str, whole: bool) -> None:
    module = module_of(kind, DPO, full(kind) if whole else None)
    next(iter(module.components.values())).train()
    before = state_of(module)
    with suppress(ZeroDivisionError), module.denoiser.reference():
        assert state_of(module) != before
        raise ZeroDivisionError
    assert state_of(module) == before
    paired_errors(module.denoiser, module.noise, batch_for(module))
    assert state_of(module) == before


@KINDS
def test_recomputation_in_the_backward_pass_sees_the_adapter(kind: str) -> None:
    module = module_of(kind, DPO, LoraSettings(rank=4), spoiled=0.05)
    batch = batch_for(module)
    plain = gradients(module, module(batch).loss.sum())
    component: Any = next(iter(module.components.values()))
    component.enable_gradient_checkpointing()
    module.train()
    recomputed = gradients(module, module(batch).loss.sum())
    assert_near(recomputed, plain, 1e-5)


@KINDS
def test_frozen_copy_of_full_training_stays_what_the_model_was(kind: str) -> None:
    module = module_of(kind, DPO, full(kind))
    original = copy.deepcopy({name: value.detach() for name, value in trained(module).items()})
    spoil(module, 0.01)
    frozen: Any = module.denoiser.frozen
    state = getattr(frozen.pipeline, FULL[kind]).state_dict()
    prefix = f"components.{FULL[kind]}."
    assert all(torch.equal(state[name.removeprefix(prefix)], value) for name, value in original.items())
    assert not any(value.requires_grad for value in getattr(frozen.pipeline, FULL[kind]).parameters())
    assert module(batch_for(module)).metrics["logit"].abs().min() > 0


def denoisers() -> int:
    """Denoisers in memory."""
    gc.collect()
    # Not isinstance: some of torch's deprecated objects warn when they are asked.
    return sum(type(thing) in (UNet2DConditionModel, SD3Transformer2DModel) for thing in gc.get_objects())


@pytest.mark.parametrize("kind", ["epsilon"])
def test_lora_holds_one_copy_of_the_denoiser_and_full_training_two(kind: str) -> None:
    before = denoisers()
    module = module_of(kind, DPO)
    module(batch_for(module)).loss.sum().backward()
    assert denoisers() - before == 1
    del module
    module = module_of(kind, DPO, full(kind))
    module(batch_for(module)).loss.sum().backward()
    assert denoisers() - before == 2


def test_objective_without_a_reference_holds_no_copy() -> None:
    module = module_of("epsilon", ChosenDenoising(), full("epsilon"))
    assert module.denoiser.frozen is None


@KINDS
def test_baseline_is_the_ordinary_loss_on_the_chosen(kind: str) -> None:
    module = module_of(kind, ChosenDenoising(), spoiled=0.05)
    batch = batch_for(module)
    torch.testing.assert_close(module(batch).loss, single_errors(module, batch)[0])


@KINDS
def test_errors_of_joint_passes_are_those_of_four_single_ones(kind: str) -> None:
    module = module_of(kind, DPO, spoiled=0.05)
    batch = batch_for(module)
    errors = paired_errors(module.denoiser, module.noise, batch)
    chosen, rejected = single_errors(module, batch)
    with module.denoiser.reference():
        reference_chosen, reference_rejected = single_errors(module, batch)
    expected = (chosen, rejected, reference_chosen, reference_rejected)
    found = (errors.chosen, errors.rejected, errors.reference_chosen, errors.reference_rejected)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    assert not errors.reference_chosen.requires_grad


class Pointwise:
    """A denoiser that looks at one position at a time, so that tiling the latents tiles its answer."""

    trains_text = False
    strength = 0.1

    def encode(self, batch: Any) -> Any:
        from t2i.families.base import Conditioning

        return Conditioning(torch.zeros(len(batch.prompts), 1, 1))

    def __call__(self, noisy: Tensor, timesteps: Tensor, conditioning: Any) -> Tensor:
        return torch.sin((1 + self.strength) * noisy)

    def reference(self) -> Any:
        from contextlib import contextmanager

        @contextmanager
        def off() -> Any:
            strength, self.strength = self.strength, 0.0
            yield
            self.strength = strength

        return off()


def test_logit_does_not_depend_on_the_resolution() -> None:
    from t2i.noise import RectifiedFlow

    batch = batch_for(module_of("epsilon", DPO))
    tiled = PairBatch(
        *(value.repeat(1, 1, 4, 4) for value in (batch.chosen, batch.rejected, batch.noise)),
        batch.uniform,
        batch.prompts,
    )
    small, large = (DPO(Pointwise(), RectifiedFlow(patch_size=None), pairs).metrics["logit"]  # type: ignore[arg-type]
                    for pairs in (batch, tiled))  # fmt: skip
    assert small.abs().min() > 1e-3
    torch.testing.assert_close(small, large, rtol=1e-4, atol=1e-5)


def test_votes_count_with_their_share_only_where_that_is_asked_for() -> None:
    batch = replace(batch_for(module_of("epsilon", DPO)), preference=torch.tensor([0.6, 1.0, 0.8]))
    shared = DPO.model_copy(update={"preferences": "share"})
    winner, share = (
        module_of("epsilon", objective, LoraSettings(rank=4), spoiled=0.05)(batch) for objective in (DPO, shared)
    )
    logit = winner.metrics["logit"]
    assert torch.equal(logit, share.metrics["logit"])
    torch.testing.assert_close(winner.loss, torch.nn.functional.softplus(-logit))
    doubt = torch.tensor([0.4, 0.0, 0.2])
    expected = (1 - doubt) * torch.nn.functional.softplus(-logit) + doubt * torch.nn.functional.softplus(logit)
    torch.testing.assert_close(share.loss, expected)
    assert not torch.equal(winner.loss, share.loss)


def test_compiled_adapter_is_switched_off_too() -> None:
    module = module_of("epsilon", DPO, LoraSettings(rank=4), spoiled=0.05)
    batch = batch_for(module)
    expected = module(batch).metrics["logit"]
    layers = [layer for layer in module.modules() if isinstance(layer, peft.tuners.lora.LoraLayer)]
    for layer in layers[:2]:
        layer.compile(backend="eager")  # type: ignore[operator]
    for _ in range(2):
        torch.testing.assert_close(module(batch).metrics["logit"], expected)
    torch.compiler.reset()


def test_adapters_that_do_not_give_the_model_back_are_refused() -> None:
    """PiSSA moves a part of the weights into the adapter: switched off, the model is another one."""
    from t2i.families import load_family

    for change, reason in (
        ({"init_lora_weights": "pissa"}, "init_lora_weights 'pissa'"),
        ({"bias": "lora_only"}, "bias 'lora_only'"),
        ({"modules_to_save": ["conv_in"]}, "whole layers are trained: conv_in"),
    ):
        unet: Any = load_family(str(CHECKPOINTS["epsilon"]())).denoiser
        unet.add_adapter(peft.LoraConfig(r=2, target_modules=["to_q"], **change), lora.adapters.NAME)  # type: ignore
        with pytest.raises(ConfigError, match=reason):
            lora.check_restorable({"unet": unet})


@pytest.mark.parametrize("variant", ["lora", "rslora", "dora"])
def test_our_adapters_give_the_model_back(variant: Any) -> None:
    module = module_of("epsilon", DPO, LoraSettings(rank=4, alpha=4, variant=variant))
    torch.testing.assert_close(
        module(batch_for(module)).loss.detach(), torch.full((3,), math.log(2)), atol=2e-5, rtol=0
    )
    spoil(module, 0.05)
    lora.check_restorable(dict(module.components.items()))


def test_merged_adapter_is_refused() -> None:
    module = module_of("epsilon", DPO, LoraSettings(rank=4), spoiled=0.05)
    layer = next(layer for layer in module.modules() if isinstance(layer, peft.tuners.lora.LoraLayer))
    layer.merge()  # type: ignore[operator]
    with pytest.raises(ConfigError, match="merged into the weights"):
        lora.check_restorable(dict(module.components.items()))


def test_data_parallel_wrapper_gives_the_same() -> None:
    from torch import distributed

    module = module_of("epsilon", DPO, LoraSettings(rank=4), spoiled=0.05)
    batch = batch_for(module)
    expected = gradients(module, module(batch).loss.sum())
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        wrapped = nn.parallel.DistributedDataParallel(module)
        wrapped(batch).loss.sum().backward()
    finally:
        distributed.destroy_process_group()
    assert_near({name: value.grad for name, value in trained(module).items()}, expected, 1e-6)  # type: ignore
    assert tiny_pairs.trained(module).keys() == expected.keys()
