"""Turn scores, files or votes into preference pairs, and say what these are like."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import model_validator

from t2i.data.pair_tables import PairTable, VoteFile
from t2i.data.pairing import Labels, PairRule
from t2i.data.prompts import PromptSource
from t2i.files import write_text
from t2i.records import ScoredImage, read_jsonl
from t2i.stages.base import Stage, StageContext, StageNames
from t2i.stages.score import SCORES_FILE, shared_scorer

if TYPE_CHECKING:
    from t2i.data.pairing import Candidate, Pairing
    from t2i.records import PreferencePair

HEALTH_FILE = "health.json"
Prompts = dict[tuple[str, str], list["Candidate"]]


class Pair(Stage):
    """Write `pairs.jsonl`, without ties, and `health.json`: ties, margins, duplicates and what the labels give away."""

    version: ClassVar[int] = 1
    produces: ClassVar[str] = "pairs"
    accepts: ClassVar[dict[str, tuple[str, ...]]] = {"scores_from": ("scores",)}

    type: Literal["pair"] = "pair"
    scores_from: StageNames = None
    """A score stage, or several with the same scorers, whose images of a prompt are then compared with each other."""
    rule: PairRule | None = None
    """With `scores_from`: which images are put together and who decides."""
    table: PairTable | None = None
    """A file of pairs instead."""
    votes: VoteFile | None = None
    """Pairs and what people said about them instead, as `t2i label` writes it."""
    labels: Labels = "true"
    """`flipped` swaps every pair, `shuffled` a random half: controls, which a real preference must beat."""
    evaluation: tuple[PromptSource, ...] = ()
    """Prompts that the result will be judged by; the report counts those that the pairs use too."""

    @model_validator(mode="after")
    def _one_source(self) -> Pair:
        given = [name for name in ("scores_from", "table", "votes") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError("give exactly one of `scores_from`, `table` and `votes`")
        if (self.rule is None) == (self.scores_from is not None):
            raise ValueError("`rule` says how scores become pairs: give it with `scores_from`, and only then")
        return self

    def run(self, context: StageContext) -> dict[str, Any]:
        from t2i.data.pair_health import health, warnings
        from t2i.data.pairing import relabel
        from t2i.data.pairs import PAIRS_FILE, iterate_pairs, save_pairs

        made = self._pairing(context)
        save_pairs(context.folder, relabel(made.pairs, self.labels, context.seed))
        # Read back with every image checked and its id known.
        pairs = list(iterate_pairs(context.folder / PAIRS_FILE))
        save_pairs(context.folder, pairs)
        prompts = [prompt.text for source in self.evaluation for prompt in source.read(context.seed)]
        report = health(pairs, made.considered, prompts)
        report["warnings"] = warnings(report)
        write_text(context.folder / HEALTH_FILE, json.dumps(report, indent=2, sort_keys=True) + "\n")
        facts = {name: report[name] for name in ("pairs", "ties", "prompts", "images", "warnings")}
        return facts | {"labels": self.labels}

    def _pairing(self, context: StageContext) -> Pairing:
        from t2i.data.pairing import pair_up

        if self.rule is not None:
            return pair_up(self._scored(context), self.rule, context.seed)
        source = self.table or self.votes
        assert source is not None, "the validator wants one of the three"
        return _without_ties(list(source.read()))

    def _scored(self, context: StageContext) -> Prompts:
        """(prompt id, prompt) -> its images in the order they were made, with absolute paths."""
        from t2i.errors import DataError

        prompts: Prompts = {}
        texts: dict[str, str] = {}
        folders = [folder for _, folder in context.inputs["scores_from"]]
        signs = self._signs(folders)
        for folder in folders:
            for row in read_jsonl(folder / SCORES_FILE, ScoredImage):
                if texts.setdefault(row.prompt_id, row.prompt) != row.prompt:
                    raise DataError(
                        f"{folder / SCORES_FILE}: prompt {row.prompt_id} is {row.prompt!r} here and "
                        f"{texts[row.prompt_id]!r} elsewhere; images of different prompts cannot be compared."
                    )
                found = prompts.setdefault((row.prompt_id, row.prompt), [])
                found.append(_candidate(row, folder, len(found), signs))
        return prompts

    def _signs(self, folders: Sequence[Path]) -> dict[str, int]:
        """Scorer -> 1 if more is better, else -1."""
        assert self.rule is not None
        found = {name: shared_scorer(folders, name, "rule.scorers")[0] for name in self.rule.scorers}
        return {name: 1 if row["higher_is_better"] else -1 for name, row in found.items()}


def _candidate(row: ScoredImage, folder: Path, order: int, signs: dict[str, int]) -> Candidate:
    from t2i.data.pairing import Candidate

    scores = {name: sign * row.scores[name] for name, sign in signs.items()}
    return Candidate(str((folder / row.image).resolve()), order, scores)


def _without_ties(pairs: Sequence[PreferencePair]) -> Pairing:
    from t2i.data.pairing import Pairing
    from t2i.errors import DataError

    kept = [pair for pair in pairs if not pair.is_tie]
    if not kept:
        raise DataError(f"all {len(pairs)} pairs are ties: nothing is preferred, so there is nothing to learn.")
    return Pairing(kept, len(pairs))
