"""What must be true of every family, as functions that a family's test file calls with what only it knows.

Each `assert_...` states one truth about a family loaded from a tiny random checkpoint of the real classes:

  (a) assert_predicts_as_the_pipeline   the denoiser, called by us, says what it says inside the pipeline: every step of
                                        a sampling run is repeated with `family.predict`, bit for bit, without guidance
                                        or with it (then what dropped captions train equals what sampling subtracts)
      assert_noise_is_the_schedulers    our noisy latents are those of the pipeline's own scheduler
  (b) assert_step_equals_reference      loss and LoRA gradients of one step, to 1e-5, against a loss that the test makes
                                        of diffusers parts; the LoRA is added to the plain weights here, without peft
  (c) assert_same_conditioning          our conditioning against what the test got from `pipeline.encode_prompt`
      tokens_seen                       what a text encoder was given: for the end token of a prompt that is cut
  (d) assert_latents_are                posterior mean and sample against the pipeline's way through its VAE
  (e) assert_loss_falls_and_rises       below 0.9 of its start in 30 steps; up with the gradient negated
  (f) assert_fresh_adapter_is_silent    at step 0 adapter on equals adapter off; once trained it does not

The pipeline is told nothing about seeds or sizes here: the test passes its arguments as `options`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any

import torch
from diffusers import DDPMScheduler
from torch import Tensor, nn

from t2i import lora
from t2i.families.base import Conditioning, ModelFamily
from t2i.objectives import Denoising
from t2i.objectives.base import DiffusionBatch
from t2i.training.diffusion import DiffusionModule
from t2i.training.settings import LoraSettings

SHORT = ("a cat", "", "a photo of the moon")
"""Prompts within the limit of every tiny text encoder, the empty one among them."""
LONG = "a red cup of coffee on the moon, " * 3 + "and a rocket"
"""A prompt beyond the limit of every tiny text encoder."""


@dataclass(frozen=True)
class Call:
    """One call of a module."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Any


