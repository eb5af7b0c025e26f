"""The trained part of a reward model: from embeddings to one number for each aspect. Imports torch."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from rewards.checkpoints import fill, read_state
from rewards.reward_config import RewardModelConfig


class PreferenceHead(nn.Module):
    """A linear layer, or two with a GELU between, on the embedding of an image and, if it reads one, of its prompt.

    With a prompt it also sees their product, number by number, whose sum is the cosine; and, where there is a hidden
    layer, the text. To a linear head the text would add the same to both images of a pair, which no preference can
    tell. For the same reason the last layer has no bias. It starts at zero: a fresh head scores everything 0.
    """

    def __init__(self, config: RewardModelConfig) -> None:
        super().__init__()
        self.config = config
        inputs = config.dimension * (1 + (1 + bool(config.hidden)) * config.reads_prompt)
        last = nn.Linear(config.hidden or inputs, max(1, len(config.aspects)), bias=False)
        nn.init.zeros_(last.weight)
        self.layers = nn.Sequential(nn.Linear(inputs, config.hidden), nn.GELU(), last) if config.hidden else last

    def forward(self, images: Tensor, texts: Tensor | None) -> Tensor:
        """[B, D] unit vectors of images, and of prompts if it reads them -> [B, aspects] scores, float32."""
        # Unit vectors of D numbers: scaled so that a layer's inputs are about 1.
        scale = self.config.dimension**0.5
        parts = [scale * images.float()]
        if texts is not None:
            parts.append(scale * parts[0] * texts.float())
            parts += [scale * texts.float()] if self.config.hidden else []
        with torch.autocast(images.device.type, enabled=False):
            return self.layers(torch.cat(parts, dim=-1))


def load_head(config: RewardModelConfig, path: Path) -> PreferenceHead:
    """The head that a safetensors file holds, in evaluation mode. Raises ModelError if it does not fit the config."""
    head = PreferenceHead(config)
    fill(head, read_state(path), str(path))
    return head.eval().requires_grad_(False)
