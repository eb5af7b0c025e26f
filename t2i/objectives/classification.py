"""Classification: several named label maps at once, for learned readers of images."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from t2i.config import CodeName, FrozenModel
from t2i.objectives.base import LossOutput

if TYPE_CHECKING:
    from torch import Tensor

IGNORE = -100
"""Label of places that do not count."""


def classification_loss(logits: dict[str, Tensor], labels: dict[str, Tensor]) -> Tensor:
    """Sum over heads of the mean cross-entropy per example; places labelled IGNORE do not count.

    logits: head -> [B, classes, ...]; labels: head -> integers [B, ...]. Returns [B]; a head without a counted place
    adds 0.
    """
    import torch
    from torch.nn import functional

    total = torch.zeros(len(next(iter(labels.values()))), device=next(iter(logits.values())).device)
    for head, target in labels.items():
        losses = functional.cross_entropy(logits[head].float(), target, reduction="none", ignore_index=IGNORE)
        counted = target.ne(IGNORE).reshape(len(target), -1).sum(1).clamp(min=1)
        total = total + losses.reshape(len(target), -1).sum(1) / counted
    return total


class Classification(FrozenModel):
    """Train a reader of images on labels that its data carry."""

    needs: ClassVar[str] = "labelled_images"

    type: Literal["classification"] = "classification"
    reader: CodeName
    """`module:Class` of the reader: a torch module with `image_size`, `noise_shape`, `labels(record)`,
    `augment(pixels, labels, noise)`, `forward(pixels)` and `save_pretrained(folder)`."""

    def __call__(self, logits: dict[str, Tensor], labels: dict[str, Tensor]) -> LossOutput:
        """Per-example loss."""
        return LossOutput(classification_loss(logits, labels))
