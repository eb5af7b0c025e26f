"""What is shown to whom: which pair comes next, and on which side its images stand."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from t2i.data.pairs import PAIRS_FILE, iterate_pairs, save_pairs
from t2i.errors import DataError
from t2i.label.collect import Collected
from t2i.label.votes import VoteLog
from t2i.randomness import generator
from t2i.records import PreferencePair

VOTES_FILE = "votes.jsonl"
Place = Literal["first", "second"]
"""Where an image stands on the page: first is the left one. Which that is in the file of pairs, a keyed draw says."""


@dataclass(frozen=True)
class Study:
    """Pairs to be compared, and the seed of every rater's order and sides."""

    pairs: tuple[PreferencePair, ...]
    seed: int

    def order(self, rater: str) -> list[int]:
        """The pairs in this rater's own order, so that what tires people does not hit the same pairs every time."""
        return generator(self.seed, f"label/order/{rater}").permutation(len(self.pairs)).tolist()

    def first(self, rater: str, pair: int) -> Literal["left", "right"]:
        """Which image of a pair this rater sees first: a fair coin, the same whenever it is asked."""
        return "right" if generator(self.seed, f"label/side/{rater}", pair).integers(2) else "left"

    def image(self, rater: str, pair: int, place: Place) -> Path:
        """The file at a place of the page."""
        is_left = (self.first(rater, pair) == "left") == (place == "first")
        return Path(self.pairs[pair].chosen if is_left else self.pairs[pair].rejected)

    def session(self, rater: str) -> str:
        """Names what a rater's page shows. A page left open from other pairs has another, and its votes are refused."""
        named = [f"{pair.prompt} {pair.chosen_id} {pair.rejected_id}" for pair in self.pairs]
        return hashlib.sha256("\n".join([str(self.seed), rater, *named]).encode()).hexdigest()[:16]


def open_study(folder: Path, collected: Collected, seed: int) -> tuple[Study, VoteLog]:
    """Begin in a folder, or go on: `pairs.jsonl` and `votes.jsonl`. Raises DataError if it has other pairs."""
    folder.mkdir(parents=True, exist_ok=True)
    path, votes = folder / PAIRS_FILE, folder / VOTES_FILE
    has_votes = votes.exists() and votes.stat().st_size > 0
    if path.exists():
        before = [(pair.prompt, pair.chosen_id, pair.rejected_id) for pair in iterate_pairs(path)]
        if before != [(pair.prompt, pair.chosen_id, pair.rejected_id) for pair in collected.pairs]:
            what = "votes on " if has_votes else ""
            raise DataError(f"{folder} holds {what}{len(before)} other pairs; give another --output.")
    elif has_votes:
        raise DataError(f"{votes} is there and {path} is not: nothing says what the votes are about.")
    else:
        save_pairs(folder, collected.pairs)
    return Study(collected.pairs, seed), VoteLog(votes, len(collected.pairs))
