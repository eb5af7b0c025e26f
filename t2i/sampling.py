"""Prompts and seeds to images, through the diffusers pipeline itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from t2i import devices
from t2i.config import FrozenModel, speed_only
from t2i.encoder_texts import EncoderPrompt, texts_for
from t2i.errors import ConfigError, ModelError, RunError
from t2i.randomness import deterministic_kernels, sampling_generator

if TYPE_CHECKING:
    from PIL import Image

    from t2i.families.base import FamilyFacts, ModelFamily

SCHEDULERS: dict[str, str] = {
    "ddim": "DDIMScheduler",
    "dpmsolver++": "DPMSolverMultistepScheduler",
    "euler": "EulerDiscreteScheduler",
}


SamplingPrecision = Literal["fp32", "bf16"]
Offload = Literal["none", "model", "layers"]

PROMPT_ARGUMENTS = ("prompt", "prompt_2", "prompt_3")
"""What pipelines call the texts for their encoders, in the order of the encoders."""


class SamplingSettings(FrozenModel):
    """How images are generated. Both arms of a comparison must share these."""

    steps: int = Field(default=30, ge=1, le=1000)
    """Denoising steps."""
    guidance_scale: float | None = Field(default=None, ge=0)
    """Classifier-free guidance, which 1 switches off; for Flux, the number that the model is told. That of the family's
    diffusers pipeline if absent: 7.5 for sd1, 5 for sdxl, 4.5 for pixart, 7 for sd3, 3.5 for flux."""
    negative_prompt: str = ""
    """What guidance leads away from; what the model was trained to without a caption if empty. Flux takes none."""
    scheduler: Literal["checkpoint", "ddim", "dpmsolver++", "euler"] = "checkpoint"
    """Sampler; `checkpoint` keeps the one that the model comes with, the only choice for SD 3 and Flux."""
    zero_terminal_snr: bool = False
    """Begin in nothing but noise, as `objective.zero_terminal_snr` trained it (Lin et al. 2023, arXiv:2305.08891)."""
    width: int | None = Field(default=None, gt=0, multiple_of=8)
    """Pixels, a multiple of 8, or 16 where the model cuts latents into patches; the model's own size if absent."""
    height: int | None = Field(default=None, gt=0, multiple_of=8)
    """Pixels, a multiple of 8, or 16 where the model cuts latents into patches; the model's own size if absent."""
    lora_scale: float = Field(default=1.0, ge=0)
    """Strength of the adapter."""
    precision: SamplingPrecision = "fp32"
    """Of the whole pipeline's weights and arithmetic. bf16 is twice as small and on a GPU several times as fast."""
    offload: Offload = speed_only("none")
    """What waits in host memory until it is called, where there is a GPU: nothing; each of text encoders, denoiser and
    autoencoder; or, slowest and smallest, each layer. The images stay the same."""

    def resolved(self, facts: FamilyFacts) -> SamplingSettings:
        """The same with what is left to the family filled in."""
        if self.guidance_scale is not None:
            return self
        return self.model_copy(update={"guidance_scale": facts.guidance_scale})


@dataclass(frozen=True)
class Sampler:
    """A pipeline ready to sample: loaded from files, adapter included, exactly as plain diffusers loads them."""

    pipeline: Any
    """A diffusers pipeline; their base class declares no call."""
    settings: SamplingSettings
    count_truncated: Callable[[Sequence[EncoderPrompt]], Mapping[str, int]]
    """How many of some prompts each text encoder reads only the beginning of."""
    options: Mapping[str, object] = field(default_factory=dict)
    """Arguments of the pipeline's call by which it treats prompts as training does; see `ModelFamily`."""
    encoders: tuple[str, ...] = ()
    """What recipes call its text encoders, in their order."""

    @classmethod
    def load(
        cls, model: str, settings: SamplingSettings, *, revision: str | None = None, adapter: Path | None = None
    ) -> Sampler:
        """Load a model and, over it, a LoRA file. Raises ConfigError for settings that the model cannot follow."""
        import torch

        from t2i import lora
        from t2i.families import load_family
        from t2i.families.base import loaded_encoders

        if adapter is None and settings.lora_scale != 1:
            raise ConfigError(
                f"sampling.lora_scale: {settings.lora_scale:g} scales an adapter, and there is none here; leave it out."
            )
        dtype = torch.bfloat16 if settings.precision == "bf16" else torch.float32
        family = load_family(model, revision=revision, dtype=dtype)
        settings = settings.resolved(family.facts)
        _check_settings(settings, family)
        pipeline: Any = family.pipeline
        if settings.scheduler != "checkpoint":
            pipeline.scheduler = _scheduler(settings.scheduler, pipeline.scheduler.config)
        if settings.zero_terminal_snr:
            pipeline.scheduler = _with_zero_terminal_snr(pipeline.scheduler, family)
        elif pipeline.scheduler.config.get("rescale_betas_zero_snr"):
            _check_begins_in_noise(type(pipeline.scheduler))
        if adapter is not None:
            lora.load_into(pipeline, adapter)
            if settings.lora_scale != 1.0:
                lora.set_strength(pipeline, settings.lora_scale)
        if devices.compute_device().type != "cpu":
            _place(pipeline, settings.offload)
        return cls(pipeline, settings, family.count_truncated, family.sampling_options, loaded_encoders(family))

    def generate(self, prompts: Sequence[EncoderPrompt], seeds: Sequence[int]) -> list[Image.Image]:
        """One image per prompt and seed, in one batch. The same batch on the same machine gives the same bits.

        Raises RunError if an image is not finite (a VAE that overflows in half precision paints black).
        """
        import numpy as np

        settings = self.settings
        options = dict(self.options)
        if settings.negative_prompt:
            # Where there is none the pipeline's own is right: for SDXL zeros, as for captions dropped in training.
            options["negative_prompt"] = [settings.negative_prompt] * len(prompts)
        with deterministic_kernels():
            arrays = self.pipeline(
                **self._texts(prompts),
                generator=[sampling_generator(seed) for seed in seeds],
                num_inference_steps=settings.steps,
                guidance_scale=settings.guidance_scale,
                width=settings.width,
                height=settings.height,
                output_type="np",
                **options,
            ).images
        bad = [seed for seed, array in zip(seeds, arrays, strict=True) if not np.isfinite(array).all()]
        if bad:
            raise RunError(f"images of seeds {bad} hold values that are not finite; use fp32 or bf16 for this model.")
        return self.pipeline.image_processor.numpy_to_pil(arrays)

    def _texts(self, prompts: Sequence[EncoderPrompt]) -> dict[str, list[str]]:
        """Arguments of the pipeline's call: without others every encoder reads `prompt`."""
        plain = [prompt for prompt in prompts if isinstance(prompt, str)]
        if len(plain) == len(prompts):
            return {"prompt": plain}
        return {name: texts_for(prompts, one) for name, one in zip(PROMPT_ARGUMENTS, self.encoders, strict=False)}


