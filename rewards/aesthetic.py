"""LAION aesthetic score: a published linear head on the CLIP ViT-L/14 embedding of the image; the prompt is not read.

Two heads have the name. Papers mostly mean v2 (`aesthetic`), HEIM uses v1 (`aesthetic_v1`); their directions have a
cosine of 0.37 only. Both are advertised as 0 to 10, but no head is held to that. Since the score is linear in the
embedding, it is the easiest of all rewards to hack.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from rewards.affine_head import AffineHead, collapse
from rewards.base import ScorerCard
from rewards.checkpoints import files_hash, published_file, read_state
from rewards.clip_encoder import ClipEncoder
from rewards.clip_head import CLIP_PREPROCESSING, UNKNOWN, ClipHead
from rewards.clip_source import TransformersClip
from rewards.errors import ModelError

if TYPE_CHECKING:
    import torch

DEFAULT_MODEL = "openai/clip-vit-large-patch14"


@dataclass(frozen=True)
class PublishedHead:
    """A head file at the commit that was read, and what it is."""

    repository: str
    commit: str
    file: str
    sha256: str
    licence: str
    trained_on: str
    low: float
    high: float

    @property
    def url(self) -> str:
        """Where the file is published."""
        return f"https://github.com/{self.repository}/raw/{self.commit}/{self.file.replace('+', '%2B')}"


V1 = PublishedHead(
    repository="LAION-AI/aesthetic-predictor",
    commit="6d122adad522ab246644d9dc1c6d7a3810ee255f",
    file="sa_0_4_vit_l_14_linear.pth",
    sha256="2cd4e60f4f24ae3bcd57b847b13c1f3ba27edc28cc1a7f9ce74ee9f421243cba",
    licence="MIT (head and encoder)",
    trained_on="people's ratings of images; which, the repository does not state",
    low=-24.9,
    high=32.0,
)
V2 = PublishedHead(
    repository="christophschuhmann/improved-aesthetic-predictor",
    commit="6934dd81792f086e613a121dbce43082cb8be85e",
    file="sac+logos+ava1-l14-linearMSE.pth",
    sha256="21dd590f3ccdc646f0d53120778b296013b096a035a2718c9cb0d511bff0f1e0",
    licence="Apache-2.0 (head), MIT (encoder); of the training ratings: not stated",
    trained_on="SAC, Logos and AVA: people's ratings of generated images, logos and photographs",
    low=-12.77,
    high=23.24,
)


class Aesthetic(ClipHead):
    """LAION aesthetic score v2 (improved-aesthetic-predictor): five linear layers without activations, one affine map.

    head: the .pth file, downloaded from its published address if None; model: folder or hub id of the CLIP that it
    belongs to; revision: of a hub id; device: a torch device; batch_size: speed only.
    """

    name: str = "aesthetic"
    scale: str = "LAION aesthetic v2 rating, advertised as 0 to 10 but -12.8 to 23.2 is possible"
    published: ClassVar[PublishedHead] = V2

    def __init__(
        self,
        head: str | None = None,
        model: str = DEFAULT_MODEL,
        revision: str | None = None,
        device: str = "cpu",
        batch_size: int = 32,
    ) -> None:
        super().__init__(ClipEncoder(TransformersClip(str(model), revision), device, batch_size))
        self._head_option = head
        self._model = str(model)
        self._revision = revision

    @property
    def card(self) -> ScorerCard:
        """What the scorer is. revision: of the head's repository."""
        head = self.published
        is_published = self._head_option is None and self._model == DEFAULT_MODEL
        return ScorerCard(
            name=self.name,
            version=self.version,
            weights=f"{self._head_option or head.repository + '/' + head.file} on {self._model}",
            revision=head.commit if self._head_option is None else None,
            licence=head.licence if is_published else UNKNOWN,
            scale=self.scale,
            low=head.low if is_published else None,
            high=head.high if is_published else None,
            token_limit=None,
            preprocessing=CLIP_PREPROCESSING,
            needs_prompt=self.needs_prompt,
            differentiable=self.differentiable,
            higher_is_better=self.higher_is_better,
            trained_on=head.trained_on if is_published else UNKNOWN,
        )

    def fingerprint(self) -> dict[str, str]:
        """As the other scorers on CLIP, and the hash of the head."""
        return super().fingerprint() | {"head": files_hash([self._path])}

    @cached_property
    def _path(self) -> Path:
        if self._head_option is None:
            return published_file(self.published.url, self.published.sha256)
        path = Path(self._head_option).expanduser()
        if not path.is_file():
            raise ModelError(f"{self.name}: there is no head {path}; it is published at {self.published.url}")
        return path

    @cached_property
    def _head(self) -> AffineHead:
        return collapse(read_state(self._path), str(self._path))

    def _values(self, embeddings: torch.Tensor, prompts: list[str]) -> torch.Tensor:
        return self._head(embeddings)


class AestheticV1(Aesthetic):
    """LAION aesthetic score v1 (aesthetic-predictor): one linear layer. Options as `Aesthetic`.

    The heads for ViT-B/32 and B/16 are used by giving both `head` and `model`.
    """

    name: str = "aesthetic_v1"
    scale: str = "LAION aesthetic v1 rating, advertised as 0 to 10 but -24.9 to 32.0 is possible"
    published: ClassVar[PublishedHead] = V1
