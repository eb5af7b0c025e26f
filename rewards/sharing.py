"""One image encoding for several heads: scorers of the same encoder get the embeddings of a batch that one computed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from numpy.typing import NDArray
from PIL import Image

from rewards.base import EmbeddingReward, Reward

if TYPE_CHECKING:
    import numpy as np
    import torch

    from rewards.clip_encoder import ClipEncoder


def share_encoders(scorers: Sequence[Reward]) -> None:
    """Let scorers of equal encoders (same files, revision, preprocessing, device) use one, so it is opened once."""
    known: dict[object, ClipEncoder] = {}
    for scorer in scorers:
        if isinstance(scorer, EmbeddingReward):
            scorer.use_encoder(known.setdefault(scorer.encoder.identity, scorer.encoder))


class SharedEncodings:
    """Embeddings of the images of one batch. An image is known by its object, so hold on to it while this is used."""

    def __init__(self) -> None:
        self._known: dict[object, _Known] = {}

    def score(
        self, scorer: Reward, images: Sequence[Image.Image], prompts: Sequence[str] | None
    ) -> NDArray[np.floating]:
        """As `scorer.score(images, prompts)` of RGB images, encoding only those that its encoder has not seen yet."""
        import numpy as np

        if not isinstance(scorer, EmbeddingReward) or not images:
            return scorer.score(images, prompts)
        import torch

        known = self._known.setdefault(scorer.encoder.identity, _Known())
        with torch.no_grad():
            return np.asarray(scorer.score_embeddings(known.embeddings(scorer.encoder, images), prompts).cpu())


class _Known:
    """What one encoder has seen of the batch."""

    def __init__(self) -> None:
        self._rows: dict[int, torch.Tensor] = {}
        self._last: tuple[list[int], torch.Tensor] | None = None

    def embeddings(self, encoder: ClipEncoder, images: Sequence[Image.Image]) -> torch.Tensor:
        """[B, D] of these images, in their order."""
        import torch

        ids = [id(image) for image in images]
        if self._last is not None and self._last[0] == ids:
            return self._last[1]
        new = {key: image for key, image in zip(ids, images, strict=True) if key not in self._rows}
        if new:
            self._rows.update(zip(new, encoder.encode_images(list(new.values())), strict=True))
        found = torch.stack([self._rows[key] for key in ids])
        self._last = ids, found
        return found
