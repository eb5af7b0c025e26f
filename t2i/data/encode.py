"""The latents of a data set and the conditioning of its captions, encoded once and kept on disk."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from t2i import processes
from t2i.data.buckets import BucketPlan
from t2i.data.cache import RowCache, image_identity, key_array, row_key, text_identity
from t2i.data.images import content_id, crop_to, open_image, to_pixels
from t2i.data.masks import check_mask_names, latent_mask, mask_path
from t2i.data.settings import MaskSettings
from t2i.data.views import View, Views
from t2i.encoder_texts import EncoderPrompt
from t2i.errors import DataError, RunError
from t2i.families.base import Conditioning
from t2i.records import CaptionedImage
from t2i.training.progress import progress_bar

if TYPE_CHECKING:
    from t2i.families.base import ModelFamily

SHARD_SIZE = 256
"""Views in a file."""
TEXT_SHARD_SIZE = 64
"""Captions in a file: of T5's conditioning, this is up to 0.5 GB."""


@dataclass(frozen=True)
class Framing:
    """What of each record is encoded."""

    records: Sequence[CaptionedImage]
    plan: BucketPlan
    views: Views
    masks: MaskSettings | None = None
    posterior: Literal["sample", "mode"] = "sample"

    def view(self, record: int, number: int, row: CaptionedImage | None = None) -> View:
        """One view of a record."""
        return self.views.view(row or self.records[record], number, self.plan.size_of(record))


@dataclass(frozen=True)
class Latents:
    """One encoded view. mean: [C, h, w] float32; std: as `mean`, None where only the mode is kept; mask: [1, h, w]."""

    mean: Tensor
    std: Tensor | None
    mask: Tensor | None


class LatentStore:
    """Every view of every record that is not dropped, by the record's number: 4 bytes a record and 8 a view."""

    def __init__(self, cache: RowCache, first: np.ndarray, places: np.ndarray) -> None:
        """first: index of each record's view 0 in `places`, uint32 [n + 1]; places: locations in the cache, int64."""
        self.cache, self.first, self.places = cache, first, places

    def __len__(self) -> int:
        return len(self.first) - 1

    def read(self, record: int, view: int = 0) -> Latents:
        """One view of a record. Raises KeyError if it was not encoded."""
        index = int(self.first[record]) + view
        if index >= int(self.first[record + 1]):
            raise KeyError((record, view))
        row = self.cache.read(int(self.places[index]))
        return Latents(row["mean"], row.get("std"), row.get("mask"))


@torch.no_grad()
def encode_latents(family: ModelFamily, framing: Framing, root: Path, *, batch_size: int) -> LatentStore:
    """Encode the views that the cache in `root` lacks; finished files are kept.

    A row's key holds the id (the hash) of the image's bytes, the size it is scaled to, the crop, the flip and the hash
    of its mask; the folder, the autoencoder's weights, config and dtype and what is kept of the posterior. Batches are
    of one size and in the order of the records, so that in an empty cache the same settings give the same bits.
    Several processes share the work. Raises DataError for an image whose bytes are not those of its id.
    """
    cache = RowCache(root, "latents", image_identity(family, framing.posterior))
    first, keys = view_keys(framing)
    places = cache.locate(keys)
    # What one process finds here depends on how far the others are; the work that is shared must be the same in all.
    missing = processes.first(lambda: _first_of_equal(keys, np.flatnonzero(places < 0)))
    if len(missing):
        _encode_missing(family, framing, cache, (first, keys, missing), batch_size)
    return LatentStore(cache, first, places if (places >= 0).all() else _all_located(cache, keys))


def _encode_missing(
    family: ModelFamily,
    framing: Framing,
    cache: RowCache,
    wanted: tuple[np.ndarray, np.ndarray, np.ndarray],
    batch_size: int,
) -> None:
    """wanted: what `view_keys` gave, and the indices of the missing keys."""
    first, keys, missing = wanted
    records = np.searchsorted(first, missing, side="right") - 1
    buckets = framing.plan.of_record[records]
    order = np.argsort(buckets, kind="stable")
    chunks = list(_chunks(missing[order], buckets[order], SHARD_SIZE))
    for chunk in _own_share(chunks, "encoding images", len(missing)):
        owners = np.searchsorted(first, chunk, side="right") - 1
        rows = list(zip(owners.tolist(), (chunk - first[owners]).tolist(), strict=True))
        cache.add(keys[chunk], _encode(family, framing, rows, batch_size))


