"""Seconds of a training step: the toolkit's loop against one written by hand, and against a peer's script."""

from __future__ import annotations

from typing import Any

import torch
from timing import Marks, Spread
from torch.nn import functional
from torch.nn.utils import clip_grad_norm_


def compare_with_bare(bench: Any, *, rounds: int, steps: int) -> dict[str, Any]:
    """Both loops in turns. The ratio is that of the medians: above 1, ours is the faster."""
    ours, bare = [], []
    warm = 2
    for number in range(rounds):
        ours += bench.fit(bench.folder / f"ours-{number}", warm + steps)[warm:]
        bare += bare_steps(bench, warm + steps)[warm:]
    first, second = Spread.of(ours), Spread.of(bare)
    return {"ours_s": str(first), "bare_s": str(second), "ours_over_bare": second.median / first.median}


def bare_steps(bench: Any, steps: int, learning_rate: float = 1e-4) -> list[float]:
    """The least that trains the same adapter: one batch that lies on the device, noise drawn there, no log."""
    family, batch, device = bench.family, bench.first_batch(), bench.device
    parameters = [value for value in bench.module.parameters() if value.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, fused=True)
    conditioning = batch.conditioning.with_sizes(batch.sizes)
    marks = Marks(device)
    marks.mark()
    for _ in range(steps):
        noise = torch.randn_like(batch.latents)
        timesteps = family.noise.timesteps(torch.rand(len(noise), device=device))
        noisy = family.noise.add_noise(batch.latents, noise, timesteps)
        with torch.autocast(device.type, torch.bfloat16):
            prediction = family.predict(noisy, timesteps, conditioning)
        target = family.noise.target(batch.latents, noise, timesteps)
        functional.mse_loss(prediction.float(), target.float()).backward()
        clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        marks.mark()
    return marks.seconds()
