"""The images that a file of pairs names: what is made of the file is made of them too, so a plan looks at them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

from t2i.config import PathMark
from t2i.errors import DataError

COLUMNS = ("chosen", "rejected", "image_0", "image_1", "image_path", "file_path")
"""Columns of all layouts of pairs that hold a path of an image, or a list of paths."""


def named_images(path: Path) -> Iterator[Path]:
    """Paths of the images in a table of pairs, by row; those before its first fault, which the stage says."""
    from t2i.data.pair_tables import table_rows

    try:
        for row in table_rows(path):
            for column in COLUMNS:
                yield from (path.parent / name for name in _names(row.get(column)))
    except DataError:
        return


def _names(value: object) -> list[str]:
    if isinstance(value, str) and value.lstrip().startswith("["):  # how a CSV holds a list
        try:
            value = json.loads(value)
        except ValueError:
            return []
    values = value if isinstance(value, list) else [value]
    return [name for name in values if isinstance(name, str) and name]


PairsPath = Annotated[str, PathMark(may_be_hub_id=False, named_images=named_images)]
"""A file of pairs: its content and that of the images that it names go into the fingerprint."""
