"""What a recipe says about training. No torch here: recipes are read without it."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field, model_validator

from t2i.config import FrozenModel, speed_only


class LoraSettings(FrozenModel):
    """Train low-rank adapters; the model itself stays frozen."""

    type: Literal["lora"] = "lora"
    rank: int = Field(default=16, ge=1, le=1024)
    """Width of the adapter; 4 to 32 for a style or subject, more for broad changes."""
    alpha: float | None = Field(default=None, gt=0)
    """Strength is alpha / rank; equal to the rank if absent, so that strength is 1."""
    targets: tuple[str, ...] = ()
    """Suffixes of denoiser modules to adapt; the family's attention projections if empty."""
    text_encoder: bool = False
    """Adapt the text encoders' attention too."""
    text_encoder_learning_rate: float | None = Field(default=None, gt=0)
    """Learning rate of the text encoders' adapters; that of the denoiser if absent."""


class FullSettings(FrozenModel):
    """Train all weights of whole components."""

    type: Literal["full"] = "full"
    components: tuple[str, ...] = Field(min_length=1)
    """Attributes of the pipeline: unet, text_encoder, vae; or `model` for a model that is not a pipeline."""


Trained = Annotated[LoraSettings | FullSettings, Field(discriminator="type")]


class OptimizerSettings(FrozenModel):
    """AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101) and its learning-rate schedule."""

    learning_rate: float = Field(gt=0)
    """Peak learning rate: 1e-4 is usual for LoRA, 1e-5 for full fine-tuning."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay of the running mean of the gradient and of its square."""
    weight_decay: float = Field(default=0.01, ge=0)
    """Decoupled weight decay."""
    epsilon: float = Field(default=1e-8, gt=0)
    """Added to the root of the second moment."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Gradients are scaled down to this L2 norm."""
    warmup_steps: int = Field(default=0, ge=0)
    """Linear rise of the learning rate from 0."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """Course of the learning rate after the warm-up; linear and cosine end at 0."""


class LoopSettings(FrozenModel):
    """How long and in what portions to train."""

    steps: int = Field(gt=0)
    """Optimizer steps."""
    batch_size: int = Field(gt=0)
    """Examples per optimizer step, over all processes."""
    micro_batch_size: int | None = speed_only(None, gt=0)
    """Examples per forward pass and process; the whole batch if absent. Changes memory, not the result."""
    ema_decay: float | None = Field(default=None, gt=0, lt=1)
    """Keep an exponential moving average of the trained weights, and save that one."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Arithmetic of the forward pass. Trained weights and losses stay in fp32."""
    checkpoint_every: int = speed_only(100, gt=0)
    """Steps between checkpoints."""
    keep_checkpoints: int = speed_only(2, gt=0)
    """Older checkpoints are deleted."""
    log_every: int = speed_only(10, gt=0)
    """Steps between lines of metrics.jsonl."""
    workers: int = speed_only(0, ge=0)
    """Processes that prepare batches; 0 prepares them in the training process."""

    @model_validator(mode="after")
    def _batch_divides(self) -> LoopSettings:
        if self.micro_batch_size is not None and self.batch_size % self.micro_batch_size:
            both = f"batch_size {self.batch_size}, micro_batch_size {self.micro_batch_size}"
            raise ValueError(f"{both}: the batch must be a multiple of its portions")
        return self


def learning_rate_factor(settings: OptimizerSettings, step: int, steps: int) -> float:
    """Multiplier of the learning rate at a step, 0-based: a pure function, so resuming needs no scheduler state."""
    if step < settings.warmup_steps:
        return (step + 1) / settings.warmup_steps
    progress = (step - settings.warmup_steps) / max(1, steps - settings.warmup_steps)
    if settings.schedule == "linear":
        return 1 - progress
    if settings.schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * progress))
    return 1.0


def ema_decay_at(decay: float, step: int) -> float:
    """Decay of the moving average at a step, 0-based: low at first, so that the initial weights are soon forgotten."""
    return min(decay, (1 + step) / (10 + step))
