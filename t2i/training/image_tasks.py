"""Training on images as they are: an autoencoder, a CLIP, a reader of images. No noise, no cached latents."""

from __future__ import annotations

import importlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from t2i import lora
from t2i.data.encode import load_pixels
from t2i.data.examples import ImageExamples
from t2i.errors import ConfigError
from t2i.families.loading import load_family, locate_checkpoint
from t2i.objectives import Autoencoder, Classification, Contrastive
from t2i.objectives.base import ImageBatch, LossOutput
from t2i.randomness import seeded_global
from t2i.records import CaptionedImage
from t2i.training.outline import checked_resolution
from t2i.training.outputs import MODEL_FOLDER, save_pipeline
from t2i.training.trainable import Trainable

if TYPE_CHECKING:
    from t2i.training.tasks import TaskSettings

_MEASURED, _DECODED = 512, 64
"""Images, at most, by whose latents a trained autoencoder is scaled, and of these the first that are painted again."""


class AutoencoderTask:
    """The autoencoder of a pipeline, on images alone."""

    def __init__(self, settings: TaskSettings, objective: Autoencoder) -> None:
        self.settings = settings
        self.family = load_family(settings.model, revision=settings.revision, random_seed=settings.random_seed)
        self.vae = self.family.pipeline.vae
        lora.freeze(self.family)
        self.vae.requires_grad_(True)
        self.resolution = checked_resolution(self.family, settings.resolution)
        with torch.no_grad():
            shape = self.family.encode_images(torch.zeros(1, 3, self.resolution, self.resolution)).mean.shape[1:]
        self.examples = ImageExamples(settings.records, self.resolution, settings.seed, tuple(shape))
        self.trainable = Trainable(_AutoencoderModule(self.vae, objective))

    def facts(self) -> dict[str, Any]:
        return {"images": len(self.settings.records), "resolution": self.resolution}

    def save(self, metadata: dict[str, str]) -> dict[str, Any]:
        """With new weights also sets `scaling_factor`, so that scaled latents have unit deviation (Rombach et al. 2022,
        appendix G). That of a trained autoencoder stays: a denoiser knows its latents at that scale."""
        stride = max(1, -(-len(self.settings.records) // _MEASURED))
        mean, error = self._measure(self.settings.records[::stride])
        if self.settings.random_seed is not None:
            # More digits than a scale needs, and the config stays readable.
            self.vae.register_to_config(scaling_factor=float(f"{1 / float(mean.std()):.6g}"))
        psnr = -10 * float(torch.tensor(error / 4, dtype=torch.float64).log10())
        scale = self.vae.config.scaling_factor
        return save_pipeline(self.family.pipeline, self.settings.folder) | {"psnr_db": psnr, "scaling_factor": scale}

    @torch.no_grad()
    def _measure(self, records: Sequence[CaptionedImage]) -> tuple[Tensor, float]:
        """Latent means [N, C, h, w] of images, and the mean squared error of the first that are painted again.

        In portions of `encode_batch_size`: the whole state of the training is still on the device.
        """
        device, portion = next(self.vae.parameters()).device, self.settings.encode_batch_size
        means: list[Tensor] = []
        squares, values = 0.0, 0
        for start in range(0, len(records), portion):
            part = [load_pixels(record, self.resolution) for record in records[start : start + portion]]
            pixels = torch.stack(part).to(device)
            mean = self.vae.encode(pixels).latent_dist.mean
            means.append(mean)
            if start < _DECODED:
                first = slice(0, _DECODED - start)
                painted = self.vae.decode(mean[first]).sample.clamp(-1, 1)
                squares += float((painted - pixels[first]).double().square().sum())
                values += painted.numel()
        return torch.cat(means), squares / values


class _AutoencoderModule(nn.Module):
    def __init__(self, vae: nn.Module, objective: Autoencoder) -> None:
        super().__init__()
        self.vae, self.objective = vae, objective

    def forward(self, batch: ImageBatch) -> LossOutput:
        return self.objective(self.vae, batch)  # pyright: ignore[reportArgumentType]


class ContrastiveTask:
    """A CLIPModel on captioned images."""

    def __init__(self, settings: TaskSettings, objective: Contrastive) -> None:
        from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

        if settings.mix is None:
            raise ConfigError("captions: a contrastive model needs captions to train on, for example {dense: 1}.")
        settings.mix.check(settings.records)
        self.settings, folder = settings, locate_checkpoint(settings.model, settings.revision)
        if settings.random_seed is None:
            self.model = CLIPModel.from_pretrained(folder, dtype=torch.float32)
        else:
            with seeded_global(settings.random_seed, "initialisation", 0):
                self.model = CLIPModel(CLIPConfig.from_pretrained(folder))
        self.source = folder
        self.tokenizer = CLIPTokenizer.from_pretrained(folder)
        vision: Any = self.model.config.vision_config
        resolution = settings.resolution or vision.image_size
        self.examples = ImageExamples(settings.records, resolution, settings.seed, mix=settings.mix)
        self.trainable = Trainable(_ContrastiveModule(self.model, self.tokenizer, self.source, objective))

    def facts(self) -> dict[str, Any]:
        return {"images": len(self.settings.records), "parameters": sum(p.numel() for p in self.model.parameters())}

    def save(self, metadata: dict[str, str]) -> dict[str, Any]:
        folder = self.settings.folder / MODEL_FOLDER
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        (folder / "preprocessor_config.json").write_bytes((self.source / "preprocessor_config.json").read_bytes())
        return {"model": MODEL_FOLDER}


class _ContrastiveModule(nn.Module):
    def __init__(self, model: Any, tokenizer: Any, folder: Path, objective: Contrastive) -> None:
        super().__init__()
        config = json.loads((folder / "preprocessor_config.json").read_text())
        self.model, self.tokenizer, self.objective = model, tokenizer, objective
        self.register_buffer("mean", torch.tensor(config["image_mean"]).reshape(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(config["image_std"]).reshape(1, 3, 1, 1), persistent=False)

    def forward(self, batch: ImageBatch) -> LossOutput:
        pixels = ((batch.pixels + 1) / 2 - self.get_buffer("mean")) / self.get_buffer("std")
        tokens = self.tokenizer(list(batch.prompts), padding="max_length", truncation=True, return_tensors="pt")
        tokens = tokens.to(pixels.device, non_blocking=True)
        output = self.model(tokens.input_ids, pixels, tokens.attention_mask)
        return self.objective(output.image_embeds, output.text_embeds, self.model.logit_scale.exp())


class ClassificationTask:
    """A reader of images, given as `module:Class`."""

    def __init__(self, settings: TaskSettings, objective: Classification) -> None:
        module, _, name = objective.reader.partition(":")
        try:
            reader_class = getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError, ValueError) as error:
            raise ConfigError(f"objective.reader: {objective.reader!r} cannot be imported ({error}).") from error
        with seeded_global(settings.random_seed or settings.seed, "initialisation", 0):
            self.model = reader_class()
        self.settings = settings
        resolution = settings.resolution or self.model.image_size
        self.examples = ImageExamples(
            settings.records, resolution, settings.seed, tuple(self.model.noise_shape), labels=self.model.labels
        )
        self.trainable = Trainable(_ClassificationModule(self.model, objective))

    def facts(self) -> dict[str, Any]:
        return {"images": len(self.settings.records), "parameters": sum(p.numel() for p in self.model.parameters())}

    def save(self, metadata: dict[str, str]) -> dict[str, Any]:
        self.model.save_pretrained(self.settings.folder / MODEL_FOLDER)
        return {"model": MODEL_FOLDER}


class _ClassificationModule(nn.Module):
    def __init__(self, model: Any, objective: Classification) -> None:
        super().__init__()
        self.model, self.objective = model, objective

    def forward(self, batch: ImageBatch) -> LossOutput:
        pixels, labels = self.model.augment(batch.pixels, batch.labels, batch.noise)
        return self.objective(self.model(pixels), labels)
