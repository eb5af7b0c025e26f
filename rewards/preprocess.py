"""From images to what a CLIP-like encoder reads: on PIL images, and the same in torch with a gradient."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from rewards.errors import InputError, ModelError

if TYPE_CHECKING:
    import torch
    from transformers import CLIPImageProcessorPil

_TORCH_MODES = {int(Image.Resampling.BILINEAR): "bilinear", int(Image.Resampling.BICUBIC): "bicubic"}


@dataclass(frozen=True)
class Preprocessor:
    """Resize (antialiased), centre crop and normalise as a checkpoint's own preprocessor_config.json says.

    processor: pinned to the PIL backend; the torchvision one resizes to slightly different pixels, and which one a bare
    AutoProcessor takes depends on what happens to be installed.
    """

    processor: CLIPImageProcessorPil
    short_side: int | None
    """Short side after the resize, or None where the resize is to `crop` whatever the proportions."""
    crop: tuple[int, int]
    """Height and width of the result."""
    mode: str
    """bicubic or bilinear."""
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def from_images(self, images: Sequence[Image.Image]) -> torch.Tensor:
        """B images, RGB 8 bits -> [B, 3, H, W] float32. Each image on its own: no value depends on the batch."""
        return self.processor(images=list(images), return_tensors="pt")["pixel_values"]

    def from_tensor(self, pixels: torch.Tensor) -> torch.Tensor:
        """[B, 3, h, w] float in [0, 1] -> [B, 3, H, W] float32, with gradient.

        As `from_images` but for the rounding to 8 bits after each pass of the resize, which has no gradient: within
        2/255 per pixel. Raises InputError for another shape or type, or values outside [0, 1] by more than 0.001.
        """
        import torch

        if pixels.ndim != 4 or pixels.shape[1] != 3 or not pixels.is_floating_point():
            raise InputError(f"{pixels.dtype} pixels of shape {tuple(pixels.shape)}; expected float [B, 3, H, W].")
        low, high = (float(bound) for bound in torch.aminmax(pixels.detach())) if pixels.numel() else (0.0, 0.0)
        if not (low >= -1e-3 and high <= 1.001):
            raise InputError(f"pixels range from {low:.4g} to {high:.4g}; expected 0 to 1 (decoders give -1 to 1).")
        resized = torch.nn.functional.interpolate(
            pixels.float(), size=self._resized(*pixels.shape[-2:]), mode=self.mode, align_corners=False, antialias=True
        )
        # Bicubic overshoots at edges; PIL clips to 0..255.
        cropped = self._centre(resized.clamp(0.0, 1.0))
        shape = (1, 3, 1, 1)
        return (cropped - cropped.new_tensor(self.mean).view(shape)) / cropped.new_tensor(self.std).view(shape)

    def _resized(self, height: int, width: int) -> tuple[int, int]:
        if self.short_side is None:
            return self.crop
        # The long side is cut off, not rounded, as in transformers' get_resize_output_image_size.
        long_side = int(self.short_side * max(height, width) / min(height, width))
        return (long_side, self.short_side) if width <= height else (self.short_side, long_side)

    def _centre(self, pixels: torch.Tensor) -> torch.Tensor:
        top, left = (pixels.shape[-2] - self.crop[0]) // 2, (pixels.shape[-1] - self.crop[1]) // 2
        return pixels[..., top : top + self.crop[0], left : left + self.crop[1]]


def read_preprocessor(folder: Path) -> Preprocessor:
    """Preprocessing of the checkpoint in `folder`. Raises ModelError for none, or one that is not rebuilt here."""
    from transformers import CLIPImageProcessorPil

    try:
        processor = CLIPImageProcessorPil.from_pretrained(str(folder))
    except (OSError, ValueError, TypeError) as error:
        raise ModelError(f"{folder}: no readable preprocessor_config.json ({str(error).splitlines()[0]}).") from error
    size, crop = dict(processor.size), dict(processor.crop_size or {})
    short_side = size.get("shortest_edge")
    result = crop if short_side else size
    height, width = int(result.get("height") or 0), int(result.get("width") or 0)
    resample = int(processor.resample or 0)
    problems = [
        problem
        for wrong, problem in (
            (not (processor.do_resize and processor.do_rescale and processor.do_normalize), "a step is switched off"),
            (not math.isclose(processor.rescale_factor, 1 / 255, rel_tol=1e-6), "rescale_factor is not 1/255"),
            (resample not in _TORCH_MODES, f"resample {resample} is not bicubic or bilinear"),
            (height < 1 or width < 1, f"size {size} and crop {crop} name no result size"),
            (bool(short_side) and not processor.do_center_crop, "shortest_edge without a centre crop"),
            (max(height, width) > (short_side or math.inf), "the crop exceeds the resize"),
        )
        if wrong
    ]
    if problems:
        raise ModelError(f"{folder}: preprocessing is not supported: {'; '.join(problems)}.")
    return Preprocessor(
        processor=processor,
        short_side=short_side,
        crop=(height, width),
        mode=_TORCH_MODES[resample],
        mean=_three(processor.image_mean, folder),
        std=_three(processor.image_std, folder),
    )


def _three(values: object, folder: Path) -> tuple[float, float, float]:
    if not (isinstance(values, list | tuple) and len(values) == 3):
        raise ModelError(f"{folder}: image_mean and image_std must have three numbers each; found {values}.")
    red, green, blue = values
    return float(red), float(green), float(blue)
