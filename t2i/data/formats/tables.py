"""Rows of a CSV, JSONL or Parquet file as plain values, each with its place."""

from __future__ import annotations

import contextlib
import csv
import io
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from t2i.data.formats.base import BrokenRow
from t2i.data.formats.texts import MAX_CAPTION_CHARS, decoded
from t2i.errors import DataError

TableRow = tuple[str, dict[str, Any]]
"""(file and row, column -> value)."""


def read_table(path: Path, required: tuple[str, ...]) -> Iterator[TableRow | BrokenRow]:
    """The rows of a table by its ending, from the first row after the header on.

    Raises DataError for an unknown ending, a file that cannot be read, or one that lacks a required column.
    """
    readers: Mapping[str, Callable[[Path], Iterator[TableRow | BrokenRow]]] = {
        ".csv": _csv_rows,
        ".jsonl": _jsonl_rows,
        ".parquet": _parquet_rows,
    }
    if path.suffix not in readers:
        raise DataError(f"{path}: expected a file that ends in {', '.join(readers)}.")
    try:
        for number, row in enumerate(readers[path.suffix](path)):
            if isinstance(row, BrokenRow) or all(name in row[1] for name in required):
                yield row
                continue
            missing = [name for name in required if name not in row[1]]
            there = f"no column {', '.join(missing)}; it has {', '.join(row[1])}."
            # The columns of a line of JSON are its own: it alone is broken.
            if path.suffix != ".jsonl" or number == 0:
                raise DataError(f"{path}: {there}")
            yield BrokenRow(row[0], there)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error}).") from error


def _lines(path: Path) -> Iterator[tuple[int, str | DataError]]:
    """Number and text of every line that is not empty."""
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                text = decoded(line, f"{path}:{number}")
            except DataError as error:
                yield number, error
            else:
                if text.strip():
                    yield number, text


def _jsonl_rows(path: Path) -> Iterator[TableRow | BrokenRow]:
    for number, line in _lines(path):
        where = f"{path}:{number}"
        try:
            if isinstance(line, DataError):
                raise line
            values = json.loads(line)
        except ValueError as error:
            yield BrokenRow(where, f"not JSON ({error})")
            continue
        if isinstance(values, dict):
            yield where, values
        else:
            yield BrokenRow(where, f"{type(values).__name__} instead of a JSON object")


def _csv_rows(path: Path) -> Iterator[TableRow | BrokenRow]:
    # The limit is the module's own and counts a field; a caption beyond it is refused with its row, never cut.
    csv.field_size_limit(max(csv.field_size_limit(), 2 * MAX_CAPTION_CHARS))
    text = decoded(path.read_bytes(), str(path))
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    with contextlib.suppress(csv.Error):  # told below, with its line
        names = list(reader.fieldnames or ())
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise DataError(f"{path}:1: the header names {', '.join(repeated)} more than once; rename one.")
    while True:
        try:
            values = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield BrokenRow(f"{path}:{reader.line_num + 1}", f"not CSV ({error})")
            continue
        where = f"{path}:{reader.line_num}"
        # DictReader puts surplus values under None, and None for those that lack.
        if None in values or None in values.values():
            yield BrokenRow(where, f"another number of values than the {len(reader.fieldnames or ())} of the header")
        else:
            yield where, dict(values)


def _parquet_rows(path: Path) -> Iterator[TableRow | BrokenRow]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        for batch in pq.ParquetFile(path).iter_batches(1000):
            for values in batch.to_pylist():
                number += 1
                yield f"{path}, row {number}", values
    except pa.ArrowException as error:
        raise DataError(f"{path}: cannot be read as Parquet ({error}).") from error
