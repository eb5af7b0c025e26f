"""What a recipe says about its images on their way to the model. No torch here: recipes are read without it."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from t2i.config import FrozenModel, speed_only


class BucketSettings(FrozenModel):
    """Sizes of several aspects and about the same area, instead of one square. A batch is of one size."""

    step: int = Field(default=64, gt=0)
    """Widths and heights are multiples of this, which must be a multiple of what the model needs (8 to 64)."""
    max_aspect: float = Field(default=2.0, ge=1)
    """Longer side over shorter side of a bucket, and of an image, at most."""
    unfit: Literal["refuse", "drop"] = "refuse"
    """What happens to images that are longer than `max_aspect` or smaller than their bucket: an error that names them,
    or they are left out and named in `unfit.jsonl` (`unfit_held_out.jsonl` of images held out) and by
    `t2i inspect`."""
    upscale: bool = False
    """Enlarge images that are smaller than their bucket instead; they are named likewise."""


class ViewSettings(FrozenModel):
    """What is cut out of an image, and whether it may be mirrored.

    Every variant of an image is encoded once and cached: `crops` of them, twice as many where it may be mirrored. To
    mirror latents is not to mirror the picture, so that is never done.
    """

    crop: Literal["centre", "random"] = "centre"
    """Middle of the image, or places drawn once for each image."""
    crops: int = Field(default=1, ge=1, le=64)
    """Different random crops of each image; each visit draws one."""
    flip: bool = False
    """Mirror half of the visits, left to right. Never an image that has a caption, of any kind and drawn or not, with
    a word of direction: mirroring would make it a lie. Lettering is mirrored too: name its words in `never_flip`."""
    never_flip: tuple[str, ...] = ()
    """Further words, in any case, of captions whose images are never mirrored: `text`, `sign`, words of a language."""

    @field_validator("never_flip")
    @classmethod
    def _are_words(cls, words: tuple[str, ...]) -> tuple[str, ...]:
        if any(not word.strip() for word in words):
            raise ValueError("an empty word would forbid every flip; leave it out")
        return words


class MaskSettings(FrozenModel):
    """Weigh the loss by a grey picture beside each image: white counts, black does not."""

    column: str | None = None
    """Column of the records that holds the mask's path, relative to its image's folder; `picture.mask.png` beside
    `picture.jpg` if absent."""
    missing: Literal["refuse", "whole"] = "refuse"
    """An image without a mask is an error, or counts as a whole."""
    outside: float = Field(default=0.0, ge=0, lt=1)
    """Weight where the mask is black; 0.1 keeps a little of the background."""


class DatasetSettings(FrozenModel):
    """How one of several sets of images is used."""

    repeats: int = Field(default=1, ge=1)
    """How often each of its images comes in a pass over the data."""
    weight: float | None = Field(default=None, gt=0)
    """Share of the examples drawn from it, relative to the other sets' weights, whatever its size; instead of
    `repeats`, and for every set or none."""
    loss_weight: float = Field(default=1.0, gt=0)
    """Factor of the loss of its examples: below 1 for prior preservation with images of the class."""
    trigger_words: str | None = None
    """Put before its captions instead of the stage's `trigger_words`; empty for images of the class."""
    captions: dict[str, float] = Field(default_factory=dict)
    """Caption kind -> weight, instead of the stage's `captions`."""

    @model_validator(mode="after")
    def _is_measured_once(self) -> Self:
        if self.weight is not None and self.repeats != 1:
            raise ValueError(f"repeats: {self.repeats} would be ignored beside weight: {self.weight:g}; give one")
        return self


class CaptionPhase(FrozenModel):
    """Weights of caption kinds from a step on."""

    from_step: int = Field(gt=0)
    """First step, from 0, at which they hold."""
    captions: dict[str, float] = Field(min_length=1)
    """Caption kind -> weight."""

    @field_validator("captions")
    @classmethod
    def _weights_are_positive(cls, captions: dict[str, float]) -> dict[str, float]:
        if any(weight <= 0 for weight in captions.values()):
            raise ValueError("every weight must be above 0; leave a kind out instead")
        return captions


class CacheSettings(FrozenModel):
    """Where encoded images and prompts are kept."""

    folder: str | None = speed_only(None)
    """A folder that runs may share, beside the runs; the stage's own, emptied when it is finished, if absent."""
    text: bool = False
    """Encode every caption once, before training. Refused where a text encoder is trained. Takes 0.3 MB a caption for
    CLIP encoders and up to 8 MB for T5, so leave it off where there are many captions."""