def _first_of_equal(keys: np.ndarray, indices: np.ndarray) -> np.ndarray:
    """Of indices, in order, those whose key is at no earlier one: of equal views one is enough."""
    order = indices[np.lexsort((indices, keys[indices, 1], keys[indices, 0]))]
    new = np.ones(len(order), dtype=bool)
    new[1:] = (keys[order[1:]] != keys[order[:-1]]).any(axis=1)
    return np.sort(order[new])


def view_keys(framing: Framing) -> tuple[np.ndarray, np.ndarray]:
    """Index of each record's first view, uint32 [n + 1], and the keys of all views in order, int64 [views, 2].

    Raises DataError for a mask that is missing, or lies beside two images of its name.
    """
    count = len(framing.records)
    first, keys = np.zeros(count + 1, np.uint32), bytearray()
    if framing.masks is not None and framing.masks.column is None:
        check_mask_names(row.image for row in framing.records)
    for number, row in enumerate(framing.records):
        views = framing.views.count(row) if framing.plan.of_record[number] >= 0 else 0
        mask = mask_path(row, framing.masks) if framing.masks and views else None
        weight = (content_id(mask) if mask else "whole", framing.masks.outside) if framing.masks else None
        for place in range(views):
            view = framing.view(number, place, row)
            keys += row_key(row.id, view.scaled, view.left, view.top, view.target, view.flipped, weight)
        first[number + 1] = first[number] + views
    return first, key_array(keys)


def _chunks(items: np.ndarray, groups: np.ndarray, size: int) -> Iterator[np.ndarray]:
    """Runs of at most `size` items of one group; equal groups stand together."""
    borders = np.flatnonzero(np.diff(groups)) + 1
    for part in np.split(items, borders):
        yield from (part[start : start + size] for start in range(0, len(part), size))


def _own_share(chunks: Sequence[np.ndarray], label: str, total: int) -> Iterator[np.ndarray]:
    """This process's chunks, with a progress bar; ends when every process is through."""
    done = 0
    with progress_bar(label, 0, total, visible=processes.is_first()) as advance:
        for number, chunk in enumerate(chunks):
            if number % processes.count() == processes.rank():
                yield chunk
            done += len(chunk)
            advance(done)
    processes.wait()


def _all_located(cache: RowCache, keys: np.ndarray) -> np.ndarray:
    """Locations of keys that were just written. Raises RunError if some are not there."""
    places = cache.locate(keys)
    lacking = int((places < 0).sum())
    if lacking:
        raise RunError(
            f"{cache.folder}: {lacking} of {len(keys)} rows are missing: another process has not written its share. "
            "Look for its error, and run again; what is there is kept."
        )
    return places


def _encode(
    family: ModelFamily, framing: Framing, rows: Sequence[tuple[int, int]], batch_size: int
) -> dict[str, Tensor]:
    parts: dict[str, list[Tensor]] = {"mean": [], "std": [], "mask": []}
    device = next(family.pipeline.vae.parameters()).device
    images = _Images()
    for start in range(0, len(rows), batch_size):
        records = [(framing.records[record], record, view) for record, view in rows[start : start + batch_size]]
        views = [framing.view(record, number, row) for row, record, number in records]
        pixels = [to_pixels(view.of(images.open(row))) for view, (row, _, _) in zip(views, records, strict=True)]
        posterior = family.encode_images(torch.stack(pixels).to(device))
        parts["mean"].append(_finite(posterior.mean.float().cpu(), [row.image for row, _, _ in records]))
        if framing.posterior == "sample":
            parts["std"].append(posterior.std.float().cpu())
        if framing.masks is not None:
            size = (posterior.mean.shape[-2], posterior.mean.shape[-1])
            paths = [mask_path(row, framing.masks) for row, _, _ in records]
            masks = [latent_mask(p, v, size, framing.masks.outside) for p, v in zip(paths, views, strict=True)]
            parts["mask"].append(torch.stack(masks))
    return {name: torch.cat(tensors) for name, tensors in parts.items() if tensors}


def _finite(means: Tensor, images: Sequence[str]) -> Tensor:
    """The latents, if all are numbers. Raises RunError that names the images of which they are not."""
    broken = [image for image, mean in zip(images, means, strict=True) if not torch.isfinite(mean).all()]
    if broken:
        raise RunError(
            f"the autoencoder's latents of {', '.join(broken[:5])} are not finite: it overflows or its weights are "
            "broken; take another checkpoint or, for SDXL in half precision, one with the fp16 fix."
        )
    return means


