"""How a recipe asks for a guard against over-optimisation, and what it measures with."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from t2i import processes
from t2i.config import FrozenModel, ModelPath
from t2i.data.prompts import PromptSource
from t2i.sampling import SamplingSettings
from t2i.stages.score import Scorer, reward_errors

if TYPE_CHECKING:
    from PIL import Image

    from rewards import Reward
    from rewards.clip_encoder import ClipEncoder
    from t2i.records import Prompt
    from t2i.sampling import Sampler
    from t2i.training.guard import Guard
    from t2i.training.overoptimisation import Reading, Rule
    from t2i.training.tasks import Task, TaskSettings

GUARD_FOLDER = "guard"
"""Its images, a folder for each step."""


class GuardSettings(FrozenModel):
    """Sample fixed prompts and seeds while training, score them, keep the checkpoint that is best by a reward that is
    not trained on, and stop when only the trained reward still rises."""

    prompts: PromptSource
    """Prompts that nothing is trained on: 50 or more, or the intervals are too wide to show anything."""
    images_per_prompt: int = Field(default=1, ge=1)
    """Images of each, with different seeds; 2 or more for diversity."""
    every: int = Field(gt=0)
    """Steps between readings; a twentieth of the run is usual."""
    rewards: tuple[Scorer, ...]
    """With `role`: `train` what the run is optimised against, directly or through pairs; `held_out`, of which the first
    says what is best; `control` is recorded only."""
    encoder: ModelPath | None = None
    """A CLIP or SigLIP model whose embeddings tell diversity, and fidelity to the untrained model; else neither is."""
    max_diversity_loss: float = Field(default=0.5, gt=0, lt=1)
    """Share of the untrained model's diversity that may be lost."""
    min_fidelity: float | None = Field(default=None, gt=-1, lt=1)
    """Mean cosine that images must keep to those of the untrained model with the same prompts and seeds."""
    level: float = Field(default=0.95, gt=0.5, lt=1)
    """Confidence of the intervals; that of the fall below the best of k readings is stricter, (1 - level) / k."""
    patience: int = Field(default=2, ge=1)
    """Readings in a row that must show over-optimisation before the run is stopped."""
    stop: bool = True
    """Stop the run, or only warn."""
    result: Literal["best", "last"] = "best"
    """Which weights are the result of the stage."""
    seed: int = Field(default=0, ge=0)
    """Decides the noise that the images begin with."""
    sampling: SamplingSettings = SamplingSettings()
    """Steps, guidance, scheduler, size."""
    batch_size: int = Field(default=8, ge=1)
    """Images generated at once."""

    @model_validator(mode="after")
    def _has_both_roles(self) -> GuardSettings:
        roles = {scorer.role for scorer in self.rewards}
        for role in ("train", "held_out"):
            if role not in roles:
                raise ValueError(f"guard.rewards: none has `role: {role}`; the guard compares both kinds")
        if self.min_fidelity is not None and self.encoder is None:
            raise ValueError("guard.min_fidelity: needs an `encoder` to measure it with")
        tells_diversity = self.encoder is not None and self.images_per_prompt > 1
        if self.max_diversity_loss != type(self).model_fields["max_diversity_loss"].default and not tells_diversity:
            raise ValueError("guard.max_diversity_loss: needs an `encoder`, and images_per_prompt of 2 or more")
        names = [scorer.label or scorer.name for scorer in self.rewards]
        if len(set(names)) < len(names):
            raise ValueError(f"guard.rewards: labels repeat: {', '.join(names)}; give each a `label` of its own")
        return self

    def check(self) -> None:
        """Raise for rewards that cannot be made and prompts that cannot be read; opens no model."""
        with reward_errors():
            for scorer in self.rewards:
                scorer.load()
        self.prompts.read(self.seed)

    def rule(self) -> Rule:
        """When the run is over-optimised."""
        from t2i.training.overoptimisation import Rule

        names = {role: tuple(_name(one) for one in self.rewards if one.role == role) for role in ("train", "held_out")}
        return Rule(
            trained=names["train"],
            held_out=names["held_out"],
            images_per_prompt=self.images_per_prompt,
            level=self.level,
            patience=self.patience,
            max_diversity_loss=self.max_diversity_loss,
            min_fidelity=self.min_fidelity,
        )


