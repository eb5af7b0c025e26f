"""Contrastive: put an image near its own caption and away from the others of the batch."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from t2i.config import FrozenModel
from t2i.objectives.base import LossOutput

if TYPE_CHECKING:
    from torch import Tensor


def contrastive_loss(image_embeddings: Tensor, text_embeddings: Tensor, logit_scale: Tensor) -> Tensor:
    """Symmetric cross-entropy over the batch (Radford et al. 2021, arXiv:2103.00020, figure 3).

    image_embeddings, text_embeddings: [B, D], any length; logit_scale: the multiplier itself, not its logarithm.
    Returns [B]: half the image-to-text plus half the text-to-image loss of each pair; log B for equal embeddings.
    """
    import torch
    from torch.nn import functional

    images = functional.normalize(image_embeddings.float(), dim=-1)
    texts = functional.normalize(text_embeddings.float(), dim=-1)
    logits = logit_scale * images @ texts.T
    own = torch.arange(len(logits), device=logits.device)
    to_text = functional.cross_entropy(logits, own, reduction="none")
    to_image = functional.cross_entropy(logits.T, own, reduction="none")
    return (to_text + to_image) / 2


class Contrastive(FrozenModel):
    """Train a CLIPModel on captioned images. The loss couples the whole batch: no gradient accumulation."""

    needs: ClassVar[str] = "captioned_images"
    couples_batch: ClassVar[bool] = True

    type: Literal["contrastive"] = "contrastive"

    def __call__(self, image_embeddings: Tensor, text_embeddings: Tensor, logit_scale: Tensor) -> LossOutput:
        """Per-pair loss, and the share of images that rank their own caption first."""
        import torch

        loss = contrastive_loss(image_embeddings, text_embeddings, logit_scale)
        similarity = image_embeddings @ text_embeddings.T
        hits = similarity.argmax(1).eq(torch.arange(len(similarity), device=similarity.device))
        return LossOutput(loss, {"accuracy": hits.float()})
