"""What a recipe says about training. No torch here: recipes are read without it."""

from __future__ import annotations

import math
import re
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from t2i.config import FrozenModel, speed_only
from t2i.sampling import SamplingSettings


class LoraModules(FrozenModel):
    """Modules of the denoiser whose adapters have values of their own."""

    match: str = Field(min_length=1)
    """Regular expression over module paths, from their beginning or from behind one of their dots to their end:
    `to_q`, `mid_block.*`, `transformer_blocks.[0-3].ff.net.2`. Layers it matches are adapted, in `targets` or not."""
    rank: int | None = Field(default=None, ge=1, le=1024)
    """Width of these adapters; the LoRA's `rank` if absent."""
    alpha: float | None = Field(default=None, gt=0)
    """Alpha of these adapters; the LoRA's `alpha` if absent, or else their rank."""
    learning_rate: float | None = Field(default=None, gt=0)
    """Learning rate of these adapters; the optimizer's if absent."""

    @field_validator("match")
    @classmethod
    def _compiles(cls, value: str) -> str:
        try:
            re.compile(value)
        except re.error as error:
            raise ValueError(f"not a regular expression: {error}") from error
        return value


class LoraSettings(FrozenModel):
    """Train low-rank adapters; the model itself stays frozen."""

    type: Literal["lora"] = "lora"
    variant: Literal["lora", "rslora", "dora"] = "lora"
    """`rslora`: strength alpha / sqrt(rank), for high ranks. `dora`: train the magnitude of each output as well; it is
    slower, and few tools besides diffusers read its files."""
    rank: int = Field(default=16, ge=1, le=1024)
    """Width of the adapter; 4 to 32 for a style or subject, more for broad changes."""
    alpha: float | None = Field(default=None, gt=0)
    """Strength is alpha / rank; equal to the rank if absent, so that strength is 1. With rslora, strength is
    alpha / sqrt(rank), and alpha must be given."""
    targets: tuple[str, ...] | None = None
    """Suffixes of denoiser modules to adapt; the family's attention projections if absent."""
    modules: tuple[LoraModules, ...] = ()
    """Modules to adapt with a rank, alpha or learning rate of their own. No two may match the same layer."""
    text_encoder: bool = False
    """Adapt the text encoders' attention too (CLIP's; a T5 stays as it is)."""
    text_encoder_rank: int | None = Field(default=None, ge=1, le=1024)
    """Width of the text encoders' adapters; `rank` if absent."""
    text_encoder_alpha: float | None = Field(default=None, gt=0)
    """Alpha of the text encoders' adapters; `alpha` if absent, or else their rank."""
    text_encoder_learning_rate: float | None = Field(default=None, gt=0)
    """Learning rate of the text encoders' adapters; that of the denoiser if absent."""
    b_learning_rate_ratio: float = Field(default=1.0, ge=1)
    """Learning rate of B over that of A (LoRA+, Hayou et al. 2024, arXiv:2402.12354); its authors advise about 16, with
    a lower learning rate."""
    base_bits: Literal[4, 8, 16] | None = None
    """Hold the denoiser in fewer bits while training, to save memory and time. 16: all of its frozen weights in bf16,
    the usual choice on a GPU, with `precision: bf16`. 4 and 8: its linear layers, by bitsandbytes, the rest as 16. It
    is read in bf16, so that host memory never holds it in fp32."""

    @model_validator(mode="after")
    def _consistent(self) -> LoraSettings:
        if self.variant == "rslora" and self.alpha is None:
            raise ValueError("alpha: rslora needs one (16 is usual); strength is alpha / sqrt(rank)")
        if self.variant == "dora" and self.base_bits in (4, 8):
            raise ValueError("base_bits: DoRA trains the norms of the exact weights; use variant lora or rslora")
        if self.targets == () and not self.modules and not self.text_encoder:
            raise ValueError("targets: empty, and neither modules nor text_encoder: there is nothing to adapt")
        own = {"text_encoder_rank", "text_encoder_alpha", "text_encoder_learning_rate"}
        given = sorted(name for name in own if getattr(self, name) is not None)
        if given and not self.text_encoder:
            raise ValueError(f"{given[0]}: has no effect without text_encoder: true")
        return self

    def of_text_encoder(self) -> LoraSettings:
        """The same with the rank and alpha of text encoders as those of the whole."""
        rank, alpha = self.text_encoder_rank or self.rank, self.text_encoder_alpha or self.alpha
        return self.model_copy(update={"rank": rank, "alpha": alpha})


class FullSettings(FrozenModel):
    """Train all weights of whole components."""

    type: Literal["full"] = "full"
    components: tuple[str, ...] = Field(min_length=1)
    """Attributes of the pipeline: unet, text_encoder, vae; or `model` for a model that is not a pipeline."""


Trained = Annotated[LoraSettings | FullSettings, Field(discriminator="type")]


Decay = Annotated[float, Field(ge=0, lt=1)]
"""Of a running mean: the share of it that a step keeps."""


