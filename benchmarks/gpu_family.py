"""One family at full size on a GPU: trained, resumed, sampled, saved and reloaded, in phases that fail alone.

Started by `gpu.py`, once for each family; prints one line of JSON for each phase.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from gpu_bench import TOLERANCE, Bench, Guarded, difference, quarter, relative
from timing import matrix_rate, synchronise
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from train_step import compare_with_bare

from t2i import lora
from t2i.randomness import deterministic_kernels
from t2i.training.settings import SpeedSettings
from t2i.training.speed import apply_speed

STEPS, RESUME_AT, WARM = 20, 10, 3
COMPARED = ("sdxl", "sd1", "pixart")
"""Families whose loop is compared with one written by hand."""
COMPILED = ("sdxl",)
"""Families for which torch.compile is tried: it takes as long as everything else together."""
Facts = dict[str, Any]


def build(bench: Bench) -> Facts:
    """The model, and its training task with all images and captions encoded."""
    bench.build()
    return {
        "resolution": bench.size_px,
        "batch": bench.batch_size,
        "denoiser_parameters": sum(value.numel() for value in bench.family.denoiser.parameters()),
        "adapter_parameters": sum(value.numel() for value in bench.fresh.values()),
        "gradient_checkpointing": bench.checkpointed,
    }


def train(bench: Bench) -> Facts:
    """20 steps with a checkpoint at 10, with deterministic kernels, as the train stage has them."""
    bench.reset_peak()
    seconds = bench.fit(bench.folder / "whole", STEPS, every=RESUME_AT)
    bench.trained = bench.weights()
    # The step after a checkpoint begins with writing it.
    timed = [value for step, value in enumerate(seconds) if step >= WARM and (step + 1) % RESUME_AT]
    lines = [json.loads(line) for line in (bench.folder / "whole/metrics.jsonl").read_text().splitlines()]
    return {
        **bench.speed(timed),
        "peak_memory_gib": bench.peak_gib(),
        "loss_first_10": lines[0]["loss"],
        "loss_last_10": lines[-1]["loss"],
        "data_wait_share": lines[-1]["data_wait_share"],
    }


def resume(bench: Bench) -> Facts:
    """Steps 10 to 20 again from the checkpoint; the weights must come out the same."""
    again = bench.folder / "resumed"
    checkpoint = bench.folder / f"whole/checkpoints/step-{RESUME_AT:08d}"
    shutil.copytree(checkpoint, again / "checkpoints" / checkpoint.name)
    bench.fit(again, STEPS, every=RESUME_AT)
    weights = bench.weights()
    return {
        "same_bits": all(torch.equal(weights[name], value) for name, value in bench.trained.items()),
        "relative_difference": difference(weights, bench.trained),
    }


def utilisation(bench: Bench) -> Facts:
    """FLOPs of a step, forward and gradients of activations and adapters, over the rate of a matrix product."""
    bench.batch = bench.first_batch()
    counter = FlopCounterMode(display=False)
    with counter:
        bench.gradients(bench.batch)
    flops = counter.get_total_flops()
    if bench.checkpointed:
        again = FlopCounterMode(display=False)
        with again, torch.no_grad(), bench.autocast():
            bench.module(bench.batch)
        flops -= again.get_total_flops()
        # What follows compares with a run without checkpointing, which must fit.
        bench.batch = quarter(bench.batch)
    rate = matrix_rate(bench.device)
    bench.flops, bench.rate = flops, rate
    share = flops / bench.results["train"]["step_s"] / rate
    return {"tflop_per_step": flops / 1e12, "matrix_tflops": rate / 1e12, "utilisation": share}


def free_kernels(bench: Bench) -> Facts:
    """The same loop with whatever kernels torch prefers."""
    with any_kernels(bench):
        seconds = bench.fit(bench.folder / "free", WARM + 7)
    speed = bench.speed(seconds[WARM:])
    return {**speed, "utilisation": bench.flops / speed["step_s"] / bench.rate}


def bare_loop(bench: Bench) -> Facts:
    """Our loop against one written by hand, in turns, both with whatever kernels torch prefers."""
    if bench.name not in COMPARED:
        return {"skipped": "not compared for this family"}
    with any_kernels(bench):
        return compare_with_bare(bench, rounds=5, steps=3)


def without_waiting(bench: Bench) -> Facts:
    """In a step nothing makes the host wait for the device: torch raises an error if something does."""
    if bench.device.type != "cuda":
        return {"skipped": "no CUDA device"}
    try:
        bench.fit_on(Guarded(bench.batches()), bench.folder / "guarded", 6, 100)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return {"host_waits_in_a_step": 0}


def checkpointing(bench: Bench) -> Facts:
    """Gradients with and without gradient checkpointing, on smaller images where they need it."""
    return _checkpointed(bench, True)


def selective(bench: Bench) -> Facts:
    """The same for selective checkpointing."""
    return _checkpointed(bench, "selective")


def _checkpointed(bench: Bench, kind: Literal[True, "selective"]) -> Facts:
    memory = []
    found = []
    try:
        for setting in (False, kind):
            bench.set_checkpointing(setting)
            bench.reset_peak()
            found.append(bench.gradients(bench.batch))
            memory.append(bench.peak_gib())
    finally:
        bench.set_checkpointing(bench.checkpointed)
    return {**agreement(*found[0], *found[1]), "plain_peak_gib": memory[0], "peak_memory_gib": memory[1]}


def offload(bench: Bench) -> Facts:
    """What was encoded before the encoders left the device, against encoding now."""
    names = [name for name in bench.family.facts.text_encoders if getattr(bench.family.pipeline, name) is not None]
    encoders = [getattr(bench.family.pipeline, name) for name in names]
    where = sorted({next(encoder.parameters()).device.type for encoder in encoders})
    for encoder in encoders:
        encoder.to(bench.device)
    cached = bench.prediction(bench.batch)
    with torch.no_grad():
        live = bench.family.encode_prompts(bench.batch.prompts).with_sizes(bench.batch.sizes)
    gap = relative(bench.prediction(bench.batch, live), cached)
    return {"encoders_were_on": ", ".join(where), "prediction_difference": gap, "agrees": gap <= TOLERANCE}


def sample(bench: Bench) -> Facts:
    """A picture by the family's own pipeline with the adapter, and again with its file loaded by plain diffusers."""
    pipeline, path = bench.family.pipeline, bench.folder / "adapter.safetensors"
    lora.save(bench.task.components, path, {"made_by": "benchmarks/gpu.py"})
    nn.Module.to(pipeline.vae, bench.device, torch.bfloat16)
    before, began = bench.prediction(bench.batch), time.perf_counter()
    picture = bench.image()
    seconds = time.perf_counter() - began
    lora.unload(pipeline)
    bare = bench.prediction(bench.batch)
    lora.load_into(pipeline, path)
    after = bench.prediction(bench.batch)
    gap = relative(after, before)
    return {
        "sample_s": seconds,
        "adapter_effect": relative(bare, before),
        "same_bits": bool(torch.equal(after, before)),
        "prediction_difference": gap,
        "agrees": gap <= TOLERANCE,
        "largest_pixel_difference": pixel_difference(picture, bench.image()),
    }