class _Images:
    """Opens images; the last one stays open for its other views."""

    def __init__(self) -> None:
        self.last: tuple[str, Image.Image] | None = None

    def open(self, row: CaptionedImage) -> Image.Image:
        if self.last is None or self.last[0] != row.image:
            path = Path(row.image)
            image = open_image(path)
            _check_unchanged(row, content_id(path), image.size)
            self.last = (row.image, image)
        return self.last[1]


def _check_unchanged(row: CaptionedImage, content: str, size: tuple[int, int]) -> None:
    if (content, *size) != (row.id, row.width, row.height):
        raise DataError(
            f"{row.image}: id {content}, {size[0]}x{size[1]} pixels; its record says "
            f"{row.id}, {row.width}x{row.height}. The file has changed since, or the id is not the hash of its bytes; "
            "make the records again."
        )


class TextStore:
    """The conditioning of every caption and of the empty prompt, found by text; 24 bytes a caption."""

    def __init__(self, cache: RowCache, keys: np.ndarray, places: np.ndarray) -> None:
        """keys: int64 [n, 2], sorted by their first half; places: their locations in the cache, int64 [n]."""
        self.cache, self.keys, self.places = cache, keys, places

    def read(self, text: EncoderPrompt) -> Conditioning:
        """Conditioning of one prompt, without the batch dimension. Raises KeyError if it was not encoded."""
        [key] = key_array(prompt_key(text))
        start, end = (np.searchsorted(self.keys[:, 0], key[0], side=side) for side in ("left", "right"))
        for index in range(int(start), int(end)):
            if self.keys[index, 1] == key[1]:
                return Conditioning(**self.cache.read(int(self.places[index])))
        raise KeyError(text)


def prompt_key(prompt: EncoderPrompt) -> bytes:
    """Key of a prompt's conditioning; texts for several encoders share it with no text for all."""
    if isinstance(prompt, str):
        return row_key(prompt)
    return row_key("per encoder", prompt.rest, sorted(prompt.texts))


def join_conditioning(rows: Sequence[Conditioning]) -> Conditioning:
    """Rows of a `TextStore` as one batch."""
    return Conditioning.cat([row.map(lambda tensor: tensor[None]) for row in rows])


@torch.no_grad()
def encode_texts(family: ModelFamily, texts: Sequence[EncoderPrompt], root: Path, *, batch_size: int) -> TextStore:
    """Encode the texts, and the empty prompt, that the cache in `root` lacks; finished files are kept.

    texts: may be read twice, and may repeat. The folder stands for the encoders' weights, configs and dtypes, the
    tokenizers, their limits, and the shape of the conditioning; dtypes stay as the family gives them.
    """
    cache = RowCache(root, "texts", text_identity(family))
    joined_keys = bytearray(row_key(""))
    for text in texts:
        joined_keys += prompt_key(text)
    keys = key_array(joined_keys)
    unique = _first_of_equal(keys, np.arange(len(keys)))
    missing = processes.first(lambda: unique[cache.locate(keys[unique]) < 0])
    chunks = [missing[start : start + TEXT_SHARD_SIZE] for start in range(0, len(missing), TEXT_SHARD_SIZE)]
    for chunk in _own_share(chunks, "encoding captions", len(missing)):
        prompts = ["" if index == 0 else texts[int(index) - 1] for index in chunk]
        starts = range(0, len(prompts), batch_size)
        joined = Conditioning.cat([_on_cpu(family, prompts[start : start + batch_size]) for start in starts])
        tensors = {name: value for name, value in vars(joined).items() if value is not None}
        cache.add(keys[chunk], tensors)
    sorted_keys = keys[unique[np.argsort(keys[unique, 0])]]
    return TextStore(cache, sorted_keys, _all_located(cache, sorted_keys))


def _on_cpu(family: ModelFamily, prompts: Sequence[EncoderPrompt]) -> Conditioning:
    """Sizes are the image's, not the text's: they do not belong here."""
    return replace(family.encode_prompts(prompts), sizes=None).map(lambda tensor: tensor.detach().cpu())


def load_pixels(record: CaptionedImage, resolution: int) -> Tensor:
    """The record's image at resolution x resolution, float32 [3, H, W] in [-1, 1]."""
    return to_pixels(crop_to(open_image(Path(record.image)), resolution, resolution, record.image))
