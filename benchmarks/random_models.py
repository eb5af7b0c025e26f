"""Models of published size with random weights, made where they are used: no file, no download, no copy on the host."""

from __future__ import annotations

import importlib
import io
import string
from pathlib import Path
from typing import Any

import numpy as np
import torch
from published import PUBLISHED, Part, Published
from torch import nn

from t2i.data.images import content_id
from t2i.families.base import ModelFamily
from t2i.families.recognise import FAMILIES
from t2i.files import write_bytes
from t2i.randomness import generator
from t2i.records import Caption, CaptionedImage

CAPTIONS = (
    "a brown dog runs along a beach with a red ball in its mouth",
    "an old stone bridge over a quiet river in autumn",
    "two bicycles lean against a blue wall",
    "a bowl of ripe oranges on a wooden table beside a window",
)


def build_family(name: str, device: torch.device, *, dtype: torch.dtype, reduced: bool = False) -> ModelFamily:
    """A family with random weights, the autoencoder in fp32 and the rest in `dtype`; the same for the same torch."""
    published = PUBLISHED[name].reduced(name) if reduced else PUBLISHED[name]
    tokenizers = _tokenizers(published)
    torch.manual_seed(0)
    parts = {part: _random(value, tokenizers, device, dtype, part) for part, value in published.parts.items()}
    scheduler = _class(published.scheduler.class_name)(**published.scheduler.config)
    pipeline: Any = _class(published.pipeline)(**parts, **tokenizers, scheduler=scheduler, **published.options)
    pipeline.set_progress_bar_config(disable=True)
    module, _, family = FAMILIES[published.pipeline].partition(":")
    return getattr(importlib.import_module(module), family)(pipeline)


def _random(part: Part, tokenizers: dict[str, Any], device: torch.device, dtype: torch.dtype, name: str) -> nn.Module:
    kind = _class(part.class_name)
    # In fp32 first, whatever their precision: positions are computed in the default one.
    with device:
        if hasattr(kind, "config_class") and kind.config_class is not None and name.startswith("text"):
            model = kind(
                kind.config_class(**part.config, **_marks(tokenizers[name.replace("text_encoder", "tokenizer")]))
            )
        else:
            model = kind(**part.config)
    return nn.Module.to(model, torch.float32 if name == "vae" else dtype).eval()


def _class(name: str) -> Any:
    import diffusers
    import transformers

    return getattr(diffusers, name, None) or getattr(transformers, name)


def _tokenizers(published: Published) -> dict[str, Any]:
    encoders = {name: part for name, part in published.parts.items() if name.startswith("text_encoder")}
    return {
        name.replace("text_encoder", "tokenizer"): t5_tokenizer()
        if part.class_name.startswith("T5")
        else clip_tokenizer()
        for name, part in encoders.items()
    }


def _marks(tokenizer: Any) -> dict[str, int]:
    """Special tokens as an encoder's config names them."""
    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    return {name: value for name in names if (value := getattr(tokenizer, name)) is not None}


def clip_tokenizer() -> Any:
    """A CLIP tokenizer that knows characters, with the published limit of 77."""
    from transformers import CLIPTokenizer

    characters = sorted(set(string.printable) - set(string.whitespace))
    tokens = [*characters, *(character + "</w>" for character in characters), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=77, pad_token="<|endoftext|>")


def t5_tokenizer() -> Any:
    """A T5 tokenizer that knows characters."""
    from transformers import T5Tokenizer

    characters = string.ascii_letters + string.digits + string.punctuation
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), *((letter, -6.0) for letter in characters)]
    return T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=512)


def write_images(folder: Path, count: int, size_px: int) -> list[CaptionedImage]:
    """Smooth random pictures with a caption each, as PNG files."""
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    records = []
    for number in range(count):
        path = folder / f"{number:04d}.png"
        coarse = generator(0, "picture", number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        buffer = io.BytesIO()
        picture = Image.fromarray(coarse).resize((size_px, size_px), Image.Resampling.BICUBIC)
        picture.save(buffer, "PNG", compress_level=1)
        # Renamed into place when whole: several processes may write it, and read it.
        write_bytes(path, buffer.getvalue())
        caption = Caption("caption", CAPTIONS[number % len(CAPTIONS)] + f", number {number}", "benchmark")
        records.append(CaptionedImage(content_id(path), str(path), size_px, size_px, (caption,)))
    return records
