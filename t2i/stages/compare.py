"""Compare two arms image by image, paired by prompt, sample and seed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from t2i.files import write_text
from t2i.records import ScoredImage, read_jsonl
from t2i.stages.base import Stage, StageContext
from t2i.stages.generate import SAMPLING_FILE
from t2i.stages.lineage import optimised_against
from t2i.stages.score import SCORERS_FILE, SCORES_FILE, reward_errors

COMPARISON_FILE = "comparison.json"
Key = tuple[str, int, int]


class Compare(Stage):
    """Write `comparison.json`: per scorer the mean difference b - a with its interval, win rate and verdict.

    The verdict over all prompts is that of its own interval; `adjusted` is its p-value by Holm over the scorers that
    are no controls. Of many categories some lie clear of 0 by chance: there `adjusted` is by Holm over all scorers and
    categories, and a verdict of better or worse needs one below 1 - level too.
    """

    version: ClassVar[int] = 3
    produces: ClassVar[str] = "comparison"
    shows_names: ClassVar[bool] = True
    accepts: ClassVar[dict[str, tuple[str, ...]]] = {"a_from": ("scores",), "b_from": ("scores",)}

    type: Literal["compare"] = "compare"
    a_from: str
    """The score stage of the baseline."""
    b_from: str
    """The score stage of the candidate."""
    level: float = Field(default=0.95, gt=0.5, lt=1)
    """Confidence of the intervals."""
    resamples: int = Field(default=10_000, ge=1000)
    """Bootstrap resamples of prompts, and random draws for the p-values: none is below 1 / (resamples + 1)."""

    def run(self, context: StageContext) -> dict[str, Any]:
        from rewards.statistics import check_partners

        a, b = self._rows(context.input("a_from")), self._rows(context.input("b_from"))
        scorers = self._shared_scorers(context.input("a_from"), context.input("b_from"))
        self._check_sampling(context.input("a_from"), context.input("b_from"))
        self._check_prompts(a, b)
        # Of one prompt there are no statistics, which would look for partners.
        with reward_errors():
            check_partners(dict.fromkeys(b, 0.0), dict.fromkeys(a, 0.0), (self.b_from, self.a_from))
        overall, categories = [], []
        for scorer in scorers:
            label = scorer["label"]
            column_a, column_b = _column(a, label), _column(b, label)
            overall.append({**scorer, **self._compare(column_a, column_b, scorer, context.seed)})
            for category, keys in _by_category(a).items():
                part_a = {key: column_a[key] for key in keys}
                part_b = {key: column_b[key] for key in keys}
                categories.append(
                    {"label": label, "category": category, **self._compare(part_a, part_b, scorer, context.seed)}
                )
        _adjust([row for row in overall if row.get("role") != "control"])
        _adjust(categories)
        categories = [self._among_all(row) for row in categories]
        result = {"a": self.a_from, "b": self.b_from, "level": self.level, "overall": overall, "categories": categories}
        write_text(context.folder / COMPARISON_FILE, json.dumps(result, indent=2, sort_keys=True) + "\n")
        return {row["label"]: row["verdict"] for row in overall}

    def _rows(self, folder: Path) -> dict[Key, ScoredImage]:
        from t2i.errors import DataError

        rows: dict[Key, ScoredImage] = {}
        for row in read_jsonl(folder / SCORES_FILE, ScoredImage):
            if row.key in rows:
                raise DataError(f"{folder / SCORES_FILE}: prompt, sample and seed {row.key} occur twice.")
            rows[row.key] = row
        return rows

    def _shared_scorers(self, a: Path, b: Path) -> list[dict[str, Any]]:
        """Descriptions of the scorers, which must be the same in both arms."""
        from t2i.errors import DataError

        scorers_a, scorers_b = (json.loads((folder / SCORERS_FILE).read_text()) for folder in (a, b))
        if _identities(scorers_a) != _identities(scorers_b):
            raise DataError(
                f"compare: {self.a_from} and {self.b_from} were scored differently "
                f"({_identities(scorers_a)} and {_identities(scorers_b)}); give both the same scorers."
            )
        # Prompts are the same in both arms, so are the truncated ones. What either arm was optimised for is marked.
        trained = {scorer["label"] for scorer in scorers_b if scorer.get("role") == "train"}
        ids = optimised_against(a) | optimised_against(b)
        trained |= {scorer["label"] for scorer in scorers_a if scorer.get("id") in ids}
        return [row | ({"role": "train"} if row["label"] in trained else {}) for row in scorers_a]

    def _check_sampling(self, a: Path, b: Path) -> None:
        """Raise DataError unless both arms were sampled alike: steps, guidance, scheduler, negative prompt, size."""
        from t2i.errors import DataError

        arm_a, arm_b = (_sampling(folder) for folder in (a, b))
        differing = sorted(key for key in arm_a.keys() | arm_b.keys() if arm_a.get(key) != arm_b.get(key))
        if differing:
            found = "; ".join(f"{key}: {arm_a.get(key)} and {arm_b.get(key)}" for key in differing)
            raise DataError(f"compare: {self.a_from} and {self.b_from} were sampled differently ({found}).")

    def _check_prompts(self, a: Mapping[Key, ScoredImage], b: Mapping[Key, ScoredImage]) -> None:
        """Raise DataError for images that are paired by their ids and were painted for different prompts."""
        from t2i.errors import DataError

        differing = [key for key in a if key in b and a[key].prompt != b[key].prompt]
        if differing:
            first = differing[0]
            raise DataError(
                f"compare: prompt {first[0]} is {a[first].prompt!r} in {self.a_from} and {b[first].prompt!r} in "
                f"{self.b_from} ({len(differing)} such images); generate both from the same prompts."
            )
        # One arm with prompts written out and one without may be what is to be compared; two wordings are an accident.
        wordings = [(a[key].expanded, b[key].expanded) for key in a if key in b]
        unlike = [pair for pair in wordings if all(pair) and pair[0] != pair[1]]
        if unlike:
            raise DataError(
                f"compare: a prompt was written out as {unlike[0][0]!r} for {self.a_from} and as {unlike[0][1]!r} for "
                f"{self.b_from} ({len(unlike)} such images); give the later generate stage `expansions_from`."
            )

    def _compare(
        self, a: Mapping[Key, float], b: Mapping[Key, float], scorer: Mapping[str, Any], seed: int
    ) -> dict[str, Any]:
        """One row of the table; wins are the candidate's."""
        from rewards.statistics import paired_comparison

        prompts = len({key[0] for key in a})
        if prompts < 2:
            return {"prompts": prompts, "images": len(a), "verdict": "not measured"}
        better = scorer["higher_is_better"]
        # The statistics subtract their second argument: the candidate comes first.
        with reward_errors():
            result = paired_comparison(
                b,
                a,
                names=(self.b_from, self.a_from),
                higher_is_better=better,
                level=self.level,
                resamples=self.resamples,
                seed=seed,
            )
        same = ("prompts", "images", "difference", "low", "high", "wins", "ties", "losses", "win_rate", "win_low")
        row = {name: getattr(result, name) for name in (*same, "win_high", "win_method", "p_value")}
        verdict = "better" if (result.difference > 0) == better else "worse"
        row["verdict"] = verdict if result.distinguishable else "not distinguishable"
        return row | {"mean_a": result.mean_b, "mean_b": result.mean_a, "sentence": result.verdict}

    def _among_all(self, row: dict[str, Any]) -> dict[str, Any]:
        """A row of a category, without a verdict that does not stand when all such rows are looked at."""
        if row["verdict"] not in ("better", "worse") or row["adjusted"] < 1.0 - self.level:
            return row
        found = f"not distinguishable among all rows of categories (p {row['adjusted']:.2g} by Holm)"
        return row | {"verdict": "not distinguishable", "sentence": f"{found}; on its own, {row['sentence']}"}


