"""Train a LoRA, or whole components, on captioned images."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, JsonValue, model_validator

from t2i import processes
from t2i.config import LocalPath, ModelPath, speed_only
from t2i.data.pairs import PAIRS_FILE, PairSource, iterate_pairs, save_pairs
from t2i.data.settings import BucketSettings, CacheSettings, CaptionPhase, DatasetSettings, MaskSettings, ViewSettings
from t2i.data.sources import RECORDS_FILE, ImageSource, ImageSources, save_records
from t2i.errors import ConfigError, RunError
from t2i.objectives import (
    AnyObjective,
    BradleyTerry,
    Classification,
    Contrastive,
    Denoising,
    DiffusionKTO,
    PairObjective,
)
from t2i.stages.base import InspectContext, Stage, StageContext
from t2i.stages.guard import GuardSettings, begin_guard
from t2i.training.settings import (
    FullSettings,
    HeldOutSettings,
    LoopSettings,
    LoraSettings,
    OptimizerSettings,
    SampleSettings,
    SpeedSettings,
    TrackingSettings,
    Trained,
    check_precision,
    check_rates,
)

if TYPE_CHECKING:
    from t2i.data.preview import Preview
    from t2i.data.rows import RecordTable
    from t2i.records import CaptionedImage, PreferencePair
    from t2i.training.tasks import Task, TaskSettings
    from t2i.training.trainable import Trainable
    from t2i.training.watch import Watch


WORKING_FOLDERS = ("latents", "checkpoints")
"""Folders of a train stage that are deleted when it is done."""


class Train(Stage):
    """Train a model on images: from a finished stage (`data_from`) or straight from a source (`data`)."""

    version: ClassVar[int] = 1
    produces: ClassVar[str] = "weights"
    accepts: ClassVar[dict[str, tuple[str, ...]]] = {
        "data_from": ("captioned_images",),
        "pairs_from": ("pairs",),
        "model_from": ("weights",),
        "adapter_from": ("weights",),
    }
    in_all_processes: ClassVar[bool] = True

    type: Literal["train"] = "train"
    model: ModelPath | None = None
    """Hub id or folder of the model; the recipe's `model` if absent."""
    model_from: str | None = None
    """An earlier train stage that saved a whole model, instead of `model`."""
    revision: str | None = None
    """Commit or tag of a hub model."""
    adapter: LocalPath | None = None
    """A LoRA file, of any layout, that the LoRA starts from; of the modules and ranks that `trained` asks for."""
    adapter_from: str | None = None
    """An earlier train or merge stage whose LoRA it starts from, instead of `adapter`."""
    layouts: tuple[Literal["diffusers", "peft", "kohya", "comfyui"], ...] = speed_only(("diffusers",))
    """Layouts that the LoRA will be exported in: one with random values is written and read back in each before the
    first step, so that a layout without names for its modules ends the run there."""
    init: Literal["pretrained", "random"] = "pretrained"
    """`random` takes only the configs of the model and starts from fresh weights."""
    data: ImageSources | None = None
    """Where images come from, if not from a stage; one source or a list."""
    data_from: str | tuple[str, ...] | None = None
    """A caption or filter stage, or several."""
    pairs: PairSource | None = None
    """Where preference pairs come from, instead of images: for preference objectives."""
    pairs_from: str | tuple[str, ...] | None = None
    """A pair stage, or several, instead of `pairs`."""
    held_out_pairs: PairSource | None = None
    """Pairs that a reward model is measured on; some of its own prompts, held out from training, if absent."""
    datasets: tuple[DatasetSettings, ...] = ()
    """How each of several sources or stages is used, in their order; all images alike if empty."""
    trigger_words: str = ""
    """Put before every caption, with a comma between, so that the words come to mean what the images show."""
    captions: dict[str, float] = Field(default_factory=dict)
    """Caption kind -> weight; each step draws one kind per image."""
    caption_schedule: tuple[CaptionPhase, ...] = ()
    """Other weights from later steps on: `[{from_step: 2000, captions: {dense: 1}}]`."""
    caption_parts: Literal["whole", "first_sentences", "one_sentence"] = "whole"
    """How much of a caption a step sees: all, its first sentences (each number of them as likely), or one of them."""
    caption_dropout: float = Field(default=0.1, ge=0, le=1)
    """Share of examples that see the empty prompt, for classifier-free guidance."""
    posterior: Literal["sample", "mode"] = "sample"
    """Latents are drawn from the autoencoder's posterior anew at each step, or are its mode; nearly the same for the
    published autoencoders, whose posteriors are narrow."""
    resolution: int | None = Field(default=None, gt=0)
    """Side of the square crop in pixels, or of the square as large as the buckets; the model's own if absent."""
    buckets: BucketSettings | None = None
    """Train on several aspects instead of squares; needs `resolution`."""
    views: ViewSettings = ViewSettings()
    """Where images are cropped, and whether they are mirrored."""
    masks: MaskSettings | None = None
    """Look at parts of the images only."""
    cache: CacheSettings = CacheSettings()
    """Where encoded images are kept, and whether captions are encoded beforehand."""
    objective: AnyObjective = Denoising()
    """The loss."""
    trained: Trained = LoraSettings()
    """A LoRA, or whole components."""
    optimizer: OptimizerSettings
    """AdamW and its schedule."""
    loop: LoopSettings
    """Steps, batch size, checkpoints."""
    held_out: HeldOutSettings | None = None
    """Keep some images out of training and measure the loss on them."""
    samples: SampleSettings | None = None
    """Generate images from fixed prompts while training."""
    guard: GuardSettings | None = None
    """Score samples while training with rewards that are not trained on, keep the best, stop over-optimisation."""
    tracking: TrackingSettings | None = speed_only(None)
    """Send what is logged to TensorBoard or wandb too."""
    speed: SpeedSettings = SpeedSettings()
    """How the denoiser is computed."""
    encode_batch_size: int = Field(default=16, gt=0)
    """Images encoded at once when latents are cached; other sizes differ in the last bits."""

    @model_validator(mode="after")
    def _consistent(self) -> Train:
        self._one_source()
        if self.model is not None and self.model_from is not None:
            raise ValueError("give `model` or `model_from` (a stage), not both")
        if self.model is None and self.model_from is None and not isinstance(self.objective, Classification):
            raise ValueError("no model; set `model` here or at the top of the recipe")
        if any(weight <= 0 for weight in self.captions.values()):
            raise ValueError("captions: every weight must be above 0; leave a kind out instead")
        if _couples_batch(self.objective) and self.loop.micro_batch_size not in (None, self.loop.batch_size):
            raise ValueError(f"{self.objective.type} couples the whole batch: micro_batch_size cannot be smaller")
        if self.adapter is not None and self.adapter_from is not None:
            raise ValueError("give `adapter` (a LoRA file) or `adapter_from` (a stage), not both")
        if (self.adapter or self.adapter_from) and not isinstance(self.trained, LoraSettings):
            raise ValueError("adapter: only a LoRA starts from one, and `trained` is full")
        if self.init == "random" and isinstance(self.trained, LoraSettings):
            raise ValueError("init: a LoRA over random weights is of no use; train `full` components")
        if self.guard is not None and (self.held_out is not None or self.init == "random"):
            other = "`init: random`, before which there is nothing" if self.held_out is None else "`held_out`"
            raise ValueError(f"guard: it keeps the best weights by its own reward; it does not go with {other}")
        return self

    def _one_source(self) -> None:
        images = [name for name in ("data", "data_from") if getattr(self, name) is not None]
        pairs = [name for name in ("pairs", "pairs_from") if getattr(self, name) is not None]
        if self.objective.needs == "preference_pairs":
            if images or len(pairs) != 1:
                raise ValueError(
                    f"{self.objective.type} learns from pairs: give `pairs` or `pairs_from` (a stage), alone"
                )
        elif pairs:
            raise ValueError(f"{pairs[0]}: {self.objective.type} learns from images; give `data` or `data_from`")
        elif len(images) != 1:
            raise ValueError("give exactly one of `data` (a source of images) and `data_from` (a stage)")
        if self.held_out_pairs is not None and not isinstance(self.objective, BradleyTerry):
            raise ValueError(f"held_out_pairs: only bradley_terry takes it, not {self.objective.type}")

    @model_validator(mode="after")
    def _data_fits_objective(self) -> Train:
        if not isinstance(self.objective, Denoising):
            refused = ("datasets", "trigger_words", "buckets", "views", "masks", "cache", "speed")
            refused += ("held_out", "samples", "guard", "caption_schedule", "caption_parts")
            if isinstance(self.objective, PairObjective):
                refused = ("datasets", "captions", "caption_schedule", "caption_parts", "masks", "held_out", "samples")
            given = [name for name in refused if getattr(self, name) != _default(name)]
            if given:
                raise ValueError(f"{given[0]}: only a denoising objective takes it, not {self.objective.type}")
            return self
        if not self.captions and not all(entry.captions for entry in self.datasets or (DatasetSettings(),)):
            raise ValueError("captions: name the kinds to train on with their weights, for example {dense: 1}")
        if any(weight <= 0 for entry in self.datasets for weight in entry.captions.values()):
            raise ValueError("datasets: every weight of captions must be above 0; leave a kind out instead")
        if self.datasets and len(self.datasets) != self._sets():
            raise ValueError(f"datasets: {len(self.datasets)} entries for {self._sets()} sets of images; one for each")
        if 0 < sum(entry.weight is not None for entry in self.datasets) < len(self.datasets):
            raise ValueError("datasets: give every one a `weight`, or none")
        return self

    def _sets(self) -> int:
        given = self.data if self.data_from is None else self.data_from
        return len(given) if isinstance(given, tuple) else 1

    @model_validator(mode="after")
    def _framing(self) -> Train:
        if self.buckets is not None:
            if self.resolution is None:
                raise ValueError("buckets: say in `resolution` how large images are, in pixels of the square")
            if self.resolution % self.buckets.step:
                raise ValueError(
                    f"resolution: {self.resolution} is not a multiple of buckets.step, {self.buckets.step}"
                )
        if self.views.crops > 1 and self.views.crop == "centre":
            raise ValueError("views.crops: an image has one centre; set views.crop: random")
        if self.cache.text and _trains_text_encoder(self.trained):
            raise ValueError("cache.text: a text encoder is trained, so that its outputs cannot be made beforehand")
        return self

    @model_validator(mode="after")
    def _caption_mix(self) -> Train:
        steps = [phase.from_step for phase in self.caption_schedule]
        if steps != sorted(set(steps)):
            raise ValueError("caption_schedule: every phase must begin after the one before it")
        if self.caption_schedule and not self.captions:
            raise ValueError("caption_schedule: say in `captions` what holds before its first phase")
        if self.caption_parts != "whole" and self.cache.text:
            raise ValueError("cache.text: parts of captions are drawn anew at each step; set caption_parts: whole")
        return self

    @model_validator(mode="after")
    def _numbers_fit(self) -> Train:
        check_rates(self.trained, self.optimizer)
        check_precision(self.trained, self.loop)
        return self

    def check(self) -> None:
        if self.model is None or not isinstance(self.objective, Denoising):
            return
        from t2i.training.extras import check_packages
        from t2i.training.outline import outline_training

        check_packages(self.trained, self.optimizer, self.tracking)
        outline_training(self.task_settings(self.model, [[]] * self._sets(), self.seed or 0, Path()), self.objective)

    def inspect(self, context: InspectContext) -> dict[str, JsonValue]:
        facts: dict[str, JsonValue] = {
            "steps": self.loop.steps,
            "examples seen": self.loop.steps * self.loop.batch_size,
        }
        if self.model is None or not isinstance(self.objective, Denoising):
            return facts
        from t2i.training.inspection import Inspection

        previews = self._previews(context)
        known = [preview for preview in previews if preview is not None]
        tables = [preview.records for preview in known] if len(known) == len(previews) else [[]] * len(previews)
        settings = self.task_settings(self.model, tables, context.seed, Path())
        has_captions = all(preview.has_captions for preview in known)
        inspection = Inspection(settings, self.objective, self.loop, self.optimizer, has_captions)
        return facts | inspection.facts(is_probed=context.is_probed)

    def _previews(self, context: InspectContext) -> list[Preview | None]:
        from t2i.data.preview import preview_source

        if self.data_from is not None:
            return context.previews["data_from"]
        return [preview_source(source) for source in self._sources()]

    def _sources(self) -> tuple[ImageSource, ...]:
        if self.data is None:
            return ()
        return self.data if isinstance(self.data, tuple) else (self.data,)

    def run(self, context: StageContext) -> dict[str, Any]:
        from contextlib import nullcontext

        from t2i.randomness import deterministic_kernels
        from t2i.stages.score import reward_errors
        from t2i.training.outputs import read_outcome, write_outcome

        facts = processes.first(lambda: read_outcome(context.folder))
        if facts is None:
            kernels = deterministic_kernels(strict=True) if self.loop.deterministic else nullcontext()
            with kernels, reward_errors():
                facts = self._train(context)
        if processes.is_first():
            write_outcome(context.folder, facts)
            # A finished stage does not resume; its latents and optimizer states are the bulk of its size.
            for name in WORKING_FOLDERS:
                shutil.rmtree(context.folder / name, ignore_errors=True)
        return facts

    def _train(self, context: StageContext) -> dict[str, Any]:
        from t2i.data.batches import KeyedBatches
        from t2i.data.exposure import count_exposures
        from t2i.export.card import dataset_strings
        from t2i.training.loop import fit
        from t2i.training.measured import forget_peak_memory, measured_run
        from t2i.training.outputs import MODEL_FOLDER
        from t2i.training.tasks import build_task
        from t2i.training.watch import asked_in_turn

        if _couples_batch(self.objective) and processes.count() > 1:
            raise ConfigError(f"objective: {self.objective.type} couples the whole batch, so it runs in one process.")
        model = str(context.input("model_from") / MODEL_FOLDER) if self.model_from else self.model or ""
        settings = self._settings_of_run(model, context)
        settings = dataclasses.replace(settings, adapter=self._start(context), layouts=self.layouts)
        settings = dataclasses.replace(settings, pairs=self._pairs(context), held_out_pairs=self._held_out(context))
        task = build_task(settings, self.objective)
        estimate = self._estimate(settings)
        batches = KeyedBatches(
            task.examples,
            context.seed,
            self.loop.batch_size,
            self.loop.micro_batch_size or max(1, self.loop.batch_size // processes.count()),
            self.loop.workers,
        )
        watch = self._watch(task, settings)
        guard = begin_guard(self.guard, task, settings, self.loop.steps) if self.guard else None
        forget_peak_memory()
        result = fit(
            task.trainable,
            batches,
            self.loop,
            self.optimizer,
            context.folder,
            seed=context.seed,
            probe=asked_in_turn([probe for probe in (watch, guard) if probe is not None]),
            probe_every=(*(watch.intervals if watch else ()), *((guard.every,) if guard else ())),
            tracking=self.tracking,
        )
        metadata = {"t2i_recipe": context.recipe_name, "t2i_steps": str(result.steps), "t2i_run": context.folder.name}
        metadata |= dataset_strings(settings.records, self.trigger_words)
        facts = processes.first(lambda: task.facts() | self._save(task, metadata, settings) | {"steps": result.steps})
        exposures = count_exposures(batches, result.steps)
        facts |= {"exposures": exposures} if exposures else {}
        if estimate is None:
            return facts
        steps = result.steps - result.resumed_from
        measured = measured_run(context.folder, result.seconds / steps if steps else None)
        return facts | {"estimated": estimate, "measured": measured.facts()}

    def _start(self, context: StageContext) -> Path | None:
        """The LoRA file to start from."""
        from t2i.resources import resolve_path
        from t2i.training.outputs import trained_adapter

        if self.adapter_from is not None:
            return trained_adapter(context.input("adapter_from"))
        return None if self.adapter is None else resolve_path(self.adapter)

    def _settings_of_run(self, model: str, context: StageContext) -> TaskSettings:
        """Settings with the records of the stage's data, less those held out."""
        tables: Sequence[Sequence[CaptionedImage]] = self._tables(context)
        if self.held_out is None:
            return self.task_settings(model, tables, context.seed, context.folder)
        from t2i.data.held_out import hold_out

        kept, held = hold_out(tables, self.held_out.share, context.seed)
        rest = self.model_copy(update={"caption_dropout": 0.0}).task_settings(model, held, context.seed, context.folder)
        datasets = tuple(dataset for dataset in rest.datasets if dataset.last > dataset.first)
        settings = self.task_settings(model, kept, context.seed, context.folder)
        return dataclasses.replace(settings, held_out=(rest.records, datasets))

    def _watch(self, task: Task, settings: TaskSettings) -> Watch | None:
        """What looks at the run while it trains, if the recipe asks for it."""
        from functools import partial

        from t2i.training.held_out import HeldOutLoss
        from t2i.training.samples import write_samples
        from t2i.training.tasks import DiffusionTask
        from t2i.training.watch import Watch

        if (self.held_out is None and self.samples is None) or not isinstance(task, DiffusionTask):
            return None
        measure = sample = None
        if self.held_out is not None and task.held_out is not None:
            size = self.loop.micro_batch_size or self.loop.batch_size
            loss = HeldOutLoss(task.held_out, self.held_out, batch_size=size, seed=settings.seed)
            device = next(task.family.denoiser.parameters()).device
            measure = partial(loss, task.trainable.module, device, precision=self.loop.precision)
        if self.samples is not None:
            sample = partial(
                write_samples,
                settings=self.samples,
                model=settings.model,
                revision=settings.revision,
                save=lambda folder: task.save_into(folder, {}),
                working=settings.folder / "checkpoints" / "sampled",
            )
        return Watch(settings.folder, self.loop.steps, self.held_out, measure, self.samples, sample)

    def _save(self, task: Task, metadata: dict[str, str], settings: TaskSettings) -> dict[str, Any]:
        """Save the result, and the best weights of a LoRA if they were looked for; returns facts."""
        from t2i.training.outputs import BEST_FOLDER
        from t2i.training.tasks import DiffusionTask

        if (self.held_out is None and self.guard is None) or not isinstance(task, DiffusionTask):
            return task.save(metadata)
        file, step, is_result, facts = self._kept(settings.folder, int(metadata["t2i_steps"]))
        if not file.exists():
            raise RunError("no held-out loss is a number; look at the images held out, or lower the learning rate.")
        saved = {} if is_result else task.save(metadata)
        _load_weights(task.trainable, file)
        metadata = metadata | {"t2i_steps": str(step)}
        if is_result:
            saved = task.save(metadata)
        if isinstance(self.trained, LoraSettings):
            task.save_into(settings.folder, metadata, BEST_FOLDER)
        return saved | facts

    def _kept(self, folder: Path, steps: int) -> tuple[Path, int, bool, dict[str, Any]]:
        """The best weights by held-out reward or loss, their step, whether they are the result, and facts."""
        from t2i.training.guard import GUARDED_FILE, guard_facts, read_readings
        from t2i.training.watch import BEST_FILE, held_out_facts

        if self.guard is not None:
            facts = guard_facts(read_readings(folder), self.guard.rule(), stopped=steps < self.loop.steps)
            is_result = self.guard.result == "best"
            return folder / "checkpoints" / GUARDED_FILE, facts["guard"]["best_step"], is_result, facts
        facts = held_out_facts(folder)
        is_result = self.held_out is not None and self.held_out.result == "best"
        return folder / "checkpoints" / BEST_FILE, int(facts["best_step"]), is_result, facts

    def _estimate(self, settings: TaskSettings) -> dict[str, JsonValue] | None:
        """What training a denoiser will take, by arithmetic; None for other models."""
        if not isinstance(self.objective, Denoising):
            return None
        from t2i.training.inspection import estimate_before

        count = processes.count()
        return estimate_before(settings, self.objective, self.loop, self.optimizer, processes=count).facts()

    def _tables(self, context: StageContext) -> list[RecordTable]:
        """The rows of every source or stage; they stay on disk."""
        from t2i.data.rows import RecordTable

        if self.data_from is not None:
            return [RecordTable(folder / RECORDS_FILE) for _, folder in context.inputs["data_from"]]
        # Sources may give images the same names; the first has the stage's folder to itself.
        numbers = range(len(self._sources()))
        folders = [context.folder / f"source-{number}" if number else context.folder for number in numbers]
        processes.first(lambda: self._write_records(folders, context.seed))
        return [RecordTable(folder / RECORDS_FILE) for folder in folders]

    def _write_records(self, folders: list[Path], seed: int) -> None:
        for source, folder in zip(self._sources(), folders, strict=True):
            folder.mkdir(exist_ok=True)
            save_records(folder, source.read(folder, seed))

    def _pairs(self, context: StageContext) -> list[PreferencePair]:
        """The pairs of the source or of every stage, with their images checked."""
        pairs = self.pairs
        if pairs is not None:
            return processes.first(lambda: _read_pairs(pairs, context, "pairs"))
        folders = [folder for _, folder in context.inputs.get("pairs_from", [])]
        return [pair for folder in folders for pair in iterate_pairs(folder / PAIRS_FILE)]

    def _held_out(self, context: StageContext) -> list[PreferencePair]:
        pairs = self.held_out_pairs
        return [] if pairs is None else processes.first(lambda: _read_pairs(pairs, context, "held_out_pairs"))

    def task_settings(
        self, model: str, tables: Sequence[Sequence[CaptionedImage]], seed: int, folder: Path
    ) -> TaskSettings:
        """tables: the records of every source or stage, in order."""
        from t2i.data.captions import CaptionMix, Phase
        from t2i.data.diffusion import make_datasets
        from t2i.data.pair_examples import PROMPT
        from t2i.data.rows import JoinedRecords
        from t2i.training.tasks import TaskSettings

        lengths = [len(table) for table in tables]
        schedule = tuple(Phase(phase.from_step, phase.captions) for phase in self.caption_schedule)
        drawn = self.caption_dropout, self.trigger_words, schedule, self.caption_parts
        datasets = make_datasets(lengths, self.datasets, self.captions, *drawn)
        kinds = {PROMPT: 1.0} if self.pairs or self.pairs_from else dict(self.captions)
        mix = datasets[0].mix if self.datasets else None
        if kinds:
            mix = CaptionMix(kinds, *drawn)
        return TaskSettings(
            model=model,
            revision=self.revision,
            random_seed=seed if self.init == "random" else None,
            trained=self.trained,
            mix=mix,
            resolution=self.resolution,
            posterior=self.posterior,
            records=tables[0] if len(tables) == 1 else JoinedRecords(tables),
            seed=seed,
            folder=folder,
            encode_batch_size=self.encode_batch_size,
            datasets=datasets,
            buckets=self.buckets,
            views=self.views,
            masks=self.masks,
            cache=self.cache,
            speed=self.speed,
            batch_size=self.loop.batch_size,
        )


def _couples_batch(objective: AnyObjective) -> bool:
    return isinstance(objective, Contrastive) or (isinstance(objective, DiffusionKTO) and objective.couples_batch)


def _default(name: str) -> Any:
    """Default of a field whose default may be made anew each time."""
    return Train.model_fields[name].get_default(call_default_factory=True)


def _read_pairs(source: PairSource, context: StageContext, name: str) -> list[PreferencePair]:
    """The pairs of a source, also written to a folder of the stage, with the images that the source draws."""
    folder = context.folder.resolve() / name
    folder.mkdir(exist_ok=True)
    pairs = list(source.read(folder, context.seed))
    save_pairs(folder, pairs)
    return pairs


def _load_weights(trainable: Trainable, file: Path) -> None:
    import torch
    from safetensors.torch import load

    tensors = load(file.read_bytes())
    with torch.no_grad():
        for name, value in trainable.parameters().items():
            value.copy_(tensors[name])


def _trains_text_encoder(trained: LoraSettings | FullSettings) -> bool:
    if isinstance(trained, LoraSettings):
        return trained.text_encoder
    return any(name.startswith("text_encoder") for name in trained.components)
