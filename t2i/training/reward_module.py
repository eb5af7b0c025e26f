"""A reward model as the loop trains it: encoder, head and loss."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from rewards.preference_head import PreferenceHead
from t2i.objectives.base import LossOutput
from t2i.objectives.bradley_terry import BradleyTerry, PreferenceBatch


class RewardModule(nn.Module):
    """encoder: a CLIPModel or SiglipModel, or None where batches hold the embeddings of a frozen one."""

    def __init__(self, encoder: Any, head: PreferenceHead, objective: BradleyTerry) -> None:
        super().__init__()
        self.encoder, self.head, self.objective = encoder, head, objective

    def forward(self, batch: PreferenceBatch) -> LossOutput:
        images = self._images(torch.cat([batch.chosen, batch.rejected]))
        texts = self._texts(batch.texts)
        scores = self.head(images, None if texts is None else torch.cat([texts, texts]))
        own = scores.gather(1, torch.cat([batch.head, batch.head])[:, None])[:, 0]
        chosen, rejected = own.chunk(2)
        return self.objective(chosen, rejected, batch.preference)

    def _images(self, images: Tensor) -> Tensor:
        """[B, D] unit vectors."""
        if self.encoder is None:
            return images
        return functional.normalize(self.encoder.get_image_features(pixel_values=images).pooler_output.float(), dim=-1)

    def _texts(self, texts: tuple[Tensor, ...]) -> Tensor | None:
        if not texts:
            return None
        if self.encoder is None:
            return texts[0]
        ids, mask = texts
        output = self.encoder.get_text_features(input_ids=ids, attention_mask=mask)
        return functional.normalize(output.pooler_output.float(), dim=-1)
