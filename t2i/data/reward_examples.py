"""Preference pairs as examples for a reward model: as pixels and tokens, or as embeddings that were made beforehand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from t2i.data.images import open_image
from t2i.data.order import Stream
from t2i.objectives.bradley_terry import PreferenceBatch
from t2i.records import PreferencePair
from t2i.training.progress import progress_bar

if TYPE_CHECKING:
    from rewards.clip_encoder import ClipEncoder


class RewardInputs(Protocol):
    """What a reward model is given for an image and a prompt."""

    def image(self, path: str) -> Tensor:
        """Of one image, without the batch dimension."""
        ...

    def texts(self, prompts: Sequence[str]) -> tuple[Tensor, ...]:
        """Of a batch of prompts; empty where none is read."""
        ...


@dataclass(frozen=True)
class EncoderInputs:
    """Pixels and token ids, for an encoder that is trained too: prepared as the scorer prepares them."""

    encoder: ClipEncoder
    reads_prompt: bool

    def image(self, path: str) -> Tensor:
        """[3, H, W], normalised."""
        return self.encoder.source.preprocessor.from_images([open_image(Path(path))])[0]

    def texts(self, prompts: Sequence[str]) -> tuple[Tensor, ...]:
        """Token ids and mask, each [B, T]; where the model reads its padding, the mask is all ones."""
        if not self.reads_prompt:
            return ()
        ids, mask = self.encoder.tokens(prompts)
        return ids, torch.ones_like(ids) if mask is None else mask


@dataclass(frozen=True)
class Embedded:
    """Embeddings of a frozen encoder, [n, D], and where each image and prompt stands."""

    images: Tensor
    image_rows: dict[str, int]
    prompts: Tensor | None
    prompt_rows: dict[str, int]

    def image(self, path: str) -> Tensor:
        """[D], of length 1."""
        return self.images[self.image_rows[path]]

    def texts(self, prompts: Sequence[str]) -> tuple[Tensor, ...]:
        """[B, D], of length 1."""
        return () if self.prompts is None else (self.prompts[[self.prompt_rows[prompt] for prompt in prompts]],)


def embed(encoder: ClipEncoder, pairs: Sequence[PreferencePair], *, reads_prompt: bool) -> Embedded:
    """Encode every image, and every prompt if they are read, once."""
    paths = list(dict.fromkeys(path for pair in pairs for path in (pair.chosen, pair.rejected)))
    parts = []
    with progress_bar("encoding images", 0, len(paths)) as advance:
        for start in range(0, len(paths), encoder.batch_size):
            images = [open_image(Path(path)) for path in paths[start : start + encoder.batch_size]]
            parts.append(encoder.encode_images(images).cpu())
            advance(start + len(images))
    prompts = list(dict.fromkeys(pair.prompt for pair in pairs)) if reads_prompt else []
    texts = encoder.encode_prompts(prompts).cpu() if prompts else None
    return Embedded(torch.cat(parts), _numbered(paths), texts, _numbered(prompts))


def _numbered(names: Sequence[str]) -> dict[str, int]:
    return {name: number for number, name in enumerate(names)}


@dataclass(frozen=True)
class PairExamples:
    """Pairs with the number of the head that each is for."""

    pairs: Sequence[PreferencePair]
    heads: Sequence[int]
    inputs: RewardInputs

    def __len__(self) -> int:
        return len(self.pairs)

    def describe(self, record: int) -> str:
        """Paths of both images."""
        return f"{self.pairs[record].chosen} over {self.pairs[record].rejected}"

    def streams(self) -> list[Stream]:
        """All pairs in turn."""
        return [Stream(range(len(self.pairs)))]

    def example(self, record: int, step: int, position: int) -> tuple[Tensor, Tensor, int]:
        """(chosen, rejected, record): nothing about a pair is drawn by lot."""
        pair = self.pairs[record]
        return self.inputs.image(pair.chosen), self.inputs.image(pair.rejected), record

    def collate(self, examples: Sequence[tuple[Tensor, Tensor, int]]) -> PreferenceBatch:
        """Stack examples into a batch."""
        chosen, rejected, records = zip(*examples, strict=True)
        pairs = [self.pairs[record] for record in records]
        return PreferenceBatch(
            torch.stack(chosen),
            torch.stack(rejected),
            self.inputs.texts([pair.prompt for pair in pairs]),
            torch.tensor([pair.preference for pair in pairs], dtype=torch.float32),
            torch.tensor([self.heads[record] for record in records]),
        )
