"""Captioners: one file each, a tagged union for recipes."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from t2i.captioners.base import Answer, Captioner, Refusal
from t2i.captioners.describe import EndpointCaptioner, VlmCaptioner
from t2i.captioners.files import FilesCaptioner
from t2i.captioners.fuse import FuseCaptioner
from t2i.captioners.shapes import ShapesCaptioner

AnyCaptioner = Annotated[
    EndpointCaptioner | FilesCaptioner | FuseCaptioner | ShapesCaptioner | VlmCaptioner, Field(discriminator="type")
]

__all__ = [
    "Answer",
    "AnyCaptioner",
    "Captioner",
    "EndpointCaptioner",
    "FilesCaptioner",
    "FuseCaptioner",
    "Refusal",
    "ShapesCaptioner",
    "VlmCaptioner",
]
