"""Generate images from prompts, with or without a trained adapter."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, JsonValue, model_validator

from t2i.captioners.upsample import AnyUpsampler
from t2i.config import LocalPath, ModelPath
from t2i.data.prompts import PromptSource, ShapesPrompts
from t2i.encoder_texts import EncoderPrompt, EncoderTexts, names_of
from t2i.files import write_bytes, write_text
from t2i.objectives import denoising_of
from t2i.records import ExpandedPrompt, GeneratedImage, Prompt, write_jsonl
from t2i.sampling import SamplingSettings
from t2i.stages.base import InspectContext, Stage, StageContext
from t2i.stages.expansions import EXPANSIONS_FILE, expand_prompts, expansions_of
from t2i.stages.trained_kind import is_whole, trainings_of

if TYPE_CHECKING:
    from t2i.sampling import Sampler

GENERATIONS_FILE = "generations.jsonl"
SAMPLING_FILE = "sampling.json"
CUT_PROMPTS_FILE = "cut_prompts.json"
"""Text encoder -> prompts that are longer than it reads."""


class Generate(Stage):
    """Write `images/` and `generations.jsonl`.

    Seeds depend on the stage's seed, prompt number and sample alone, so that two generate stages with the same prompts
    are paired.
    """

    version: ClassVar[int] = 3
    produces: ClassVar[str] = "generations"
    accepts: ClassVar[dict[str, tuple[str, ...]]] = {
        "weights_from": ("weights",),
        "expansions_from": ("generations",),
    }

    type: Literal["generate"] = "generate"
    model: ModelPath | None = None
    """Hub id or folder of the model; the recipe's `model` if absent."""
    revision: str | None = None
    """Commit or tag of a hub model."""
    weights_from: str | None = None
    """A train stage: its adapter over `model`, or its whole model instead. Absent: `model` itself."""
    adapter: LocalPath | None = None
    """A LoRA file, instead of `weights_from`."""
    prompts: PromptSource
    """What to generate."""
    expand: AnyUpsampler | None = None
    """What writes the prompts out before they are painted. They are scored as they were."""
    expand_for: tuple[str, ...] = ()
    """Text encoders that read the written-out prompts (`t5`, `clip`, `clip_g`); the others read them as they were.
    None named: all."""
    expansions_from: str | None = None
    """A generate stage with the same prompts and `expand`: paint what it painted, as the other arm of a comparison."""
    images_per_prompt: int = Field(default=1, ge=1)
    """Images of each prompt, with different seeds."""
    sampling: SamplingSettings = SamplingSettings()
    """Steps, guidance, scheduler, size."""
    batch_size: int = Field(default=8, ge=1)
    """Images generated at once. Part of the result: batches of other sizes differ in the last bits."""

    @model_validator(mode="after")
    def _one_adapter(self) -> Generate:
        if self.weights_from is not None and self.adapter is not None:
            raise ValueError("give `weights_from` (a stage) or `adapter` (a LoRA file), not both")
        if self.expand is not None and self.expansions_from is not None:
            raise ValueError("give `expand` (what writes prompts out) or `expansions_from` (a stage), not both")
        if self.expand_for and self.expand is None and self.expansions_from is None:
            raise ValueError("expand_for: nothing writes the prompts out; set `expand` or `expansions_from`")
        return self

    def check(self) -> None:
        # How many scenes differ depends on the seed, which may be the recipe's.
        if not isinstance(self.prompts, ShapesPrompts):
            self.prompts.read(0)

    def misfit(self, earlier: Mapping[str, Stage]) -> tuple[str, str]:
        if self.model is None and self.weights_from is None:
            return "model", "no model; set `model` here or at the top of the recipe"
        source = self.weights_from
        is_adapter = self.adapter is not None if source is None else not is_whole(earlier.get(source))
        message = self._misfit_of_adapter(earlier) if is_adapter else self._misfit_of_model()
        return ("sampling", message) if message else ("", "")

    def _misfit_of_model(self) -> str:
        scale = self.sampling.lora_scale
        return "" if scale == 1 else f"lora_scale: {scale:g} scales an adapter, and there is none here; leave it out"

    def _misfit_of_adapter(self, earlier: Mapping[str, Stage]) -> str:
        """Unlike a whole model, an adapter has no scheduler to say that its noise ends in nothing but noise."""
        if self.weights_from is None or self.sampling.zero_terminal_snr:
            return ""
        for stage in trainings_of(self.weights_from, earlier):
            denoising = denoising_of(getattr(stage, "objective", None))
            if denoising is not None and denoising.zero_terminal_snr:
                return f"zero_terminal_snr: the objective of {stage.label} trains with it, so set it here too"
        return ""

    def inspect(self, context: InspectContext) -> dict[str, JsonValue]:
        prompts = self.prompts.read(self.seed or 0)
        return {"prompts": len(prompts), "images": len(prompts) * self.images_per_prompt}

    def run(self, context: StageContext) -> dict[str, Any]:
        from t2i.randomness import image_seed
        from t2i.training.progress import progress_bar

        prompts = self.prompts.read(context.seed)
        expansions = self._expansions(context, prompts)
        rows = [
            GeneratedImage(
                prompt_id=prompt.id,
                prompt=prompt.text,
                seed=image_seed(context.seed, number, sample),
                image=f"images/{number:05d}-{sample:02d}.png",
                sample=sample,
                category=prompt.category,
                expanded=expansions[number].expanded if expansions else "",
            )
            for number, prompt in enumerate(prompts)
            for sample in range(self.images_per_prompt)
        ]
        (context.folder / "images").mkdir(exist_ok=True)
        texts = [self._text(row) for row in rows if row.sample == 0]
        sampler: Sampler | None = None
        with progress_bar("generating", 0, len(rows)) as advance:
            for start in range(0, len(rows), self.batch_size):
                batch = rows[start : start + self.batch_size]
                # An unfinished batch is redone whole: a part of it would be another batch, and other bits.
                if not all((context.folder / row.image).exists() for row in batch):
                    sampler = sampler or self._sampler(context, texts)
                    self._generate(sampler, batch, context.folder)
                advance(min(start + self.batch_size, len(rows)))
        if not (context.folder / CUT_PROMPTS_FILE).is_file():
            self._sampler(context, texts)
        record = json.dumps(self._record(context), indent=2, sort_keys=True)
        write_text(context.folder / SAMPLING_FILE, record + "\n")
        write_jsonl(context.folder / GENERATIONS_FILE, rows)
        cut = json.loads((context.folder / CUT_PROMPTS_FILE).read_text())
        summary = [f"{n} of {len(prompts)} prompts are longer than the {name} reads" for name, n in cut.items() if n]
        kept = sum(not row.expanded for row in expansions)
        summary += [f"{kept} of {len(prompts)} prompts were not written out: {EXPANSIONS_FILE}"] if kept else []
        return {"prompts": len(prompts), "images": len(rows), **({"summary": summary} if summary else {})}

    def _generate(self, sampler: Sampler, batch: list[GeneratedImage], folder: Path) -> None:
        images = sampler.generate([self._text(row) for row in batch], [row.seed for row in batch])
        for row, image in zip(batch, images, strict=True):
            buffer = io.BytesIO()
            image.save(buffer, "PNG")
            write_bytes(folder / row.image, buffer.getvalue())

    def _expansions(self, context: StageContext, prompts: list[Prompt]) -> list[ExpandedPrompt]:
        """One for each prompt, or none where prompts are painted as they are."""
        if self.expand is not None:
            return expand_prompts(self.expand, prompts, context.folder, context.seed)
        if self.expansions_from is not None:
            return expansions_of(context.input("expansions_from"), prompts)
        return []

    def _text(self, row: GeneratedImage) -> EncoderPrompt:
        """What the text encoders are given."""
        if not self.expand_for or not row.expanded:
            return row.painted
        return EncoderTexts(row.prompt, tuple((encoder, row.expanded) for encoder in self.expand_for))

    def _sampler(self, context: StageContext, prompts: list[EncoderPrompt]) -> Sampler:
        """Load the model, and write down which prompts it cuts: a run that finds that and all images loads none."""
        from t2i.sampling import Sampler

        model, revision, adapter = self._weights(context)
        sampler = Sampler.load(model, self.sampling, revision=revision, adapter=adapter)
        self._check_encoders(model, sampler.encoders)
        write_text(context.folder / CUT_PROMPTS_FILE, json.dumps(sampler.count_truncated(prompts)) + "\n")
        return sampler

    def _check_encoders(self, model: str, encoders: tuple[str, ...]) -> None:
        from t2i.errors import ConfigError

        known = [name for encoder in encoders for name in names_of(encoder)]
        unknown = [name for name in self.expand_for if name not in known]
        if unknown or (self.expand_for and len(encoders) < 2):
            raise ConfigError(
                f"stage {self.label}: expand_for: found {', '.join(self.expand_for)}; the text encoders of {model} are "
                f"{', '.join(encoders)}{'' if len(encoders) > 1 else ', so leave it out'}."
            )

    def _weights(self, context: StageContext) -> tuple[str, str | None, Path | None]:
        """(model, its revision on the hub, LoRA file) that this stage samples from."""
        from t2i.errors import ConfigError
        from t2i.resources import resolve_path
        from t2i.stages.lineage import trained_over
        from t2i.training.outputs import trained_adapter, trained_model

        if self.weights_from is not None:
            folder = context.input("weights_from")
            whole = trained_model(folder)
            if whole is not None:
                return str(whole), None, None
            adapter = trained_adapter(folder)
            base = trained_over([folder])
            if base is not None:
                return str(base), None, adapter
        else:
            adapter = resolve_path(self.adapter) if self.adapter else None
        if self.model is None:
            raise ConfigError(f"stage {self.label}: no model; set `model` here or at the top of the recipe.")
        return self.model, self.revision, adapter

    def _record(self, context: StageContext) -> dict[str, Any]:
        """What both arms of a comparison must share, and what made these images."""
        from t2i.families.loading import describe_checkpoint, family_class

        sampling = self.sampling
        if sampling.guidance_scale is None:
            model, revision, _ = self._weights(context)
            sampling = sampling.resolved(family_class(describe_checkpoint(model, revision=revision)).facts)
        return {
            "model": self.model,
            "revision": self.revision,
            "weights": [folder.name for _, folder in context.inputs.get("weights_from", [])],
            **({"adapter": self.adapter} if self.adapter else {}),
            "images_per_prompt": self.images_per_prompt,
            "batch_size": self.batch_size,
            "sampling": sampling.model_dump(mode="json", exclude={"offload"}),
            "seed": context.seed,
            **({"expand_for": list(self.expand_for)} if self.expand_for else {}),
        }
