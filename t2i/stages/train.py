"""Train a LoRA, or whole components, on captioned images."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, JsonValue, model_validator

from t2i import processes
from t2i.config import LocalPath, ModelPath, speed_only
from t2i.data.pairs import PairSource
from t2i.data.settings import BucketSettings, CacheSettings, CaptionPhase, DatasetSettings, MaskSettings, ViewSettings
from t2i.data.sources import ImageSource, ImageSources
from t2i.objectives import AnyObjective, DenoiserObjective, Denoising
from t2i.stages.base import InspectContext, Stage, StageContext, StageNames
from t2i.stages.guard import GuardSettings
from t2i.stages.train_rules import check_settings, check_uncoupled
from t2i.stages.trained_kind import base_of, misfit_of
from t2i.training.settings import (
    HeldOutSettings,
    LoopSettings,
    LoraSettings,
    OptimizerSettings,
    SampleSettings,
    SpeedSettings,
    TrackingSettings,
    Trained,
)

if TYPE_CHECKING:
    from t2i.records import CaptionedImage
    from t2i.training.tasks import TaskSettings


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
    data_from: StageNames = None
    """A caption or filter stage, or several."""
    pairs: PairSource | None = None
    """Where preference pairs come from, instead of images: for preference objectives."""
    pairs_from: StageNames = None
    """A pair stage, or several, instead of `pairs`."""
    held_out_pairs: PairSource | None = None
    """Pairs that a reward model is measured on; some of its own prompts, held out from training, if absent."""
    datasets: tuple[DatasetSettings, ...] = ()
    """How each of several sources or stages is used, in their order; all images alike if empty."""
    trigger_words: str = ""
    """Put before every caption, with a comma between, so that the words come to mean what the images show."""
    captions: dict[str, float] = Field(default_factory=dict)
    """Caption kind -> weight; each step draws one kind per image."""
    per_encoder: dict[str, str] = Field(default_factory=dict)
    """Text encoder -> caption kind that it is given, instead of the one that `captions` draws for the others:
    `{clip: short, t5: dense}`. Encoders of SDXL: clip_l, clip_g; of SD3 also t5; of Flux clip, t5; `clip` means all
    CLIPs. Where every encoder is named, leave `captions` out. Both texts are of the same image, dropout drops both."""
    caption_schedule: tuple[CaptionPhase, ...] = ()
    """Other weights from later steps on: `[{from_step: 2000, captions: {dense: 1}}]`."""
    caption_parts: Literal["whole", "first_sentences", "one_sentence"] = "whole"
    """How much of what `captions` draws a step sees: all, its first sentences (every number as likely), or one."""
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
        check_settings(self)
        return self

    def sets(self) -> int:
        """How many sources or stages the images come from."""
        given = self.data if self.data_from is None else self.data_from
        return len(given) if isinstance(given, tuple) else 1

    def check(self) -> None:
        from t2i.training.extras import check_packages

        check_packages(self.trained, self.optimizer, self.tracking)
        if self.guard is not None:
            self.guard.check()
        if processes.count() > 1:
            from t2i.training.parallel import micro_steps

            check_uncoupled(self.objective)
            micro_steps(self.loop, processes.count())
        if self.model is None or not isinstance(self.objective, DenoiserObjective):
            return
        from t2i.training.outline import outline_training

        outline_training(self.task_settings(self.model, [[]] * self.sets(), self.seed or 0, Path()), self.objective)

    def misfit(self, earlier: Mapping[str, Stage]) -> tuple[str, str]:
        for name, whole in (("model_from", True), ("adapter_from", False)):
            if message := misfit_of(self.references.get(name, ()), earlier, whole=whole):
                return name, message
        base = base_of(self.adapter_from, earlier) if self.adapter_from is not None else ""
        if base and base != self.model_from:
            message = f"{self.adapter_from} was trained over the model of stage {base}; set `model_from: {base}`"
            return "adapter_from", message
        return "", ""

    def inspect(self, context: InspectContext) -> dict[str, JsonValue]:
        from t2i.stages.train_inspect import inspect_training

        return inspect_training(self, context)

    def sources(self) -> tuple[ImageSource, ...]:
        """The sources in `data`; none where a stage gives the images."""
        if self.data is None:
            return ()
        return self.data if isinstance(self.data, tuple) else (self.data,)

    def run(self, context: StageContext) -> dict[str, Any]:
        from contextlib import nullcontext

        from t2i.randomness import deterministic_kernels
        from t2i.stages.score import reward_errors
        from t2i.stages.train_run import run_training
        from t2i.training.outputs import read_outcome, write_outcome

        facts = processes.first(lambda: read_outcome(context.folder))
        if facts is None:
            kernels = deterministic_kernels(strict=True) if self.loop.deterministic else nullcontext()
            with kernels, reward_errors():
                facts = run_training(self, context)
        if processes.is_first():
            write_outcome(context.folder, facts)
            # A finished stage does not resume; its latents and optimizer states are the bulk of its size.
            for name in WORKING_FOLDERS:
                shutil.rmtree(context.folder / name, ignore_errors=True)
        return facts

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
        routes = tuple(self.per_encoder.items())
        drawn = self.caption_dropout, self.trigger_words, schedule, self.caption_parts, routes
        datasets = make_datasets(lengths, self.datasets, self.captions, *drawn)
        kinds = {PROMPT: 1.0} if self.pairs or self.pairs_from else dict(self.captions)
        mix = datasets[0].mix if self.datasets or routes else None
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