class OptimizerSettings(FrozenModel):
    """AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101) or a relative of it, and its learning-rate schedule."""

    type: Literal["adamw", "adamw_8bit", "prodigy"] = "adamw"
    """`adamw_8bit`: the two moments of large tensors in 8 bits (Dettmers et al. 2022, arXiv:2110.02861), by
    bitsandbytes. `prodigy`: finds the step size by itself (Mishchenko & Defazio 2024, arXiv:2306.06101), by prodigyopt,
    with a synchronisation per tensor and step."""
    learning_rate: float = Field(gt=0)
    """Peak learning rate: 1e-4 is usual for LoRA, 1e-5 for full fine-tuning, 1 for prodigy, where it is a factor."""
    betas: tuple[Decay, Decay] = (0.9, 0.999)
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

    @model_validator(mode="after")
    def _rate_is_a_factor(self) -> OptimizerSettings:
        if self.type == "prodigy" and self.learning_rate < 0.01:
            raise ValueError(
                f"learning_rate: prodigy multiplies its own estimate by it; 1 is usual, not {self.learning_rate}"
            )
        return self


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
    deterministic: bool = True
    """On a GPU, use only kernels that give the same bits each time. Without it some models train faster, and a resumed
    run agrees with one that was never stopped to rounding only."""
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

    def portion(self, processes: int) -> int:
        """Examples of a forward pass, in each of so many processes."""
        return self.micro_batch_size or max(1, self.batch_size // processes)


class SpeedSettings(FrozenModel):
    """How the model is held and computed: faster, or in less memory. Results agree within rounding."""

    attention: Literal["sdpa", "xformers"] = "sdpa"
    """Who computes attention: torch's scaled dot products, or xformers' on a GPU (an extra)."""
    gradient_checkpointing: bool | Literal["selective"] = speed_only(False)
    """Compute the inside of blocks again in the backward pass instead of keeping it: the least memory, for about a
    third more time. `selective` keeps the results of matrix products, convolutions and attention, and computes only
    what is cheap again. The bits stay the same."""
    compile: bool = False
    """Compile the repeated blocks (torch.compile): a minute or more at the start and for every new size of image."""
    channels_last: bool = False
    """Lay a U-Net's weights out with channels last, which convolutions on a GPU like."""
    text_encoders: Literal["fp32", "bf16"] = "fp32"
    """Precision of the text encoders' frozen weights. bf16 halves them: T5 of SD3 and Flux takes 8.9 GiB instead of
    17.7. The autoencoder stays in fp32."""


class HeldOutSettings(FrozenModel):
    """Measure the loss on images that are not trained on."""

    share: float = Field(default=0.05, gt=0, lt=1)
    """Share of the images that are held out; the seed and the content of an image decide."""
    examples: int = Field(default=64, gt=0)
    """Examples measured, each an image with noise of a level; always the same ones."""
    every: int = Field(default=100, gt=0)
    """Steps between measurements; there is one after the last step too."""
    result: Literal["last", "best"] = "last"
    """Which weights are the result: those after the last step, or those with the lowest loss measured. Of a LoRA, the
    best one is kept in `best/` in either case."""


class SampleSettings(FrozenModel):
    """Generate images while training, from the saved file over a fresh copy of the model."""

    prompts: tuple[str, ...] = Field(min_length=1)
    """One image each."""
    every: int = Field(default=500, gt=0)
    """Steps between samples; there are some after the last step too."""
    seed: int = Field(default=0, ge=0)
    """Decides the noise that the images begin with."""
    sampling: SamplingSettings = SamplingSettings()
    """Steps, guidance, scheduler, size."""


class TrackingSettings(FrozenModel):
    """Send what is logged to a tracker as well, through accelerate; each needs its extra."""

    to: tuple[Literal["tensorboard", "wandb"], ...] = Field(min_length=1)
    """TensorBoard's files go into the stage's folder; wandb's where it is set up to."""
    project: str = Field(default="t2i", min_length=1)
    """Name that runs are grouped under."""


def check_precision(trained: LoraSettings | FullSettings, loop: LoopSettings) -> None:
    """Raise ValueError for a base in bf16 that is to compute in fp32."""
    if isinstance(trained, LoraSettings) and trained.base_bits is not None and loop.precision != "bf16":
        raise ValueError(
            f"trained.base_bits: {trained.base_bits} holds the model in bf16, or fewer bits, which needs "
            "loop.precision: bf16"
        )


def check_rates(trained: LoraSettings | FullSettings, optimizer: OptimizerSettings) -> None:
    """Raise ValueError for learning rates that an optimizer cannot tell apart."""
    if optimizer.type != "prodigy" or not isinstance(trained, LoraSettings):
        return
    own = trained.text_encoder_learning_rate is not None or any(rule.learning_rate for rule in trained.modules)
    if own or trained.b_learning_rate_ratio != 1:
        raise ValueError(
            "trained: prodigy has one learning rate for all; remove the other rates and ratios, or use adamw"
        )


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


def warmup_caution(optimizer: OptimizerSettings, steps: int) -> str | None:
    """What to say of a warm-up that lasts as long as the run; None for a shorter one."""
    if optimizer.warmup_steps < max(1, steps):
        return None
    peak = min(1.0, steps / optimizer.warmup_steps)
    return (
        f"optimizer.warmup_steps: {optimizer.warmup_steps}, and loop.steps: {steps}; the learning rate rises to the "
        f"last step, to {peak:.0%} of its peak. Lower warmup_steps, or train for more steps."
    )


def ema_decay_at(decay: float, step: int) -> float:
    """Decay of the moving average at a step, 0-based: low at first, so that the initial weights are soon forgotten."""
    return min(decay, (1 + step) / (10 + step))
