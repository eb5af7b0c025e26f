"""What a run will take, by arithmetic on shapes: memory of a step, its multiplications, files on disk.

Memory is weights, what is trained with its gradients and the optimizer's state, and the most that a forward and
backward pass has at once beside them. Not in it: workspaces of libraries, and what the allocator loses between tensors.
Time is the multiplications over the rate that a plain matrix product reaches on this machine, so no step can be faster.
Both are to be read beside what was measured (`t2i inspect --probe`, or the run itself).
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import torch
from pydantic import JsonValue
from torch import nn

from t2i import devices
from t2i.data.buckets import BucketPlan, Size, square_plan
from t2i.data.diffusion import Texts
from t2i.data.examples import Dataset
from t2i.data.views import Views
from t2i.training.placement import encoder_names
from t2i.training.settings import LoopSettings, LoraSettings, OptimizerSettings

if TYPE_CHECKING:
    from t2i.training.outline import TrainingOutline
    from t2i.training.tasks import TaskSettings

OPTIMIZER_BYTES = {"adamw": 8, "adamw_8bit": 2, "prodigy": 16}
"""Type of optimizer -> bytes of state for each trained number."""
COMPUTE_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Estimate:
    """Bytes, and multiplications and additions (FLOPs) of a whole optimizer step of one process."""

    frozen_parameters: int
    trained_parameters: int
    encoding_bytes: int
    """Weights on the device while images and captions are encoded: autoencoder and text encoders, and a denoiser that
    is quantized, which is made there."""
    weight_bytes: int
    """What is frozen and on the device while training: the denoiser, text encoders unless their outputs are cached, and
    copies of what is trained whole, where the objective compares with the untrained model."""
    training_bytes: int
    """What is trained, in fp32, with gradients, the optimizer's state and the moving average."""
    activation_bytes: int
    """Most that both passes over a micro-batch of the largest bucket have at once, weights in another precision too."""
    flops_per_step: int
    seconds_per_step: float
    """At least, at the matrix rate of this machine."""
    cache_bytes: int
    """Encoded images and captions on disk while the stage runs."""
    checkpoint_bytes: int
    """Of all checkpoints that are kept, and the one that is being written."""

    @property
    def memory_bytes(self) -> int:
        """Of a training step, in all."""
        return self.weight_bytes + self.training_bytes + self.activation_bytes

    def facts(self) -> dict[str, JsonValue]:
        """As numbers, for done.json."""
        return {**asdict(self), "memory_bytes": self.memory_bytes}


