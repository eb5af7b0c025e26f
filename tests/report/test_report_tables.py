"""The terminal table."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.console import Console

from t2i.report import comparison_table, print_comparison
from t2i.report.model import ComparisonRow


def printed(rows: list[ComparisonRow], width: int = 80) -> str:
    stream = io.StringIO()
    Console(file=stream, width=width).print(comparison_table(rows))
    return stream.getvalue().replace("\N{NO-BREAK SPACE}", " ")


def test_a_row_shows_means_difference_interval_rate_and_verdict(comparison: ComparisonRow) -> None:
    text = printed([comparison])
    first = next(line for line in text.splitlines() if line.strip().startswith("judge"))
    second = next(line for line in text.splitlines() if line.strip().startswith("held out"))
    assert first.split() == ["judge", "0.643", "0.724", "+0.081", "64", "better"]
    assert second.split() == ["held", "out", "[0.050,", "0.112]", "[57,", "70]", "118/71/51"]
    assert "over 240 prompts" in text


def test_missing_values_are_not_available(comparison: ComparisonRow, unmeasured: ComparisonRow) -> None:
    text = printed([comparison, unmeasured])
    line = next(line for line in text.splitlines() if "aesthetic" in line)
    assert line.split() == ["aesthetic", *["n/a"] * 4, "not", "measured"]
    assert "prompts: judge 240, aesthetic 0" in text


def test_decimal_points_stand_below_each_other(comparison: ComparisonRow) -> None:
    large = replace(comparison, scorer="clip", mean_a=21.31, mean_b=22.52, difference=1.21, low=0.93, high=1.49)
    lines = [line for line in printed([comparison, large]).splitlines() if "0.643" in line or "21.31" in line]
    assert lines[0].index("0.643") + 1 == lines[1].index("21.31") + 2


def test_the_table_fits_80_columns_with_the_longest_verdict(comparison: ComparisonRow) -> None:
    row = replace(comparison, scorer="second reader", verdict="not distinguishable", low=-0.003)
    text = printed([row])
    assert "not distinguishable" in text
    assert "second reader" in text


def test_names_are_not_read_as_markup(comparison: ComparisonRow) -> None:
    assert "[red]x[/red]" in printed([replace(comparison, scorer="[red]x[/red]")])


def test_the_headline_is_not_read_as_markup(comparison: ComparisonRow, capsys: pytest.CaptureFixture[str]) -> None:
    print_comparison([replace(comparison, scorer="a[/b]:cat:")])
    assert "on a[/b]:cat:: +0.081" in " ".join(capsys.readouterr().out.split())


def test_several_pairs_of_arms_are_named_in_each_row(comparison: ComparisonRow) -> None:
    text = printed([comparison, replace(comparison, arm_b="dpo")], width=100)
    assert "tuned over base" in text
    assert "dpo over base" in text


def test_no_rows_give_an_empty_table() -> None:
    assert comparison_table([]).row_count == 0


def test_a_terminal_without_a_letter_shows_a_question_mark(
    comparison: ComparisonRow, monkeypatch: pytest.MonkeyPatch
) -> None:
    for encoding, shown in (("ascii", "gr?n"), ("utf-8", "grün")):
        written = io.BytesIO()
        monkeypatch.setattr("sys.stdout", io.TextIOWrapper(written, encoding=encoding, newline="\n"))
        print_comparison([replace(comparison, scorer="grün")])
        text = written.getvalue().decode(encoding)
        assert f"on {shown}: +0.081 [0.050, 0.112] over 240 prompts." in " ".join(text.split())
