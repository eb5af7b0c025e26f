"""Filter rules by image embeddings: near duplicates, and balance between concepts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field, model_validator

from t2i.config import FrozenModel, ModelPath, speed_only
from t2i.records import CaptionedImage
from t2i.stages.score import reward_errors

if TYPE_CHECKING:
    from rewards.clip_encoder import ClipEncoder
    from t2i.data.quality.embeddings import Name, Vectors
    from t2i.data.quality.sieve import Check


class EmbeddingRules(FrozenModel):
    """What one encoder's embeddings tell: copies that were resized or encoded anew, and concepts that crowd the set."""

    encoder: ModelPath
    """A CLIP or SigLIP model: a folder, `pkg:` resource or hub id. What is near for one is not for another."""
    near: float | None = Field(default=None, gt=0, le=1)
    """Of images whose cosine is at least this, the first is kept; look at what 0.95 to 0.99 drops.
    Exact, for 200,000 images at most."""
    clusters: int | None = Field(default=None, ge=1)
    """Concepts that k-means divides the images into, by the stage's seed; some hundreds at most."""
    kept_per_cluster: int | None = Field(default=None, ge=1)
    """Images of each that are kept, at most: the first."""
    device: str = "cpu"
    """Where the encoder runs."""
    batch_size: int = speed_only(32, ge=1)
    """Images encoded at once."""

    @model_validator(mode="after")
    def _has_rule(self) -> EmbeddingRules:
        if (self.clusters is None) != (self.kept_per_cluster is None):
            raise ValueError("give `clusters` and `kept_per_cluster` together, or neither")
        if self.near is None and self.clusters is None:
            raise ValueError("give `near`, or `clusters` with `kept_per_cluster`, or all three")
        return self

    def check(self) -> None:
        """Raise ModelError for a local encoder that is missing or no CLIP; reads its settings alone."""
        from t2i.config import PathMark
        from t2i.resources import local_path

        if local_path(self.encoder, PathMark(may_be_hub_id=True)) is not None:
            with reward_errors():
                _ = self._open().source.config

    def checks(self, seed: int, name: Name, folder: Path) -> Iterator[Check]:
        """The rules that are set; copies go first, so that they do not count for their concept.

        folder: where embeddings wait for the end of the stage.
        """
        from t2i.data.quality.embeddings import ImageEmbeddings, crowded, near_embeddings

        known = ImageEmbeddings(self._open(), folder)

        def embed(records: Sequence[CaptionedImage]) -> Vectors:
            with reward_errors():
                return known.of(records)

        if self.near is not None:
            at_least = self.near
            yield lambda rows: near_embeddings(rows, embed, at_least, name)
        if self.clusters is not None and self.kept_per_cluster is not None:
            number, at_most = self.clusters, self.kept_per_cluster
            yield lambda rows: crowded(rows, embed, number, at_most, seed)

    def _open(self) -> ClipEncoder:
        from rewards.clip_encoder import ClipEncoder
        from rewards.clip_source import TransformersClip
        from t2i.resources import resolve_path

        local = resolve_path(self.encoder)
        source = TransformersClip(str(local) if local.exists() else self.encoder)
        return ClipEncoder(source, self.device, self.batch_size)
