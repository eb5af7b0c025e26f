"""Scores of one set of images as a table: what was scored, by what, and everything that could not be.

A table is what `rewards score` makes, writes, and reads again to compare two sets. A score that could not be had is
absent from its row; nothing is ever filled in.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TypeAlias

from rewards.tables import MeanRow, mean_rows

Key: TypeAlias = tuple[str, int]
"""(prompt, how many images of the prompt came before); without a prompt the image's path below the folder stands for
it."""


@dataclass(frozen=True)
class ScorerFacts:
    """What a column is. id: changes whenever the same image and prompt would get another number."""

    name: str
    id: str
    scale: str
    needs_prompt: bool
    higher_is_better: bool


@dataclass(frozen=True)
class Row:
    """One image. scores: scorer -> number, of the scorers that could score it."""

    image: Path
    prompt: str | None
    scores: Mapping[str, float] = field(default_factory=dict)
    category: str = ""
    problem: str | None = None
    """Why the image could not be read."""
    is_blank: bool = False
    """Whether all pixels are one colour; it has its scores all the same."""
    truncated_by: tuple[str, ...] = ()
    """Scorers that did not read the prompt to its end."""


@dataclass(frozen=True)
class Finding:
    """Something that was not as it should be: how often, and the first such."""

    label: str
    count: int
    first: str = ""
    is_gap: bool = True
    """Whether a score is missing or not about the whole prompt; a blank image is none."""


@dataclass(frozen=True)
class ScoreTable:
    """Rows in order of the images. missing_images: names of images that a prompt was given for and that are not there;
    expects_prompts: whether an image without a prompt is a gap; not_read: pictures of formats that are not read."""

    name: str
    rows: tuple[Row, ...]
    scorers: tuple[ScorerFacts, ...]
    missing_images: tuple[str, ...] = ()
    expects_prompts: bool = False
    not_read: tuple[str, ...] = ()

    @cached_property
    def keys(self) -> tuple[Key, ...]:
        """Key of each row."""
        seen: dict[str, int] = {}
        keys = []
        for row in self.rows:
            unit = row.prompt or self.name_of(row)
            keys.append((unit, seen.get(unit, 0)))
            seen[unit] = seen.get(unit, 0) + 1
        return tuple(keys)

    def name_of(self, row: Row) -> str:
        """Path of an image below the folder that all are in: folders may hold files of equal names."""
        return Path(os.path.abspath(row.image)).relative_to(self._folder).as_posix()

    @cached_property
    def _folder(self) -> Path:
        return Path(os.path.commonpath([os.path.dirname(os.path.abspath(row.image)) for row in self.rows]))

    def column(self, scorer: str) -> dict[Key, float]:
        """Scores of one scorer, of the rows that have one."""
        return {key: row.scores[scorer] for key, row in zip(self.keys, self.rows, strict=True) if scorer in row.scores}

    def mean(self, scorer: str) -> MeanRow | None:
        """Mean over prompts with its interval; None when nothing was scored."""
        return next(iter(mean_rows(self.column(scorer), lambda _: scorer)), None)

    def by_category(self, scorer: str) -> list[MeanRow]:
        """Means of the categories, sorted by name; none when no row has a category."""
        categories = {key: row.category for key, row in zip(self.keys, self.rows, strict=True)}
        if not any(categories.values()):
            return []
        return sorted(mean_rows(self.column(scorer), lambda key: categories[key]), key=lambda row: row.group)

    @cached_property
    def findings(self) -> tuple[Finding, ...]:
        """All counts, zeros too, so that a reader sees what was looked for."""
        rows = self.rows
        unreadable = [row.problem for row in rows if row.problem is not None]
        unprompted = _names(rows, lambda row: row.prompt is None) if self.expects_prompts else []
        truncating = [scorer.name for scorer in self.scorers if scorer.needs_prompt]
        return (
            _finding("unreadable images", unreadable),
            _finding("pictures of formats that are not read", self.not_read),
            _finding("images without a prompt", unprompted),
            _finding("prompts without an image", self.missing_images),
            _finding("blank images", _names(rows, lambda row: row.is_blank), is_gap=False),
            *(_finding(f"prompts cut by {name}", self._truncated(name)) for name in truncating),
        )

    @property
    def is_incomplete(self) -> bool:
        """Whether an image, a prompt or the end of a prompt is missing."""
        return any(finding.is_gap and finding.count for finding in self.findings)

    def _truncated(self, scorer: str) -> list[str]:
        cut = (row.prompt for row in self.rows if scorer in row.truncated_by and row.prompt is not None)
        return list(dict.fromkeys(cut))


def _names(rows: Sequence[Row], holds: Callable[[Row], bool]) -> list[str]:
    return [str(row.image) for row in rows if holds(row)]


def _finding(label: str, found: Sequence[str], *, is_gap: bool = True) -> Finding:
    return Finding(label, len(found), found[0] if found else "", is_gap)
