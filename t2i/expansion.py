"""`rounds:` and `matrix:` written out as ordinary stages, before any of them is validated.

    rounds: {stages: [generate, train], count: 2, first: {train.model_from: sft}}
        -> generate/round1 train/round1 generate/round2 train/round2
    matrix: {stages: [train, score], arms: {alt: {train.captions: {alt: 1}}, dense: {...}}, seeds: [0, 1]}
        -> train/alt/s0 train/alt/s1 train/dense/s0 train/dense/s1 score/alt/s0 ...

Rounds are written out first: with both, a stage is called train/round1/alt/s0.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from pydantic import Field, JsonValue, model_validator

from t2i.config import FrozenModel, Written
from t2i.document import Document, Key, Place, set_value
from t2i.rounds import RoundStop
from t2i.suggestions import did_you_mean

if TYPE_CHECKING:
    from t2i.stages.base import Stage


class Matrix(FrozenModel):
    """Repeats stages for every arm and every seed; a reference among them stays within its arm and seed."""

    stages: tuple[str, ...] = Field(min_length=1)
    """Names of the stages to repeat."""
    arms: dict[str, dict[str, JsonValue]] = Field(default_factory=dict)
    """Arm -> what it changes, as `stage.path.to.key: value`."""
    seeds: tuple[int, ...] = ()
    """Seeds given to every repeated stage that states none of its own: generation that states one paints the same
    prompts with the same noise for each."""

    @model_validator(mode="after")
    def _not_empty(self) -> Matrix:
        if not self.arms and not self.seeds:
            raise ValueError("give `arms`, `seeds`, or both")
        if len(set(self.seeds)) != len(self.seeds):
            raise ValueError("`seeds` contains a seed twice")
        return self


class Rounds(FrozenModel):
    """Repeats neighbouring stages; what a stage reads from itself or a later one is that of the round before."""

    stages: tuple[str, ...] = Field(min_length=1)
    """Names of the stages to repeat; they stand next to each other in the recipe."""
    count: int = Field(ge=1)
    """How many rounds."""
    first: dict[str, str | list[str] | None] = Field(default_factory=dict)
    """What round 1 reads where later rounds read the round before, as `stage.field_from: earlier stage` (or null)."""
    stop_by: str | None = None
    """A `pick` stage after the rounds: once it has decided, the rounds that are left are not run, and stages that read
    lists of rounds read those that were."""


@dataclass(frozen=True)
class Draft:
    """A stage that is not validated yet. base: its name in the file; moved: places of values that stand elsewhere."""

    name: str
    base: str
    data: dict[str, JsonValue]
    origin: Key
    moved: Mapping[Key, Place] = field(default_factory=dict)

    def written(self, document: Document) -> Written:
        """Its values with their places, for messages."""

        def place(key: Key) -> Place:
            moved = (self.moved[key[:end]] for end in range(len(key), 0, -1) if key[:end] in self.moved)
            return next(moved, None) or document.place((*self.origin, *key))

        return Written(self.data, place, self.base)

    def changed(self, name: str, values: Mapping[str, JsonValue], place: Place | None = None) -> Draft:
        """A renamed copy with values set by dotted path. Raises ValueError where a path leads through a scalar."""
        data, moved = copy.deepcopy(self.data), dict(self.moved)
        for path, value in values.items():
            key = path.split(".")
            set_value(data, key, copy.deepcopy(value))
            if place is not None:
                moved[tuple(int(part) if part.isdecimal() else part for part in key)] = place
        return replace(self, name=name, data=data, moved=moved)

    def rename_references(self, rename: Callable[[str], str]) -> Draft:
        """A copy whose every `*_from` value went through `rename`."""
        data = copy.deepcopy(self.data)
        for field_name, value in data.items():
            if field_name.endswith("_from"):
                if isinstance(value, str):
                    data[field_name] = rename(value)
                elif isinstance(value, list):
                    data[field_name] = [rename(item) if isinstance(item, str) else item for item in value]
        return replace(self, data=data)


Report = Callable[[Key, str], None]
"""Called with the key of the mistake in the document, and the message."""


def matches(name: str, pattern: str) -> bool:
    """Compare part by part, so that `*` does not cross a slash; `name/*` are all copies of a stage, however deep."""
    parts, patterns = name.split("/"), pattern.split("/")
    if len(patterns) == 2 and patterns[1] == "*" and len(parts) > 2:
        patterns += ["*"] * (len(parts) - 2)
    return len(parts) == len(patterns) and all(map(fnmatchcase, parts, patterns))


def expand_rounds(drafts: Sequence[Draft], rounds: Rounds, document: Document, report: Report) -> list[Draft]:
    """Write out the rounds. The block of stages is repeated as a whole; what follows it reads the last round."""
    inside = [draft for draft in drafts if draft.base in rounds.stages]
    if not _all_known(rounds.stages, drafts, "rounds", report):
        return list(drafts)
    start = drafts.index(inside[0])
    if list(drafts[start : start + len(inside)]) != inside:
        report(("rounds", "stages"), "these stages must stand next to each other in the recipe")
        return list(drafts)
    order = {draft.base: number for number, draft in enumerate(inside)}
    block = [
        _in_round(draft, number, order, rounds, document, report)
        for number in range(1, rounds.count + 1)
        for draft in inside
    ]
    _check_first(rounds, inside, order, report)
    outside = [draft.rename_references(lambda ref: _round_name(ref, rounds.count, order)) for draft in drafts]
    return [*outside[:start], *block, *outside[start + len(inside) :]]


def round_stop(rounds: Rounds, names: Sequence[str]) -> RoundStop | None:
    """The stop of rounds that were written out. names: of all stages of the recipe."""
    if rounds.stop_by is None:
        return None
    numbered = ([f"{name}/round{number}" for name in rounds.stages] for number in range(1, rounds.count + 1))
    return RoundStop(rounds.stop_by, tuple(tuple(name for name in names if name in own) for own in numbered))


def stop_problems(
    rounds: Rounds, repeated: Sequence[str], drafts: Sequence[Draft], stage_types: Mapping[str, type[Stage]]
) -> Iterator[tuple[Draft | None, Key, str]]:
    """What is wrong with `stop_by`: where (a stage, or None for the top of the recipe), and the message.

    repeated: stages of the matrix. drafts: written out. A stage outside that reads nothing but rounds after the first,
    none of which need be run, is a mistake as well.
    """
    key, by = ("rounds", "stop_by"), next((draft for draft in drafts if draft.name == rounds.stop_by), None)
    if {*rounds.stages, rounds.stop_by} & {*repeated}:
        yield None, key, "rounds that a matrix repeats cannot be stopped; leave `stop_by` out"
    elif by is None or by.base in rounds.stages:
        names = [draft.name for draft in drafts if draft.base not in rounds.stages]
        yield None, key, f"no stage {rounds.stop_by!r} outside the rounds{did_you_mean(str(rounds.stop_by), names)}"
    elif (found := stage_types.get(str(by.data.get("type")))) is None or not found.may_stop_rounds:
        able = [name for name, kind in stage_types.items() if kind.may_stop_rounds]
        yield None, key, f"a stage of type {by.data.get('type')} cannot decide; expected {' or '.join(able)}"
    later = {f"{name}/round{number}" for name in rounds.stages for number in range(2, rounds.count + 1)}
    for draft in drafts:
        for name, value in draft.data.items() if draft.base not in rounds.stages else ():
            read = value if isinstance(value, list) else [value]
            if name.endswith("_from") and read and all(one in later for one in read):
                hint = f"read {rounds.stop_by}, or a list with the first round"
                yield draft, (name,), f"{read[-1]} may not be run, because of rounds.stop_by; {hint}"


def _round_name(name: str, number: int, order: Mapping[str, int]) -> str:
    return f"{name}/round{number}" if name in order else name


def _in_round(
    draft: Draft, number: int, order: Mapping[str, int], rounds: Rounds, document: Document, report: Report
) -> Draft:
    def rename(reference: str) -> str:
        is_later = order.get(reference, -1) >= order[draft.base]
        return _round_name(reference, number - is_later, order)

    copied = draft.rename_references(rename).changed(f"{draft.base}/round{number}", {})
    for name in _fields_read_from_before(draft, order) if number == 1 else ():
        path = f"{draft.base}.{name}"
        if path not in rounds.first:
            message = f"{path} reads the round before; say under `first` what round 1 reads (a stage, or null)"
            report(("rounds",), message)
        value: JsonValue = copy.deepcopy(rounds.first.get(path))  # type: ignore[assignment]
        copied = copied.changed(copied.name, {name: value}, document.place(("rounds", "first", path)))
    return copied


def _fields_read_from_before(draft: Draft, order: Mapping[str, int]) -> list[str]:
    """Fields with a reference to the stage itself or to a later one of the same round."""
    found = []
    for name, value in draft.data.items():
        names = value if isinstance(value, list) else [value]
        if name.endswith("_from") and any(order.get(str(item), -1) >= order[draft.base] for item in names):
            found.append(name)
    return found


def _check_first(rounds: Rounds, inside: Sequence[Draft], order: Mapping[str, int], report: Report) -> None:
    needed = [f"{draft.base}.{name}" for draft in inside for name in _fields_read_from_before(draft, order)]
    for path in rounds.first:
        if path not in needed:
            hint = did_you_mean(path, needed, what="what does")
            report(("rounds", "first", path), f"reads no earlier round, so `first` does not apply{hint}")


def expand_matrix(drafts: Sequence[Draft], matrix: Matrix, document: Document, report: Report) -> list[Draft]:
    """Write out arms and seeds, each stage where it stands. Other stages name a copy in full, or use wildcards."""
    if not _all_known(matrix.stages, drafts, "matrix", report):
        return list(drafts)
    _check_arms(matrix, report)
    _check_overrides(matrix, drafts, document, report)
    inside = {draft.name for draft in drafts if draft.base in matrix.stages}
    expanded: list[Draft] = []
    for draft in drafts:
        if draft.name not in inside:
            expanded.append(draft)
            continue
        for arm in matrix.arms or {"": {}}:
            for seed in matrix.seeds or (None,):
                expanded.append(_in_cell(draft, arm, seed, matrix, inside, document, report))
    return expanded


def _in_cell(
    draft: Draft, arm: str, seed: int | None, matrix: Matrix, inside: set[str], document: Document, report: Report
) -> Draft:
    suffix = (f"/{arm}" if arm else "") + ("" if seed is None else f"/s{seed}")
    copied = draft.changed(draft.name + suffix, {})
    for path, value in matrix.arms.get(arm, {}).items():
        stage, _, inner = path.partition(".")
        key = ("matrix", "arms", arm, path)
        if stage == draft.base and inner:
            try:
                copied = copied.changed(copied.name, {inner: value}, document.place(key))
            except ValueError as error:
                report(key, str(error))
    if seed is not None and copied.data.get("seed") is None:
        copied = copied.changed(copied.name, {"seed": seed}, document.place(("matrix", "seeds")))

    def is_inside(name: str) -> bool:
        return name in inside or ("*" in name and any(matches(one, name) for one in inside))

    return copied.rename_references(lambda name: name + suffix if is_inside(name) else name)


def _check_arms(matrix: Matrix, report: Report) -> None:
    for arm, values in matrix.arms.items():
        for path in values:
            stage, _, inner = path.partition(".")
            if not inner:
                report(("matrix", "arms", arm, path), "write what an arm changes as stage.path.to.key: value")
            elif stage not in matrix.stages:
                hint = did_you_mean(stage, matrix.stages, what="matrix.stages")
                report(("matrix", "arms", arm, path), f"no repeated stage {stage!r}{hint}")
            elif inner == "name":
                message = f"the copies of {stage!r} are named after it and their arm; leave `name` out"
                report(("matrix", "arms", arm, path), message)


def _check_overrides(matrix: Matrix, drafts: Sequence[Draft], document: Document, report: Report) -> None:
    """Report what was given on the command line and every arm sets otherwise: it would change nothing."""
    for draft in drafts:
        for key, place in document.places.items():
            if place.line is None and key[: len(draft.origin)] == draft.origin and draft.base in matrix.stages:
                path = ".".join(map(str, (draft.base, *key[len(draft.origin) :])))
                own = [any(f"{path}.".startswith(f"{one}.") for one in values) for values in matrix.arms.values()]
                if own and all(own):
                    report(key, "every arm of the matrix sets it, so this would change nothing; change the arms")


def _all_known(names: Sequence[str], drafts: Sequence[Draft], where: str, report: Report) -> bool:
    known = [draft.base for draft in drafts]
    unknown = [(index, name) for index, name in enumerate(names) if name not in known]
    for index, name in unknown:
        report((where, "stages", index), f"no stage {name!r}{did_you_mean(name, known)}")
    return not unknown
