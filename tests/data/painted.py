"""Pictures whose colour tells their number, and a stand-in for a model family whose latents show the colour."""

from __future__ import annotations

import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from t2i.data.images import content_id
from t2i.families.base import Conditioning, Posterior
from t2i.records import Caption, CaptionedImage

CELL = 8
"""Pixels of a side that one latent position stands for."""


class Averaging(nn.Module):
    """An autoencoder without a decoder: the mean colour of each cell of 8 x 8 pixels."""

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(scale))
        self.config = {"scaling_factor": 1.0}


class Counting(nn.Module):
    """A text encoder: the length of the text and the number in it."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.config = {"layers": 1}


class PaintedFamily:
    """What the data path asks of a family. Counts what it encodes."""

    def __init__(self, *, scale: float = 1.0, takes_sizes: bool = False, tokens: int = 2) -> None:
        self.facts = types.SimpleNamespace(name="painted", text_encoders=("text_encoder",), takes_sizes=takes_sizes)
        vae, encoder = Averaging(scale), Counting()
        self.pipeline = types.SimpleNamespace(vae=vae, components={"vae": vae, "text_encoder": encoder})
        self.denoiser = nn.Linear(1, 1)
        self.tokens = tokens
        self.encoded: list[int] = []
        self.texts: list[str] = []

    def encode_images(self, pixels: Tensor) -> Posterior:
        self.encoded.append(len(pixels))
        mean = nn.functional.avg_pool2d(pixels, CELL) * self.pipeline.vae.scale
        return Posterior(mean, torch.full_like(mean, 1e-6))

    def encode_prompts(self, prompts: Sequence[str]) -> Conditioning:
        self.texts.extend(prompts)
        rows = [[float(len(text)), float(number_in(text))] for text in prompts]
        embeds = torch.tensor(rows)[:, None, :].repeat(1, self.tokens, 1)
        return Conditioning(embeds, pooled=embeds[:, 0])

    def count_truncated(self, prompts: Sequence[str]) -> dict[str, int]:
        return {"text_encoder": sum(len(prompt) > 12 for prompt in prompts)}


def number_in(text: str) -> int:
    """The number in a caption, or -1."""
    digits = "".join(character for character in text if character.isdigit())
    return int(digits) if digits else -1


def colour(number: int) -> tuple[int, int, int]:
    """Red and green count in steps of 16, so that compression and rounding cannot hide the number."""
    return (16 * (number % 16), 16 * (number // 16), 128)


def shown_number(latents: Tensor) -> int:
    """The number of the picture that latents [3, h, w] were made from."""
    red, green = (round(float((latents[channel].mean() + 1) * 127.5) / 16) for channel in (0, 1))
    return 16 * green + red


def paint(folder: Path, sizes: Sequence[tuple[int, int]], text: str = "picture {}") -> list[CaptionedImage]:
    """One picture of each size, saved, captioned with its number."""
    folder.mkdir(parents=True, exist_ok=True)
    return [paint_one(folder, number, size, text.format(number)) for number, size in enumerate(sizes)]


def paint_one(folder: Path, number: int, size: tuple[int, int], text: str, **extra: Any) -> CaptionedImage:
    path = folder / f"{number:04d}.png"
    Image.new("RGB", size, colour(number)).save(path)
    return CaptionedImage(content_id(path), str(path), *size, (Caption("caption", text),), extra)
