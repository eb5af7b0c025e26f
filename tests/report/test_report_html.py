"""The page: self-contained, escaped, deterministic, honest about what is missing."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from t2i.errors import DataError
from t2i.report import Report, write_report
from t2i.report.html import render
from t2i.report.model import ArmImages, Cell, Curve, Note, PromptPanel, StageSummary

HOSTILE = "<script>alert('x')</script>\"><img src=https://example.org/x onerror='x'>&amp; {{ 7*7 }}"
VOID = {"meta", "img"}


class Page(HTMLParser):
    """Tags with their attributes, all text, and the tags that were never closed."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.open: list[str] = []
        self.feed(source)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def hostile_everywhere(report: Report, panel: PromptPanel) -> Report:
    cells = tuple(replace(cell, arm=HOSTILE, scores=((HOSTILE, 0.5),)) for cell in panel.cells)
    nasty = replace(panel, prompt=HOSTILE, prompt_id=HOSTILE, cells=cells)
    names = {"scorer": HOSTILE, "arm_a": HOSTILE, "arm_b": HOSTILE}
    return replace(
        report,
        title=HOSTILE,
        recipe_name=HOSTILE,
        created=HOSTILE,
        summary=HOSTILE,
        arms=(ArmImages(HOSTILE),),
        scores=tuple(replace(row, scorer=HOSTILE, arm=HOSTILE) for row in report.scores),
        comparisons=tuple(replace(row, **names, role=HOSTILE) for row in report.comparisons),
        categories=tuple(replace(row, **names, category=HOSTILE) for row in report.categories),
        correlations=tuple(
            replace(row, scorer_a=HOSTILE, scorer_b=HOSTILE, kind=HOSTILE) for row in report.correlations
        ),
        panels=(nasty,),
        panels_chosen=HOSTILE,
        worst_panels=(nasty,),
        most_changed_panels=(nasty,),
        curves=(Curve(HOSTILE, (0, 1), (0.0, 1.0)), Curve("b", (0, 1), (0.0, 1.0), HOSTILE)),
        notes=(Note(HOSTILE, 1, HOSTILE),),
        stages=(StageSummary(HOSTILE, HOSTILE, 1.0, ((HOSTILE, HOSTILE),)),),
        provenance=((HOSTILE, HOSTILE),),
    )


def test_hostile_text_stays_text_in_every_field(report: Report, panel: PromptPanel) -> None:
    clean = Page(render(report))
    page = Page(render(hostile_everywhere(report, panel)))
    assert not page.all("script")
    assert len(page.all("img")) == len(clean.all("img"))
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    assert "".join(page.text).count(HOSTILE) > 30


