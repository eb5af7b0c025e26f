"""How concrete the words of a caption are, by a list of ratings: what can be painted against what can only be thought.

Lists of such ratings are published (Brysbaert, Warriner & Kuperman 2014: 40,000 English words, 1 abstract to 5
concrete). A list has a language and a licence, so it is the user's own file.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean

from pydantic import Field, model_validator

from t2i.config import FrozenModel, LocalPath
from t2i.data.formats.tables import read_table
from t2i.data.quality.sieve import Dropped
from t2i.errors import DataError
from t2i.records import CaptionedImage
from t2i.resources import resolve_path

_WORD = re.compile(r"[^\W\d_]+(?:['\u2019-][^\W\d_]+)*")


class ConcretenessRule(FrozenModel):
    """Captions whose words are too abstract for a picture, or too few of them known to say."""

    ratings: LocalPath
    """A table (.csv, .jsonl, .parquet) of words and their ratings."""
    word: str = "Word"
    """Its column of words; those of several words are left out."""
    rating: str = "Conc.M"
    """Its column of ratings, the higher the more concrete."""
    at_least: float
    """Mean rating of a caption's rated words, at least."""
    min_coverage: float = Field(default=0.5, gt=0, le=1)
    """Share of a caption's words that have a rating, at least: of fewer the mean says nothing."""

    @model_validator(mode="after")
    def _columns_differ(self) -> ConcretenessRule:
        if self.word == self.rating:
            raise ValueError("word and rating: name two columns")
        return self

    def dropped(self, records: Sequence[CaptionedImage], kinds: Sequence[str]) -> Dropped:
        """Images with a caption of these kinds that is not concrete enough. Raises DataError for a broken table."""
        ratings = read_ratings(resolve_path(self.ratings), self.word, self.rating)
        for place, row in enumerate(records):
            texts = [caption.text for caption in row.captions if caption.kind in kinds]
            reason = next(filter(None, (self._reason(text, ratings) for text in texts)), None)
            if reason is not None:
                yield place, reason

    def _reason(self, text: str, ratings: Mapping[str, float]) -> str | None:
        mean, coverage = concreteness(text, ratings)
        if coverage < self.min_coverage:
            return f"concreteness: {coverage:.0%} of the words are rated, expected {self.min_coverage:.0%}"
        return f"concreteness: {mean:.2f}" if mean < self.at_least else None


def concreteness(text: str, ratings: Mapping[str, float]) -> tuple[float, float]:
    """(mean rating of the words that have one, share of the words that have one); (nan, 0) for none.

    A plural or another form counts as the word itself only where the list has it.
    """
    words = [word.lower().replace("\u2019", "'") for word in _WORD.findall(text)]
    known = [ratings[word] for word in words if word in ratings]
    return (fmean(known), len(known) / len(words)) if known else (math.nan, 0.0)


def read_ratings(path: Path, word: str, rating: str) -> dict[str, float]:
    """Word in lower case -> rating. Raises DataError, with the row, for ratings that are none and words that repeat."""
    found: dict[str, float] = {}
    for row in read_table(path, (word, rating)):
        if not isinstance(row, tuple):
            raise DataError(f"{row.where}: {row.reason}.")
        where, values = row
        text = str(values[word]).strip().lower()
        try:
            number = float(values[rating])  # pyright: ignore[reportArgumentType]
        except (TypeError, ValueError):
            number = math.nan
        if not math.isfinite(number):
            raise DataError(f"{where}: {rating} of {text!r} is {values[rating]!r}, expected a number.")
        if found.setdefault(text, number) != number:
            raise DataError(f"{where}: {text!r} comes a second time, with another rating.")
    if not found:
        raise DataError(f"{path}: holds no words.")
    return found
