"""The embedded world: scenes whose captions, pictures and questions have exact answers. Imports no torch."""

from __future__ import annotations

from t2i.shapes.captions import WORDS, CaptionKind, describe, parse_caption, write_caption
from t2i.shapes.judge import Reading, read_scene
from t2i.shapes.questions import (
    CATEGORIES,
    Category,
    Question,
    answer,
    faithfulness,
    faithfulness_by_category,
    graded,
    questions,
)
from t2i.shapes.render import render
from t2i.shapes.scenes import (
    BACKGROUNDS,
    COLOURS,
    IMAGE_SIZE_PX,
    MAX_OBJECTS,
    RELATIONS,
    SHAPES,
    SIZES,
    Group,
    Scene,
    Skill,
    Split,
    composition_key,
    needs_skill,
    sample_scene,
    split_of,
)

__all__ = [
    "BACKGROUNDS",
    "CATEGORIES",
    "COLOURS",
    "IMAGE_SIZE_PX",
    "MAX_OBJECTS",
    "RELATIONS",
    "SHAPES",
    "SIZES",
    "WORDS",
    "CaptionKind",
    "Category",
    "Group",
    "Question",
    "Reading",
    "Scene",
    "Skill",
    "Split",
    "answer",
    "composition_key",
    "describe",
    "faithfulness",
    "faithfulness_by_category",
    "graded",
    "needs_skill",
    "parse_caption",
    "questions",
    "read_scene",
    "render",
    "sample_scene",
    "split_of",
    "write_caption",
]
