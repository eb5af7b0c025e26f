"""HPS v2 and v2.1 (Wu et al. 2023, arXiv:2306.09341): CLIP ViT-H/14 tuned on people's rankings of generated images.

The published file is an open_clip checkpoint; it is mapped onto transformers' CLIPModel. The image is resized as a
float tensor, long side to 224, and padded with black. The published numbers were made with whatever antialiasing the
authors' torchvision had as its default, and with half precision; here antialiasing is an option and precision float32.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rewards.base import Preprocessing, ScorerCard
from rewards.clip_encoder import ClipEncoder
from rewards.clip_head import PromptHead, published
from rewards.clip_source import OpenClip
from rewards.errors import InputError

if TYPE_CHECKING:
    import torch

DEFAULT_MODEL = "xswu/HPSv2"
BASE_MODEL = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"

_FILES = {"2.0": "HPS_v2_compressed.pt", "2.1": "HPS_v2.1_compressed.pt"}
_NAMES = {"2.0": "hpsv2_0", "2.1": "hpsv2"}
_AVERAGES = {"2.0": "0.235 to 0.279", "2.1": "0.145 to 0.313"}
"""In the authors' table of models."""


class HpsV2(PromptHead):
    """Cosine of the embeddings, as hpsv2.score() gives it; the authors' tables show 100 times that.

    Only comparable within one prompt, and never between releases. release: "2.1" or "2.0", part of the scorer's name;
    model: the checkpoint file, or a folder or hub id that holds it; base: a transformers CLIP of the same architecture,
    of which only configuration and tokenizer are read; antialias: of the resize; device: a torch device; batch_size:
    speed only.
    """

    def __init__(
        self,
        release: str | float = "2.1",
        model: str = DEFAULT_MODEL,
        revision: str | None = None,
        base: str = BASE_MODEL,
        base_revision: str | None = None,
        antialias: bool = True,
        device: str = "cpu",
        batch_size: int = 32,
    ) -> None:
        # A release without quotation marks is a number in YAML.
        release = str(release)
        if release not in _FILES:
            raise InputError(f"hpsv2: unknown release {release!r}; expected one of {', '.join(_FILES)}.")
        source = OpenClip(str(model), _FILES[release], str(base), revision, base_revision, antialias)
        super().__init__(ClipEncoder(source, device, batch_size))
        self._source = source
        self.name = _NAMES[release]
        self.scale = f"cosine of HPS v{release} embeddings, -1 to 1; averages of models {_AVERAGES[release]}"

    @property
    def card(self) -> ScorerCard:
        """What the scorer is."""
        model = self._source.model
        return ScorerCard(
            name=self.name,
            version=self.version,
            weights=f"{model}/{self._source.file}" if model == DEFAULT_MODEL else model,
            revision=self._source.revision,
            licence=published("Apache-2.0", model, DEFAULT_MODEL),
            scale=self.scale,
            low=-1.0,
            high=1.0,
            token_limit=77 if self._source.base == BASE_MODEL else None,
            preprocessing=Preprocessing(
                resize="long side to the base model's size (224), bicubic, on float values without clipping",
                antialias=self._source.antialias,
                crop="none; padded to a square with black, half a pixel more below and to the right",
                normalise="CLIP's mean and standard deviation",
                backend="torch",
            ),
            needs_prompt=self.needs_prompt,
            differentiable=self.differentiable,
            higher_is_better=self.higher_is_better,
            trained_on=published("HPD v2: people's rankings of generated images", model, DEFAULT_MODEL),
            key_map="unverified",
        )

    def _values(self, embeddings: torch.Tensor, prompts: list[str]) -> torch.Tensor:
        return self._cosine(embeddings, prompts)
