"""What `t2i inspect` says of a run that trains a denoiser: its data, its size, and one measured step if asked for."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from pydantic import JsonValue

from t2i import lora
from t2i.data.buckets import BucketPlan, square_plan
from t2i.data.diffusion import DiffusionData, count_truncated
from t2i.data.held_out import is_held_out
from t2i.data.pair_examples import PairData
from t2i.objectives import DenoiserObjective
from t2i.objectives.base import DiffusionBatch
from t2i.objectives.pairs import PairBatch
from t2i.report.numbers import byte_size, duration
from t2i.training.diffusion import diffusion_trainable
from t2i.training.estimate import Estimate, estimate_run, largest_bucket
from t2i.training.extras import check_packages
from t2i.training.log import read_metrics
from t2i.training.loop import fit
from t2i.training.measured import Measured
from t2i.training.outline import TrainingOutline, outline_training
from t2i.training.parallel import micro_steps
from t2i.training.placement import encoder_names, load_for_training, place
from t2i.training.settings import LoopSettings, OptimizerSettings
from t2i.training.tasks import DiffusionTask, TaskSettings, denoiser_data, set_up_denoiser

if TYPE_CHECKING:
    from t2i.families.base import ModelFamily


def estimate_before(
    task: DiffusionTask, loop: LoopSettings, optimizer: OptimizerSettings, *, processes: int
) -> Estimate:
    """The estimate of a run whose task is ready. Raises ModelError and ConfigError as `outline_training` does."""
    outline = outline_training(task.settings, task.objective)
    settings, plan = _encoded(task.settings, task.data, task.plan)
    return estimate_run(outline, settings, loop, optimizer, plan, processes=processes)


def _encoded(
    settings: TaskSettings, data: DiffusionData | PairData, plan: BucketPlan
) -> tuple[TaskSettings, BucketPlan]:
    """The images that are encoded, as the settings' own records: those of pairs, each once for each of its prompts."""
    if isinstance(data, DiffusionData):
        return settings, plan
    [dataset] = data.images.datasets
    rows = {(row.image, row.captions[0].text): number for number, row in enumerate(data.records)}
    records = [data.records[number] for number in rows.values()]
    datasets = (replace(dataset, last=len(records)),)
    of_record = plan.of_record[list(rows.values())]
    return replace(settings, records=records, datasets=datasets), replace(plan, of_record=of_record)


@dataclass(frozen=True)
class Inspection:
    """A train stage to look at. settings.records, settings.pairs: empty where only a run can tell which there are."""

    settings: TaskSettings
    objective: DenoiserObjective
    loop: LoopSettings
    optimizer: OptimizerSettings
    has_captions: bool
    """False if a model is still to write them."""
    held_out_share: float | None = None
    """Share of the images that only measure."""

    def facts(self, *, is_probed: bool) -> dict[str, JsonValue]:
        """In the order in which they are found out. Raises what the run would raise, before anything is loaded."""
        check_packages(self.settings.trained, self.optimizer)
        micro_steps(self.loop, 1)
        outline = outline_training(self.settings, self.objective)
        facts: dict[str, JsonValue] = {"family": outline.family.facts.name, "resolution": outline.resolution}
        data = self._data()
        plan = None if data is None else self._plan(data, outline.resolution)
        facts |= self._data_facts(data, plan, outline) | _trained_facts(outline)
        settings, encoded = (
            (self.settings, None) if data is None or plan is None else _encoded(self.settings, data, plan)
        )
        # After all else: this uses the outline up.
        estimate = estimate_run(outline, settings, self.loop, self.optimizer, encoded)
        facts |= estimate_facts(estimate, self.loop.steps)
        if is_probed:
            measured = probe_step(self, plan or square_plan(1, outline.resolution))
            facts["one measured step"] = measured_text(measured)
        return facts

    def _data(self) -> DiffusionData | PairData | None:
        """The images or pairs; None where only a run can tell which. Raises DataError for what a run refuses."""
        if self.settings.mix is None or not (self.settings.records or self.settings.pairs):
            return None
        data = denoiser_data(self.settings, self.objective)
        if self.has_captions:
            data.check_captions()
        return data

    def _plan(self, data: DiffusionData | PairData, resolution: int) -> BucketPlan:
        """The size of every image, held out or not. Raises DataError for what a run refuses of those it trains on and
        of those held out, where ids tell which these are; else of all as one."""
        share = self.held_out_share
        if share is None or not isinstance(data, DiffusionData) or not all(row.id for row in data.records):
            return data.plan(resolution)
        kept, held = data.hold_out(share)
        kept.plan(resolution)
        held.plan_held_out(resolution)
        return data.assign(resolution)

    def _data_facts(
        self, data: DiffusionData | PairData | None, plan: BucketPlan | None, outline: TrainingOutline
    ) -> dict[str, JsonValue]:
        if data is None or plan is None:
            return {self._examples: "known once the stages before have run"}
        # Of those held out too: they are encoded alike, and named where they do not fit.
        facts = self._counts(data, plan) | plan.facts()
        if self.has_captions:
            texts = data.texts()
            counts = count_truncated(outline.family, texts)
            facts["captions longer than the text encoder reads"] = {
                name: f"{count} of {len(texts)}" for name, count in counts.items()
            }
        return facts

    @property
    def _examples(self) -> str:
        return "images" if self.objective.needs == "captioned_images" else "pairs"

    def _counts(self, data: DiffusionData | PairData, plan: BucketPlan) -> dict[str, JsonValue]:
        """How many examples there are, and how often each is seen."""
        seen = self.loop.steps * self.loop.batch_size
        if isinstance(data, PairData):
            kept = int((plan.of_record[::2] >= 0).sum())
            return {"pairs": kept, "ties left out": data.ties, "passes": round(seen / max(1, kept), 2)}
        kept = int((plan.of_record >= 0).sum())
        held_out, is_exact = self._held_out(plan, kept)
        facts: dict[str, JsonValue] = {"images": kept - held_out, "passes": round(seen / max(1, kept - held_out), 2)}
        if self.held_out_share is not None:
            facts["held out"] = held_out if is_exact else f"about {held_out}"
        return facts

    def _held_out(self, plan: BucketPlan, kept: int) -> tuple[int, bool]:
        """How many of the images that fit are held out, and whether that is counted: where the bytes of an image, which
        decide, have not been read yet, only the share is known."""
        if self.held_out_share is None:
            return 0, True
        rows = [row for row, bucket in zip(self.settings.records, plan.of_record, strict=True) if bucket >= 0]
        if not all(row.id for row in rows):
            return round(self.held_out_share * kept), False
        return sum(is_held_out(row, self.held_out_share, self.settings.seed) for row in rows), True