def _place(pipeline: Any, offload: str) -> None:
    """Move the pipeline to the GPU, or have accelerate's hooks do so with each part when it is called."""
    if offload == "model":
        pipeline.enable_model_cpu_offload()
    elif offload == "layers":
        pipeline.enable_sequential_cpu_offload()
    else:
        pipeline.to(devices.compute_device())


def _check_settings(settings: SamplingSettings, family: ModelFamily) -> None:
    """Raise ConfigError for what diffusers would ignore, or follow to noise, without a word."""
    name = family.facts.name
    if settings.negative_prompt and not family.facts.takes_negative_prompt:
        raise ConfigError(
            f"sampling.negative_prompt: {name} is sampled without classifier-free guidance, so nothing would lead away "
            "from it; leave it out."
        )
    scale = family.facts.guidance_scale if settings.guidance_scale is None else settings.guidance_scale
    if settings.negative_prompt and scale <= 1:
        raise ConfigError(
            f"sampling.negative_prompt: guidance_scale {scale:g} switches guidance off, so nothing "
            "would lead away from it; leave it out, or set guidance_scale above 1."
        )
    _check_one_step(settings, family.pipeline)
    # Latents that cannot be cut into whole patches are made smaller by some pipelines and break others.
    multiple = family.pixel_multiple if hasattr(family.pipeline, "transformer") else 8
    for side in ("width", "height"):
        pixels = getattr(settings, side)
        if pixels is not None and pixels % multiple:
            raise ConfigError(f"sampling.{side}: {pixels} is not a multiple of {multiple}, which {name} needs.")
    if settings.scheduler != "checkpoint" and family.noise.prediction_type == "flow":
        raise ConfigError(
            f"sampling.scheduler: {settings.scheduler} undoes the noise of DDPM, and {name} is a model of flow; "
            "set checkpoint."
        )


def _check_one_step(settings: SamplingSettings, pipeline: object) -> None:
    """Raise ConfigError where the pipeline takes a single step for that of a distilled model, whatever the model is."""
    is_distilled = settings.scheduler == "checkpoint" and "LCM" in type(getattr(pipeline, "scheduler", None)).__name__
    if settings.steps == 1 and type(pipeline).__name__ == "PixArtAlphaPipeline" and not is_distilled:
        raise ConfigError(
            "sampling.steps: PixArt alpha is sampled in 1 step only where the checkpoint was distilled to it and comes "
            "with an LCMScheduler; set 2 at least."
        )


def _with_zero_terminal_snr(scheduler: Any, family: ModelFamily) -> Any:
    """Raises ConfigError for a model whose noise has no such end, and for a sampler that cannot begin there."""
    from t2i.noise import with_zero_terminal_snr

    with_zero_terminal_snr(family.noise)
    _check_begins_in_noise(type(scheduler))
    return type(scheduler).from_config(scheduler.config, rescale_betas_zero_snr=True, timestep_spacing="trailing")


def _check_begins_in_noise(kind: type[Any]) -> None:
    """Raise ConfigError for a sampler that cannot; diffusers passes over the words of a config that ask it to."""
    import inspect

    if not {"rescale_betas_zero_snr", "timestep_spacing"} <= inspect.signature(kind.__init__).parameters.keys():
        raise ConfigError(
            f"sampling.scheduler: {kind.__name__} cannot begin in nothing but noise, where training ended "
            "(zero_terminal_snr); set ddim."
        )


def _scheduler(name: str, config: Any) -> Any:
    import diffusers

    # DDIM clips images to -1 .. 1 unless told otherwise, and configs of schedulers without that option do not say.
    options = {"clip_sample": False} if name == "ddim" and "clip_sample" not in config else {}
    try:
        return getattr(diffusers, SCHEDULERS[name]).from_config(config, **options)
    except (ValueError, TypeError, NotImplementedError) as error:
        raise ModelError(f"scheduler {name!r} does not fit this model's noise ({error}).") from error
