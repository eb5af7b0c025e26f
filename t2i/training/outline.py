"""A training run made ready without weights: what can be refused or counted before anything heavy is loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from t2i.encoder_texts import route_problem
from t2i.errors import ConfigError
from t2i.families.base import loaded_encoders
from t2i.families.loading import describe_checkpoint, family_class
from t2i.families.outline import outline_family
from t2i.objectives import denoising_of
from t2i.objectives.base import DiffusionBatch
from t2i.objectives.pairs import PairBatch
from t2i.timesteps import completed, shift_factor
from t2i.training.arithmetic import StepArithmetic, step_arithmetic
from t2i.training.diffusion import DiffusionModule, diffusion_trainable
from t2i.training.placement import held_dtypes
from t2i.training.settings import LoraSettings, SpeedSettings
from t2i.training.speed import apply_speed, check_speed

if TYPE_CHECKING:
    from t2i.data.examples import Dataset
    from t2i.data.settings import BucketSettings, CacheSettings
    from t2i.families.base import ModelFamily
    from t2i.noise import NoiseProcess
    from t2i.objectives import DenoiserObjective
    from t2i.training.tasks import TaskSettings
    from t2i.training.trainable import Trainable

_PROMPT = "a photo"
_COUNTED: dict[str, StepArithmetic] = {}
"""What was counted before in this process: the arms of a recipe differ in their data or their seed, not in this."""


@dataclass(frozen=True)
class TrainingOutline:
    """A denoiser with its adapters, and nothing in its tensors."""

    family: ModelFamily
    trainable: Trainable
    components: Mapping[str, nn.Module]
    """What is trained, by its name in the pipeline."""
    resolution: int
    """Side of the square in pixels: the recipe's, or the model's own."""

    @property
    def modules(self) -> dict[str, nn.Module]:
        """Every component of the pipeline that has weights."""
        components = self.family.pipeline.components
        return {name: value for name, value in components.items() if isinstance(value, nn.Module)}

    @property
    def module(self) -> DiffusionModule:
        """Whose forward pass gives the loss."""
        assert isinstance(self.trainable.module, DiffusionModule)
        return self.trainable.module

    @property
    def has_adapters(self) -> bool:
        """Whether what is trained was added to the model."""
        return any(".lora_" in name for name in self.trainable.parameters())

    def trained_parameters(self) -> int:
        """How many numbers are trained."""
        return sum(value.numel() for value in self.trainable.parameters().values())

    def trained_modules(self) -> dict[str, int]:
        """For each trained component: how many of its layers are."""
        owners = {name: set[str]() for name in self.components}
        for path in self.trainable.parameters():
            component, _, rest = path.removeprefix("components.").partition(".")
            owners[component].add(rest.partition(".lora_")[0] if ".lora_" in rest else rest.rpartition(".")[0])
        return {name: len(paths) for name, paths in owners.items()}

    @torch.no_grad()
    def latents(self, width: int, height: int, count: int = 1) -> Tensor:
        """Shape of the latents of images of a size in pixels, [count, C, h, w]."""
        return self.family.encode_images(torch.zeros(count, 3, height, width, device="meta")).mean

    @torch.no_grad()
    def text_bytes(self) -> int:
        """What one caption takes in the cache of encoded captions."""
        sizes: list[int] = []
        conditioning = replace(self.family.encode_prompts([_PROMPT]), sizes=None)
        conditioning.map(lambda tensor: (sizes.append(tensor.nbytes), tensor)[1])
        return sum(sizes)

    def step(self, size: tuple[int, int], count: int, *, text_is_cached: bool, dtype: torch.dtype) -> StepArithmetic:
        """One pass over `count` images or pairs of a width and height, in a dtype that the outline takes over."""
        for module in (*self.modules.values(), *self.frozen_copies().values()):
            nn.Module.to(module, dtype)
        key = f"{self._shape()}\n{size} {count} {text_is_cached} {dtype}"
        if key not in _COUNTED:
            batch = self._batch(size, count, text_is_cached=text_is_cached, dtype=dtype)
            _COUNTED[key] = step_arithmetic(self.module, lambda: self.module(batch).loss)
        return _COUNTED[key]

    def _shape(self) -> str:
        """All that decides what a step takes beside its batch: two outlines of the same shape take the same."""
        configs = {name: str(part.config) for name, part in self.modules.items()}
        limits = [getattr(part, "model_max_length", None) for part in self.family.pipeline.components.values()]
        tokens = {name: value for name, value in vars(self.family).items() if isinstance(value, int)}
        layers = [(name, *value.shape, value.requires_grad) for name, value in self.module.named_parameters()]
        inner = [part for component in self.modules.values() for part in component.modules()]
        spared = [type(part).__name__ for part in inner if getattr(part, "gradient_checkpointing", False)]
        objective = self.module.objective.model_dump_json()
        return repr((type(self.family).__name__, configs, limits, tokens, layers, spared, objective))

    def frozen_copies(self) -> dict[str, nn.Module]:
        """The reference of an objective, where whole components are trained: copies of these, by name."""
        frozen = self.module.denoiser.frozen
        return {} if frozen is None else {name: frozen.pipeline.components[name] for name in self.components}

    def _batch(self, size: tuple[int, int], count: int, *, text_is_cached: bool, dtype: torch.dtype) -> Any:
        latents = self.latents(*size, count).to(dtype)
        prompts = (_PROMPT,) * count
        conditioning = None
        if text_is_cached:
            with torch.no_grad():
                conditioning = replace(self.family.encode_prompts(prompts), sizes=None)
        sizes = torch.zeros(count, 6, device="meta", dtype=dtype) if self.family.facts.takes_sizes else None
        uniform, keys = torch.zeros(count, device="meta"), tuple(range(count))
        batch = DiffusionBatch(latents, latents, uniform, prompts, sizes, conditioning, keys=keys)
        return batch if self.module.objective.needs == "captioned_images" else PairBatch.of_one_image(batch)


def outline_training(settings: TaskSettings, objective: DenoiserObjective) -> TrainingOutline:
    """Build it. Raises ModelError for a checkpoint that cannot be trained, ConfigError for settings that do not fit it.

    Weights of a local checkpoint must be there and whole, unless training starts from random ones.
    """
    facts = family_class(describe_checkpoint(settings.model, revision=settings.revision)).facts
    dtypes = held_dtypes(facts, settings.trained, settings.speed)
    has_weights = settings.random_seed is None
    family = outline_family(settings.model, revision=settings.revision, dtype=dtypes, weights=has_weights)
    return outline_of(family, settings, objective)


def outline_of(family: ModelFamily, settings: TaskSettings, objective: DenoiserObjective) -> TrainingOutline:
    """The same of a family without weights that is there already."""
    resolution = checked_resolution(family, settings.resolution)
    check_bucket_step(family, settings.buckets)
    check_encoder_captions(family, settings.datasets)
    check_speed(family, settings.speed)
    check_noise(objective, family.noise)
    trained = settings.trained
    if isinstance(trained, LoraSettings) and trained.base_bits != 16:
        # Quantizing needs the weights; adapters are the same without.
        trained = trained.model_copy(update={"base_bits": None})
    trainable, components = diffusion_trainable(family, objective, trained, settings.seed)
    check_nothing_cached_is_trained(family, components, settings.cache)
    # Of the switches of speed, the one that changes what is counted.
    apply_speed(family, SpeedSettings(gradient_checkpointing=settings.speed.gradient_checkpointing))
    return TrainingOutline(family, trainable, components, resolution)


def checked_resolution(family: Any, resolution: int | None) -> int:
    """The recipe's resolution, or the model's own. Raises ConfigError unless the model can take it."""
    chosen = resolution or family.default_size
    if chosen % family.pixel_multiple:
        raise ConfigError(f"resolution: {chosen} is not a multiple of {family.pixel_multiple}, which this model needs.")
    return chosen


def check_bucket_step(family: Any, buckets: BucketSettings | None) -> None:
    """Raise ConfigError unless the model can take images of every bucket."""
    if buckets and buckets.step % family.pixel_multiple:
        needed = family.pixel_multiple
        raise ConfigError(f"buckets.step: {buckets.step} is not a multiple of {needed}, which this model needs.")


def check_encoder_captions(family: ModelFamily, datasets: Sequence[Dataset]) -> None:
    """Raise ConfigError unless every text encoder of the model is given captions, and those named are its own."""
    encoders = loaded_encoders(family)
    for mix in (dataset.mix for dataset in datasets if dataset.mix.per_encoder):
        problem = route_problem([name for name, _ in mix.per_encoder], encoders, has_rest=bool(mix.weights))
        if problem:
            raise ConfigError(f"per_encoder: {problem}.")


def check_noise(objective: DenoiserObjective, noise: NoiseProcess) -> None:
    """Raise ConfigError unless the objective's levels, weights and end of the noise fit the model's noise."""
    denoising = denoising_of(objective)
    if denoising is not None:
        denoising.process(noise)
    if noise.patch_size is None:
        # Raises for a shift by the number of tokens.
        shift_factor(completed(objective.timesteps, noise.default_timesteps))


def check_nothing_cached_is_trained(family: Any, components: Mapping[str, nn.Module], cache: CacheSettings) -> None:
    """Raise ConfigError for a component that would be trained although its outputs were computed beforehand."""
    if "vae" in components:
        raise ConfigError("trained.components: vae: a denoiser sees latents made beforehand, so this trains nothing.")
    encoders: Sequence[str] = [name for name in components if name in family.facts.text_encoders]
    if cache.text and encoders:
        raise ConfigError(
            f"cache.text: {', '.join(encoders)} is trained, so its outputs change with every step and cannot be "
            "cached. Leave cache.text off, or train no text encoder."
        )
