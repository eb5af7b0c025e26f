"""From a recipe's words to what the loop needs: one small class per kind of model that can be trained."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol

from t2i import lora
from t2i.data.captions import CaptionMix
from t2i.data.diffusion import UNFIT_HELD_OUT_FILE, DiffusionData, count_truncated
from t2i.data.examples import Dataset, LatentExamples
from t2i.data.pair_examples import LatentPairs, PairData
from t2i.data.settings import BucketSettings, CacheSettings, MaskSettings, ViewSettings
from t2i.errors import ConfigError
from t2i.export.contract import check_contract, check_trained
from t2i.export.layouts import Layout
from t2i.families.base import ModelFamily
from t2i.objectives import (
    AnyObjective,
    Autoencoder,
    BradleyTerry,
    Classification,
    Contrastive,
    DenoiserObjective,
    DiffusionDPO,
    DiffusionKTO,
    denoising_of,
)
from t2i.randomness import derive_key
from t2i.records import CaptionedImage, PreferencePair
from t2i.training.diffusion import DiffusionModule, diffusion_trainable
from t2i.training.image_tasks import AutoencoderTask, ClassificationTask, ContrastiveTask
from t2i.training.outline import (
    check_bucket_step,
    check_encoder_captions,
    check_noise,
    check_nothing_cached_is_trained,
    checked_resolution,
)
from t2i.training.outputs import ADAPTER_FOLDER, LORA_FILE, save_pipeline
from t2i.training.placement import encoder_names, load_for_training, pipeline_to_save, place, release
from t2i.training.settings import FullSettings, LoraSettings, SpeedSettings
from t2i.training.speed import apply_speed, check_speed
from t2i.training.trainable import Trainable


@dataclass(frozen=True)
class TaskSettings:
    """What every task is built from."""

    model: str
    revision: str | None
    random_seed: int | None
    """Not None: start from fresh weights, keyed by it, instead of the checkpoint's."""
    trained: LoraSettings | FullSettings
    mix: CaptionMix | None
    resolution: int | None
    posterior: Literal["sample", "mode"]
    records: Sequence[CaptionedImage]
    seed: int
    folder: Path
    encode_batch_size: int
    datasets: tuple[Dataset, ...] = ()
    """The parts of the records and how each is used; all of them with `mix` if empty."""
    buckets: BucketSettings | None = None
    views: ViewSettings = ViewSettings()  # noqa: RUF009 (frozen)
    masks: MaskSettings | None = None
    cache: CacheSettings = CacheSettings()  # noqa: RUF009
    batch_size: int = 1
    """Examples of a step: no bucket may hold fewer images."""
    speed: SpeedSettings = SpeedSettings()  # noqa: RUF009
    held_out: tuple[Sequence[CaptionedImage], tuple[Dataset, ...]] | None = None
    """Records that are not trained on, and how they are used."""
    pairs: Sequence[PreferencePair] = ()
    """What preference objectives train on, instead of the records."""
    held_out_pairs: Sequence[PreferencePair] = ()
    """Pairs that only measure; empty: some of `pairs` are held out."""
    adapter: Path | None = None
    """A LoRA file, of any layout, that a LoRA starts from."""
    layouts: tuple[Layout, ...] = ()
    """Layouts that the adapter must be able to be written in."""


class Task(Protocol):
    """A model, its examples, and how to save it."""

    trainable: Trainable
    examples: Any

    def facts(self) -> dict[str, Any]:
        """What is worth recording about the run before it starts."""
        ...

    def save(self, metadata: dict[str, str]) -> dict[str, Any]:
        """Write the trained model into the stage's folder; returns facts."""
        ...