def estimate_run(
    outline: TrainingOutline,
    settings: TaskSettings,
    loop: LoopSettings,
    optimizer: OptimizerSettings,
    plan: BucketPlan | None = None,
    *,
    processes: int = 1,
) -> Estimate:
    """The estimate of one process of a run. plan: the size of every image of the records; a square of each if absent.

    The outline is used up: its tensors take the dtype of the computation.
    """
    trained = outline.trained_parameters()
    encoding = _encoding_bytes(outline, settings)
    state = 4 + OPTIMIZER_BYTES[optimizer.type] + (4 if loop.ema_decay is not None else 0)
    resident = _resident(outline, settings)
    frozen = [value for module in resident.values() for value in module.parameters() if not value.requires_grad]
    copies = [value for module in outline.frozen_copies().values() for value in module.parameters()]
    buffers = [value for module in resident.values() for value in module.buffers()]
    weights = sum(value.nbytes for value in (*frozen, *copies, *buffers)) - _bytes_spared(outline, settings)
    plan = plan or square_plan(len(settings.records), outline.resolution)
    cache = _cache_bytes(outline, settings, plan)
    micro = loop.portion(processes)
    dtype = COMPUTE_DTYPES[loop.precision]
    cast = _copied_weights(outline, dtype)
    step = outline.step(largest_bucket(plan), micro, text_is_cached=settings.cache.text, dtype=dtype)
    flops = step.flops * max(1, loop.batch_size // (micro * processes))
    return Estimate(
        frozen_parameters=sum(value.numel() for value in (*frozen, *copies)),
        trained_parameters=trained,
        encoding_bytes=encoding,
        weight_bytes=weights,
        training_bytes=trained * (4 + state),
        activation_bytes=step.activation_bytes + cast,
        flops_per_step=flops,
        seconds_per_step=float(f"{flops / matrix_rate(dtype):.4g}"),
        cache_bytes=cache,
        checkpoint_bytes=(loop.keep_checkpoints + 1) * trained * state,
    )


def _encoding_bytes(outline: TrainingOutline, settings: TaskSettings) -> int:
    """Bytes of what is on the device before training; see `placement`."""
    facts, trained = outline.family.facts, settings.trained
    is_quantized = isinstance(trained, LoraSettings) and trained.base_bits in (4, 8)
    names = [*encoder_names(facts), *([facts.denoiser] if is_quantized else [])]
    modules = [outline.modules[name] for name in names if name in outline.modules]
    tensors = [value for module in modules for value in (*module.parameters(), *module.buffers())]
    spared = _bytes_spared(outline, settings) if is_quantized else 0
    return sum(value.nbytes for value in tensors) - spared


def _resident(outline: TrainingOutline, settings: TaskSettings) -> dict[str, nn.Module]:
    """Components on the device while training."""
    facts = outline.family.facts
    names = [facts.denoiser, *(() if settings.cache.text else facts.text_encoders)]
    return {name: outline.modules[name] for name in names if name in outline.modules}


def _bytes_spared(outline: TrainingOutline, settings: TaskSettings) -> int:
    """Of the denoiser's frozen linear layers, by holding them in fewer bits; see `lora.quantize`."""
    trained = settings.trained
    if not isinstance(trained, LoraSettings) or trained.base_bits not in (4, 8):
        return 0
    layers = [layer for layer in outline.family.denoiser.modules() if isinstance(layer, nn.Linear)]
    weights = [layer.weight for layer in layers if not layer.weight.requires_grad]
    # Scales in fp32: one for each row, or for each 64 weights.
    scales = [len(weight) if trained.base_bits == 8 else weight.numel() // 64 for weight in weights]
    held = sum(weight.numel() * trained.base_bits // 8 for weight in weights) + 4 * sum(scales)
    return sum(weight.nbytes for weight in weights) - held


def _copied_weights(outline: TrainingOutline, dtype: torch.dtype) -> int:
    """Bytes of the denoiser's weights in the dtype of the computation, which autocast makes and the graph keeps."""
    weights = [value for value in outline.family.denoiser.parameters() if value.ndim >= 2 and value.dtype != dtype]
    return sum(value.numel() * dtype.itemsize for value in weights)


def largest_bucket(plan: BucketPlan) -> Size:
    """Of the buckets that have images, or of all if none has, the one with the most pixels."""
    used = [size for bucket, size in enumerate(plan.sizes) if (plan.of_record == bucket).any()]
    return max(used or plan.sizes, key=lambda size: size[0] * size[1])


def _cache_bytes(outline: TrainingOutline, settings: TaskSettings, plan: BucketPlan) -> int:
    side = outline.resolution
    latents = outline.latents(side, side)
    kept = latents.numel() * (2 if settings.posterior == "sample" else 1)
    kept += latents[0, 0].numel() if settings.masks is not None else 0
    images = round(4 * kept * _seen_pixels(settings, plan) / side**2)
    if not settings.cache.text or settings.mix is None:
        return images
    parts = settings.datasets or (Dataset(0, len(settings.records), settings.mix),)
    return images + (len(set(Texts(settings.records, parts))) + 1) * outline.text_bytes()


def _seen_pixels(settings: TaskSettings, plan: BucketPlan) -> int:
    """Of all views of all images."""
    views = Views(settings.views, settings.seed)
    if not settings.views.flip:
        # Without a look at the records, of which there may be many.
        used = zip(plan.sizes, (plan.records_of(bucket) for bucket in range(len(plan.sizes))), strict=True)
        return views.crops * sum(width * height * len(records) for (width, height), records in used)
    kept = [number for number in range(len(settings.records)) if plan.of_record[number] >= 0]
    sizes = [(plan.size_of(number), views.count(settings.records[number])) for number in kept]
    return sum(width * height * count for (width, height), count in sizes)


def matrix_rate(dtype: torch.dtype) -> float:
    """FLOPs a second of a plain matrix product on this machine: the best of a few."""
    device = devices.compute_device()
    side = 8192 if device.type == "cuda" else 512
    left, right = torch.ones(2, side, side, device=device, dtype=dtype)
    best = float("inf")
    for _ in range(4):
        began = time.perf_counter()
        # Reading one number waits for the product.
        (left @ right)[0, 0].item()
        best = min(best, time.perf_counter() - began)
    return 2 * side**3 / best