def _adjust(rows: Sequence[dict[str, Any]]) -> None:
    """Give each row that was measured its p-value by Holm over all of them."""
    from rewards.statistics import holm

    measured = [row for row in rows if "p_value" in row]
    for row, adjusted in zip(measured, holm([row["p_value"] for row in measured]).tolist(), strict=True):
        row["adjusted"] = adjusted


def _sampling(folder: Path) -> dict[str, Any]:
    """What both arms must share; empty where the images did not come from a generate stage."""
    path = folder / SAMPLING_FILE
    if not path.is_file():
        return {}
    record = json.loads(path.read_text())
    shared = {**record["sampling"], **{key: record[key] for key in ("images_per_prompt", "batch_size")}}
    # The strength of an adapter is a property of the arm.
    shared.pop("lora_scale", None)
    return shared


def _identities(scorers: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Label and id of each scorer; name and version where a file has no ids."""
    return [(one["label"], one.get("id") or f"{one['name']} {one['version']}") for one in scorers]


def _column(rows: Mapping[Key, ScoredImage], label: str) -> dict[Key, float]:
    return {key: row.scores[label] for key, row in rows.items()}


def _by_category(rows: Mapping[Key, ScoredImage]) -> dict[str, list[Key]]:
    categories: dict[str, list[Key]] = {}
    for key, row in rows.items():
        if row.category:
            categories.setdefault(row.category, []).append(key)
    return dict(sorted(categories.items()))
