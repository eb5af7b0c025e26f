"""What of a train stage's settings goes together. Raises ValueError, which the recipe's reader puts a line to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from t2i.data.settings import DatasetSettings
from t2i.errors import ConfigError
from t2i.objectives import (
    AnyObjective,
    BradleyTerry,
    Classification,
    Contrastive,
    DenoiserObjective,
    Denoising,
    DiffusionKTO,
    PairObjective,
    denoising_of,
)
from t2i.training.settings import FullSettings, LoraSettings, check_precision, check_rates

if TYPE_CHECKING:
    from t2i.stages.train import Train

_OF_DENOISERS = ("datasets", "trigger_words", "buckets", "views", "masks", "cache", "speed")
_OF_CAPTIONED = ("held_out", "samples", "guard", "caption_schedule", "caption_parts", "per_encoder")
_NOT_OF_PAIRS = (
    *("datasets", "captions", "per_encoder", "caption_schedule", "caption_parts"),
    *("masks", "held_out", "samples"),
)
_PASSED_OVER = {
    "bradley_terry": ("resolution", "captions", "caption_dropout", "posterior"),
    "autoencoder": ("captions", "caption_dropout", "posterior"),
    "classification": ("captions", "caption_dropout", "posterior"),
    "contrastive": ("posterior",),
}
"""Type of objective -> fields that others use and it does not."""


def check_settings(train: Train) -> None:
    """Raise ValueError for the first settings that do not go together."""
    _check_sources(train)
    _check_model(train)
    _check_start(train)
    _check_numbers(train)
    _check_data(train)
    _check_framing(train)
    _check_caption_mix(train)
    _check_whole(train)
    _check_samples(train)


def couples_batch(objective: AnyObjective) -> bool:
    """Whether an example's loss depends on the others of its batch, so that a batch cannot be taken in portions."""
    return isinstance(objective, Contrastive) or (isinstance(objective, DiffusionKTO) and objective.couples_batch)


def check_uncoupled(objective: AnyObjective) -> None:
    """Raise ConfigError for an objective of which several processes, each with its part of a batch, see too little."""
    if couples_batch(objective):
        raise ConfigError(f"objective: {objective.type} couples the whole batch, so it runs in one process.")


def _check_sources(train: Train) -> None:
    images = [name for name in ("data", "data_from") if getattr(train, name) is not None]
    pairs = [name for name in ("pairs", "pairs_from") if getattr(train, name) is not None]
    if train.objective.needs == "preference_pairs":
        if images or len(pairs) != 1:
            raise ValueError(f"{train.objective.type} learns from pairs: give `pairs` or `pairs_from` (a stage), alone")
    elif pairs:
        raise ValueError(f"{pairs[0]}: {train.objective.type} learns from images; give `data` or `data_from`")
    elif len(images) != 1:
        raise ValueError("give exactly one of `data` (a source of images) and `data_from` (a stage)")
    if train.held_out_pairs is not None and not isinstance(train.objective, BradleyTerry):
        raise ValueError(f"held_out_pairs: only bradley_terry takes it, not {train.objective.type}")


def _check_model(train: Train) -> None:
    if train.model is not None and train.model_from is not None:
        raise ValueError("give `model` or `model_from` (a stage), not both")
    if train.model is None and train.model_from is None and not isinstance(train.objective, Classification):
        raise ValueError("no model; set `model` here or at the top of the recipe")


def _check_start(train: Train) -> None:
    if train.adapter is not None and train.adapter_from is not None:
        raise ValueError("give `adapter` (a LoRA file) or `adapter_from` (a stage), not both")
    if (train.adapter or train.adapter_from) and not isinstance(train.trained, LoraSettings):
        raise ValueError("adapter: only a LoRA starts from one, and `trained` is full")
    if train.init == "random" and isinstance(train.trained, LoraSettings):
        raise ValueError("init: a LoRA over random weights is of no use; train `full` components")
    exports = isinstance(train.trained, LoraSettings) and isinstance(train.objective, DenoiserObjective)
    if train.layouts != _default(train, "layouts") and not exports:
        raise ValueError("layouts: only the LoRA of a denoiser is exported in them; leave them out")
    if train.guard is not None and (train.held_out is not None or train.init == "random"):
        other = "`init: random`, before which there is nothing" if train.held_out is None else "`held_out`"
        raise ValueError(f"guard: it keeps the best weights by its own reward; it does not go with {other}")


def _check_whole(train: Train) -> None:
    """What trains no denoiser trains one thing whole: another wish would be passed over."""
    component = {"autoencoder": "vae", "contrastive": "model", "classification": "model"}.get(train.objective.type)
    if component and (isinstance(train.trained, LoraSettings) or tuple(train.trained.components) != (component,)):
        raise ValueError(
            f"trained: {train.objective.type} trains `{{type: full, components: [{component}]}}`, no other"
        )
    if (train.adapter or train.adapter_from) and not isinstance(train.objective, DenoiserObjective):
        raise ValueError(f"adapter: {train.objective.type} starts from no LoRA; leave it out")
    if train.objective.type == "contrastive" and train.caption_dropout:
        raise ValueError("caption_dropout: a batch of a contrastive objective needs different texts; set it to 0")


