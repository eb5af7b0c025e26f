"""Control scorers: what a reward must not be reducible to. Each is one formula on the pixels, blind to the prompt.

A tuned model that "improves" while its images merely get brighter, sharper or busier shows up here. None of them has a
better direction; `higher_is_better` only fixes what a win rate counts.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from rewards.base import ImageLike, ScorerCard, Scores1D, check_scores, open_batch
from rewards.errors import InputError

if TYPE_CHECKING:
    import torch

_LUMA = (0.2126, 0.7152, 0.0722)
"""ITU-R BT.709 weights, here on gamma-encoded values, as image editors do."""

Pixels = NDArray[np.float64]


def _score_each(name: str, measure: Callable[[Image.Image], float], images: Sequence[ImageLike]) -> Scores1D:
    return check_scores(name, np.array([measure(image) for image in open_batch(images)], dtype=np.float32), len(images))


def _pixels(image: Image.Image) -> Pixels:
    """[H, W, 3] in [0, 1]."""
    return np.asarray(image, dtype=np.float64) / 255.0


def _check_pixels(name: str, pixels: torch.Tensor) -> torch.Tensor:
    if pixels.ndim != 4 or pixels.shape[1] != 3 or not pixels.is_floating_point():
        raise InputError(f"{name}: {pixels.dtype} pixels of shape {tuple(pixels.shape)}; expected float [B, 3, H, W].")
    return pixels.float()


def _luma(pixels: torch.Tensor) -> torch.Tensor:
    """[B, 3, H, W] -> [B, H, W]."""
    red, green, blue = pixels.unbind(1)
    return _LUMA[0] * red + _LUMA[1] * green + _LUMA[2] * blue


class _Control:
    """What the controls have in common: no prompt, no weights, a fingerprint of name and version."""

    name: ClassVar[str]
    version: ClassVar[str] = "1"
    scale: ClassVar[str]
    needs_prompt: ClassVar[bool] = False
    differentiable: ClassVar[bool] = False
    higher_is_better: ClassVar[bool] = True
    low: ClassVar[float] = 0.0
    high: ClassVar[float | None] = 1.0

    @property
    def card(self) -> ScorerCard:
        """What the scorer is: a formula on the pixels as they are."""
        return ScorerCard(
            name=self.name,
            version=self.version,
            weights=None,
            revision=None,
            licence="none needed: a formula",
            scale=self.scale,
            low=self.low,
            high=self.high,
            token_limit=None,
            preprocessing=None,
            needs_prompt=self.needs_prompt,
            differentiable=self.differentiable,
            higher_is_better=self.higher_is_better,
            trained_on="nothing",
        )

    def fingerprint(self) -> dict[str, str]:
        """Name and version: the formula is all there is. Decoding depends on Pillow."""
        return {"name": self.name, "version": self.version, "pillow": Image.__version__}


class JpegSize(_Control):
    """Kilobytes (1000 bytes) of the image as a JPEG of quality 95: busyness. As in DDPO (Black et al. 2023,
    arXiv:2305.13301). Grows with resolution: compare images of one size."""

    name = "jpeg_size"
    scale = "size as JPEG of quality 95 (4:2:0) in units of 1000 bytes, above 0"
    high = None

    def score(self, images: Sequence[ImageLike], prompts: Sequence[str] | None = None) -> Scores1D:
        """Score B images; prompts are ignored. Returns [B] kilobytes."""
        return _score_each(self.name, self._measure, images)

    def fingerprint(self) -> dict[str, str]:
        """As the other controls, and the JPEG library, whose versions differ by a few bytes."""
        from PIL import features

        return super().fingerprint() | {"libjpeg": str(features.version("libjpeg_turbo") or features.version("jpg"))}

    def _measure(self, image: Image.Image) -> float:
        buffer = io.BytesIO()
        image.save(buffer, format="JPEG", quality=95, subsampling="4:2:0")
        return buffer.tell() / 1000.0


class Brightness(_Control):
    """Mean BT.709 luma of the gamma-encoded pixels."""

    name = "brightness"
    scale = "mean of 0.2126 R + 0.7152 G + 0.0722 B, gamma-encoded, 0 (black) to 1 (white)"
    differentiable = True

    def score(self, images: Sequence[ImageLike], prompts: Sequence[str] | None = None) -> Scores1D:
        """Score B images; prompts are ignored. Returns [B] in [0, 1]."""
        return _score_each(self.name, lambda image: float((_pixels(image) @ _LUMA).mean()), images)

    def score_tensor(self, pixels: torch.Tensor, prompts: Sequence[str] | None = None) -> torch.Tensor:
        """Score [B, 3, H, W] in [0, 1]. Returns [B] with gradient."""
        return _luma(_check_pixels(self.name, pixels)).mean(dim=(1, 2))


class Saturation(_Control):
    """Mean HSV saturation, (max - min) / max of the channels, 0 for black."""

    name = "saturation"
    scale = "mean of (max - min) / max over R, G, B, 0 (grey) to 1 (pure colour)"
    differentiable = True

    def score(self, images: Sequence[ImageLike], prompts: Sequence[str] | None = None) -> Scores1D:
        """Score B images; prompts are ignored. Returns [B] in [0, 1]."""
        return _score_each(self.name, self._measure, images)

    def score_tensor(self, pixels: torch.Tensor, prompts: Sequence[str] | None = None) -> torch.Tensor:
        """Score [B, 3, H, W] in [0, 1]. Returns [B] with gradient."""
        values = _check_pixels(self.name, pixels)
        largest = values.amax(dim=1)
        # 1e-6 is far below 1/255, so 8-bit values agree with `score`, and black has a gradient that is finite.
        return ((largest - values.amin(dim=1)) / largest.clamp_min(1e-6)).mean(dim=(1, 2))

    def _measure(self, image: Image.Image) -> float:
        values = _pixels(image)
        largest = values.max(axis=2)
        chroma = largest - values.min(axis=2)
        return float(np.divide(chroma, largest, out=np.zeros_like(chroma), where=largest > 0.0).mean())


class Sharpness(_Control):
    """Variance of the 4-neighbour Laplacian of luma, edges repeated: the focus measure of Pech-Pacheco et al. 2000.

    In 0..255 units as usual for it: a flat image has 0, a photograph some hundreds, noise tens of thousands.
    """

    name = "sharpness"
    scale = "variance of the Laplacian of luma in 0..255 units, 0 (flat) and up"
    high = None
    differentiable = True

    def score(self, images: Sequence[ImageLike], prompts: Sequence[str] | None = None) -> Scores1D:
        """Score B images; prompts are ignored. Returns [B], at least 0."""
        return _score_each(self.name, self._measure, images)

    def score_tensor(self, pixels: torch.Tensor, prompts: Sequence[str] | None = None) -> torch.Tensor:
        """Score [B, 3, H, W] in [0, 1]. Returns [B] with gradient."""
        import torch

        luma = 255.0 * _luma(_check_pixels(self.name, pixels))
        padded = torch.nn.functional.pad(luma[:, None], (1, 1, 1, 1), mode="replicate")[:, 0]
        around = padded[:, :-2, 1:-1] + padded[:, 2:, 1:-1] + padded[:, 1:-1, :-2] + padded[:, 1:-1, 2:]
        return (around - 4.0 * luma).var(dim=(1, 2), correction=0)

    def _measure(self, image: Image.Image) -> float:
        luma = 255.0 * (_pixels(image) @ _LUMA)
        padded = np.pad(luma, 1, mode="edge")
        around = padded[:-2, 1:-1] + padded[2:, 1:-1] + padded[1:-1, :-2] + padded[1:-1, 2:]
        return float((around - 4.0 * luma).var())


class Blank(_Control):
    """1 for an image of one colour (what a safety filter or a crash leaves), else 0."""

    name = "blank"
    scale = "1 if every pixel has the same colour, else 0"
    higher_is_better = False

    def score(self, images: Sequence[ImageLike], prompts: Sequence[str] | None = None) -> Scores1D:
        """Score B images; prompts are ignored. Returns [B] of 0 and 1."""
        return _score_each(self.name, lambda image: float(_is_one_colour(image)), images)


def _is_one_colour(image: Image.Image) -> bool:
    return all(low == high for low, high in image.getextrema())  # pyright: ignore[reportGeneralTypeIssues]
