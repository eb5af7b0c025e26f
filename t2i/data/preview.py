"""Which images a stage will hand on, as far as headers and text files tell before it has run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from t2i.data.formats.base import BrokenRow, FormatSource
from t2i.data.formats.hub import HubSource
from t2i.data.sources import FolderSource, ImageSource, RecordsSource, ShapesSource, iterate_records
from t2i.errors import DataError
from t2i.json_values import printable
from t2i.records import CaptionedImage
from t2i.resources import resolve_path


@dataclass(frozen=True)
class Preview:
    """records: with an empty id where no bytes were read. has_captions: False if a model is still to write them.

    not_read: rows of the source that a run refuses or leaves out, each with its reason; pictures that it leaves out.
    pairs: file of the preference pairs that a finished stage has written, instead of records.
    """

    records: Sequence[CaptionedImage]
    has_captions: bool = True
    not_read: Sequence[str] = ()
    pairs: Path | None = None


def preview_source(source: ImageSource) -> Preview | None:
    """The images of a source without reading their pixels; None if only a run can tell.

    Raises DataError that lists images whose headers cannot be read.
    """
    if isinstance(source, FolderSource):
        return Preview(_headers(source), not_read=source.not_read())
    if isinstance(source, RecordsSource):
        return Preview(list(iterate_records(resolve_path(source.path))))
    if isinstance(source, FormatSource) and not isinstance(source, HubSource):
        return _rows(source)
    if isinstance(source, ShapesSource):
        from t2i.shapes.scenes import IMAGE_SIZE_PX

        rows = [CaptionedImage("", f"shapes scene {source.first + n}", IMAGE_SIZE_PX, IMAGE_SIZE_PX)
                for n in range(source.count)]  # fmt: skip
        return Preview(rows, has_captions=False)
    return None


def _rows(source: FormatSource) -> Preview:
    found, not_read = [], []
    for item in source.sized_rows():
        if isinstance(item, BrokenRow):
            not_read.append(printable(f"{item.where}: {item.reason}"))
            continue
        row, width, height = item
        image = str(row.image) if isinstance(row.image, Path) else row.where
        found.append(CaptionedImage("", image, width, height, tuple(row.captions), dict(row.extra)))
    return Preview(found, not_read=not_read)


def _headers(source: FolderSource) -> list[CaptionedImage]:
    from t2i.data.images import list_images, seen_size

    rows, problems = [], []
    for path in list_images(resolve_path(source.path)):
        try:
            width, height = seen_size(path)
            rows.append(CaptionedImage("", str(path), width, height))
        except DataError as error:
            problems.append(str(error))
    if problems:
        raise DataError("\n".join(problems))
    return rows


def joined(previews: Sequence[Preview | None]) -> Preview | None:
    """Several one after the other; None if one of them is not known."""
    known = [preview for preview in previews if preview is not None]
    if len(known) < len(previews):
        return None
    records = [row for preview in known for row in preview.records]
    return Preview(records, all(preview.has_captions for preview in known))
