"""From scores of several images of a prompt to preference pairs. Plain arithmetic: no image is opened."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from pydantic import Field, field_validator

from t2i.config import FrozenModel
from t2i.errors import DataError
from t2i.randomness import generator
from t2i.records import PreferencePair

Labels = Literal["true", "flipped", "shuffled"]


class PairRule(FrozenModel):
    """Which images of a prompt are put together, and who says which is better."""

    scorers: dict[str, float] = Field(min_length=1)
    """Label of a scorer -> difference up to which it calls a tie, in its own scale: `{judge: 0, tiny CLIP: 0.5}`."""
    take: Literal["best_worst", "all"] = "best_worst"
    """The best and the worst image of each prompt, or all pairs of its images."""
    combine: Literal["majority", "aspects"] = "majority"
    """With several scorers: each has a vote and the majority decides, as in BalancedDPO; or each gives pairs of its
    own, as the aspects of VisionPrefer do (Wu et al. 2024, arXiv:2404.15100)."""

    @field_validator("scorers")
    @classmethod
    def _margins(cls, scorers: dict[str, float]) -> dict[str, float]:
        if any(margin < 0 for margin in scorers.values()):
            raise ValueError("a difference below 0 cannot be a tie; give 0 or more")
        return scorers


@dataclass(frozen=True)
class Candidate:
    """An image of a prompt. scores: label -> number in the scorer's scale, with the sign changed if less is better."""

    image: str
    order: int
    """Its place among the images of its prompt, in the order they were made."""
    scores: Mapping[str, float]


@dataclass(frozen=True)
class Pairing:
    """pairs: without ties. considered: pairs looked at, ties included."""

    pairs: list[PreferencePair]
    considered: int

    @property
    def ties(self) -> int:
        """Pairs of which neither image is preferred."""
        return self.considered - len(self.pairs)


def pair_up(prompts: Mapping[tuple[str, str], Sequence[Candidate]], rule: PairRule, seed: int) -> Pairing:
    """Pairs of every prompt. prompts: (id, text) -> its images. Raises DataError if all are ties, or there is none."""
    juries = [rule.scorers] if rule.combine == "majority" else [{name: m} for name, m in rule.scorers.items()]
    pairs: list[PreferencePair] = []
    considered = 0
    for number, ((prompt_id, prompt), candidates) in enumerate(prompts.items()):
        for jury in juries:
            for first, second in _matches(candidates, jury, rule.take, (seed, number)):
                considered += 1
                aspect = next(iter(jury)) if rule.combine == "aspects" else ""
                pair = _judged(first, second, jury)
                if pair is not None:
                    pairs.append(replace(pair, prompt=prompt, prompt_id=prompt_id, aspect=aspect))
    if not considered:
        raise DataError("no prompt has two images to compare; generate more of each (images_per_prompt).")
    if not pairs:
        raise DataError(f"all {considered} pairs are ties; lower the margins of `rule.scorers`, or use another scorer.")
    return Pairing(pairs, considered)


def votes(first: Candidate, second: Candidate, jury: Mapping[str, float]) -> list[int]:
    """+1 for each scorer that prefers the first, -1 for the second, 0 for a tie."""
    differences = [(first.scores[name] - second.scores[name], margin) for name, margin in jury.items()]
    return [0 if abs(difference) <= margin else (1 if difference > 0 else -1) for difference, margin in differences]


def _matches(
    candidates: Sequence[Candidate], jury: Mapping[str, float], take: str, key: tuple[int, int]
) -> Iterator[tuple[Candidate, Candidate]]:
    if take == "all":
        yield from itertools.combinations(candidates, 2)
    elif len(candidates) > 1:
        standings = _standings(candidates, jury)
        # Equal ones in an order drawn by lot: the first made would otherwise win more often than it deserves.
        lot = generator(key[0], "pair/lot", key[1]).permutation(len(candidates))
        order = sorted(range(len(candidates)), key=lambda place: (standings[place], lot[place]))
        yield candidates[order[-1]], candidates[order[0]]


def _standings(candidates: Sequence[Candidate], jury: Mapping[str, float]) -> list[float]:
    """The score, or of several scorers how many more of the others an image beats than is beaten by (Copeland)."""
    if len(jury) == 1:
        [name] = jury
        return [candidate.scores[name] for candidate in candidates]

    def sign(total: int) -> int:
        return (total > 0) - (total < 0)

    return [sum(sign(sum(votes(one, other, jury))) for other in candidates if other is not one) for one in candidates]


def _judged(first: Candidate, second: Candidate, jury: Mapping[str, float]) -> PreferencePair | None:
    """The pair with the preferred image as chosen; None for a tie."""
    cast = votes(first, second, jury)
    if sum(cast) == 0:
        return None
    chosen, rejected = (first, second) if sum(cast) > 0 else (second, first)
    share = (len(cast) + abs(sum(cast))) / (2 * len(cast))
    margins = {name: chosen.scores[name] - rejected.scores[name] for name in jury}
    extra = {"margins": margins, "later": chosen.order > rejected.order}
    return PreferencePair("", chosen.image, rejected.image, preference=share, source=", ".join(jury), extra=extra)


def relabel(pairs: Sequence[PreferencePair], labels: Labels, seed: int) -> list[PreferencePair]:
    """The pairs as they are, all swapped, or a random half of them swapped: controls of what labels teach."""
    if labels == "true":
        return list(pairs)
    swapped = set(range(len(pairs)))
    if labels == "shuffled":
        swapped = set(generator(seed, "pair/shuffle").permutation(len(pairs))[: len(pairs) // 2].tolist())
    return [_swapped(pair) if number in swapped else pair for number, pair in enumerate(pairs)]


def _swapped(pair: PreferencePair) -> PreferencePair:
    margins = {name: -value for name, value in pair.extra.get("margins", {}).items()}
    return replace(
        pair,
        chosen=pair.rejected,
        rejected=pair.chosen,
        chosen_id=pair.rejected_id,
        rejected_id=pair.chosen_id,
        extra=pair.extra | ({"margins": margins} if margins else {}) | {"label": "swapped"},
    )
