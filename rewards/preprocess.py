"""From images to what an encoder reads: on PIL images, and the same in torch with a gradient."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from PIL import Image

from rewards.errors import InputError, ModelError

if TYPE_CHECKING:
    import torch

_TORCH_MODES = {int(Image.Resampling.BILINEAR): "bilinear", int(Image.Resampling.BICUBIC): "bicubic"}
_PIL_MODES = {name: number for number, name in _TORCH_MODES.items()}

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class Preprocessor:
    """Resize, cut or pad to one size, normalise. Each image on its own: no value depends on the batch.

    Written out here rather than left to a processor class: those of transformers resize to slightly different pixels
    with torchvision than without, and a bare AutoProcessor takes whichever happens to be installed.
    """

    short_side: int | None
    """Short side after the resize, or None where the resize is to `crop` whatever the proportions."""
    crop: tuple[int, int]
    """Height and width of the result."""
    mode: str = "bicubic"
    """bicubic or bilinear."""
    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[float, float, float] = CLIP_STD
    centre: Literal["floor", "half_even"] = "floor"
    """How half a pixel of margin is rounded: down as transformers does, or to even as torchvision."""

    def from_images(self, images: Sequence[Image.Image]) -> torch.Tensor:
        """B images, RGB 8 bits -> [B, 3, H, W] float32. PIL resizes, with antialiasing, to 8 bits."""
        import torch

        pixels = np.stack([np.asarray(self._fit(image)) for image in images])
        return self._normalise(torch.from_numpy(pixels).permute(0, 3, 1, 2).to(torch.float32) / 255.0)

    def from_tensor(self, pixels: torch.Tensor) -> torch.Tensor:
        """[B, 3, h, w] float in [0, 1] -> [B, 3, H, W] float32, with gradient.

        As `from_images` but for the rounding to 8 bits after each pass of the resize, which has no gradient: within
        2/255 per pixel. Raises InputError for another shape or type, or values outside [0, 1] by more than 0.001.
        """
        import torch

        check_pixels(pixels)
        resized = torch.nn.functional.interpolate(
            pixels.float(), size=self._resized(*pixels.shape[-2:]), mode=self.mode, align_corners=False, antialias=True
        )
        top, left = self._corner(*resized.shape[-2:])
        # Bicubic overshoots at edges; PIL clips to 0..255.
        return self._normalise(resized.clamp(0.0, 1.0)[..., top : top + self.crop[0], left : left + self.crop[1]])

    def _fit(self, image: Image.Image) -> Image.Image:
        height, width = self._resized(image.height, image.width)
        resized = image.resize((width, height), Image.Resampling(_PIL_MODES[self.mode]))
        top, left = self._corner(height, width)
        return resized.crop((left, top, left + self.crop[1], top + self.crop[0]))

    def _resized(self, height: int, width: int) -> tuple[int, int]:
        if self.short_side is None:
            return self.crop
        # The long side is cut off, not rounded, as in transformers and torchvision.
        long_side = int(self.short_side * max(height, width) / min(height, width))
        return (long_side, self.short_side) if width <= height else (self.short_side, long_side)

    def _corner(self, height: int, width: int) -> tuple[int, int]:
        margins = height - self.crop[0], width - self.crop[1]
        if self.centre == "floor":
            return margins[0] // 2, margins[1] // 2
        return round(margins[0] / 2), round(margins[1] / 2)

    def _normalise(self, pixels: torch.Tensor) -> torch.Tensor:
        return _normalise(pixels, self.mean, self.std)


@dataclass(frozen=True)
class TensorPadding:
    """Resize the long side as a float tensor and pad with black to a square: the preprocessing of HPSv2.

    There is no rounding to 8 bits and no clipping, so images and tensors give the same values. antialias: torchvision's
    default for tensors changed with version 0.17, and scores with it; here it is always explicit.
    """

    side: int
    antialias: bool = True
    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[float, float, float] = CLIP_STD

    def from_images(self, images: Sequence[Image.Image]) -> torch.Tensor:
        """B images, RGB 8 bits -> [B, 3, side, side] float32."""
        import torch

        tensors = [torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)[None] for image in images]
        return torch.cat([self._fit(pixels.to(torch.float32) / 255.0) for pixels in tensors])

    def from_tensor(self, pixels: torch.Tensor) -> torch.Tensor:
        """[B, 3, h, w] float in [0, 1] -> [B, 3, side, side] float32, with gradient. Errors as `Preprocessor`."""
        check_pixels(pixels)
        return self._fit(pixels.float())

    def _fit(self, pixels: torch.Tensor) -> torch.Tensor:
        import torch

        height, width = pixels.shape[-2:]
        factor = self.side / max(height, width)
        # A strip of 1 x 250 would round to nothing.
        new = max(1, round(height * factor)), max(1, round(width * factor))
        if new != (height, width):
            pixels = torch.nn.functional.interpolate(
                pixels, size=new, mode="bicubic", align_corners=False, antialias=self.antialias
            )
        down, across = self.side - new[0], self.side - new[1]
        margins = (across // 2, across - across // 2, down // 2, down - down // 2)
        return _normalise(torch.nn.functional.pad(pixels, margins), self.mean, self.std)


def check_pixels(pixels: torch.Tensor) -> None:
    """Raise InputError unless this is float [B, 3, H, W] in [0, 1] (0.001 of overshoot is allowed)."""
    import torch

    if pixels.ndim != 4 or pixels.shape[1] != 3 or not pixels.is_floating_point():
        raise InputError(f"{pixels.dtype} pixels of shape {tuple(pixels.shape)}; expected float [B, 3, H, W].")
    low, high = (float(bound) for bound in torch.aminmax(pixels.detach())) if pixels.numel() else (0.0, 0.0)
    if not (low >= -1e-3 and high <= 1.001):
        raise InputError(f"pixels range from {low:.4g} to {high:.4g}; expected 0 to 1 (decoders give -1 to 1).")


def _normalise(pixels: torch.Tensor, mean: tuple[float, float, float], std: tuple[float, float, float]) -> torch.Tensor:
    return (pixels - pixels.new_tensor(mean).view(1, 3, 1, 1)) / pixels.new_tensor(std).view(1, 3, 1, 1)


def read_preprocessor(folder: Path, model_type: str = "clip") -> Preprocessor:
    """Preprocessing of the checkpoint in `folder`: its own preprocessor_config.json, read as `model_type` reads it.

    model_type: clip or siglip, whose defaults differ. Raises ModelError for none, or one that is not rebuilt here.
    """
    from transformers import CLIPImageProcessorPil, SiglipImageProcessorPil

    reader = SiglipImageProcessorPil if model_type == "siglip" else CLIPImageProcessorPil
    try:
        processor = reader.from_pretrained(str(folder))
    except (OSError, ValueError, TypeError) as error:
        raise ModelError(f"{folder}: no readable preprocessor_config.json ({str(error).splitlines()[0]}).") from error
    does_crop = isinstance(processor, CLIPImageProcessorPil) and bool(processor.do_center_crop)
    crop = dict(processor.crop_size or {}) if isinstance(processor, CLIPImageProcessorPil) else {}
    size = dict(processor.size or {})
    short_side = size.get("shortest_edge")
    result = crop if short_side else size
    height, width = int(result.get("height") or 0), int(result.get("width") or 0)
    resample = int(processor.resample or 0)
    steps = processor.do_resize and processor.do_rescale and processor.do_normalize
    problems = [
        problem
        for wrong, problem in (
            (not steps, "a step is switched off"),
            (not math.isclose(processor.rescale_factor, 1 / 255, rel_tol=1e-6), "rescale_factor is not 1/255"),
            (resample not in _TORCH_MODES, f"resample {resample} is not bicubic or bilinear"),
            (height < 1 or width < 1, f"size {size} and crop {crop} name no result size"),
            (bool(short_side) and not does_crop, "shortest_edge without a centre crop"),
            (
                not short_side and does_crop and crop != size,
                f"a resize to {size}, then a crop to {crop}",
            ),
            (max(height, width) > (short_side or math.inf), "the crop exceeds the resize"),
        )
        if wrong
    ]
    if problems:
        raise ModelError(f"{folder}: preprocessing is not supported: {'; '.join(problems)}.")
    return Preprocessor(
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