def _check_samples(train: Train) -> None:
    """Images that are looked at while training must begin where it ends, and can only scale an adapter."""
    denoising = denoising_of(train.objective)
    ends_in_noise = denoising is not None and denoising.zero_terminal_snr
    for name, images in (("samples", train.samples), ("guard", train.guard)):
        if images is not None and ends_in_noise and not images.sampling.zero_terminal_snr:
            raise ValueError(f"{name}.sampling.zero_terminal_snr: the objective trains with it, so set it here too")
        if images is not None and images.sampling.lora_scale != 1 and isinstance(train.trained, FullSettings):
            raise ValueError(f"{name}.sampling.lora_scale: it scales an adapter, and `trained` is full; leave it out")


def _check_numbers(train: Train) -> None:
    if any(weight <= 0 for weight in train.captions.values()):
        raise ValueError("captions: every weight must be above 0; leave a kind out instead")
    if couples_batch(train.objective) and train.loop.micro_batch_size not in (None, train.loop.batch_size):
        raise ValueError(f"{train.objective.type} couples the whole batch: micro_batch_size cannot be smaller")
    check_rates(train.trained, train.optimizer)
    head_rate = train.objective.head_learning_rate if isinstance(train.objective, BradleyTerry) else None
    if train.optimizer.type == "prodigy" and head_rate is not None:
        raise ValueError("objective.head_learning_rate: prodigy has one learning rate for all; leave it out")
    check_precision(train.trained, train.loop)


def _check_data(train: Train) -> None:
    if not isinstance(train.objective, Denoising):
        _check_not_denoising(train)
        return
    own = [bool(entry.captions) for entry in train.datasets or (DatasetSettings(),)]
    if not train.captions and not all(own) and (any(own) or not train.per_encoder):
        raise ValueError("captions: name the kinds to train on with their weights, for example {dense: 1}")
    if any(weight <= 0 for entry in train.datasets for weight in entry.captions.values()):
        raise ValueError("datasets: every weight of captions must be above 0; leave a kind out instead")
    if train.datasets and len(train.datasets) != train.sets():
        raise ValueError(f"datasets: {len(train.datasets)} entries for {train.sets()} sets of images; one for each")
    if 0 < sum(entry.weight is not None for entry in train.datasets) < len(train.datasets):
        raise ValueError("datasets: give every one a `weight`, or none")


def _check_not_denoising(train: Train) -> None:
    kind = train.objective.type
    refused = _NOT_OF_PAIRS if isinstance(train.objective, PairObjective) else _OF_DENOISERS + _OF_CAPTIONED
    if given := _given(train, refused):
        raise ValueError(f"{given[0]}: only a denoising objective takes it, not {kind}")
    if given := _given(train, _PASSED_OVER.get(kind, ())):
        raise ValueError(f"{given[0]}: {kind} does not use it; leave it out")


def _given(train: Train, names: tuple[str, ...]) -> list[str]:
    """Fields that are not at their defaults."""
    return [name for name in names if getattr(train, name) != _default(train, name)]


def _check_framing(train: Train) -> None:
    if train.buckets is not None:
        if train.resolution is None:
            raise ValueError("buckets: say in `resolution` how large images are, in pixels of the square")
        if train.resolution % train.buckets.step:
            raise ValueError(f"resolution: {train.resolution} is not a multiple of buckets.step, {train.buckets.step}")
    if train.views.crops > 1 and train.views.crop == "centre":
        raise ValueError("views.crops: an image has one centre; set views.crop: random")
    if train.cache.text and _trains_text_encoder(train.trained):
        raise ValueError("cache.text: a text encoder is trained, so that its outputs cannot be made beforehand")


def _check_caption_mix(train: Train) -> None:
    steps = [phase.from_step for phase in train.caption_schedule]
    if steps != sorted(set(steps)):
        raise ValueError("caption_schedule: every phase must begin after the one before it")
    if train.caption_schedule and not train.captions:
        raise ValueError("caption_schedule: say in `captions` what holds before its first phase")
    if train.per_encoder and any(not text.strip() for pair in train.per_encoder.items() for text in pair):
        raise ValueError("per_encoder: name encoders and kinds, for example {clip: short, t5: dense}")
    if train.caption_parts != "whole" and train.per_encoder and not _draws(train):
        raise ValueError("caption_parts: it cuts what `captions` draws, and per_encoder leaves nothing to draw")
    if train.caption_parts != "whole" and train.cache.text:
        raise ValueError("cache.text: parts of captions are drawn anew at each step; set caption_parts: whole")


def _draws(train: Train) -> bool:
    return bool(train.captions) or any(entry.captions for entry in train.datasets)


def _default(train: Train, name: str) -> Any:
    """Default of a field whose default may be made anew each time."""
    return type(train).model_fields[name].get_default(call_default_factory=True)


def _trains_text_encoder(trained: LoraSettings | FullSettings) -> bool:
    if isinstance(trained, LoraSettings):
        return trained.text_encoder
    return any(name.startswith("text_encoder") for name in trained.components)