@pytest.mark.parametrize("change", [lambda report, _: report, hostile_everywhere])
def test_nothing_is_loaded_from_outside(
    report: Report, panel: PromptPanel, change: Callable[[Report, PromptPanel], Report]
) -> None:
    source = render(change(report, panel))
    page = Page(source)
    loading = ("src", "href", "srcset", "data", "action", "xlink:href", "poster")
    links = [attributes[name] or "" for _, attributes in page.tags for name in loading if name in attributes]
    assert links
    assert all(link.startswith(("data:image/", "#")) for link in links)
    style = source[source.index("<style>") : source.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style
    assert not page.all("link")


def test_every_link_has_its_target_and_every_tag_is_closed(report: Report) -> None:
    page = Page(render(report))
    targets = [attributes.get("id") for _, attributes in page.tags if attributes.get("id")]
    links = [attributes["href"] for attributes in page.all("a")]
    assert links == [f"#{target}" for target in targets]
    assert len(set(targets)) == len(targets)
    assert page.open == []


def test_the_same_report_gives_the_same_bytes(report: Report, tmp_path: Path) -> None:
    first = write_report(report, tmp_path).read_bytes()
    assert write_report(report, tmp_path).read_bytes() == first
    assert write_report(report, tmp_path) == tmp_path / "report.html"


def test_the_headline_is_the_first_heading(report: Report) -> None:
    [heading] = re.findall(r"<h1>(.*?)</h1>", render(report))
    assert heading.startswith("tuned beats base on judge: +0.081")


def test_several_held_out_comparisons_are_counted_below_the_headline(report: Report) -> None:
    assert "Of 2 held-out comparisons: 1 better, 1 not measured." in render(report)


def test_intervals_of_categories_are_told_apart_from_their_verdicts(report: Report) -> None:
    said = "Each interval is for its own category"
    assert said in render(report)
    assert said not in render(replace(report, categories=()))


def test_an_empty_report_has_no_empty_sections() -> None:
    page = Page(render(Report(title="t", recipe_name="r", created="c")))
    assert "No comparison was made." in page.text
    assert not page.all("section")
    assert not page.all("a")


def rows_of(source: str) -> list[list[str]]:
    found = re.findall(r"<tr>(.*?)</tr>", source, re.S)
    return [[re.sub(r"<[^>]*>", "", cell).strip() for cell in re.findall(r"<td.*?</td>", row, re.S)] for row in found]


def test_missing_values_are_not_available_and_never_zero(report: Report) -> None:
    rows = {row[0]: row[1:] for row in rows_of(render(report)) if row}
    assert rows["near duplicates"] == ["n/a", "not counted"]
    assert rows["blank images"][0] == "0"
    assert rows["shape"] == ["n/a"] * 4 + ["0"]
    assert rows["export"][1] == "n/a"
    unmeasured = rows["aestheticheld out"]
    assert unmeasured[:4] == ["n/a"] * 4
    assert unmeasured[5:8] == ["n/a"] * 3


def test_a_missing_score_and_a_missing_image_say_so(report: Report, panel: PromptPanel) -> None:
    absent = replace(panel, cells=(panel.cells[0], Cell("tuned", None, (("judge", None),))))
    source = render(Report(title="t", recipe_name="r", created="c", panels=(absent,)))
    assert source.count("<img") == 1
    assert "n/a: no image" in source
    assert '<dd class="none">n/a</dd>' in source


def test_a_prompt_that_was_written_out_is_shown_below_its_image(report: Report, panel: PromptPanel) -> None:
    assert "painted as" not in render(report)
    painted = replace(panel.cells[1], painted="a <small> red circle")
    page = render(replace(report, panels=(replace(panel, cells=(panel.cells[0], painted)),)))
    assert page.count("painted as") == 1
    assert "a &lt;small&gt; red circle" in page


def test_a_missing_image_file_is_an_error_that_names_it(report: Report, panel: PromptPanel, tmp_path: Path) -> None:
    (tmp_path / "tuned.png").unlink()
    with pytest.raises(DataError, match=r"tuned\.png: image not found"):
        write_report(report, tmp_path)
    assert not (tmp_path / "report.html").exists()


def test_a_broken_image_file_is_an_error_that_names_it(report: Report, tmp_path: Path) -> None:
    whole = (tmp_path / "tuned.png").read_bytes()
    for broken in (b"not an image", whole[: len(whole) // 2]):
        (tmp_path / "tuned.png").write_bytes(broken)
        with pytest.raises(DataError, match=r"tuned\.png: cannot be read"):
            write_report(report, tmp_path)


def embedded(source: str) -> tuple[Image.Image, dict[str, str | None]]:
    [attributes] = Page(source).all("img")
    return Image.open(io.BytesIO(base64.b64decode((attributes["src"] or "").partition(",")[2]))), attributes


@pytest.mark.parametrize(
    ("size", "kept", "shown", "is_magnified"),
    [
        ((64, 64), (64, 64), ("256", "256"), True),
        ((100, 50), (100, 50), ("200", "100"), True),
        ((129, 200), (129, 200), ("129", "200"), False),
        ((512, 768), (512, 768), ("256", "384"), False),
        ((1024, 512), (512, 256), ("256", "128"), False),
    ],
)
def test_images_are_shown_between_128_and_256_px_wide(
    tmp_path: Path, size: tuple[int, int], kept: tuple[int, int], shown: tuple[str, str], is_magnified: bool
) -> None:
    Image.new("RGB", size, (10, 200, 30)).save(tmp_path / "a.png")
    panel = PromptPanel("p", "prompt", 1, (Cell("base", tmp_path / "a.png"),))
    image, attributes = embedded(render(Report(title="t", recipe_name="r", created="c", panels=(panel,))))
    assert image.size == kept
    assert (attributes["width"], attributes["height"]) == shown
    assert (attributes["class"] == "magnified") is is_magnified


def test_small_images_keep_their_pixels(tmp_path: Path) -> None:
    original = Image.effect_noise((64, 64), 80).convert("RGB")
    original.save(tmp_path / "a.png")
    panel = PromptPanel("p", "prompt", 1, (Cell("base", tmp_path / "a.png"),))
    image, _ = embedded(render(Report(title="t", recipe_name="r", created="c", panels=(panel,))))
    assert image.convert("RGB").tobytes() == original.tobytes()


def test_transparent_pixels_are_shown_over_white(tmp_path: Path) -> None:
    Image.new("RGBA", (64, 64), (255, 0, 0, 0)).save(tmp_path / "a.png")
    panel = PromptPanel("p", "prompt", 1, (Cell("base", tmp_path / "a.png"),))
    image, _ = embedded(render(Report(title="t", recipe_name="r", created="c", panels=(panel,))))
    assert image.convert("RGB").getpixel((5, 5)) == (255, 255, 255)


def test_a_sixteen_bit_image_is_refused(tmp_path: Path) -> None:
    Image.new("I;16", (8, 8)).save(tmp_path / "a.png")
    panel = PromptPanel("p", "prompt", 1, (Cell("base", tmp_path / "a.png"),))
    with pytest.raises(DataError, match=r"a\.png: image mode is I;16"):
        render(Report(title="t", recipe_name="r", created="c", panels=(panel,)))


def test_text_that_is_not_unicode_is_written(report: Report, tmp_path: Path) -> None:
    written = write_report(replace(report, title="lone \ud800 surrogate"), tmp_path)
    assert "lone &#55296; surrogate" in written.read_text(encoding="utf-8")


def test_curves_of_one_chart_share_it_and_lengths_must_agree() -> None:
    curve = Curve("loss", (0, 1), (1.0, 0.5), "loss")
    bare = Report(title="t", recipe_name="r", created="c")
    both = replace(bare, curves=(curve, replace(curve, name="held-out loss")))
    assert render(both).count("<svg") == 1
    with pytest.raises(DataError, match="3 steps but 2 values"):
        render(replace(bare, curves=(replace(curve, steps=(0, 1, 2)),)))


def test_each_pair_of_arms_has_a_table_of_its_own(report: Report) -> None:
    other = replace(report.comparisons[0], arm_b="dpo")
    headings = re.findall(r"<h3>(.*?)</h3>", render(replace(report, comparisons=(*report.comparisons, other))))
    assert headings == ["tuned over base", "dpo over base"]
