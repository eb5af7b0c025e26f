"""From preference pairs to examples: two images under the same crop, flip, caption, noise and timestep."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch

from t2i.data.buckets import BucketPlan
from t2i.data.captions import CaptionMix
from t2i.data.diffusion import DiffusionData
from t2i.data.examples import Dataset, DiffusionExample, LatentExamples
from t2i.data.images import seen_size
from t2i.data.order import Stream
from t2i.encoder_texts import EncoderPrompt
from t2i.errors import DataError
from t2i.objectives.pairs import PairBatch
from t2i.records import Caption, CaptionedImage, PreferencePair

if TYPE_CHECKING:
    from t2i.families.base import ModelFamily

PROMPT = "prompt"
"""Kind of the one caption that the images of a pair have."""


PairExample: TypeAlias = tuple[DiffusionExample, DiffusionExample, float]


@dataclass(frozen=True)
class LatentPairs:
    """Pair p is images 2p, the chosen, and 2p + 1, the rejected.

    All that is random about an image is keyed by step and position. Both images of a pair stand at the same one, so
    they share every draw: noise, timestep, crop, flip, whether the prompt is dropped, the posterior's noise.
    """

    images: LatentExamples
    pairs: Sequence[PreferencePair]

    def __len__(self) -> int:
        return len(self.pairs)

    def describe(self, record: int) -> str:
        """Paths of both images."""
        return f"{self.pairs[record].chosen} over {self.pairs[record].rejected}"

    def latent_elements(self) -> int:
        """C * h * w of the first image that is trained on."""
        first = int(self.streams()[0].records[0])
        return self.images.example(2 * first, 0, 0).latents.numel()

    def streams(self) -> list[Stream]:
        """All pairs of each bucket in turn."""
        buckets = self.images.framing.plan.of_record[::2]
        kept = sorted(set(buckets[buckets >= 0].tolist()))
        return [Stream(np.flatnonzero(buckets == bucket).astype(np.int32), bucket) for bucket in kept]

    def example(self, record: int, step: int, position: int) -> PairExample:
        """The chosen and the rejected image for one place in one step, and the share of votes for the chosen."""
        return (
            self.images.example(2 * record, step, position),
            self.images.example(2 * record + 1, step, position),
            self.pairs[record].preference,
        )

    def collate(self, examples: Sequence[PairExample]) -> PairBatch:
        """Stack pairs into a batch; what both images share is taken from the chosen."""
        chosen = self.images.collate([first for first, _, _ in examples])
        rejected = self.images.collate([second for _, second, _ in examples])
        return PairBatch(
            chosen.latents,
            rejected.latents,
            chosen.noise,
            chosen.uniform,
            chosen.prompts,
            chosen.sizes,
            chosen.conditioning,
            chosen.keys,
            torch.tensor([preference for _, _, preference in examples]),
        )


@dataclass(frozen=True)
class PairData:
    """Preference pairs without ties, and how their images are framed and encoded."""

    pairs: Sequence[PreferencePair]
    ties: int
    """Pairs that were left out because neither image is preferred."""
    images: DiffusionData
    batch_size: int

    @classmethod
    def of(cls, pairs: Iterable[PreferencePair], mix: CaptionMix, settings: DiffusionData, batch_size: int) -> PairData:
        """Read the sizes of the images and check the pairs.

        settings: how images are framed, cached and encoded; its records and captions are replaced. Raises DataError if
        all pairs are ties, if fewer are left than a batch holds, or if the two images of one differ in size.
        """
        given = list(pairs)
        kept = [pair for pair in given if not pair.is_tie]
        if not kept:
            raise DataError(f"all {len(given)} pairs are ties: nothing is preferred, so there is nothing to learn.")
        if len(kept) < batch_size:
            raise DataError(
                f"{len(kept)} pairs (and {len(given) - len(kept)} ties, left out) are fewer than a batch of "
                f"{batch_size}; lower loop.batch_size or make more pairs."
            )
        records = _records(kept)
        datasets = (Dataset(0, len(records), mix),)
        images = replace(settings, records=records, datasets=datasets, batch_size=1, crops_by="caption")
        return cls(kept, len(given) - len(kept), images, batch_size)

    @property
    def records(self) -> Sequence[CaptionedImage]:
        """The images, two for each pair."""
        return self.images.records

    def check_captions(self) -> None:
        """Raise DataError unless every pair has a prompt."""
        self.images.check_captions()

    def plan(self, resolution: int) -> BucketPlan:
        """The size of every image, the same for both of a pair. Raises DataError for buckets with too few pairs."""
        plan = self.images.plan(resolution)
        counts = Counter(plan.of_record[::2].tolist())
        small = sum(0 < count < self.batch_size for bucket, count in counts.items() if bucket >= 0)
        if small:
            raise DataError(
                f"{small} of {len(counts)} buckets hold fewer pairs than a batch of {self.batch_size}; lower "
                "loop.batch_size or train on squares (leave buckets out)."
            )
        return plan

    def encode(self, family: ModelFamily, plan: BucketPlan, folder: Path) -> LatentPairs:
        """Encode the images that the cache lacks; one that is in several pairs is encoded once."""
        return LatentPairs(self.images.encode(family, plan, folder), self.pairs)

    def texts(self) -> list[EncoderPrompt]:
        """The prompt of every pair, trigger words included."""
        [dataset] = self.images.datasets
        return [text for record in self.records[::2] for text in dataset.mix.texts(record)]

    def facts(self) -> dict[str, Any]:
        """Pairs, ties and different images."""
        images = {record.id for record in self.records}
        return {"pairs": len(self.pairs), "ties_left_out": self.ties, "images": len(images)}


def _records(pairs: Sequence[PreferencePair]) -> list[CaptionedImage]:
    """Two images for each pair. Raises DataError where these differ in size."""
    sizes: dict[str, tuple[int, int]] = {}
    records: list[CaptionedImage] = []
    for pair in pairs:
        for image in (pair.chosen, pair.rejected):
            if image not in sizes:
                sizes[image] = seen_size(Path(image))
        first, second = sizes[pair.chosen], sizes[pair.rejected]
        if first != second:
            raise DataError(
                f"{pair.chosen} is {first[0]}x{first[1]} and {pair.rejected} {second[0]}x{second[1]}: the images of a "
                "pair must be of one size, or size is what is learned. Generate both alike, or crop them first."
            )
        captions = (Caption(PROMPT, pair.prompt, pair.source),)
        records += [
            CaptionedImage(identity, image, *first, captions)
            for identity, image in ((pair.chosen_id, pair.chosen), (pair.rejected_id, pair.rejected))
        ]
    return records
