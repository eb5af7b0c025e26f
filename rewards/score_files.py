"""A score table as files: OUTPUT with a JSON row per image, and OUTPUT.scorers.json, which says what each score is."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from rewards.base import Reward
from rewards.errors import InputError
from rewards.prompts import place_of
from rewards.score_table import Row, ScorerFacts, ScoreTable
from rewards.scoring import describe, plain_float

_MISSING, _NOT_READ = "#missing_images", "#not_read"


def scorer_id(description: Mapping[str, object]) -> str:
    """Short id of what `describe` says: name, version, and a hash of the fingerprint, or of all where there is none.

    An id that `describe_all` put into the description does not change it.
    """
    told = {key: value for key, value in description.items() if key != "id"}
    basis = json.dumps(told.get("fingerprint", told), sort_keys=True)
    return f"{description['name']}/{description['version']}/{hashlib.sha256(basis.encode()).hexdigest()[:12]}"


def facts_of(description: Mapping[str, object]) -> ScorerFacts:
    """The column that a scorer's description stands for."""
    return ScorerFacts(
        name=str(description["name"]),
        id=scorer_id(description),
        scale=str(description["scale"]),
        needs_prompt=bool(description["needs_prompt"]),
        higher_is_better=bool(description["higher_is_better"]),
    )


def describe_all(scorers: Sequence[Reward]) -> dict[str, dict[str, object]]:
    """Scorer name -> what it is, with its id."""
    found = {}
    for scorer in scorers:
        description = describe(scorer)
        found[scorer.name] = {"id": scorer_id(description)} | description
    return found


def write_table(table: ScoreTable, descriptions: Mapping[str, object], output: Path) -> None:
    """Write both files, each whole or not at all; image paths are relative to the output.

    Names of images that were missing stand under `#missing_images` beside the scorers, of pictures of formats that are
    not read under `#not_read`.
    """
    base = output.parent.resolve()
    lines = [json.dumps(_to_json(row, table.scorers, base), ensure_ascii=False) + "\n" for row in table.rows]
    gaps = {key: list(names) for key, names in ((_MISSING, table.missing_images), (_NOT_READ, table.not_read)) if names}
    known = {**descriptions, **gaps}
    replace_text(_scorers_file(output), json.dumps(known, indent=2, ensure_ascii=False) + "\n")
    replace_text(output, "".join(lines))


def _to_json(row: Row, scorers: Sequence[ScorerFacts], base: Path) -> dict[str, object]:
    image = Path(os.path.relpath(place_of(row.image), base)).as_posix()
    values: dict[str, object] = {"image": image, "prompt": row.prompt}
    if row.category:
        values["category"] = row.category
    scored = [scorer for scorer in scorers if scorer.name in row.scores]
    values["scores"] = {scorer.name: plain_float(row.scores[scorer.name]) for scorer in scored}
    values["scorers"] = [scorer.id for scorer in scored]
    if row.is_blank:
        values["blank"] = True
    if row.truncated_by:
        values["truncated_by"] = list(row.truncated_by)
    if row.problem is not None:
        values["problem"] = row.problem
    return values


def read_table(path: Path) -> ScoreTable:
    """A table that `write_table` wrote. Raises InputError, with the line, for files that are missing or something else.

    An image counts as without a prompt where another one has a prompt.
    """
    lines = _text(path).split("\n")
    descriptions = _json(_text(_scorers_file(path)), str(_scorers_file(path)))
    if not isinstance(descriptions, dict):
        raise InputError(f"{_scorers_file(path)}: expected an object with a scorer a key.")
    try:
        missing, not_read = (tuple(map(str, descriptions.pop(key, ()))) for key in (_MISSING, _NOT_READ))
        scorers = tuple(facts_of(description) for description in descriptions.values())
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{_scorers_file(path)}: not what `rewards score` writes ({error}).") from error
    rows = tuple(_row(line, f"{path}:{number}", path.parent) for number, line in enumerate(lines, 1) if line.strip())
    if not rows:
        raise InputError(f"{path}: there are no rows in it.")
    return ScoreTable(path.stem, rows, scorers, missing, any(row.prompt for row in rows), not_read)


def _row(line: str, where: str, folder: Path) -> Row:
    row = _json(line, where)
    try:
        if not isinstance(row, dict):
            raise TypeError("no object")
        return Row(
            image=folder / row["image"],
            prompt=row["prompt"],
            scores={str(name): float(value) for name, value in row["scores"].items()},
            category=row.get("category", ""),
            problem=row.get("problem"),
            is_blank=row.get("blank", False),
            truncated_by=tuple(row.get("truncated_by", ())),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{where}: not a row that `rewards score` writes ({error}).") from error


def _scorers_file(output: Path) -> Path:
    return output.with_name(output.name + ".scorers.json")


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}).") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start}).") from error


def _json(text: str, where: str) -> object:
    try:
        return json.loads(text)
    except ValueError as error:
        raise InputError(f"{where}: not JSON ({error}).") from error


def replace_text(path: Path, text: str) -> None:
    """Write a file whole or not at all. A lone surrogate, legal in JSON and not in UTF-8, is escaped."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise InputError(f"{path}: cannot be written ({error.strerror}).") from error
