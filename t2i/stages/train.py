"""Train a LoRA, or whole components, on captioned images."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, JsonValue, model_validator

from t2i.config import ModelPath
from t2i.data.sources import RECORDS_FILE, ImageSource, load_records, save_records
from t2i.objectives import AnyObjective, Classification, Contrastive, Denoising
from t2i.stages.base import Stage, StageContext
from t2i.training.settings import LoopSettings, LoraSettings, OptimizerSettings, Trained

if TYPE_CHECKING:
    from t2i.records import CaptionedImage


class Train(Stage):
    """Train a model on images: from a finished stage (`data_from`) or straight from a source (`data`)."""

    version: ClassVar[int] = 1
    produces: ClassVar[str] = "weights"
    accepts: ClassVar[dict[str, tuple[str, ...]]] = {"data_from": ("captioned_images",), "model_from": ("weights",)}

    type: Literal["train"] = "train"
    model: ModelPath | None = None
    """Hub id or folder of the model; the recipe's `model` if absent."""
    model_from: str | None = None
    """An earlier train stage that saved a whole model, instead of `model`."""
    revision: str | None = None
    """Commit or tag of a hub model."""
    init: Literal["pretrained", "random"] = "pretrained"
    """`random` takes only the configs of the model and starts from fresh weights."""
    data: ImageSource | None = None
    """Where images come from, if not from a stage."""
    data_from: str | None = None
    """A caption or filter stage."""
    captions: dict[str, float] = Field(default_factory=dict)
    """Caption kind -> weight; each step draws one kind per image."""
    caption_dropout: float = Field(default=0.1, ge=0, le=1)
    """Share of examples that see the empty prompt, for classifier-free guidance."""
    posterior: Literal["sample", "mode"] = "sample"
    """Latents are drawn from the autoencoder's posterior anew at each step, or are its mode; nearly the same for the
    published autoencoders, whose posteriors are narrow."""
    resolution: int | None = Field(default=None, gt=0)
    """Side of the square crop in pixels; the model's own size if absent."""
    objective: AnyObjective = Denoising()
    """The loss."""
    trained: Trained = LoraSettings()
    """A LoRA, or whole components."""
    optimizer: OptimizerSettings
    """AdamW and its schedule."""
    loop: LoopSettings
    """Steps, batch size, checkpoints."""
    encode_batch_size: int = Field(default=16, gt=0)
    """Images encoded at once when latents are cached; other sizes differ in the last bits."""

    @model_validator(mode="after")
    def _consistent(self) -> Train:
        if (self.data is None) == (self.data_from is None):
            raise ValueError("give exactly one of `data` (a source of images) and `data_from` (a stage)")
        if self.model is not None and self.model_from is not None:
            raise ValueError("give `model` or `model_from` (a stage), not both")
        if self.model is None and self.model_from is None and not isinstance(self.objective, Classification):
            raise ValueError("no model; set `model` here or at the top of the recipe")
        if any(weight <= 0 for weight in self.captions.values()):
            raise ValueError("captions: every weight must be above 0; leave a kind out instead")
        if isinstance(self.objective, Contrastive) and self.loop.micro_batch_size not in (None, self.loop.batch_size):
            raise ValueError("the contrastive loss couples the whole batch: micro_batch_size cannot be smaller")
        if isinstance(self.objective, Denoising) and not self.captions:
            raise ValueError("captions: name the kinds to train on with their weights, for example {dense: 1}")
        if self.init == "random" and isinstance(self.trained, LoraSettings):
            raise ValueError("init: a LoRA over random weights is of no use; train `full` components")
        return self

    def inspect(self) -> dict[str, JsonValue]:
        examples = self.loop.steps * self.loop.batch_size
        facts: dict[str, JsonValue] = {"steps": self.loop.steps, "examples seen": examples}
        if self.data and self.data.type != "shapes":
            facts |= {"images": self.data.count(), "passes": round(examples / self.data.count(), 2)}
        return facts

    def run(self, context: StageContext) -> dict[str, Any]:
        import shutil

        from t2i.data.batches import KeyedBatches
        from t2i.training.loop import fit
        from t2i.training.tasks import build_task

        records = self._records(context)
        task = build_task(self._task_settings(context, records), self.objective)
        batches = KeyedBatches(
            task.examples,
            context.seed,
            self.loop.batch_size,
            self.loop.micro_batch_size or self._share_of_batch(),
            self.loop.workers,
        )
        result = fit(task.trainable, batches, self.loop, self.optimizer, context.folder, seed=context.seed)
        metadata = {"t2i_recipe": context.recipe_name, "t2i_steps": str(result.steps)}
        facts = task.facts() | task.save(metadata) | {"steps": result.steps}
        # A finished stage does not resume; its latents and optimizer states are the bulk of its size.
        for name in ("latents", "checkpoints"):
            shutil.rmtree(context.folder / name, ignore_errors=True)
        return facts

    def _records(self, context: StageContext) -> list[CaptionedImage]:
        if self.data is None:
            return load_records(context.input("data_from") / RECORDS_FILE)
        return load_records(save_records(context.folder, self.data.materialize(context.folder, context.seed)))

    def _share_of_batch(self) -> int:
        from accelerate import PartialState

        return max(1, self.loop.batch_size // PartialState().num_processes)

    def _task_settings(self, context: StageContext, records: list[CaptionedImage]) -> Any:
        from t2i.data.captions import CaptionMix
        from t2i.training.outputs import MODEL_FOLDER
        from t2i.training.tasks import TaskSettings

        model = str(context.input("model_from") / MODEL_FOLDER) if self.model_from else self.model
        return TaskSettings(
            model=model or "",
            revision=self.revision,
            random_seed=context.seed if self.init == "random" else None,
            trained=self.trained,
            mix=CaptionMix(dict(self.captions), self.caption_dropout) if self.captions else None,
            resolution=self.resolution,
            posterior=self.posterior,
            records=records,
            seed=context.seed,
            folder=context.folder,
            encode_batch_size=self.encode_batch_size,
        )
