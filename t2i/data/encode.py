"""The latents of a data set, encoded once and kept on disk."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from t2i.data.images import check_sizes, crop_to, open_image, to_pixels
from t2i.records import CaptionedImage, write_tensors
from t2i.training.progress import progress_bar

if TYPE_CHECKING:
    from t2i.families.base import ModelFamily

SHARD_SIZE = 256
"""Records in a file."""


class LatentStore:
    """Posterior means and deviations of records 0 .. n-1 in `folder/latents-00000.safetensors`, ..."""

    def __init__(self, folder: Path, count: int) -> None:
        self.folder, self.count = folder, count
        self._files: dict[int, Any] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Open files stay behind when a data worker gets the store."""
        return {**self.__dict__, "_files": {}}

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, record: int) -> tuple[Tensor, Tensor]:
        """(mean, std) of one record, each [C, h, w] float32."""
        shard, place = divmod(record, SHARD_SIZE)
        file = self._file(shard)
        return file.get_slice("mean")[place], file.get_slice("std")[place]

    def _file(self, shard: int) -> Any:
        from safetensors import safe_open

        if shard not in self._files:
            self._files[shard] = safe_open(shard_path(self.folder, shard), "pt").__enter__()
        return self._files[shard]


def shard_path(folder: Path, shard: int) -> Path:
    """File that holds records shard * SHARD_SIZE and following."""
    return folder / f"latents-{shard:05d}.safetensors"


@torch.no_grad()
def encode_records(
    family: ModelFamily, records: Sequence[CaptionedImage], resolution: int, folder: Path, *, batch_size: int
) -> LatentStore:
    """Encode every record at resolution x resolution, one file per SHARD_SIZE records; finished files are kept.

    The folder must belong to this data, model and resolution alone: the caller names it by a fingerprint of these.
    """
    check_sizes(records, resolution)
    folder.mkdir(parents=True, exist_ok=True)
    with progress_bar("encoding images", 0, len(records)) as advance:
        for start in range(0, len(records), SHARD_SIZE):
            path = shard_path(folder, start // SHARD_SIZE)
            if not path.exists():
                mean, std = _encode(family, records[start : start + SHARD_SIZE], resolution, batch_size)
                write_tensors(path, {"mean": mean, "std": std})
            advance(min(start + SHARD_SIZE, len(records)))
    return LatentStore(folder, len(records))


def _encode(
    family: ModelFamily, records: Sequence[CaptionedImage], resolution: int, batch_size: int
) -> tuple[Tensor, Tensor]:
    means, deviations = [], []
    device = next(family.denoiser.parameters()).device
    for start in range(0, len(records), batch_size):
        pixels = torch.stack([load_pixels(record, resolution) for record in records[start : start + batch_size]])
        posterior = family.encode_images(pixels.to(device))
        means.append(posterior.mean.float().cpu())
        deviations.append(posterior.std.float().cpu())
    return torch.cat(means), torch.cat(deviations)


def load_pixels(record: CaptionedImage, resolution: int) -> Tensor:
    """The record's image at resolution x resolution, float32 [3, H, W] in [-1, 1]."""
    return to_pixels(crop_to(open_image(Path(record.image)), resolution, resolution, record.image))
