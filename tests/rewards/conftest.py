"""A tiny random CLIP checkpoint and images that differ, built in code."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tiny_scorers
import vqa_tiny
from PIL import Image

WORDS = ("a", "photo", "of", "red", "blue", "cat", "dog", "big")


@pytest.fixture(scope="session")
def tiny_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a CLIPModel with random weights: 32 px images, 16 tokens."""
    import torch
    from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

    folder = tmp_path_factory.mktemp("tiny_clip")
    tokenizer = CLIPTokenizer(vocab=_vocabulary(), merges=[], model_max_length=16, pad_token="<|endoftext|>")
    tokenizer.save_pretrained(folder)
    CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(folder)
    layers = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    text = {"vocab_size": len(tokenizer), "max_position_embeddings": 16, "eos_token_id": tokenizer.eos_token_id}
    text |= {"bos_token_id": tokenizer.bos_token_id, "pad_token_id": tokenizer.pad_token_id}
    config = CLIPConfig(
        text_config=layers | text,
        vision_config=layers | {"image_size": 32, "patch_size": 8},
        projection_dim=16,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = CLIPModel(config)
        with torch.no_grad():
            for parameter in model.parameters():
                # Larger than the usual 0.02, so that different inputs get clearly different embeddings.
                parameter.copy_(torch.randn_like(parameter) * 0.3)
    model.save_pretrained(folder)
    return folder


def _vocabulary() -> dict[str, int]:
    from tokenizers.pre_tokenizers import ByteLevel

    letters = sorted(ByteLevel.alphabet())
    tokens = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    return {token: number for number, token in enumerate(tokens)}


@pytest.fixture(scope="session")
def make_image() -> Callable[..., Image.Image]:
    """make_image(number, width, height): a smooth gradient under some noise, different for each number."""

    def make(number: int, width: int = 40, height: int = 40) -> Image.Image:
        random = np.random.default_rng(number)
        x, y = np.linspace(0, 1, width)[None, :, None], np.linspace(0, 1, height)[:, None, None]
        smooth = random.random(3) * x + random.random(3) * y
        noisy = smooth / 2 + 0.2 * random.random((height, width, 3))
        return Image.fromarray((np.clip(noisy, 0, 1) * 255).astype(np.uint8))

    return make


@pytest.fixture(scope="session")
def images(make_image: Callable[..., Image.Image]) -> list[Image.Image]:
    """Seven images of several sizes and proportions."""
    sizes = [(40, 40), (32, 32), (64, 33), (33, 64), (20, 24), (1, 1), (100, 80)]
    return [make_image(number, *size) for number, size in enumerate(sizes)]


@pytest.fixture(scope="session")
def prompts() -> list[str]:
    """A prompt for each of `images`; the fourth is longer than 16 tokens."""
    return ["a cat", "a dog", "red", "a big red photo of a dog and of a cat", "blue", "", "a cat"]


@pytest.fixture(scope="session")
def tiny_siglip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a SiglipModel with random weights: 32 px images, 12 tokens, one a letter."""
    return tiny_scorers.write_siglip(tmp_path_factory.mktemp("tiny_siglip"))


@pytest.fixture(scope="session")
def scorer_options(tiny_clip: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, object]]:
    """Registered name -> options that make the scorer with a tiny random checkpoint; only scorers that have weights."""
    folder = tmp_path_factory.mktemp("tiny_scorers")
    head = str(tiny_scorers.write_aesthetic_head(folder / "head.pth"))
    tiny_scorers.write_open_clip(folder / "hps.pt", tiny_clip)
    tiny_scorers.write_image_reward(folder)
    bert = tiny_scorers.write_bert_tokenizer(folder / "bert")
    blip = {"name": "blip_vqa", "model": str(vqa_tiny.blip(folder / "blip"))}
    asking = {"questions": "asking:EveryPrompt", "vqa": "asking:Guessing", "batch_size": 5}
    clip = {"model": str(tiny_clip), "batch_size": 3}
    return {
        "aesthetic": clip | {"head": head},
        "aesthetic_v1": clip | {"head": head},
        "clip_iqa": clip,
        "clip_score": clip,
        "dsg": asking,
        "hpsv2": {"model": str(folder / "hps.pt"), "base": str(tiny_clip), "batch_size": 3},
        "image_reward": {"model": str(folder), "tokenizer": str(bert), "batch_size": 3},
        "pickscore": clip,
        "pn_vqa": asking | {"questions": {"name": "asking:EveryPrompt", "count": 2}, "vqa": blip},
        "reward_model": {"model": str(tiny_scorers.write_reward_model(folder / "reward", tiny_clip)), "batch_size": 3},
        "tifa": asking | {"nearest": "words"},
        "vqascore": {"vqa": blip, "batch_size": 5},
    }