def channels_last(bench: Bench) -> Facts:
    """Weights of a U-Net with channels last: agreement, and speed of forward and backward. They stay so."""
    if bench.family.facts.denoiser != "unet":
        return {"skipped": "a transformer"}
    return _switched(bench, SpeedSettings(channels_last=True))


def compiled(bench: Bench) -> Facts:
    """The same for torch.compile of the blocks that repeat."""
    if bench.name not in COMPILED:
        return {"skipped": "not tried for this family"}
    return _switched(bench, SpeedSettings(compile=True))


def _switched(bench: Bench, settings: SpeedSettings) -> Facts:
    bench.train_adapters_only()
    bench.set_checkpointing(False)
    loss, plain = bench.gradients(bench.batch)
    with any_kernels(bench):
        plain_s, began = pass_seconds(bench), time.perf_counter()
        apply_speed(bench.family, settings)
        facts = agreement(loss, plain, *bench.gradients(bench.batch))
        first_s = time.perf_counter() - began
        return {**facts, "first_pass_s": first_s, "plain_pass_s": plain_s, "speedup": plain_s / pass_seconds(bench)}


PHASES: tuple[tuple[Callable[[Bench], Facts], float], ...] = (
    (build, -60),
    (train, 0),
    (resume, 8),
    (utilisation, 0),
    (free_kernels, 6),
    (bare_loop, 12),
    (without_waiting, 4),
    (checkpointing, 5),
    (selective, 5),
    (offload, 6),
    (sample, 6),
    (channels_last, 5),
    (compiled, 45),
)
"""In order, with the seconds that must be left for a phase to be begun."""