class DiffusionTask:
    """A denoiser on cached latents."""

    def __init__(self, settings: TaskSettings, objective: DenoiserObjective, family: ModelFamily | None = None) -> None:
        """family: a loaded model, instead of the one that the settings name."""
        self.settings, self.objective = settings, objective
        self.data = denoiser_data(settings, objective)
        self.data.check_captions()
        # Before the model is loaded, where the recipe says how large images are.
        plan = self.data.plan(settings.resolution) if settings.resolution else None
        self.family = family or load_for_training(settings)
        lora.freeze(self.family)
        self.resolution = checked_resolution(self.family, settings.resolution)
        check_bucket_step(self.family, settings.buckets)
        check_encoder_captions(self.family, settings.datasets)
        check_speed(self.family, settings.speed)
        check_noise(objective, self.family.noise)
        # Before the images are encoded, which may take hours: a target that does not exist ends the run here.
        if isinstance(settings.trained, LoraSettings):
            check_contract(self.family, settings.trained, settings.layouts, settings.seed)
        self.trainable, self.components = diffusion_trainable(
            self.family, objective, settings.trained, settings.seed, start=settings.adapter
        )
        check_nothing_cached_is_trained(self.family, self.components, settings.cache)
        place(self.family, encoder_names(self.family.facts))
        self.plan = plan or self.data.plan(self.resolution)
        self.held_out = self._encode_held_out(objective)
        self.examples = self.data.encode(self.family, self.plan, settings.folder)
        set_up_denoiser(self.trainable, self.components, settings)

    def _encode_held_out(self, objective: DenoiserObjective) -> LatentExamples | None:
        """Examples of the images held out; under another seed than those that are trained on."""
        if self.settings.held_out is None:
            return None
        records, datasets = self.settings.held_out
        settings = replace(self.settings, records=records, datasets=datasets, batch_size=1, held_out=None)
        settings = replace(settings, seed=derive_key(settings.seed, "held out") % 2**63)
        data = denoiser_data(settings, objective)
        if not isinstance(data, DiffusionData):
            return None
        data.check_captions()
        return data.encode(self.family, data.plan_held_out(self.resolution), settings.folder, UNFIT_HELD_OUT_FILE)

    def facts(self) -> dict[str, Any]:
        return {
            "family": self.family.facts.name,
            **self.data.facts(),
            **self._beta_facts(),
            "resolution": self.resolution,
            **(self.plan.facts() if self.settings.buckets else {}),
            "trained_parameters": sum(value.numel() for value in self.trainable.parameters().values()),
            "captions_longer_than_the_text_encoder": count_truncated(self.family, self.data.texts()),
        }

    def _beta_facts(self) -> dict[str, Any]:
        """The beta in force, and by how much it moves a logit per unit of mean squared error."""
        if not isinstance(self.objective, DiffusionDPO | DiffusionKTO) or not isinstance(self.examples, LatentPairs):
            return {}
        elements = self.examples.latent_elements()
        beta = self.objective.beta_at(elements)
        return {"beta": beta, "logit_per_mean_squared_error": beta / 2, "latent_elements": elements}

    def save(self, metadata: dict[str, str]) -> dict[str, Any]:
        facts = self.save_into(self.settings.folder, metadata)
        if isinstance(self.settings.trained, LoraSettings):
            check_trained(self.family, self.components, self.settings.folder / facts["adapter"])
        return facts

    def save_into(self, folder: Path, metadata: dict[str, str], name: str = ADAPTER_FOLDER) -> dict[str, Any]:
        """As `save`, into another folder; name: of the adapter's folder in it."""
        if isinstance(self.settings.trained, LoraSettings):
            path = folder / name / LORA_FILE
            path.parent.mkdir(exist_ok=True)
            lora.save(self.components, path, metadata)
            return {"adapter": path.relative_to(folder).as_posix()}
        denoising = denoising_of(self.objective)
        if denoising is not None and denoising.zero_terminal_snr:
            told = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
            self.family.pipeline.scheduler.register_to_config(**told)
        return save_pipeline(pipeline_to_save(self.family, self.settings), folder)


def build_task(settings: TaskSettings, objective: AnyObjective) -> Task:
    """The task of an objective."""
    if isinstance(objective, BradleyTerry):
        from t2i.training.reward_task import RewardTask

        return RewardTask(settings, objective)
    if isinstance(objective, Autoencoder):
        return AutoencoderTask(settings, objective)
    if isinstance(objective, Contrastive):
        return ContrastiveTask(settings, objective)
    if isinstance(objective, Classification):
        return ClassificationTask(settings, objective)
    return DiffusionTask(settings, objective)


def set_up_denoiser(trainable: Trainable, components: Iterable[str], settings: TaskSettings) -> None:
    """Once images and captions are encoded: swap what training does not call for the denoiser, and set its speed."""
    module = trainable.module
    assert isinstance(module, DiffusionModule)
    family, frozen = module.denoiser.family, module.denoiser.frozen
    facts = family.facts
    release(family, encoder_names(facts) if settings.cache.text else ["vae"])
    place(family, [facts.denoiser])
    apply_speed(family, settings.speed)
    if frozen is None:
        return
    place(frozen, components)
    # Alike: before the first step both must give the same bits.
    if frozen.denoiser is not family.denoiser:
        apply_speed(frozen, settings.speed)


def denoiser_data(settings: TaskSettings, objective: DenoiserObjective) -> DiffusionData | PairData:
    """The records, or the preference pairs, and how they are used."""
    if settings.mix is None:
        raise ConfigError("captions: a denoiser needs captions to train on, for example {alt: 1}.")
    data = diffusion_data(settings, settings.mix)
    if objective.needs == "captioned_images":
        return data
    return PairData.of(settings.pairs, settings.mix, data, settings.batch_size)


def diffusion_data(settings: TaskSettings, mix: CaptionMix) -> DiffusionData:
    """The records and how they are used."""
    return DiffusionData(
        settings.records,
        settings.datasets or (Dataset(0, len(settings.records), mix),),
        settings.seed,
        settings.buckets,
        settings.views,
        settings.masks,
        settings.cache,
        settings.posterior,
        settings.batch_size,
        settings.encode_batch_size,
    )
