"""The page about scores: all is there, nothing is loaded from elsewhere, what is missing is never a number."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from rewards.comparison import compare_tables, pairs
from rewards.errors import InputError
from rewards.report import collect, render, write_report
from rewards.report.charts import histogram, interval_mark
from rewards.score_table import Row, ScorerFacts, ScoreTable

FACTS = (
    ScorerFacts("like", "like/1/aa", "likes, 0 to 1", needs_prompt=True, higher_is_better=True),
    ScorerFacts("harm", "harm/1/bb", "harms, 0 to 1", needs_prompt=False, higher_is_better=False),
)


class Page(HTMLParser):
    """Balanced tags, all text, and the addresses that a browser would open."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.texts: list[str] = []
        self.addresses: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.addresses += [value for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta", "img", "line", "circle", "polygon", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list) -> None:
        self.handle_starttag(tag, attrs)

    def handle_endtag(self, tag: str) -> None:
        if tag not in ("line", "circle", "polygon"):
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


@pytest.fixture
def table(tmp_path: Path) -> ScoreTable:
    """Two images for each of six prompts; of the last prompt one is broken, and one image has no prompt."""
    rows = []
    for number in range(12):
        path = tmp_path / f"{number}.png"
        Image.new("RGB", (20, 10), (20 * number, 0, 0)).save(path)
        scores = {"like": number / 12, "harm": (number * 5 % 12) / 12}
        rows.append(Row(path, f"prompt <{number // 2}>", scores, category="odd" if number % 4 > 1 else "even"))
    rows[11] = Row(tmp_path / "11.png", "prompt <5>", {}, "odd", problem="11.png: not an image of a known format.")
    rows[10] = Row(tmp_path / "10.png", None, {"harm": 0.5}, is_blank=True)
    rows[0] = Row(rows[0].image, rows[0].prompt, rows[0].scores, "even", truncated_by=("like",))
    return ScoreTable("first", tuple(rows), FACTS, ("absent.png",), expects_prompts=True)


def shifted(table: ScoreTable, name: str, by: float) -> ScoreTable:
    rows = [
        Row(row.image, row.prompt, {key: value + by for key, value in row.scores.items()}, row.category)
        for row in table.rows
    ]
    return ScoreTable(name, tuple(rows), table.scorers, expects_prompts=True)


def test_a_page_stands_alone_and_is_the_same_each_time(table: ScoreTable):
    text = render(collect([table]))
    page = Page(text)
    assert render(collect([table])) == text
    assert all(address.startswith(("#", "data:image/")) for address in page.addresses)
    assert "<script" not in text
    assert "http" not in text.replace("http-equiv", "")


def test_counts_of_what_is_missing_are_on_the_page(table: ScoreTable):
    text = " ".join(" ".join(Page(render(collect([table]))).texts).split())
    for counted in (
        "unreadable images 1 11.png: not an image of a known format.",
        "images without a prompt 1",
        "prompts without an image 1 absent.png",
        "blank images 1",
        "prompts cut by like 1 prompt <0>",
    ):
        assert counted in text
    # harm reads no prompt, so it cuts none.
    assert "prompts cut by harm" not in text


def test_means_categories_and_worst_are_those_of_the_scored_images(table: ScoreTable):
    report = collect([table])
    like, harm = report.sections
    mean = report.sets[0].means[0]
    assert mean is not None
    assert (mean.mean, mean.prompts, mean.images) == (pytest.approx(sum(range(10)) / 10 / 12), 5, 10)
    assert len(harm.values[0]) == 11
    [rows] = like.categories
    assert [(row.group, row.images) for row in rows] == [("even", 6), ("odd", 4)]
    # Of each prompt the worse image, the worst first; harm is worst where it is largest.
    assert [panel.prompt for panel in like.worst] == [f"prompt <{number}>" for number in range(5)]
    assert [panel.images[0].score for panel in harm.worst] == sorted(
        (panel.images[0].score for panel in harm.worst), reverse=True
    )


def test_a_scorer_that_scored_nothing_has_no_number(table: ScoreTable):
    rows = tuple(Row(row.image, None, {"harm": row.scores["harm"]}) for row in table.rows if "harm" in row.scores)
    report = collect([ScoreTable("bare", rows, FACTS)])
    assert report.sets[0].means[0] is None
    assert report.sections[0].values == ((),)
    page = Page(render(report))
    assert "not scored" in page.texts
    assert "Nothing was scored." in page.texts
    [(_, rows_of_correlation)] = report.correlations
    assert rows_of_correlation[0].interval is None


def test_a_comparison_shows_the_paired_difference_and_the_images_that_changed_most(table: ScoreTable):
    other = shifted(table, "second", -0.25)
    moved = {key: value + (0.4 if key[0] == "prompt <3>" else 0.0) for key, value in other.column("like").items()}
    rows = tuple(
        Row(row.image, row.prompt, row.scores | ({"like": moved[key]} if key in moved else {}), row.category)
        for key, row in zip(other.keys, other.rows, strict=True)
    )
    report = collect([table, ScoreTable("second", rows, FACTS)])
    assert report.comparison is not None
    like, harm = report.comparison.rows
    assert like.result.difference == pytest.approx(0.25 - 0.4 / 5)
    assert harm.result.difference == pytest.approx(0.25)
    assert harm.result.losses == 11
    changed = report.sections[0].changed
    assert [panel.change for panel in changed] == pytest.approx([0.25] * 3 + [-0.15] * 2)
    assert {panel.prompt for panel in changed[3:]} == {"prompt <3>"}
    page = Page(render(report))
    assert "first minus second" in page.texts
    assert all(address.startswith(("#", "data:image/")) for address in page.addresses)


def test_only_images_scored_in_both_tables_are_compared(table: ScoreTable):
    other = ScoreTable("second", shifted(table, "second", 0.1).rows[:8], FACTS)
    found = compare_tables(table, other)
    assert [row.result.images for row in found.rows] == [8, 8]
    assert found.gaps == (
        "like: 2 images without a partner are left out",
        "harm: 3 images without a partner are left out",
    )
    assert [pair.change for pair in pairs(table, other, "like")] == pytest.approx([-0.1] * 8)


def one_prompt_each(folder: str, images: dict[str, tuple[str, float]]) -> ScoreTable:
    """images: name -> (prompt, score)."""
    rows = tuple(Row(Path("/x") / folder / name, prompt, {"like": score}) for name, (prompt, score) in images.items())
    return ScoreTable(folder, rows, FACTS[:1])


def test_a_missing_image_moves_no_other_to_another_partner():
    whole = {"0.png": ("p", 0.0), "1.png": ("p", 0.1), "2.png": ("p", 0.2), "3.png": ("q", 0.5)}
    lacking = {name: one for name, one in whole.items() if name != "0.png"}
    a, b = one_prompt_each("a", whole), one_prompt_each("b", lacking)
    for one, other in ((a, b), (b, a)):
        assert [(pair.a.image.name, pair.b.image.name) for pair in pairs(one, other, "like")] == [
            (name, name) for name in ("1.png", "2.png", "3.png")
        ]
        found = compare_tables(one, other)
        assert found.rows[0].result.difference == 0.0
        assert found.gaps == ("like: 1 images without a partner are left out",)


def test_images_of_other_names_are_paired_in_order_where_there_are_as_many_of_each_prompt():
    a = one_prompt_each("a", {"0.png": ("p", 0.0), "1.png": ("p", 0.1), "2.png": ("q", 0.5)})
    named = {"x.png": ("q", 0.5), "y.png": ("p", 0.0), "z.png": ("p", 0.1)}
    assert compare_tables(a, one_prompt_each("b", named)).rows[0].result.ties == 3
    del named["y.png"]
    with pytest.raises(InputError, match="'p' has 2 images in a and 1 in b, of other names, so which belong together"):
        compare_tables(a, one_prompt_each("b", named))


def test_scores_of_other_weights_are_not_compared(table: ScoreTable):
    other = (ScorerFacts("like", "like/1/cc", "likes, 0 to 1", True, True), FACTS[1])
    with pytest.raises(InputError, match="like is like/1/aa in first and like/1/cc in second"):
        compare_tables(table, ScoreTable("second", table.rows, other))
    with pytest.raises(InputError, match="no scorer in common"):
        compare_tables(table, ScoreTable("second", table.rows, ()))
    with pytest.raises(InputError, match="one or two sets"):
        collect([])


def test_text_from_outside_cannot_become_markup(table: ScoreTable, tmp_path: Path):
    evil = '<script>alert("x")</script>'
    rows = [Row(row.image, evil + str(n), row.scores, evil) for n, row in enumerate(table.rows) if row.prompt]
    path = tmp_path / "page.html"
    write_report(collect([ScoreTable(evil, tuple(rows), FACTS, (evil, "\ud800"))]), path)
    text = path.read_text(encoding="utf-8")
    assert "<script" not in text
    assert "&lt;script&gt;" in text
    Page(text)


def test_an_image_that_has_gone_is_told_not_drawn(table: ScoreTable):
    table.rows[0].image.unlink()
    assert "cannot be read now" in Page(render(collect([table]))).texts


def test_bars_of_a_histogram_are_shares_of_the_images():
    # 24 bins over 0..24: one value in the first, three in the last, so that its bar is the highest.
    [points] = re.findall('points="([^"]*)"', histogram([[0.0, 24.0, 24.0, 24.0]]))
    heights = [128 - float(point.split(",")[1]) for point in points.split()]
    assert max(heights) == heights[-2] == pytest.approx(120)
    assert heights[1] == pytest.approx(40)
    assert histogram([[], []]) == ""
    assert "polygon" in histogram([[1.0, 1.0]])


def test_an_interval_is_drawn_to_scale():
    drawn = interval_mark(0.0, -1.0, 1.0, (-1.0, 3.0))
    assert 'cx="39.5"' in drawn
    assert 'x1="4" y1="8.0" x2="75"' in drawn