def run_phases(bench: Bench, tell: Callable[[Facts], None]) -> None:
    """All phases; what fails is told and passed over, but without the first there is nothing to do."""
    with deterministic_kernels():
        for phase, needed_s in PHASES:
            left = bench.deadline - time.monotonic()
            name = phase.__name__
            if left < needed_s:
                bench.results[name] = {"skipped": f"{left:.0f} s left, {needed_s:.0f} needed"}
                tell({"phase": name, **bench.results[name]})
                continue
            bench.results[name] = _result(phase, bench)
            tell({"phase": name, **bench.results[name]})
            if "error" in bench.results["build"]:
                return


def _result(phase: Callable[[Bench], Facts], bench: Bench) -> Facts:
    began = time.perf_counter()
    try:
        facts = _with_less_memory(phase, bench) if phase is train else phase(bench)
        synchronise(bench.device)
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)[-6:]
        where = [f"{Path(frame.filename).name}:{frame.lineno} {frame.name}" for frame in frames]
        return {"error": f"{type(error).__name__}: {str(error)[:600]}", "where": where}
    return {**facts, "seconds": round(time.perf_counter() - began, 2)}


def _with_less_memory(phase: Callable[[Bench], Facts], bench: Bench) -> Facts:
    """The phase at half the batch, and half of that, until it fits."""
    while True:
        try:
            return {**phase(bench), "batch": bench.batch_size}
        except torch.cuda.OutOfMemoryError:
            if bench.batch_size == 1:
                raise
        bench.batch_size //= 2
        shutil.rmtree(bench.folder / "whole")
        for value in bench.task.trainable.parameters().values():
            value.grad = None
        torch.cuda.empty_cache()


@contextmanager
def any_kernels(bench: Bench) -> Iterator[None]:
    """Whatever kernels torch prefers, for the length of the block."""
    torch.use_deterministic_algorithms(False)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(bench.device.type == "cuda", warn_only=True)


def agreement(plain_loss: float, plain: dict[str, Tensor], loss: float, gradients: dict[str, Tensor]) -> Facts:
    """How far a variant's loss and gradients are from the plain ones."""
    gap = difference(gradients, plain)
    return {
        "loss_difference": abs(loss - plain_loss) / abs(plain_loss),
        "gradient_difference": gap,
        "agrees": gap <= TOLERANCE,
    }


def pass_seconds(bench: Bench) -> float:
    """Least seconds of a forward and backward pass of four."""
    seconds = []
    for _ in range(4):
        began = time.perf_counter()
        bench.gradients(bench.batch)
        synchronise(bench.device)
        seconds.append(time.perf_counter() - began)
    return min(seconds)


def pixel_difference(first: Any, second: Any) -> int:
    """Largest difference of two pictures, of 255."""
    import numpy as np

    return int(np.abs(np.asarray(first, dtype=np.int16) - np.asarray(second, dtype=np.int16)).max())


def main(name: str, device: str, size: str) -> None:
    """Import, wait for the seconds that it may take as a line on standard input, and measure."""
    import diffusers
    import transformers

    diffusers.utils.logging.set_verbosity_error()
    transformers.logging.set_verbosity_error()
    # They import what is asked for only then.
    _ = diffusers.AutoencoderKL, transformers.T5EncoderModel, transformers.CLIPTextModel
    torch.zeros(1, device=device)
    print(json.dumps({"phase": "ready"}), flush=True)
    deadline = time.monotonic() + float(sys.stdin.readline())
    with tempfile.TemporaryDirectory() as scratch:
        bench = Bench(name, torch.device(device), Path(scratch), size == "reduced", deadline)
        run_phases(bench, lambda line: print(json.dumps(line), flush=True))


if __name__ == "__main__":
    main(*sys.argv[1:])
