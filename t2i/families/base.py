"""What the toolkit must know about a family of models: facts as data, and five methods."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, ClassVar, Literal, Protocol, TypeAlias

if TYPE_CHECKING:
    import torch
    from diffusers import DiffusionPipeline
    from torch import Tensor, nn

    from t2i.encoder_texts import EncoderPrompt
    from t2i.noise import NoiseProcess

Dtypes: TypeAlias = "torch.dtype | Mapping[str, torch.dtype]"
"""Of all weights; or of some components, by the pipeline's names for them, and float32 of the others."""


@dataclass(frozen=True)
class NativeLayer:
    """One kind of layer in the layout of the model's authors, and the layers that diffusers makes of it."""

    name: str
    """Its path, with `{}` where the number of the block stands."""
    parts: tuple[str, ...]
    """Paths in diffusers, in the order of their rows: several where diffusers splits what the authors fused."""
    swaps_halves: Literal["never", "always", "last"] = "never"
    """Whether the halves of its rows, scale and shift, stand the other way round: in no, every or the last block."""


@dataclass(frozen=True)
class FamilyFacts:
    """What is true of every checkpoint of a family."""

    name: str
    pipeline_class: str
    """Class of the diffusers pipeline, as `_class_name` in model_index.json."""
    denoiser: str
    """Attribute of the pipeline that holds the denoiser."""
    guidance_scale: float
    """What its diffusers pipeline is guided with if nothing is said."""
    text_encoders: tuple[str, ...]
    lora_targets: tuple[str, ...]
    """Suffixes of the denoiser's modules that get a LoRA when the recipe names none."""
    text_encoder_lora_targets: tuple[str, ...]
    kohya_prefixes: tuple[tuple[str, str], ...]
    """(component, prefix of its keys in a kohya file); empty where no tool reads kohya files of the family."""
    comfyui_prefixes: tuple[tuple[str, str], ...] = ()
    """(component, prefix of its keys in a generic ComfyUI file)."""
    kohya_names: Literal["diffusers", "native"] = "native"
    """Whose names the denoiser's layers have in kohya files."""
    native_layers: tuple[NativeLayer, ...] = ()
    """The denoiser's layers in the authors' layout; empty for U-Nets, whose names are counted from their blocks."""
    diffusers_reads: tuple[str, ...] = ("diffusers",)
    """Layouts of LoRA files that the diffusers pipeline reads by itself."""
    encoder_names: tuple[str, ...] = ()
    """What recipes call the text encoders, in their order: `clip` or `t5`; of several CLIPs, `clip_l` and `clip_g`."""
    takes_sizes: bool = False
    """Whether the denoiser is told the sizes of the image and its crop."""
    takes_negative_prompt: bool = True
    """Whether sampling has classifier-free guidance, which leads away from a negative prompt."""
    loads_lora_files: bool = True
    """Whether the diffusers pipeline has `load_lora_weights`; without it files go through peft itself."""
    dispatches_attention: bool = False
    """Whether the denoiser's attention goes through diffusers' dispatcher, by which its backend is then chosen."""
    optional_components: tuple[str, ...] = ()
    """Components that a checkpoint may lack."""
    unused_components: tuple[str, ...] = ()
    """Components that a checkpoint may hold and that are never loaded."""


@dataclass(frozen=True)
class Conditioning:
    """What the denoiser is told about the picture. A family fills what its denoiser takes and leaves the rest None."""

    prompt_embeds: Tensor
    """[B, tokens, width]."""
    pooled: Tensor | None = None
    """One vector for the whole prompt, [B, width]."""
    mask: Tensor | None = None
    """Which tokens count, 1 or 0, [B, tokens]."""
    sizes: Tensor | None = None
    """In pixels, heights first: original height and width, top and left of the crop in the resized image, height and
    width of the crop. Float32, [B, 6]."""

    def __len__(self) -> int:
        return len(self.prompt_embeds)

    def map(self, change: Callable[[Tensor], Tensor]) -> Conditioning:
        """The same with every tensor changed, for example moved or sliced along the batch."""
        tensors = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(self, **{name: change(value) for name, value in tensors.items() if value is not None})

    def with_sizes(self, sizes: Tensor | None) -> Conditioning:
        """The same about images of other sizes; see `sizes`."""
        return replace(self, sizes=sizes)

    @staticmethod
    def cat(parts: Sequence[Conditioning]) -> Conditioning:
        """Join along the batch. All parts must have the same tensors, of the same token count."""
        import torch

        names = [field.name for field in fields(Conditioning) if getattr(parts[0], field.name) is not None]
        return Conditioning(**{name: torch.cat([getattr(part, name) for part in parts]) for name in names})


@dataclass(frozen=True)
class Posterior:
    """The autoencoder's belief about an image's latents, scaled as the denoiser takes them. Both [B, C, h, w]."""

    mean: Tensor
    std: Tensor


class ModelFamily(Protocol):
    """A loaded model of one family. Objectives reach it through the Denoiser protocol only."""

    facts: ClassVar[FamilyFacts]
    pipeline: DiffusionPipeline
    noise: NoiseProcess

    @classmethod
    def load(cls, folder: str, *, dtype: Dtypes, random_seed: int | None = None) -> ModelFamily:
        """Load a checkpoint; with `random_seed`, build it from its configs alone with fresh keyed weights."""
        ...

    @property
    def denoiser(self) -> nn.Module:
        """The network that is called once per sampling step."""
        ...

    @property
    def pixel_multiple(self) -> int:
        """Width and height of an image must be multiples of this."""
        ...

    @property
    def default_size(self) -> int:
        """Side in pixels of the square images that the checkpoint is made for."""
        ...

    @property
    def sampling_options(self) -> Mapping[str, object]:
        """Arguments of the pipeline's call by which it treats prompts and sizes as training does."""
        ...

    def encode_prompts(self, prompts: Sequence[EncoderPrompt]) -> Conditioning:
        """Encode prompts as the family's pipeline does without guidance; gradients flow where they are asked for."""
        ...

    def count_truncated(self, prompts: Sequence[EncoderPrompt]) -> dict[str, int]:
        """For each text encoder, by its attribute name: how many of the prompts are longer than its limit."""
        ...

    def encode_images(self, pixels: Tensor) -> Posterior:
        """pixels: [B, 3, H, W] in [-1, 1]."""
        ...

    def decode_latents(self, latents: Tensor) -> Tensor:
        """Inverse of `encode_images`' mean: pixels [B, 3, H, W], about [-1, 1], not clipped."""
        ...

    def predict(self, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """The denoiser's output for noisy latents [B, C, h, w] at timesteps [B], as `noise.target` defines it.

        Same shape as the latents. timesteps: as `noise.timesteps` gives them. Packing, position ids, guidance
        embeddings and learned variances stay in here.
        """
        ...


def loaded_encoders(family: ModelFamily) -> tuple[str, ...]:
    """What recipes call the text encoders that the checkpoint has, in their order."""
    facts = family.facts
    named = zip(facts.encoder_names, facts.text_encoders, strict=True)
    return tuple(name for name, component in named if getattr(family.pipeline, component, None) is not None)
