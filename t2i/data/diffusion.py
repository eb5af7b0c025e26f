"""From records and a recipe's settings to the examples of a denoiser: what is checked, framed and encoded, in turn."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal, overload

import numpy as np
from pydantic import JsonValue

from t2i import processes
from t2i.data.buckets import BucketPlan, plan_buckets, square_plan
from t2i.data.captions import CaptionMix, Parts, Phase
from t2i.data.encode import Framing, encode_latents, encode_texts
from t2i.data.examples import Dataset, LatentExamples
from t2i.data.held_out import PickedRecords, hold_out
from t2i.data.images import check_sizes
from t2i.data.rows import JoinedRecords, image_sizes
from t2i.data.settings import BucketSettings, CacheSettings, DatasetSettings, MaskSettings, ViewSettings
from t2i.data.views import Views
from t2i.encoder_texts import EncoderPrompt
from t2i.errors import ConfigError, DataError
from t2i.files import write_text
from t2i.records import CaptionedImage

if TYPE_CHECKING:
    from t2i.families.base import ModelFamily

UNFIT_FILE, UNFIT_HELD_OUT_FILE = "unfit.jsonl", "unfit_held_out.jsonl"
"""The images that are dropped or enlarged, in the stage's folder."""


@dataclass(frozen=True)
class DiffusionData:
    """Captioned images and how they are used."""

    records: Sequence[CaptionedImage]
    datasets: tuple[Dataset, ...]
    seed: int
    buckets: BucketSettings | None = None
    views: ViewSettings = ViewSettings()  # noqa: RUF009 (frozen)
    masks: MaskSettings | None = None
    cache: CacheSettings = CacheSettings()  # noqa: RUF009
    posterior: Literal["sample", "mode"] = "sample"
    batch_size: int = 1
    """Examples of a step: no bucket may hold fewer images."""
    encode_batch_size: int = 16
    crops_by: Literal["image", "caption"] = "image"
    """As in `Views`."""

    def check_captions(self) -> None:
        """Raise DataError unless every image has the captions its dataset draws from, and there is one."""
        if not len(self.records):
            raise DataError("no image left to train on.")
        for dataset in self.datasets:
            dataset.mix.check(self.records[number] for number in range(dataset.first, dataset.last))

    def assign(self, resolution: int) -> BucketPlan:
        """The size of every image. Raises DataError that names the images that do not fit, if these are not dropped."""
        if self.buckets is None:
            check_sizes(self.records, resolution)
            return square_plan(len(self.records), resolution)
        return plan_buckets(
            image_sizes(self.records), resolution, self.buckets, lambda record: self.records[record].image
        )

    def plan(self, resolution: int) -> BucketPlan:
        """The size of every image that is trained on. Raises DataError as `assign`, and for too small buckets and a
        dataset of which no image fits one."""
        plan = self.assign(resolution)
        if self.buckets is None:
            return plan
        for dataset in self.datasets:
            if not (plan.of_record[dataset.first : dataset.last] >= 0).any():
                first = self.records[dataset.first].image
                raise DataError(f"no image left of the dataset that begins with {first}: none fits a bucket.")
        plan.check_batch(self.batch_size)
        return plan

    def plan_held_out(self, resolution: int) -> BucketPlan:
        """The size of every image that only measures. Raises DataError as `assign`, and if no image fits a bucket; of
        one dataset none need fit."""
        plan = self.assign(resolution)
        if not (plan.of_record >= 0).any():
            raise DataError(
                f"held_out.share: none of the {len(self.records)} images held out fits a bucket; hold out more, or let "
                "more fit (buckets.max_aspect, buckets.upscale)."
            )
        return plan

    def hold_out(self, share: float) -> tuple[DiffusionData, DiffusionData]:
        """The images that are trained on, and those held out. Raises DataError where `t2i.data.held_out` does."""
        tables = [PickedRecords(self.records, range(dataset.first, dataset.last)) for dataset in self.datasets]
        kept, held = hold_out(tables, share, self.seed)
        return self._with(kept), self._with(held)

    def _with(self, tables: Sequence[Sequence[CaptionedImage]]) -> DiffusionData:
        """The same with other records of each dataset; one that has none is left out."""
        ends = itertools.accumulate(map(len, tables))
        datasets = tuple(
            replace(dataset, first=end - len(table), last=end)
            for dataset, table, end in zip(self.datasets, tables, ends, strict=True)
            if len(table)
        )
        return replace(self, records=JoinedRecords(tables), datasets=datasets)

    def encode(
        self, family: ModelFamily, plan: BucketPlan, folder: Path, unfit_file: str = UNFIT_FILE
    ) -> LatentExamples:
        """Encode what the cache lacks, and write which images are dropped or enlarged into `folder`."""
        if plan.misfits and processes.is_first():
            lines = [json.dumps(asdict(misfit), ensure_ascii=False) + "\n" for misfit in plan.misfits]
            write_text(folder / unfit_file, "".join(lines))
        framing = Framing(self.records, plan, Views(self.views, self.seed, self.crops_by), self.masks, self.posterior)
        root = Path(self.cache.folder).expanduser() if self.cache.folder else folder / CACHE_FOLDER
        store = encode_latents(family, framing, root, batch_size=self.encode_batch_size)
        texts = None
        if self.cache.text:
            texts = encode_texts(family, self.texts(), root, batch_size=self.encode_batch_size)
        return LatentExamples(framing, store, self.datasets, self.seed, texts, family.facts.takes_sizes)

    def texts(self) -> Texts:
        """Every caption that may be drawn, trigger words included."""
        return Texts(self.records, self.datasets)

    def facts(self) -> dict[str, JsonValue]:
        """Number of images."""
        return {"images": len(self.records)}


