"""The native format: a Parquet file with one row an image, its captions a list of structs. It holds whole records."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from t2i.errors import DataError
from t2i.files import replacing
from t2i.records import CaptionedImage, ImageOrigin, Origin, record_from, record_values

if TYPE_CHECKING:
    import pyarrow

ROWS_PER_GROUP = 1000
"""Rows held in memory while a file is written or read."""


def schema() -> pyarrow.Schema:
    """Columns of the file. `extra` is JSON; `format`, `caption_id` and `words` are for readers, and not read back."""
    import pyarrow as pa

    text, texts, numbers = pa.string(), pa.list_(pa.string()), pa.map_(pa.string(), pa.float64())
    origin = dict.fromkeys(_names(Origin), text) | {"decoding": numbers, "parents": texts}
    review = pa.struct([(name, text) for name in ("status", "by", "at", "edited_from")])
    caption = {
        "caption_id": text,
        "kind": text,
        "text": text,
        "words": pa.int32(),
        "source": text,
        "origin": pa.struct(list(origin.items())),
        "language": text,
        "tokens": pa.map_(text, pa.int32()),
        "scores": numbers,
        "checks": texts,
        "review": review,
    }
    columns = {
        "id": text,
        "image": text,
        "width": pa.int32(),
        "height": pa.int32(),
        "format": text,
        "captions": pa.list_(pa.struct(list(caption.items()))),
        "origin": pa.struct([(name, text) for name in _names(ImageOrigin)]),
        "scores": numbers,
        "checks": texts,
        "extra": text,
    }
    return pa.schema(list(columns.items()))


def write_parquet(path: Path, records: Iterable[CaptionedImage]) -> None:
    """Write records to one file, atomically, a thousand in memory at a time. Equal records give equal bytes."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = schema()
    with replacing(path) as temporary, pq.ParquetWriter(temporary, columns, compression="zstd") as writer:
        for rows in _groups(records):
            writer.write_table(pa.Table.from_pylist([_row(record) for record in rows], columns))


def read_parquet(path: Path) -> Iterator[CaptionedImage]:
    """Yield the records of a file, images as named there. Raises DataError with file and row for what is no record."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
        missing = sorted({"id", "image", "width", "height"} - set(file.schema_arrow.names))
        if missing:
            raise DataError(f"{path}: no column {', '.join(missing)}; expected a file that this toolkit wrote.")
        number = 0
        for batch in file.iter_batches(ROWS_PER_GROUP):
            for values in batch.to_pylist(maps_as_pydicts="strict"):
                number += 1
                yield _record(values, f"{path}, row {number}")
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path}: cannot be read as Parquet ({error}).") from error


def _names(kind: type[Any]) -> list[str]:
    return [field.name for field in dataclasses.fields(kind)]


def _groups(records: Iterable[CaptionedImage]) -> Iterator[list[CaptionedImage]]:
    rows: list[CaptionedImage] = []
    for record in records:
        rows.append(record)
        if len(rows) == ROWS_PER_GROUP:
            yield rows
            rows = []
    if rows:
        yield rows


def _row(record: CaptionedImage) -> dict[str, Any]:
    values = record_values(record)
    captions = [
        _as_pairs(values) | {"caption_id": caption.id, "words": len(caption.text.split())}
        for values, caption in zip(values["captions"], record.captions, strict=True)
    ]
    own = {"format": Path(record.image).suffix.lower().lstrip("."), "captions": captions}
    return _as_pairs(values) | own | {"extra": json.dumps(record.extra, ensure_ascii=False, sort_keys=True)}


def _as_pairs(values: Mapping[str, Any]) -> dict[str, Any]:
    """Maps as sorted pairs, which Arrow takes for its map type; also inside an origin."""
    found = dict(values)
    for name in ("scores", "tokens", "decoding"):
        if name in found:
            found[name] = sorted(found[name].items())
    if isinstance(found.get("origin"), dict):
        found["origin"] = _as_pairs(found["origin"])
    return found


def _record(values: dict[str, Any], where: str) -> CaptionedImage:
    try:
        row = _given(values, ("format",))
        captions = [_given(caption, ("caption_id", "words")) for caption in values.get("captions") or ()]
        return record_from(row | {"extra": json.loads(values.get("extra") or "{}"), "captions": captions})
    except (TypeError, AttributeError, ValueError) as error:
        raise DataError(f"{where}: not a record ({error}).") from error


def _given(values: Mapping[str, Any], left_out: tuple[str, ...]) -> dict[str, Any]:
    """Without nulls and the columns that only readers of other tools need; at any depth."""
    return {
        name: _given(value, ()) if isinstance(value, dict) else value
        for name, value in values.items()
        if value is not None and name not in left_out
    }
