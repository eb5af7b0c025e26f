"""Pairs a second of one Diffusion-DPO step: two passes over both images of each pair, against four passes over one.

python benchmarks/dpo_step.py [MODEL] [PAIRS]

Both take the same pairs, prompts encoded once, the same LoRA, and do the backward pass; their losses are compared
first. They take turns, and the medians are printed with their quartiles. MODEL: a folder or hub id, the embedded
pipeline if absent; PAIRS: pairs in a pass, 2 if absent.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable

import torch
from machine import describe
from torch import Tensor

from t2i.families import load_family
from t2i.objectives import DiffusionDPO
from t2i.objectives.denoising import denoising_loss, noisy_latents
from t2i.objectives.diffusion_dpo import diffusion_dpo_loss
from t2i.objectives.pairs import PairBatch, PairErrors
from t2i.resources import resolve_path
from t2i.training.diffusion import DiffusionModule, diffusion_trainable
from t2i.training.settings import LoraSettings

EMBEDDED = "pkg:t2i.shapes/assets/pipeline"
BETA, ROUNDS, WARM = 2000.0, 40, 3


def main() -> None:
    """Print one row for each way."""
    model = sys.argv[1] if len(sys.argv) > 1 else EMBEDDED
    count = int(sys.argv[2]) if len(sys.argv) > 2 else 2
    local = resolve_path(model)
    family = load_family(str(local) if local.exists() else model)
    if torch.cuda.is_available():
        family.pipeline.to("cuda")
    trainable, _ = diffusion_trainable(family, DiffusionDPO(beta=BETA), LoraSettings(rank=16), seed=0)
    module: DiffusionModule = trainable.module  # type: ignore[assignment]
    batch = pairs(module, count)
    ways: dict[str, Callable[[], Tensor]] = {
        "two passes": lambda: module(batch).loss,
        "four passes": lambda: four_passes(module, batch),
    }
    values = [way().detach() for way in ways.values()]
    torch.testing.assert_close(values[0], values[1], rtol=1e-4, atol=1e-4)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(ROUNDS + WARM):
        for name, way in ways.items():
            took = timed(way)
            if turn >= WARM:
                seconds[name].append(took)
    print(f"{model}, {count} pairs, {batch.chosen.shape[2]}x{batch.chosen.shape[3]} latents\n")
    print("| way | pairs a second, median (quartiles) |\n|---|---:|")
    rates = {}
    for name, times in seconds.items():
        low, rates[name], high = statistics.quantiles([count / value for value in times], n=4)
        print(f"| {name} | {rates[name]:.2f} ({low:.2f}-{high:.2f}) |")
    print(f"\nTwo passes are {rates['two passes'] / rates['four passes']:.2f} times as fast.")
    print(f"Measured with `python benchmarks/dpo_step.py`: {describe()}; {torch.get_num_threads()} threads.")


def timed(way: Callable[[], Tensor]) -> float:
    """Seconds of one forward and backward pass."""
    synchronise()
    began = time.perf_counter()
    way().mean().backward()
    synchronise()
    return time.perf_counter() - began


def synchronise() -> None:
    """Wait for the device, if there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def pairs(module: DiffusionModule, count: int) -> PairBatch:
    """Random latents at the model's own size, their prompt encoded."""
    family = module.denoiser.family
    device = next(family.denoiser.parameters()).device
    side = family.default_size
    with torch.no_grad():
        shape = family.encode_images(torch.zeros(1, 3, side, side, device=device)).mean.shape[1:]
        conditioning = family.encode_prompts(["a photo of a cat"] * count)
    latents = torch.randn(3, count, *shape, generator=torch.Generator().manual_seed(0)).to(device)
    sizes = torch.tensor([[side, side, 0, 0, side, side]] * count, dtype=torch.float32, device=device)
    given = sizes if family.facts.takes_sizes else None
    uniform = torch.linspace(0.1, 0.9, count, device=device)
    return PairBatch(latents[0], latents[1], latents[2], uniform, ("a photo of a cat",) * count, given, conditioning)


def four_passes(module: DiffusionModule, batch: PairBatch) -> Tensor:
    """The loss by one forward pass for each image of a pair and each model, as one would write it down first."""
    denoiser = module.denoiser

    def error(latents: Tensor) -> Tensor:
        alone = PairBatch(latents, latents, batch.noise, batch.uniform, batch.prompts, batch.sizes, batch.conditioning)
        noisy = noisy_latents(module.noise, alone.of_chosen())
        prediction = denoiser(noisy.latents, noisy.timesteps, denoiser.encode(alone.of_chosen()))
        return denoising_loss(prediction, noisy.target)

    chosen, rejected = error(batch.chosen), error(batch.rejected)
    with denoiser.reference():
        reference_chosen, reference_rejected = error(batch.chosen), error(batch.rejected)
    errors = PairErrors(chosen, rejected, reference_chosen, reference_rejected)
    return diffusion_dpo_loss(errors.half_margin, BETA)


if __name__ == "__main__":
    main()