def _trained_facts(outline: TrainingOutline) -> dict[str, JsonValue]:
    modules: dict[str, JsonValue] = dict(outline.trained_modules())
    return {"trained layers": modules, "trained parameters": outline.trained_parameters()}


def estimate_facts(estimate: Estimate, steps: int) -> dict[str, JsonValue]:
    """An estimate in words."""
    parts = (
        ("weights", estimate.weight_bytes),
        ("trained, gradients, optimizer", estimate.training_bytes),
        ("activations", estimate.activation_bytes),
    )
    seconds, gigaflops = estimate.seconds_per_step, f"{estimate.flops_per_step / 1e9:.4g} GFLOP"
    cache, checkpoints = byte_size(estimate.cache_bytes), byte_size(estimate.checkpoint_bytes)
    return {
        "frozen parameters": estimate.frozen_parameters,
        "estimated memory while encoding": f"{byte_size(estimate.encoding_bytes)}: autoencoder and text encoders",
        "estimated memory of a step": f"{byte_size(estimate.memory_bytes)}: "
        + ", ".join(f"{name} {byte_size(size)}" for name, size in parts),
        "estimated time": f"at least {duration(seconds * steps)}, {seconds:.3g} s a step: "
        f"{gigaflops} at this machine's matrix rate",
        "estimated disk": f"cache {cache}, checkpoints {checkpoints}",
    }


def measured_text(measured: Measured) -> str:
    """A measurement in words."""
    memory = "memory not measured without a GPU"
    if measured.memory_bytes is not None:
        memory = f"{byte_size(measured.memory_bytes)} at most on the GPU"
    return f"{measured.seconds_per_step:.3g} s, {memory}"


def probe_step(inspection: Inspection, plan: BucketPlan) -> Measured:
    """Load the model and measure one step; see `measure_step`."""
    settings = inspection.settings
    return measure_step(inspection, load_for_training(settings), plan)


def measure_step(inspection: Inspection, family: ModelFamily, plan: BucketPlan) -> Measured:
    """Train a loaded model for one step on noise of the largest bucket's size, after one that warms up."""
    settings = inspection.settings
    lora.freeze(family)
    trainable, components = diffusion_trainable(family, inspection.objective, settings.trained, settings.seed)
    place(family, encoder_names(family.facts))
    batch = _noise_batch(inspection, family, plan)
    set_up_denoiser(trainable, components, settings)
    loop = inspection.loop.model_copy(update={"steps": 2, "checkpoint_every": 2, "log_every": 1, "workers": 0})
    batches = _NoiseBatches(batch, micro_steps(loop, 1))
    with tempfile.TemporaryDirectory(prefix="t2i-probe-") as name:
        result = fit(trainable, batches, loop, inspection.optimizer, Path(name), seed=settings.seed)
        last = read_metrics(Path(name) / "metrics.jsonl")[-1]
    return Measured(loop.batch_size / last["images_per_second"], result.memory_bytes)


@torch.no_grad()
def _noise_batch(inspection: Inspection, family: ModelFamily, plan: BucketPlan) -> DiffusionBatch | PairBatch:
    """A micro-batch as large as the largest that the run will see; captions encoded where the run has them cached."""
    width, height = largest_bucket(plan)
    count = inspection.loop.portion(1)
    device = next(family.pipeline.vae.parameters()).device
    latents = family.encode_images(torch.zeros(1, 3, height, width, device=device)).mean
    latents = torch.randn(count, *latents.shape[1:], generator=torch.Generator().manual_seed(0))
    prompts = ("a photo",) * count
    conditioning = None
    if inspection.settings.cache.text:
        conditioning = replace(family.encode_prompts(prompts), sizes=None)
    sizes = torch.tensor([[height, width, 0.0, 0.0, height, width]] * count) if family.facts.takes_sizes else None
    noise = latents.flip(0, 1)
    keys = tuple(range(count))
    batch = DiffusionBatch(latents, noise, torch.full((count,), 0.5), prompts, sizes, conditioning, keys=keys)
    return batch if inspection.objective.needs == "captioned_images" else PairBatch.of_one_image(batch)


@dataclass(frozen=True)
class _NoiseBatches:
    """The same micro-batch again and again."""

    batch: DiffusionBatch | PairBatch
    micro_steps: int

    def micro_batches(
        self, first_step: int, last_step: int, rank: int, world_size: int
    ) -> Iterator[DiffusionBatch | PairBatch]:
        return iter([self.batch] * ((last_step - first_step) * self.micro_steps))

    def describe(self, step: int) -> str:
        return f"noise of shape {list(self.batch.noise.shape)}"