@dataclass(frozen=True)
class Measure:
    """Samples, scores and embeds; `prepare` loads what it scores with, so that what is missing is told at once."""

    settings: GuardSettings
    prompts: tuple[Prompt, ...]
    rewards: dict[str, Reward]
    encoder: ClipEncoder | None
    sampler: Callable[[], AbstractContextManager[Sampler]]
    """The model as it is, from its saved file."""
    folder: Path
    _untrained: list[Any] = field(default_factory=list)
    """Embeddings of the untrained model's images, once they are known."""

    @classmethod
    def prepare(
        cls, settings: GuardSettings, sampler: Callable[[], AbstractContextManager[Sampler]], folder: Path
    ) -> Measure:
        """Read the prompts and load the rewards. Raises ConfigError for fewer than 2 prompts."""
        from rewards.clip_encoder import ClipEncoder
        from rewards.clip_source import TransformersClip
        from t2i.errors import ConfigError
        from t2i.resources import resolve_path

        prompts = tuple(settings.prompts.read(settings.seed))
        if len(prompts) < 2:
            raise ConfigError(
                f"guard.prompts: {len(prompts)} prompt; an interval over prompts needs 2, and more to show."
            )
        encoder = None
        if settings.encoder is not None:
            local = resolve_path(settings.encoder)
            source = TransformersClip(str(local) if local.exists() else settings.encoder)
            encoder = ClipEncoder(source, "cpu", settings.batch_size)
        rewards = {_name(scorer): scorer.load() for scorer in settings.rewards}
        return cls(settings, prompts, rewards, encoder, sampler, folder)

    def __call__(self, step: int) -> Reading:
        """Sample and score at a step. The images are kept."""
        from t2i.training.overoptimisation import Reading

        with self.sampler() as sampler:
            images = list(self._sample(sampler))
        texts = [prompt.text for prompt in self.prompts for _ in range(self.settings.images_per_prompt)]
        self._save(step, images)
        scores = {name: self._score(reward, images, texts) for name, reward in self.rewards.items()}
        diversity, fidelity = self._embedded(step, images)
        return Reading(step, scores, diversity, fidelity)

    def _sample(self, sampler: Sampler) -> Iterator[Image.Image]:
        from t2i.randomness import image_seed

        wanted = [
            (prompt.text, image_seed(self.settings.seed, number, sample))
            for number, prompt in enumerate(self.prompts)
            for sample in range(self.settings.images_per_prompt)
        ]
        for batch in _batches(wanted, self.settings.batch_size):
            yield from sampler.generate([text for text, _ in batch], [seed for _, seed in batch])

    def _save(self, step: int, images: Sequence[Image.Image]) -> None:
        from t2i.files import write_bytes

        folder = self.folder / GUARD_FOLDER / f"step-{step:08d}"
        folder.mkdir(parents=True, exist_ok=True)
        for number, image in enumerate(images):
            prompt, sample = divmod(number, self.settings.images_per_prompt)
            buffer = io.BytesIO()
            image.save(buffer, "PNG")
            write_bytes(folder / f"{prompt:05d}-{sample:02d}.png", buffer.getvalue())

    def _score(self, reward: Reward, images: Sequence[Image.Image], texts: Sequence[str]) -> list[float]:
        from rewards.base import check_scores

        sign = 1.0 if reward.higher_is_better else -1.0
        values: list[float] = []
        for batch in _batches(list(zip(images, texts, strict=True)), self.settings.batch_size):
            prompts = [text for _, text in batch] if reward.needs_prompt else None
            scores = check_scores(reward.name, reward.score([image for image, _ in batch], prompts), len(batch))
            values += [sign * float(value) for value in scores]
        return values

    def _embedded(self, step: int, images: Sequence[Image.Image]) -> tuple[list[float], list[float]]:
        """(diversity of each prompt, fidelity of each image); empty lists without an encoder."""
        if self.encoder is None:
            return [], []
        vectors = self.encoder.encode_images(images).double()
        if not self._untrained:
            self._untrained.append(vectors if step == 0 else self.encoder.encode_images(self._read(0)).double())
        fidelity = (vectors * self._untrained[0]).sum(dim=-1).tolist()
        count = self.settings.images_per_prompt
        if count == 1:
            return [], fidelity
        grouped = vectors.reshape(len(self.prompts), count, -1)
        # The mean of 1 - cosine over the pairs of a prompt's images, from the length of their sum.
        together = grouped.sum(dim=1).square().sum(dim=-1)
        return (1 - (together - count) / (count * (count - 1))).tolist(), fidelity

    def _read(self, step: int) -> list[Image.Image]:
        from t2i.data.images import list_images, open_image

        return [open_image(path) for path in list_images(self.folder / GUARD_FOLDER / f"step-{step:08d}")]


def begin_guard(settings: GuardSettings, task: Task, training: TaskSettings, steps: int) -> Guard:
    """The guard of a run of so many steps, once it has measured the model before training.

    Raises ConfigError for a task that paints nothing.
    """
    from functools import partial

    from rich.console import Console

    from t2i.errors import ConfigError
    from t2i.training.guard import Guard
    from t2i.training.samples import saved_sampler
    from t2i.training.tasks import DiffusionTask

    if not isinstance(task, DiffusionTask):
        raise ConfigError("guard: only a denoiser paints images that could be scored.")
    sampler = partial(
        saved_sampler,
        training.model,
        training.revision,
        settings.sampling,
        save=lambda folder: task.save_into(folder, {}),
        working=training.folder / "checkpoints" / "guarded",
    )
    measure = Measure.prepare(settings, sampler, training.folder)
    say = partial(Console(stderr=True).print, markup=False, highlight=False, soft_wrap=True)
    guard = Guard(training.folder, steps, settings.every, settings.rule(), measure, settings.stop, say)
    processes.first(guard.begin)
    return guard


def _name(scorer: Scorer) -> str:
    """How readings and messages call a reward."""
    return scorer.label or scorer.name


def _batches(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