CACHE_FOLDER = "latents"
"""Cache of a stage that shares none, in its folder; deleted when it is finished."""


class Texts(Sequence[EncoderPrompt]):
    """The prompts of every record that its dataset draws from; read from the records when asked for.

    datasets: in the order of the records, without gaps.
    """

    def __init__(self, records: Sequence[CaptionedImage], datasets: Sequence[Dataset]) -> None:
        self.records, self.datasets = records, datasets

    @cached_property
    def _starts(self) -> np.ndarray:
        """Place of each record's first caption, and the number of all, int64 [n + 1]; takes a pass over the records."""
        counts = np.fromiter((len(texts) for texts in self._by_record()), np.int64)
        return np.concatenate([[0], np.cumsum(counts)])

    def _by_record(self) -> Iterator[list[EncoderPrompt]]:
        for dataset in self.datasets:
            for number in range(dataset.first, dataset.last):
                yield dataset.mix.texts(self.records[number])

    def __len__(self) -> int:
        return int(self._starts[-1])

    @overload
    def __getitem__(self, index: int) -> EncoderPrompt: ...
    @overload
    def __getitem__(self, index: slice) -> list[EncoderPrompt]: ...
    def __getitem__(self, index: int | slice) -> EncoderPrompt | list[EncoderPrompt]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        number = range(len(self))[index]
        record = int(np.searchsorted(self._starts, number, side="right")) - 1
        dataset = next(dataset for dataset in self.datasets if record < dataset.last)
        return dataset.mix.texts(self.records[record])[number - int(self._starts[record])]

    def __iter__(self) -> Iterator[EncoderPrompt]:
        return itertools.chain.from_iterable(self._by_record())


def count_truncated(family: ModelFamily, texts: Iterable[EncoderPrompt]) -> dict[str, int]:
    """For each text encoder, how many of the texts are longer than its limit; a thousand at a time."""
    counts: dict[str, int] = {}
    left = iter(texts)
    while part := list(itertools.islice(left, 1000)):
        for name, count in family.count_truncated(part).items():
            counts[name] = counts.get(name, 0) + count
    return counts


def make_datasets(
    lengths: Sequence[int],
    settings: Sequence[DatasetSettings],
    captions: Mapping[str, float],
    dropout: float,
    words: str,
    schedule: tuple[Phase, ...] = (),
    parts: Parts = "whole",
    per_encoder: tuple[tuple[str, str], ...] = (),
) -> tuple[Dataset, ...]:
    """One dataset for each length, from the stage's fields and its own; no settings mean the defaults for all.

    A dataset with captions of its own has them from the first step to the last, whatever the schedule.

    Raises ConfigError unless there are settings for every dataset or none, and weights for every one or none.
    """
    chosen = list(settings) or [DatasetSettings()] * len(lengths)
    if len(chosen) != len(lengths):
        raise ConfigError(f"datasets: {len(chosen)} entries for {len(lengths)} sets of images; give one for each.")
    if 0 < sum(entry.weight is not None for entry in chosen) < len(chosen):
        raise ConfigError("datasets: give every one a `weight`, or none.")
    made = []
    for entry, length, end in zip(chosen, lengths, itertools.accumulate(lengths), strict=True):
        trigger = words if entry.trigger_words is None else entry.trigger_words
        later = () if entry.captions else schedule
        mix = CaptionMix(dict(entry.captions or captions), dropout, trigger, later, parts, per_encoder)
        weight = None if entry.weight is None else Fraction(repr(entry.weight))
        made.append(Dataset(end - length, end, mix, entry.repeats, weight, entry.loss_weight))
    return tuple(made)
