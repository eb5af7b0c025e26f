"""Captioners: one file each, a tagged union for recipes."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from t2i.captioners.base import Answer, Captioner, Refusal
from t2i.captioners.files import FilesCaptioner
from t2i.captioners.shapes import ShapesCaptioner

AnyCaptioner = Annotated[FilesCaptioner | ShapesCaptioner, Field(discriminator="type")]

__all__ = ["Answer", "AnyCaptioner", "Captioner", "FilesCaptioner", "Refusal", "ShapesCaptioner"]
