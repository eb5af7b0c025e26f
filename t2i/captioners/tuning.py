"""Tune a captioner on a few human captions, with trl's SFTTrainer: the one trainer here that is not our own.

Segalis et al. 2023 (RECAP, arXiv:2310.16656), first step. The model is asked exactly as captioning asks it, by the same
code, and learns the tokens of the answer alone.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from t2i.captioners.adapters import old_names_allowed
from t2i.captioners.lessons import Lesson, caption_loss
from t2i.captioners.opened import OpenedModel
from t2i.config import FrozenModel, speed_only
from t2i.errors import ConfigError, RunError
from t2i.randomness import derive_key

CHECKPOINTS_FOLDER = "checkpoints"
_STATE_FILE = "trainer_state.json"
"""What the trainer writes last into a checkpoint."""


class CaptionerLora(FrozenModel):
    """The adapter: low-rank factors in the language model; what reads the image stays as it is."""

    rank: int = Field(default=16, ge=1, le=1024)
    """Width; 8 to 32 for a way of writing."""
    alpha: float | None = Field(default=None, gt=0)
    """Strength is alpha / rank; equal to the rank if absent."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share of the adapter's inputs that are dropped while tuning; 0.05 helps where captions are few."""
    targets: tuple[str, ...] = Field(default=("q_proj", "k_proj", "v_proj", "o_proj"), min_length=1)
    """Suffixes of the language model's layers to adapt."""


class TuningLoop(FrozenModel):
    """How long and in what portions to tune."""

    steps: int = Field(gt=0)
    """Optimizer steps; 100 captions in batches of 8 are seen five times in 63."""
    batch_size: int = Field(gt=0)
    """Captions a step."""
    micro_batch_size: int | None = Field(default=None, gt=0)
    """Captions per forward pass, to save memory; the whole batch if absent. Other portions differ in the last bits."""
    learning_rate: float = Field(gt=0)
    """Peak learning rate of AdamW: 1e-4 to 2e-4 is usual for a LoRA."""
    warmup_steps: int = Field(default=0, ge=0)
    """Linear rise of the learning rate from 0."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """Course of the learning rate after the warm-up; linear and cosine end at 0."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Decoupled weight decay."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Gradients are scaled down to this L2 norm."""
    checkpoint_every: int = speed_only(50, gt=0)
    """Steps between checkpoints, from which a run that was killed goes on."""
    gradient_checkpointing: bool = speed_only(False)
    """Compute the inside of blocks again in the backward pass instead of keeping it: less memory, a third more time."""

    @model_validator(mode="after")
    def _batch_divides(self) -> TuningLoop:
        if self.micro_batch_size is not None and self.batch_size % self.micro_batch_size:
            both = f"batch_size {self.batch_size}, micro_batch_size {self.micro_batch_size}"
            raise ValueError(f"{both}: the batch must be a multiple of its portions")
        return self


@dataclass(frozen=True)
class Tuned:
    """What tuning gave. model: a peft model; log: (step, training loss); before, after: loss on held-out captions."""

    model: Any
    log: list[tuple[int, float]]
    before: float | None
    after: float | None


def tune(
    lesson: Lesson, held_out: Lesson | None, lora: CaptionerLora, loop: TuningLoop, seed: int, folder: Path
) -> Tuned:
    """Train an adapter; checkpoints go into `folder/checkpoints`, and a run that was killed goes on from the last.

    The batches are a function of the seed and the step. Raises MissingDependencyError without trl, ConfigError for
    targets that the model does not have.
    """
    from t2i.training.extras import require_package
    from t2i.training.progress import progress_bar

    require_package("trl", "tune_captioner")
    portion = loop.micro_batch_size or loop.batch_size
    before = caption_loss(lesson.opened.model, held_out, portion) if held_out else None
    with old_names_allowed(), _own_precision(), progress_bar("tuning", 0, loop.steps) as advance:
        trainer = _trainer(lesson, lora, loop, seed, folder / CHECKPOINTS_FOLDER)
        trainer.add_callback(_reporting(advance))
        trainer.train(resume_from_checkpoint=_last_checkpoint(folder / CHECKPOINTS_FOLDER))
    model = trainer.model.eval()
    log = [(row["step"], row["loss"]) for row in trainer.state.log_history if "loss" in row]
    if not all(math.isfinite(loss) for _, loss in log):
        raise RunError("tune_captioner: the loss is not finite; lower loop.learning_rate or set dtype bfloat16.")
    return Tuned(model, log, before, caption_loss(model, held_out, portion) if held_out else None)


@contextmanager
def _own_precision() -> Iterator[None]:
    """Have accelerate forget the trainer's precision: it has one per process, and a later train stage sets its own."""
    from accelerate.state import AcceleratorState

    try:
        yield
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)


