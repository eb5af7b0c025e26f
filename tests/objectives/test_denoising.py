"""The denoising loss: its defaults to the last bit, its variations by hand, and examples that stay apart."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.training_utils import compute_loss_weighting_for_sd3
from torch import Tensor

from t2i.errors import ConfigError, DataError
from t2i.families.base import Conditioning
from t2i.noise import DDPM, NoiseProcess, RectifiedFlow, with_zero_terminal_snr
from t2i.objectives import Denoising
from t2i.objectives.base import DiffusionBatch
from t2i.objectives.denoising import denoising_loss, mean_per_example, noisy_latents, pseudo_huber_loss
from t2i.objectives.perturbation import offset_noise, perturb_conditioning, perturb_embeddings
from t2i.objectives.pseudo_huber import PseudoHuber
from t2i.objectives.weighting import Cosmap, Debiased, MinSnr, SigmaSqrt
from t2i.randomness import generator
from t2i.timesteps import TimestepSettings
from t2i.training.diffusion import FamilyDenoiser
from tests import tiny

SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
EPSILON = DDPM.from_scheduler(DDPMScheduler(**SCHEDULE))
VELOCITY = DDPM.from_scheduler(DDPMScheduler(**SCHEDULE, prediction_type="v_prediction"))
FLOW = RectifiedFlow()
SMALLEST_LEVEL = TimestepSettings(distribution="uniform", min_level=0.01)


class Denoiser:
    """Answers with a mixture of what it is shown: nothing of one example reaches another."""

    def __init__(self) -> None:
        self.conditioning: list[Conditioning] = []

    def encode(self, batch: DiffusionBatch) -> Conditioning:
        lengths = torch.tensor([float(len(prompt)) for prompt in batch.prompts])
        return Conditioning(lengths[:, None, None].expand(-1, 3, 5), lengths[:, None].expand(-1, 2), sizes=batch.sizes)

    def __call__(self, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        self.conditioning.append(conditioning)
        told = conditioning.prompt_embeds.mean((1, 2)) + timesteps / 1000
        return torch.sin(2 * noisy) + told[:, None, None, None]

    def reference(self) -> AbstractContextManager[None]:
        return nullcontext()


def make_batch(count: int = 6) -> DiffusionBatch:
    draw = torch.Generator().manual_seed(0)
    latents, noise = torch.randn(2, count, 4, 6, 6, generator=draw)
    uniform = torch.rand(count, generator=draw)
    return DiffusionBatch(
        latents, noise, uniform, tuple("a" * i for i in range(count)), keys=tuple(range(100, 100 + count))
    )


def rows(batch: DiffusionBatch, indices: list[int]) -> DiffusionBatch:
    """Some examples of a batch, in another order."""

    def pick(value: Tensor | None) -> Tensor | None:
        return None if value is None else value[indices]

    assert batch.keys is not None
    return DiffusionBatch(
        batch.latents[indices],
        batch.noise[indices],
        batch.uniform[indices],
        tuple(batch.prompts[i] for i in indices),
        pick(batch.sizes),
        weights=pick(batch.weights),
        mask=pick(batch.mask),
        keys=tuple(batch.keys[i] for i in indices),
    )


def test_denoising_loss_is_the_mean_squared_error_of_each_example() -> None:
    prediction = torch.tensor([[[1.0, 2.0], [0.0, 4.0]], [[1.0, 1.0], [1.0, 1.0]]])
    target = torch.tensor([[[0.0, 0.0], [0.0, 0.0]], [[1.0, 1.0], [1.0, 3.0]]])
    assert denoising_loss(prediction, target).tolist() == [(1 + 4 + 16) / 4, 4 / 4]


def test_denoising_loss_is_taken_in_full_precision() -> None:
    prediction = torch.full((1, 4096), 1.0, dtype=torch.bfloat16)
    loss = denoising_loss(prediction, torch.full((1, 4096), 1.01, dtype=torch.float32))
    assert loss.dtype == torch.float32
    assert float(loss) == pytest.approx(1e-4, rel=1e-3)


class DoublingDenoiser(Denoiser):
    """Predicts twice what it is given, and remembers what it was asked."""

    asked: tuple[list[int], Conditioning]

    def __call__(self, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        self.asked = timesteps.tolist(), conditioning
        return 2 * noisy


class AddingNoise:
    """A noise process of three timesteps: noisy = latents + t * noise, target = latents - noise."""

    default_timesteps = TimestepSettings()
    patch_size = None

    def timesteps(self, levels: Tensor) -> Tensor:
        return (levels * 3).long()

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        return latents + timesteps[:, None] * noise

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        return latents - noise


def test_denoising_puts_noise_timestep_prompt_and_target_together() -> None:
    denoiser = DoublingDenoiser()
    latents, noise = torch.tensor([[1.0], [2.0]]), torch.tensor([[0.5], [-1.0]])
    batch = DiffusionBatch(latents, noise, torch.tensor([0.1, 0.9]), ("a", "bbb"), torch.ones(2, 6))
    output = Denoising()(denoiser, AddingNoise(), batch)  # pyright: ignore[reportArgumentType]
    timesteps, conditioning = denoiser.asked
    assert timesteps == [0, 2]
    assert conditioning.prompt_embeds[:, 0, 0].tolist() == [1, 3]
    assert conditioning.sizes is batch.sizes
    # 2 * (1 + 0 * 0.5) - (1 - 0.5) and 2 * (2 + 2 * -1) - (2 + 1)
    assert output.loss.tolist() == [1.5**2, 3.0**2]
    assert output.metrics == {}


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_defaults_are_plain_denoising_to_the_last_bit(prediction_type: str) -> None:
    scheduler, batch, denoiser = DDPMScheduler(**SCHEDULE, prediction_type=prediction_type), make_batch(), Denoiser()
    timesteps = (batch.uniform * 1000).long().clamp(max=999)
    target = batch.noise
    if prediction_type == "v_prediction":
        target = scheduler.get_velocity(batch.latents, batch.noise, timesteps)
    noisy = scheduler.add_noise(batch.latents, batch.noise, timesteps)
    plain = (denoiser(noisy, timesteps, denoiser.encode(batch)) - target).square().flatten(1).mean(1)
    assert torch.equal(Denoising()(denoiser, DDPM.from_scheduler(scheduler), batch).loss, plain)


@pytest.mark.parametrize("process", [EPSILON, VELOCITY, FLOW])
def test_weights_of_one_change_nothing(process: NoiseProcess) -> None:
    batch = make_batch()
    plain = Denoising()(Denoiser(), process, batch).loss
    weighted = Denoising()(Denoiser(), process, replace(batch, weights=torch.ones(6)))
    assert torch.equal(weighted.loss, plain)
    assert torch.equal(weighted.metrics["unweighted_loss"], plain)
    masked = Denoising()(Denoiser(), process, replace(batch, mask=torch.ones(6, 1, 6, 6))).loss
    torch.testing.assert_close(masked, plain)


def test_mask_by_hand() -> None:
    errors = torch.tensor([[[[1.0, 5.0]], [[3.0, 7.0]]], [[[2.0, 4.0]], [[6.0, 8.0]]]])
    mask = torch.tensor([[[[1.0, 0.0]]], [[[0.5, 0.25]]]])
    second = (0.5 * 2 + 0.25 * 4 + 0.5 * 6 + 0.25 * 8) / (2 * 0.75)
    assert mean_per_example(errors, mask).tolist() == pytest.approx([(1 + 3) / 2, second])
    assert mean_per_example(errors, torch.full((2, 1, 1, 2), 0.3)).tolist() == pytest.approx([4, 5])
    assert mean_per_example(errors, torch.zeros(2, 1, 1, 2)).tolist() == [0, 0]


def test_masked_places_neither_count_nor_learn() -> None:
    batch = make_batch(2)
    mask = torch.zeros(2, 1, 6, 6)
    mask[..., :3] = 1
    prediction = torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(1)).requires_grad_()
    loss = denoising_loss(prediction, batch.noise, mask)
    torch.testing.assert_close(loss, denoising_loss(prediction[..., :3], batch.noise[..., :3]))
    loss.sum().backward()
    assert prediction.grad is not None
    assert float(prediction.grad[..., 3:].abs().max()) == 0
    assert float(prediction.grad[..., :3].abs().min()) > 0


@pytest.mark.parametrize("weighting", [SigmaSqrt(), Cosmap()])
def test_images_of_the_class_keep_their_own_weights(weighting: SigmaSqrt | Cosmap) -> None:
    """Prior preservation: weights of noise levels belong to single examples, halves of the batch are not mixed."""
    batch, objective = make_batch(), Denoising(weighting=weighting, timesteps=SMALLEST_LEVEL)
    prior_weight = 0.3
    mixed = replace(batch, weights=torch.tensor([1.0, 1.0, 1.0, *[prior_weight] * 3]))
    losses = objective(Denoiser(), FLOW, mixed).loss
    levels = 0.01 + 0.99 * batch.uniform
    noisy = FLOW.add_noise(batch.latents, batch.noise, 1000 * levels)
    denoiser = Denoiser()
    errors = (denoiser(noisy, 1000 * levels, denoiser.encode(batch)) - batch.noise + batch.latents).square()
    by_level = errors.flatten(1).mean(1) * compute_loss_weighting_for_sd3(weighting.type, levels)
    torch.testing.assert_close(losses, torch.cat([by_level[:3], prior_weight * by_level[3:]]))
    # The loop's mean is half of instance loss plus weighted class loss.
    expected = (by_level[:3].mean() + prior_weight * by_level[3:].mean()) / 2
    torch.testing.assert_close(losses.mean(), expected)


def test_weights_of_the_noise_level_multiply_each_loss() -> None:
    batch = make_batch()
    plain = Denoising()(Denoiser(), VELOCITY, batch).loss
    weighted = Denoising(weighting=MinSnr(gamma=2.0))(Denoiser(), VELOCITY, replace(batch, weights=torch.arange(6.0)))
    snr = VELOCITY.snr(VELOCITY.timesteps(batch.uniform))
    torch.testing.assert_close(weighted.loss, plain * snr.clamp(max=2.0) / (snr + 1) * torch.arange(6.0))
    assert torch.equal(weighted.metrics["unweighted_loss"], plain)


@pytest.mark.parametrize(
    ("objective", "process", "message"),
    [
        (Denoising(weighting=MinSnr()), FLOW, "min_snr is defined for epsilon and v_prediction"),
        (Denoising(weighting=SigmaSqrt(), timesteps=SMALLEST_LEVEL), EPSILON, "sigma_sqrt is defined for flow"),
        (Denoising(weighting=SigmaSqrt()), FLOW, "min_level"),
        (Denoising(zero_terminal_snr=True), EPSILON, "v_prediction checkpoint"),
        (Denoising(zero_terminal_snr=True), FLOW, "already"),
        (Denoising(timesteps=TimestepSettings(shift="resolution")), EPSILON, "cuts images into tokens"),
    ],
)
def test_settings_that_do_not_fit_the_model_are_refused(
    objective: Denoising, process: NoiseProcess, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        objective(Denoiser(), process, make_batch(2))


def test_levels_are_those_of_the_settings_or_of_the_process() -> None:
    batch = replace(make_batch(3), uniform=torch.tensor([0.25, 0.5, 0.75]))
    assert noisy_latents(EPSILON, batch, TimestepSettings(shift=3.0)).timesteps.tolist() == [500, 750, 900]
    made_for = RectifiedFlow(TimestepSettings(shift=3.0))
    assert noisy_latents(made_for, batch).timesteps.tolist() == pytest.approx([500, 750, 900])
    # 6 x 6 latents are 9 tokens of 2 x 2; with the line of the shift through 0 at 9 tokens nothing is shifted.
    by_size = TimestepSettings(distribution="uniform", shift="resolution", base_tokens=9, max_tokens=10, base_shift=0.0)
    assert noisy_latents(FLOW, batch, by_size).timesteps.tolist() == pytest.approx([250, 500, 750])


def test_zero_terminal_snr_trains_on_noise_alone_at_the_end() -> None:
    batch = replace(make_batch(2), uniform=torch.tensor([0.9999, 0.3]))
    found = noisy_latents(with_zero_terminal_snr(VELOCITY), batch)
    assert torch.equal(found.latents[0], batch.noise[0])
    assert torch.equal(found.target[0], -batch.latents[0])
    loss = Denoising(zero_terminal_snr=True)(Denoiser(), VELOCITY, batch).loss
    sampler = DDPMScheduler(**SCHEDULE, prediction_type="v_prediction", rescale_betas_zero_snr=True)
    reference = Denoising()(Denoiser(), DDPM.from_scheduler(sampler), batch).loss
    torch.testing.assert_close(loss, reference, rtol=1e-4, atol=0)
    assert not torch.allclose(loss, Denoising()(Denoiser(), VELOCITY, batch).loss, rtol=1e-3)


def test_pseudo_huber_is_used_with_c_of_the_level() -> None:
    batch, denoiser = make_batch(), Denoiser()
    huber = PseudoHuber(schedule="exponential", c=0.05)
    loss = Denoising(pseudo_huber=huber)(denoiser, EPSILON, batch).loss
    timesteps = (batch.uniform * 1000).long()
    noisy = EPSILON.add_noise(batch.latents, batch.noise, timesteps)
    errors = denoiser(noisy, timesteps, denoiser.encode(batch)) - batch.noise
    c = (0.05 ** (timesteps / 1000))[:, None, None, None]
    by_hand = (2 * c * ((errors.square() + c.square()).sqrt() - c)).flatten(1).mean(1)
    torch.testing.assert_close(loss, by_hand, rtol=1e-4, atol=0)
    half = pseudo_huber_loss(errors.bfloat16(), torch.zeros_like(errors), c.flatten())
    assert half.dtype == torch.float32


def test_noise_offset_moves_channels_as_a_whole_and_the_target_with_them() -> None:
    noise, draws = torch.zeros(1, 2, 2, 2), torch.tensor([[1.0, -2.0]])
    assert offset_noise(noise, draws, 0.1).flatten(2).tolist() == [
        [pytest.approx([0.1] * 4), pytest.approx([-0.2] * 4)]
    ]
    batch = make_batch(2)
    plain, moved = noisy_latents(EPSILON, batch), noisy_latents(EPSILON, batch, noise_offset=0.1)
    offset = moved.target - plain.target
    draw = generator(101, "noise offset").standard_normal(4, dtype=np.float32)
    torch.testing.assert_close(offset[1].mean((1, 2)), 0.1 * torch.from_numpy(draw))
    torch.testing.assert_close(offset, offset.mean((2, 3), keepdim=True).expand_as(offset))
    sigma = (1 - EPSILON.alphas_cumprod[plain.timesteps]).sqrt()[:, None, None, None]
    torch.testing.assert_close(moved.latents - plain.latents, sigma * offset, rtol=0, atol=1e-6)


def test_embeddings_move_by_gamma_whatever_their_width() -> None:
    assert perturb_embeddings(torch.ones(1, 4), torch.tensor([[1.0, -1.0, 0.0, 2.0]]), 0.5).tolist() == [
        [1.25, 0.75, 1.0, 1.5]
    ]
    for width in (64, 4096):
        conditioning = Conditioning(torch.zeros(2, 50, width), torch.zeros(2, width), torch.ones(2, 50))
        moved = perturb_conditioning(conditioning, (1, 2), 0.7)
        assert float(moved.prompt_embeds.square().sum(-1).mean().sqrt()) == pytest.approx(0.7, rel=0.05)
        assert float(moved.pooled.norm(dim=-1).mean()) == pytest.approx(0.7, rel=0.2)
        assert moved.mask is conditioning.mask
        assert moved.prompt_embeds.dtype == torch.float32


def test_noise_on_embeddings_depends_on_the_key_alone() -> None:
    long = perturb_conditioning(Conditioning(torch.zeros(3, 9, 8)), (5, 6, 7), 1.0).prompt_embeds
    short = perturb_conditioning(Conditioning(torch.zeros(2, 4, 8)), (7, 5), 1.0).prompt_embeds
    assert torch.equal(short, long[[2, 0], :4])
    assert not torch.equal(long[0], long[1])
    half = perturb_conditioning(Conditioning(torch.zeros(1, 9, 8).bfloat16()), (5,), 1.0).prompt_embeds
    assert torch.equal(half, long[:1].bfloat16())


def test_denoiser_is_told_the_perturbed_embeddings_and_the_true_sizes() -> None:
    denoiser, batch = Denoiser(), replace(make_batch(2), sizes=torch.arange(12.0).reshape(2, 6))
    Denoising(embedding_noise=1.0)(denoiser, EPSILON, batch)
    told, clean = denoiser.conditioning[0], denoiser.encode(batch)
    assert told.sizes is batch.sizes
    assert float((told.prompt_embeds - clean.prompt_embeds).abs().min()) > 0


@pytest.mark.parametrize("setting", ["noise_offset", "embedding_noise"])
def test_draws_without_keys_are_refused(setting: str) -> None:
    with pytest.raises(DataError, match=f"{setting}: the batch holds no keys"):
        Denoising.model_validate({setting: 0.1})(Denoiser(), EPSILON, replace(make_batch(2), keys=None))


@pytest.mark.parametrize(
    ("objective", "process"),
    [
        (Denoising(), EPSILON),
        (Denoising(weighting=Debiased(v_form="equivalent"), zero_terminal_snr=True, noise_offset=0.1), VELOCITY),
        (Denoising(pseudo_huber=PseudoHuber(schedule="snr"), embedding_noise=1.0), FLOW),
        (
            Denoising(
                weighting=SigmaSqrt(), timesteps=TimestepSettings(shift="resolution", min_level=0.1), noise_offset=0.05
            ),
            FLOW,
        ),
    ],
)
def test_loss_of_an_example_does_not_depend_on_the_others(objective: Denoising, process: NoiseProcess) -> None:
    mask = torch.rand(6, 1, 6, 6, generator=torch.Generator().manual_seed(3))
    batch = replace(make_batch(), weights=torch.linspace(0.5, 2, 6), mask=mask)
    together = objective(Denoiser(), process, batch).loss
    order = [4, 0, 5, 1, 3, 2]
    torch.testing.assert_close(objective(Denoiser(), process, rows(batch, order)).loss, together[order])
    singly = torch.cat([objective(Denoiser(), process, rows(batch, [i])).loss for i in range(6)])
    torch.testing.assert_close(singly, together)


def test_batch_moves_with_its_keys() -> None:
    moved = replace(make_batch(2), conditioning=Conditioning(torch.zeros(2, 3, 4))).to(torch.device("meta"))
    assert moved.keys == (100, 101)
    assert moved.latents.device.type == moved.conditioning.prompt_embeds.device.type == "meta"


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_cached_conditioning_is_used_and_joined_with_the_sizes(family: str) -> None:
    from t2i.families import load_family

    loaded = load_family(str(tiny.FAMILIES_TINY[family]()))
    prompts, sizes = ("a cat", "the moon"), torch.tensor([[32.0, 32, 0, 0, 32, 32]] * 2)
    empty = torch.zeros(2, 4, 16, 16)
    batch = DiffusionBatch(empty, empty, torch.zeros(2), prompts, sizes if loaded.facts.takes_sizes else None)
    denoiser = FamilyDenoiser(loaded, {})
    computed = denoiser.encode(batch)
    assert computed.sizes is batch.sizes
    cached = replace(loaded.encode_prompts(prompts[::-1]))
    assert torch.equal(computed.prompt_embeds, cached.prompt_embeds.flip(0))
    used = denoiser.encode(replace(batch, conditioning=cached))
    assert used.prompt_embeds is cached.prompt_embeds
    assert used.sizes is batch.sizes


@pytest.mark.parametrize(
    ("objective", "process"),
    [
        (Denoising(weighting=MinSnr(), noise_offset=0.1), EPSILON),
        (Denoising(zero_terminal_snr=True, pseudo_huber=PseudoHuber(schedule="exponential")), VELOCITY),
        (Denoising(weighting=Cosmap(), embedding_noise=1.0, timesteps=TimestepSettings(distribution="mode")), FLOW),
    ],
)
def test_loss_falls(objective: Denoising, process: NoiseProcess) -> None:
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Conv2d(4, 32, 3, padding=1), torch.nn.SiLU(), torch.nn.Conv2d(32, 4, 1))

    class Learner(Denoiser):
        def __call__(self, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
            return network(noisy + conditioning.prompt_embeds.mean((1, 2))[:, None, None, None] / 10)

    def trained(sign: int) -> Callable[[], float]:
        optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)

        def step() -> float:
            optimizer.zero_grad()
            loss = objective(Learner(), process, batch).loss.mean()
            (sign * loss).backward()
            optimizer.step()
            return float(loss.detach())

        return step

    batch = make_batch()
    losses = [step() for step in [trained(1)] * 30]
    assert losses[-1] < 0.9 * losses[0]
    assert [step() for step in [trained(-1)] * 10][-1] > losses[-1]
