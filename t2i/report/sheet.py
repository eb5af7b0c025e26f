"""The contact sheet: one PNG, a row per prompt, a column per arm, scores beneath each image."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from t2i.errors import DataError
from t2i.report.images import magnification, read_image, reduced
from t2i.report.model import Cell, PromptPanel
from t2i.report.numbers import NOT_AVAILABLE, number, score_decimals

if TYPE_CHECKING:
    from PIL import Image, ImageDraw, ImageFont

MARGIN = 24
GUTTER = 12
CAPTION_GAP = 6
"""Between a row's caption and its images, and between those and their scores."""
ROW_GAP = 22
LINE = 17
"""Height of a line of text."""
FONT_PX = 13
MISSING_PX = 128
"""Side of the frame that stands for a missing image when its row has no other."""
PAPER, INK, MUTED, RULE = "#ffffff", "#15181c", "#626b76", "#d5dae0"


@dataclass(frozen=True)
class _Row:
    """One laid-out prompt. pictures and scores: one entry per column; None where there is no image."""

    caption: list[str]
    pictures: list[Image.Image | None]
    scores: list[list[str]]

    @property
    def picture_height(self) -> int:
        return max((picture.height for picture in self.pictures if picture), default=MISSING_PX)

    @property
    def height(self) -> int:
        lines = len(self.caption) + max(map(len, self.scores), default=0)
        return LINE * lines + self.picture_height + 2 * CAPTION_GAP + ROW_GAP


def write_contact_sheet(panels: Sequence[PromptPanel], arms: Sequence[str], path: Path) -> None:
    """Write the sheet of some panels as PNG; arms: names of the columns, in order.

    Captions are wrapped, never cut. Raises DataError if there is no panel, a panel has an arm that is no column, or an
    image cannot be read.
    """
    from t2i.files import write_bytes

    if not panels or not arms:
        raise DataError(
            f"{path}: a contact sheet needs at least one panel and one arm; found {len(panels)}, {len(arms)}."
        )
    pictures = [[_picture(cell) for cell in _ordered(panel, arms)] for panel in panels]
    column = max((picture.width for row in pictures for picture in row if picture), default=MISSING_PX)
    width = len(arms) * column + (len(arms) - 1) * GUTTER
    decimals = score_decimals(panels)
    rows = [
        _Row(
            wrapped(f"{panel.prompt}  (seed {panel.seed})", width),
            row_pictures,
            [_score_lines(cell, decimals, column) for cell in _ordered(panel, arms)],
        )
        for panel, row_pictures in zip(panels, pictures, strict=True)
    ]
    buffer = io.BytesIO()
    _drawn(rows, [wrapped(arm, column) for arm in arms], column).save(buffer, "PNG", optimize=True)
    write_bytes(path, buffer.getvalue())


def wrapped(text: str, width: int) -> list[str]:
    """Break text into lines of at most `width` pixels, at spaces where possible, else within a word."""
    lines = [""]
    for word in _printable(text).split():
        longer = f"{lines[-1]} {word}".strip()
        if _length(longer) <= width:
            lines[-1] = longer
            continue
        lines.append("")
        for character in word:
            if lines[-1] and _length(lines[-1] + character) > width:
                lines.append("")
            lines[-1] += character
    return [line for line in lines if line]


def _printable(text: str) -> str:
    """Text that can be encoded: a lone surrogate becomes a question mark."""
    return text.encode("utf-8", "replace").decode()


def _ordered(panel: PromptPanel, arms: Sequence[str]) -> list[Cell]:
    """The panel's cells in column order; an arm it does not have becomes a cell without image."""
    cells = {cell.arm: cell for cell in panel.cells}
    unknown = sorted(set(cells) - set(arms))
    if unknown:
        raise DataError(
            f"prompt {panel.prompt_id!r}: no column for arm {unknown[0]!r}; the columns are {', '.join(arms)}."
        )
    return [cells.get(arm, Cell(arm, None)) for arm in arms]


def _picture(cell: Cell) -> Image.Image | None:
    """The image at the size it is pasted: magnified by a whole number (nearest), or reduced to 512 px."""
    from PIL import Image

    if cell.image is None:
        return None
    image = reduced(read_image(cell.image))
    factor = magnification(image.width)
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)


def _score_lines(cell: Cell, decimals: dict[str, int], width: int) -> list[str]:
    return [line for name, value in cell.scores for line in wrapped(f"{name} {number(value, decimals[name])}", width)]


def _drawn(rows: Sequence[_Row], headings: Sequence[list[str]], column: int) -> Image.Image:
    from PIL import Image, ImageDraw

    top = MARGIN + LINE * max(map(len, headings)) + CAPTION_GAP
    width = 2 * MARGIN + len(headings) * column + (len(headings) - 1) * GUTTER
    sheet = Image.new("RGB", (width, top + sum(row.height for row in rows) + MARGIN - ROW_GAP // 2), PAPER)
    draw = ImageDraw.Draw(sheet)
    lefts = [MARGIN + index * (column + GUTTER) for index in range(len(headings))]
    for left, lines in zip(lefts, headings, strict=True):
        _write(draw, left, MARGIN - 4, lines, MUTED)
    for row in rows:
        draw.line((MARGIN, top, width - MARGIN, top), RULE)
        _draw_row(sheet, draw, row, lefts, top + ROW_GAP // 2, column)
        top += row.height
    return sheet


def _draw_row(
    sheet: Image.Image, draw: ImageDraw.ImageDraw, row: _Row, lefts: Sequence[int], top: int, column: int
) -> None:
    _write(draw, lefts[0], top, row.caption, INK)
    top += LINE * len(row.caption) + CAPTION_GAP
    below = top + row.picture_height + CAPTION_GAP
    for left, picture, lines in zip(lefts, row.pictures, row.scores, strict=True):
        if picture:
            sheet.paste(picture, (left, top))
        else:
            draw.rectangle((left, top, left + column - 1, top + row.picture_height - 1), outline=RULE)
            _write(draw, left + 10, top + 8, [f"{NOT_AVAILABLE}: no image"], MUTED)
        _write(draw, left, below, lines, MUTED)


def _write(draw: ImageDraw.ImageDraw, left: int, top: int, lines: Sequence[str], colour: str) -> None:
    for number_of_line, line in enumerate(lines):
        draw.text((left, top + LINE * number_of_line), line, fill=colour, font=_font())


def _length(text: str) -> float:
    return _font().getlength(text)


@cache
def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's own font, so that the sheet looks the same on every machine."""
    from PIL import ImageFont

    return ImageFont.load_default(FONT_PX)