def _trainer(lesson: Lesson, lora: CaptionerLora, loop: TuningLoop, seed: int, folder: Path) -> Any:
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import PrinterCallback
    from trl import SFTConfig, SFTTrainer

    opened = lesson.opened
    portion = loop.micro_batch_size or loop.batch_size
    on_cpu = opened.model.device.type == "cpu"
    arguments = SFTConfig(
        output_dir=str(folder),
        max_steps=loop.steps,
        per_device_train_batch_size=portion,
        gradient_accumulation_steps=loop.batch_size // portion,
        learning_rate=loop.learning_rate,
        lr_scheduler_type={"constant": "constant_with_warmup"}.get(loop.schedule, loop.schedule),
        warmup_steps=loop.warmup_steps,
        weight_decay=loop.weight_decay,
        max_grad_norm=loop.max_grad_norm,
        optim="adamw_torch",
        seed=derive_key(seed, "captioner") % 2**31,
        # The rows are numbers, in the order in which they are learned; nothing is cut, packed or shuffled by trl.
        max_length=None,
        dataset_kwargs={"skip_prepare_dataset": True},
        remove_unused_columns=False,
        train_sampling_strategy="sequential",
        dataloader_pin_memory=False,
        save_steps=loop.checkpoint_every,
        save_total_limit=2,
        logging_steps=1,
        report_to="none",
        disable_tqdm=True,
        use_cpu=on_cpu,
        bf16=opened.settings.dtype == "bfloat16",
        fp16=opened.settings.dtype == "float16" and not on_cpu,
        activation_checkpointing=loop.gradient_checkpointing,
    )
    adapter = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha or lora.rank,  # pyright: ignore[reportArgumentType]  # any number will do
        lora_dropout=lora.dropout,
        target_modules=_layers(opened, lora),
    )
    order = _order(len(lesson.examples), loop.steps * loop.batch_size, seed)
    trainer = SFTTrainer(
        model=opened.model,
        args=arguments,
        data_collator=lambda rows: lesson.batch([row["number"] for row in rows]),
        train_dataset=Dataset.from_dict({"number": order}),
        processing_class=opened.words,
        peft_config=adapter,
    )
    trainer.remove_callback(PrinterCallback)  # metrics.jsonl has what it prints
    return trainer


def _reporting(advance: Callable[[int], None]) -> Any:
    """A callback that moves a progress bar."""
    from transformers import TrainerCallback

    class Reporting(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            advance(state.global_step)

    return Reporting()


def _order(count: int, places: int, seed: int) -> list[int]:
    """Pass after pass over all examples, each in another order."""
    from t2i.randomness import generator

    turns = -(-places // count)
    passes = [generator(seed, "captioner order", turn).permutation(count) for turn in range(turns)]
    return [int(number) for numbers in passes for number in numbers][:places]


def _layers(opened: OpenedModel, lora: CaptionerLora) -> list[str]:
    """Paths of the layers to adapt. Raises ConfigError for a target that the language model has no layer of."""
    import torch

    decoder = opened.model.get_decoder()
    [prefix] = [path for path, module in opened.model.named_modules() if module is decoder]
    linear = [f"{prefix}.{path}" for path, module in decoder.named_modules() if isinstance(module, torch.nn.Linear)]
    known = sorted({path.rpartition(".")[2] for path in linear})
    unknown = [target for target in lora.targets if not any(path.endswith(f".{target}") for path in linear)]
    if unknown:
        raise ConfigError(f"lora.targets: {unknown[0]!r} is no layer of the language model; it has {', '.join(known)}.")
    return [path for path in linear if path.endswith(tuple(f".{target}" for target in lora.targets))]


def _last_checkpoint(folder: Path) -> str | None:
    """The newest whole checkpoint; what a kill left of others is removed."""
    whole = {}
    for path in folder.glob("checkpoint-*"):
        try:
            json.loads((path / _STATE_FILE).read_text(encoding="utf-8"))
            whole[int(path.name.partition("-")[2])] = path
        except (OSError, ValueError):
            shutil.rmtree(path)
    return str(whole[max(whole)]) if whole else None