@contextmanager
def recorded(module: nn.Module) -> Iterator[list[Call]]:
    """Every call of a module during the block."""
    calls: list[Call] = []

    def record(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        calls.append(Call(args, kwargs, output))

    handle = module.register_forward_hook(record, with_kwargs=True)
    try:
        yield calls
    finally:
        handle.remove()


@dataclass(frozen=True)
class Step:
    """What the pipeline exchanges with its scheduler in one step."""

    latents: Tensor
    """As the denoiser takes them, before they are doubled for guidance."""
    timestep: Tensor
    """A scalar in the scheduler's own unit."""
    prediction: Tensor
    """The denoiser's, after guidance."""


def sampling_steps(family: ModelFamily, prompts: Sequence[str], **options: Any) -> list[Step]:
    """Run the pipeline to its final latents and return all it handed to its scheduler. options: of its `__call__`."""
    pipeline: Any = family.pipeline
    scheduler, steps, scaled = pipeline.scheduler, [], []
    scale, advance = getattr(scheduler, "scale_model_input", None), scheduler.step

    def scale_model_input(latents: Tensor, timestep: Tensor) -> Tensor:
        assert scale is not None
        scaled.append(scale(latents, timestep))
        return scaled[-1]

    def step(prediction: Tensor, timestep: Tensor, latents: Tensor, **rest: Any) -> Any:
        taken = scaled.pop()[: len(latents)] if scaled else latents
        steps.append(Step(taken.clone(), timestep, prediction.clone()))
        return advance(prediction, timestep, latents, **rest)

    generators = [torch.Generator().manual_seed(seed) for seed in range(len(prompts))]
    scheduler.step = step
    if scale is not None:
        scheduler.scale_model_input = scale_model_input
    try:
        pipeline(prompt=list(prompts), generator=generators, output_type="latent", **options)
    finally:
        vars(scheduler).pop("step")
        vars(scheduler).pop("scale_model_input", None)
    return steps


def as_is(latents: Tensor) -> Tensor:
    """Latents of a pipeline that does not pack them."""
    return latents


@torch.no_grad()
def assert_predicts_as_the_pipeline(
    family: ModelFamily,
    prompts: Sequence[str] = SHORT,
    *,
    sizes: Tensor | None = None,
    guidance_scale: float = 1.0,
    unconditional: Conditioning | None = None,
    unpack: Callable[[Tensor], Tensor] = as_is,
    **options: Any,
) -> None:
    """(a) `predict` repeats every step of a sampling run, bit for bit.

    sizes: [B, 6], what the pipeline tells its denoiser about sizes. unconditional: with guidance, the conditioning
    that ours takes for the unconditional half, [B, ...]. unpack: from the pipeline's latents to [B, C, h, w].
    options: of the pipeline's `__call__`, all that differ from its defaults.
    """
    steps = sampling_steps(family, prompts, num_inference_steps=4, guidance_scale=guidance_scale, **options)
    assert len(steps) == 4
    conditioning = family.encode_prompts(prompts).with_sizes(sizes)
    if unconditional is not None:
        conditioning = Conditioning.cat([unconditional.with_sizes(sizes), conditioning])
    for step in steps:
        noisy = unpack(step.latents)
        if unconditional is not None:
            noisy = torch.cat([noisy, noisy])
        prediction = family.predict(noisy, step.timestep.expand(len(noisy)), conditioning)
        if unconditional is not None:
            without, with_prompt = prediction.chunk(2)
            prediction = without + guidance_scale * (with_prompt - without)
        assert torch.equal(prediction, unpack(step.prediction))


def assert_noise_is_the_schedulers(family: ModelFamily, levels: Sequence[float] = (0.0, 0.3, 0.999)) -> None:
    """(a) Noisy latents are those of the pipeline's scheduler, at the timestep that we tell the denoiser."""
    scheduler: Any = family.pipeline.scheduler
    latents, noise = torch.randn(2, len(levels), 4, 8, 8, generator=torch.Generator().manual_seed(0))
    timesteps = family.noise.timesteps(torch.tensor(levels))
    ours = family.noise.add_noise(latents, noise, timesteps)
    if hasattr(scheduler, "alphas_cumprod"):
        # Some samplers keep latents in another scale than training does; the noise itself is that of their config.
        plain = DDPMScheduler.from_config(scheduler.config)
        assert torch.equal(ours, plain.add_noise(latents, noise, timesteps))
        return
    for number, timestep in enumerate(timesteps):
        # Flow schedulers noise at the timesteps of their own grid alone: give them a grid of this one.
        scheduler.timesteps, scheduler.sigmas = timestep[None], timestep[None] / scheduler.config.num_train_timesteps
        scheduler.set_begin_index(None)
        theirs = scheduler.scale_noise(latents[number : number + 1], timestep[None], noise[number : number + 1])
        torch.testing.assert_close(ours[number : number + 1], theirs, atol=1e-6, rtol=0)


def assert_same_conditioning(ours: Conditioning, theirs: Conditioning) -> None:
    """(c) Every tensor is the same bit for bit, in shape and dtype, and absent where the other's is absent."""
    for field in fields(Conditioning):
        our, their = getattr(ours, field.name), getattr(theirs, field.name)
        assert (our is None) == (their is None), field.name
        if our is not None:
            assert (our.dtype, our.shape) == (their.dtype, their.shape), field.name
            assert torch.equal(our, their), field.name


@torch.no_grad()
def tokens_seen(family: ModelFamily, text_encoder: str, prompts: Sequence[str]) -> Tensor:
    """(c) The token ids that a text encoder is given for the prompts, [B, tokens]."""
    with recorded(getattr(family.pipeline, text_encoder)) as calls:
        family.encode_prompts(prompts)
    return calls[-1].args[0] if calls[-1].args else calls[-1].kwargs["input_ids"]


@torch.no_grad()
def assert_latents_are(
    family: ModelFamily, pixels: Tensor, *, mode: Tensor, sample: Callable[[torch.Generator], Tensor]
) -> None:
    """(d) The posterior is the pipeline's, and decoding undoes its scale and shift.

    mode: latents of the pixels [B, 3, H, W] at the posterior's mode, scaled as the pipeline scales them, compared bit
    for bit. sample(generator): the same drawn, as `retrieve_latents` draws.
    """
    posterior = family.encode_images(pixels)
    assert torch.equal(posterior.mean, mode)
    noise = torch.randn(mode.shape, generator=torch.Generator().manual_seed(3))
    expected = sample(torch.Generator().manual_seed(3))
    torch.testing.assert_close(posterior.mean + posterior.std * noise, expected)
    assert not torch.equal(expected, mode)
    vae: Any = getattr(family.pipeline, "vae")  # noqa: B009  (not declared on the base class)
    through = vae.decode(vae.encode(pixels).latent_dist.mean).sample
    torch.testing.assert_close(family.decode_latents(posterior.mean), through, atol=1e-5, rtol=1e-5)


def adapted(family: ModelFamily, *, trained: float = 0.0) -> dict[str, nn.Module]:
    """The family's components with a fresh LoRA of rank 4; trained: deviation of B, as if it had been trained."""
    modules: dict[str, nn.Module] = lora.inject(family, LoraSettings(rank=4), seed=0)
    draw = torch.Generator().manual_seed(2)
    for module in modules.values():
        for name, parameter in module.named_parameters():
            if trained and ".lora_B." in name:
                parameter.data = trained * torch.randn(parameter.shape, generator=draw)
    return modules


def fixed_batch(family: ModelFamily, prompts: Sequence[str] = SHORT) -> DiffusionBatch:
    """A batch of random latents at the checkpoint's own size, with sizes of images and crops that all differ."""
    side, count = family.default_size, len(prompts)
    with torch.no_grad():
        shape = family.encode_images(torch.zeros(1, 3, side, side)).mean.shape[1:]
    latents, noise = torch.randn(2, count, *shape, generator=torch.Generator().manual_seed(2))
    uniform = torch.linspace(0.05, 0.95, count)
    sizes = torch.tensor([[side * 2.0 + row, side * 3.0, row, 5.0, side, side] for row in range(count)])
    return DiffusionBatch(latents, noise, uniform, tuple(prompts), sizes if family.facts.takes_sizes else None)


def our_losses(family: ModelFamily, modules: dict[str, nn.Module], batch: DiffusionBatch) -> Tensor:
    """Per-example losses of a batch as training computes them, [B]."""
    return DiffusionModule(family, Denoising(), modules, modules)(batch).loss


def assert_step_equals_reference(
    family: ModelFamily, pipeline: Any, reference: Callable[[Callable[..., Any], DiffusionBatch], Tensor]
) -> None:
    """(b) Loss and LoRA gradients of one training step equal an independent reference to 1e-5.

    pipeline: a second copy of the checkpoint, loaded by diffusers alone. reference(denoiser, batch): per-example
    losses [B] from that pipeline's parts; `denoiser` is its denoiser with the adapter, called like the module itself.
    """
    modules = adapted(family, trained=0.1)
    batch = fixed_batch(family)
    losses = our_losses(family, modules, batch)
    losses.mean().backward()
    name = family.facts.denoiser
    plain: nn.Module = getattr(pipeline, name).requires_grad_(False).eval()
    state = {key.removeprefix(f"{name}."): value for key, value in lora.adapter_state(modules).items()}
    state = {key: value.clone().requires_grad_() for key, value in state.items()}
    expected = reference(with_lora(plain, state), batch)
    expected.mean().backward()
    torch.testing.assert_close(losses.detach(), expected.detach(), atol=1e-5, rtol=1e-5)
    compared = 0
    for path, parameter in modules[name].named_parameters():
        if parameter.requires_grad:
            theirs = state[path.replace(".default.", ".")].grad
            torch.testing.assert_close(parameter.grad, theirs, atol=1e-5, rtol=1e-5)
            compared += 1
    assert compared == len(state) > 0
    assert any(value.grad is not None and value.grad.abs().max() > 1e-4 for value in state.values())


def with_lora(module: nn.Module, state: dict[str, Tensor]) -> Callable[..., Any]:
    """The module with W + B A in place of each adapted weight W; gradients reach A and B.

    state: `<module path>.lora_A.weight` [rank, in] and `.lora_B.weight` [out, rank].
    """
    weights: dict[str, Tensor] = {}
    for key, down in state.items():
        if key.endswith(".lora_A.weight"):
            path = key.removesuffix(".lora_A.weight")
            weight = module.get_submodule(path).get_parameter("weight")
            weights[f"{path}.weight"] = weight + (state[f"{path}.lora_B.weight"] @ down)
    return lambda *args, **kwargs: torch.func.functional_call(module, weights, args, kwargs)


def assert_loss_falls_and_rises(build: Callable[[], ModelFamily], *, learning_rate: float = 0.01) -> None:
    """(e) 30 AdamW steps on a fixed batch bring the loss below 0.9 of its start; uphill they raise it.

    build: loads a fresh copy of the checkpoint.
    """
    start, down = _trained_loss(build(), learning_rate, sign=1.0)
    same, up = _trained_loss(build(), learning_rate, sign=-1.0)
    assert start == same
    assert down < 0.9 * start, f"{start:.4f} -> {down:.4f}"
    assert up > start, f"{start:.4f} -> {up:.4f}"


def _trained_loss(family: ModelFamily, learning_rate: float, *, sign: float) -> tuple[float, float]:
    """Loss before and after 30 steps; sign -1 goes uphill."""
    modules = adapted(family)
    batch = fixed_batch(family)
    parameters = [value for module in modules.values() for value in module.parameters() if value.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate)
    losses: list[float] = []
    for _ in range(30):
        loss = our_losses(family, modules, batch).mean()
        losses.append(loss.item())
        optimizer.zero_grad()
        (sign * loss).backward()
        optimizer.step()
    with torch.no_grad():
        return losses[0], our_losses(family, modules, batch).mean().item()


@torch.no_grad()
def assert_fresh_adapter_is_silent(build: Callable[[], ModelFamily]) -> None:
    """(f) A fresh adapter changes no bit of the prediction, a trained one does, and switching it off restores it."""
    for trained in (0.0, 0.1):
        family = build()
        modules = adapted(family, trained=trained)
        batch = fixed_batch(family)
        conditioning = family.encode_prompts(batch.prompts).with_sizes(batch.sizes)
        timesteps = family.noise.timesteps(batch.uniform)
        on = family.predict(batch.latents, timesteps, conditioning)
        with lora.adapters_off(modules):
            off = family.predict(batch.latents, timesteps, conditioning)
        base = build()
        lora.freeze(base)
        assert torch.equal(off, base.predict(batch.latents, timesteps, conditioning))
        assert torch.equal(on, off) == (trained == 0.0)
