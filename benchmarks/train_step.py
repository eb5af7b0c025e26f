"""Seconds of a training step: the toolkit's loop against one written by hand, and against a peer's script.

python benchmarks/train_step.py --family sd1 [--device cpu] [--batch N] [--full] [--rounds 5] [--steps 6]
                                [--processor-time] [--peer SCRIPT] [--peer-python PYTHON] [--peer-steps SHORT LONG]

All train a LoRA of the same rank on the same model, images, batch and precision (bf16 over a base in bf16), in turns.
Without `--full` the model is a small one of the family's classes. Ours reads its batches from the cache on disk, draws
keyed noise and keeps its log; the bare loop has one batch, on the device, and does nothing but train. On a CPU that is
shared, `--processor-time` counts the seconds that the process had, which its neighbours do not lengthen.

`--peer` is a diffusers example script for training a LoRA on captioned images (train_text_to_image_lora.py for sd1,
train_text_to_image_lora_sdxl.py for sdxl), run by `--peer-python`. It encodes images and captions in every step. A step
takes what a longer run takes more than a shorter one, divided by the steps between.

Peak memory is the device's on a GPU. On a CPU it is the process's, libraries and all; ours and the bare loop share one,
the peer has its own.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from gpu_bench import OPTIMIZER, RANK, SEED, Bench
from machine import describe
from timing import Marks, Spread, peak_bytes, reset_peak
from torch import nn
from torch.nn import functional
from torch.nn.utils import clip_grad_norm_

WARM = 2
"""Steps that are not counted: the first also checks the fresh adapter, which takes two passes."""


def main() -> None:
    """Print one row for each loop."""
    arguments = _arguments()
    device = torch.device(arguments.device)
    with tempfile.TemporaryDirectory() as scratch:
        bench = Bench(arguments.family, device, Path(scratch), not arguments.full, batch_size=arguments.batch)
        bench.clock = time.process_time if arguments.processor_time else time.perf_counter
        bench.build()
        peer = Peer(arguments.peer, arguments.peer_python, arguments.peer_steps, bench) if arguments.peer else None
        found = measure(bench, arguments.rounds, arguments.steps, peer)
    print(table(found, bench.batch_size))
    size = "as published" if arguments.full else "small"
    clock = "processor time" if arguments.processor_time else "wall time"
    about = f"{arguments.family}, {size}, {bench.size_px} px, batch {bench.batch_size}, {device}, {clock}"
    print(f"\n{about}; median (least-largest) of {arguments.rounds} x {arguments.steps} steps. {describe()}.")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", required=True)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--batch", type=int, default=0)
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--processor-time", action="store_true")
    parser.add_argument("--peer", type=Path)
    parser.add_argument("--peer-python", default=sys.executable)
    parser.add_argument("--peer-steps", type=int, nargs=2, default=(4, 16), metavar=("SHORT", "LONG"))
    return parser.parse_args()


@dataclass
class Loop:
    """What was measured of one loop."""

    seconds: list[float] = field(default_factory=list)
    """Of every step; of the peer, one mean a round."""
    peak_bytes: int = 0
    """Largest memory of the rounds; 0 if it could not be read."""

    def add(self, seconds: list[float], peak_bytes: int) -> None:
        self.seconds += seconds
        self.peak_bytes = max(self.peak_bytes, peak_bytes)


def measure(bench: Bench, rounds: int, steps: int, peer: Peer | None = None) -> dict[str, Loop]:
    """Each loop's steps, taken in turns."""
    found = {"ours": Loop(), "bare loop": Loop()}
    for number in range(rounds):
        reset_peak(bench.device)
        found["ours"].add(bench.fit(bench.folder / f"ours-{number}", WARM + steps + 1)[WARM:], peak_bytes(bench.device))
        reset_peak(bench.device)
        found["bare loop"].add(bare_steps(bench, WARM + steps)[WARM:], peak_bytes(bench.device))
        if peer is not None:
            seconds = peer.step_seconds(number)
            found.setdefault(peer.script.name, Loop()).add([seconds], peer.peak_bytes())
    return found


