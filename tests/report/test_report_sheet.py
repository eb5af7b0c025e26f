"""The contact sheet: its size by arithmetic, its pixels, its errors."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from t2i.errors import DataError
from t2i.report import write_contact_sheet
from t2i.report.model import Cell, PromptPanel
from t2i.report.sheet import wrapped

MARGIN, GUTTER, LINE, GAP, ROW_GAP = 24, 12, 17, 6, 22
HEADER = MARGIN + LINE + GAP
FOOTER = MARGIN - ROW_GAP // 2


def row_height(picture: int, caption_lines: int = 1, score_lines: int = 2) -> int:
    return LINE * (caption_lines + score_lines) + picture + 2 * GAP + ROW_GAP


def sheet(panels: list[PromptPanel], arms: list[str], folder: Path) -> Image.Image:
    write_contact_sheet(panels, arms, folder / "sheet.png")
    with Image.open(folder / "sheet.png") as image:
        return image.convert("RGB")


@pytest.mark.parametrize("rows", [1, 3])
def test_the_size_is_columns_by_rows(panel: PromptPanel, tmp_path: Path, rows: int) -> None:
    image = sheet([panel] * rows, ["base", "tuned"], tmp_path)
    assert image.size == (2 * MARGIN + 2 * 256 + GUTTER, HEADER + rows * row_height(256) + FOOTER)


def test_images_are_magnified_in_their_own_column(panel: PromptPanel, tmp_path: Path) -> None:
    image = sheet([panel], ["tuned", "base"], tmp_path)
    top = HEADER + ROW_GAP // 2 + LINE + GAP
    for left, colour in ((MARGIN, (30, 30, 200)), (MARGIN + 256 + GUTTER, (200, 30, 30))):
        assert image.crop((left, top, left + 256, top + 256)).getcolors() == [(256 * 256, colour)]
        assert image.getpixel((left - 1, top)) == (255, 255, 255)


def test_magnified_pixels_stay_sharp(tmp_path: Path) -> None:
    checks = Image.new("L", (64, 64))
    checks.putdata([255 * ((x + y) % 2) for y in range(64) for x in range(64)])
    checks.save(tmp_path / "a.png")
    image = sheet([PromptPanel("p", "checks", 1, (Cell("base", tmp_path / "a.png"),))], ["base"], tmp_path)
    top = HEADER + ROW_GAP // 2 + LINE + GAP
    picture = image.crop((MARGIN, top, MARGIN + 256, top + 256))
    assert sorted(picture.getcolors() or []) == [(32768, (0, 0, 0)), (32768, (255, 255, 255))]


def test_wide_images_are_reduced_to_512_px(tmp_path: Path) -> None:
    Image.new("RGB", (1024, 512)).save(tmp_path / "a.png")
    image = sheet([PromptPanel("p", "wide", 1, (Cell("base", tmp_path / "a.png"),))], ["base"], tmp_path)
    assert image.size == (2 * MARGIN + 512, HEADER + row_height(256, score_lines=0) + FOOTER)


def test_an_arm_that_a_panel_lacks_leaves_a_frame(panel: PromptPanel, tmp_path: Path) -> None:
    image = sheet([panel], ["base", "tuned", "dpo"], tmp_path)
    assert image.width == 2 * MARGIN + 3 * 256 + 2 * GUTTER
    frame = (MARGIN + 2 * (256 + GUTTER), HEADER + ROW_GAP // 2 + LINE + GAP)
    assert image.getpixel(frame) == (0xD5, 0xDA, 0xE0)


def test_a_panel_with_an_arm_too_many_is_an_error(panel: PromptPanel, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"'p1': no column for arm 'tuned'; the columns are base"):
        write_contact_sheet([panel], ["base"], tmp_path / "sheet.png")
    assert not (tmp_path / "sheet.png").exists()


def test_no_panels_or_no_arms_is_an_error(panel: PromptPanel, tmp_path: Path) -> None:
    for panels, arms in (([], ["base"]), ([panel], [])):
        with pytest.raises(DataError, match="at least one panel and one arm"):
            write_contact_sheet(panels, arms, tmp_path / "sheet.png")


def test_a_missing_file_is_an_error_that_names_it(panel: PromptPanel, tmp_path: Path) -> None:
    (tmp_path / "base.png").unlink()
    with pytest.raises(DataError, match=r"base\.png: image not found"):
        write_contact_sheet([panel], ["base", "tuned"], tmp_path / "sheet.png")


def test_a_long_caption_makes_its_row_higher_and_loses_no_word(panel: PromptPanel, tmp_path: Path) -> None:
    prompt = "a very small red circle to the left of an enormous blue square, " * 5
    lines = wrapped(f"{prompt}  (seed 7)", 2 * 256 + GUTTER)
    assert " ".join(lines).split() == f"{prompt} (seed 7)".split()
    image = sheet([replace(panel, prompt=prompt)], ["base", "tuned"], tmp_path)
    assert image.height == HEADER + row_height(256, caption_lines=len(lines)) + FOOTER


def test_a_word_without_spaces_is_broken_and_kept_whole() -> None:
    lines = wrapped("x" * 300, 200)
    assert "".join(lines) == "x" * 300
    assert len(lines) > 1


def test_the_same_panels_give_the_same_bytes(panel: PromptPanel, tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        write_contact_sheet([panel], ["base", "tuned"], tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_any_text_can_be_a_caption(panel: PromptPanel, tmp_path: Path) -> None:
    write_contact_sheet([replace(panel, prompt="\ud800 \x00 日本語 \n 🙂")], ["base", "tuned"], tmp_path / "sheet.png")
    assert (tmp_path / "sheet.png").exists()
