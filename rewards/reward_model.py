"""A reward model of one's own: a head on CLIP or SigLIP embeddings, trained on preference pairs (Bradley-Terry).

The folder is a transformers CLIPModel or SiglipModel with `reward_model.json` and `reward_head.safetensors` beside it,
as a train stage with the objective `bradley_terry` leaves it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from rewards.base import ScorerCard
from rewards.checkpoints import files_hash, local_file
from rewards.clip_encoder import ClipEncoder
from rewards.clip_head import CLIP_PREPROCESSING, PromptHead
from rewards.clip_source import TransformersClip
from rewards.errors import InputError
from rewards.reward_config import CONFIG_FILE, WEIGHTS_FILE, RewardModelConfig

if TYPE_CHECKING:
    import torch

    from rewards.preference_head import PreferenceHead


class RewardModel(PromptHead):
    """Log-odds of being preferred. Only differences between images of one prompt were trained; the zero is arbitrary.

    model: folder or hub id of a trained reward model, whose small config file is read at once; aspect: which of its
    heads, where it has several; the scorer's name then tells it; revision: of a hub id; device: a torch device;
    batch_size: speed only. Raises ModelError for a folder without a reward model, InputError for an unknown aspect.
    """

    def __init__(
        self,
        model: str,
        aspect: str | None = None,
        revision: str | None = None,
        device: str = "cpu",
        batch_size: int = 32,
    ) -> None:
        super().__init__(ClipEncoder(TransformersClip(str(model), revision), device, batch_size))
        self._model, self._revision = str(model), revision
        self._config_path = local_file(self._model, CONFIG_FILE, revision)
        self._config = RewardModelConfig.from_file(self._config_path)
        self._output = _output_of(self._config, aspect, self._model)
        self.name = "reward_model" if aspect is None else f"reward_model_{aspect}"
        self.scale = "log-odds without a zero or bound: sigmoid(a - b) is P(a preferred to b), 0 to 1"
        self.needs_prompt = self._config.reads_prompt

    @property
    def card(self) -> ScorerCard:
        """What the scorer is."""
        return ScorerCard(
            name=self.name,
            version=self.version,
            weights=self._model,
            revision=self._revision,
            licence="that of its encoder and of the pairs it was trained on",
            scale=self.scale,
            low=None,
            high=None,
            token_limit=self.token_limit if self.needs_prompt else None,
            preprocessing=CLIP_PREPROCESSING,
            needs_prompt=self.needs_prompt,
            differentiable=self.differentiable,
            higher_is_better=self.higher_is_better,
            trained_on=self._config.trained_on,
        )

    def fingerprint(self) -> dict[str, str]:
        """As the other scorers on CLIP, and the hash of the head with its config."""
        return super().fingerprint() | {"head": files_hash([self._config_path, self._weights_path])}

    def count_truncated(self, prompts: Sequence[str]) -> int:
        """Number of prompts that are longer than `token_limit`; 0 if none is read."""
        return super().count_truncated(prompts) if self.needs_prompt else 0

    @cached_property
    def _weights_path(self) -> Path:
        return local_file(self._model, WEIGHTS_FILE, self._revision)

    @cached_property
    def _head(self) -> PreferenceHead:
        from rewards.preference_head import load_head

        return load_head(self._config, self._weights_path)

    def _values(self, embeddings: torch.Tensor, prompts: list[str]) -> torch.Tensor:
        if embeddings.shape[-1] != self._config.dimension:
            found, expected = embeddings.shape[-1], self._config.dimension
            raise InputError(f"{self.name}: embeddings have {found} numbers, its head reads {expected}.")
        texts = self._encoder.encode_prompts(prompts) if self.needs_prompt else None
        return self._head.to(embeddings.device)(embeddings, texts)[:, self._output]


def _output_of(config: RewardModelConfig, aspect: str | None, model: str) -> int:
    """Number of the head for an aspect."""
    if aspect in config.aspects:
        return config.aspects.index(aspect)
    if aspect is None and len(config.aspects) <= 1:
        return 0
    listed = ", ".join(config.aspects) or "none, it has one head without a name"
    wanted = "say which aspect" if aspect is None else f"no aspect {aspect!r}"
    raise InputError(f"reward_model: {wanted}; those of {model}: {listed}.")