def bare_steps(bench: Bench, steps: int) -> list[float]:
    """Seconds of each step of the least that trains the same adapter."""
    family, batch, device = bench.family, bench.first_batch(), bench.device
    parameters = [value for value in bench.module.parameters() if value.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=OPTIMIZER.learning_rate, fused=True)
    conditioning = batch.conditioning.with_sizes(batch.sizes)
    marks = Marks(device, bench.clock)
    marks.mark()
    for _ in range(steps):
        noise = torch.randn_like(batch.latents)
        timesteps = family.noise.timesteps(torch.rand(len(noise), device=device))
        noisy = family.noise.add_noise(batch.latents, noise, timesteps)
        with torch.autocast(device.type, torch.bfloat16):
            prediction = family.predict(noisy, timesteps, conditioning)
        target = family.noise.target(batch.latents, noise, timesteps)
        functional.mse_loss(prediction.float(), target.float()).backward()
        clip_grad_norm_(parameters, OPTIMIZER.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        marks.mark()
    return marks.seconds()


class Peer:
    """A diffusers example script, with the model and images of the bench written as it wants them."""

    def __init__(self, script: Path, python: str, steps: tuple[int, int], bench: Bench) -> None:
        self.script, self.python, self.steps, self.bench = script.resolve(), python, steps, bench
        self.model, self.images = bench.folder / "model", bench.folder / "images"
        # A family made anew: ours carries an adapter by now.
        from random_models import build_family

        family: Any = build_family(bench.name, torch.device("cpu"), dtype=torch.float32, reduced=bench.reduced)
        for part in family.pipeline.components.values():
            if isinstance(part, nn.Module):
                nn.Module.to(part, torch.float32)
        family.pipeline.save_pretrained(self.model)
        rows = [{"file_name": Path(row.image).name, "text": row.captions[0].text} for row in bench.records]
        (self.images / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def step_seconds(self, number: int) -> float:
        """Seconds of a step: what the longer of two runs takes more than the shorter."""
        short, long = (self._run(steps, f"{number}-{steps}") for steps in self.steps)
        return (long - short) / (self.steps[1] - self.steps[0])

    def peak_bytes(self) -> int:
        """Largest memory of its process on a CPU; 0 on a GPU, whose share is not seen from here."""
        on_host = self.bench.device.type == "cpu"
        return 1024 * resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss if on_host else 0

    def _run(self, steps: int, name: str) -> float:
        options = {
            "pretrained_model_name_or_path": self.model,
            "train_data_dir": self.images,
            "caption_column": "text",
            "resolution": self.bench.size_px,
            "train_batch_size": self.bench.batch_size,
            "max_train_steps": steps,
            "rank": RANK,
            "learning_rate": OPTIMIZER.learning_rate,
            "lr_scheduler": "constant",
            "lr_warmup_steps": 0,
            "max_grad_norm": OPTIMIZER.max_grad_norm,
            "mixed_precision": "bf16",
            "checkpointing_steps": 10**6,
            "seed": SEED,
            "output_dir": self.bench.folder / f"peer-{name}",
        }
        command = [self.python, str(self.script), *(f"--{key}={value}" for key, value in options.items())]
        began = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{self.script.name} ended with {done.returncode}:\n{done.stderr[-2000:]}")
        return time.perf_counter() - began


def compare_with_bare(bench: Bench, *, rounds: int, steps: int) -> dict[str, Any]:
    """Both loops in turns. The ratio is that of the medians: above 1, ours is the faster."""
    ours, bare = (Spread.of(loop.seconds) for loop in measure(bench, rounds, steps).values())
    return {"ours_s": str(ours), "bare_s": str(bare), "ours_over_bare": bare.median / ours.median}


def table(found: dict[str, Loop], batch_size: int) -> str:
    """A row for each loop; its speed is a share of the bare loop's."""
    bare = Spread.of(found["bare loop"].seconds).median
    lines = ["| loop | s a step | images/s | speed of the bare loop | peak memory |", "|---|---:|---:|---:|---:|"]
    for name, loop in found.items():
        spread = Spread.of(loop.seconds)
        speed = f"{batch_size / spread.median:.2g} | {bare / spread.median:.3f}"
        memory = f"{loop.peak_bytes / 2**30:.1f} GiB" if loop.peak_bytes else "not measured"
        lines.append(f"| {name} | {spread} | {speed} | {memory} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
