"""What something was made from: scorers it was optimised against, and the model that an adapter was trained over."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from t2i.stages.score import SCORERS_FILE
from t2i.training.outputs import trained_model


def optimised_against(folder: Path, *, picks: bool = True) -> set[str]:
    """Ids of the scorers by which a stage somewhere before this folder said which images, or which weights, are better
    or good enough: `pair`, `best_of`, `filter` by scores, what a guard says is trained on, `pick`, and the held-out
    reward by which a guard chose its checkpoint.

    Whoever wrote the recipe may have forgotten to give them `role: train`. A folder that does not say what it was made
    from has no such scorers. picks: whether the last two count: nothing was trained on what they chose by.
    """
    return {
        row["id"]
        for ancestor in _ancestors(folder)
        if picks or _read(ancestor / "config.json").get("identity", {}).get("type") != "pick"
        for row in _deciding(ancestor, picks=picks)
        if row.get("id")  # score files of others have none
    }


def trained_over(folders: Sequence[Path]) -> Path | None:
    """The whole model of an earlier stage that the adapters in some stages' folders were trained over.

    None if that is a model which the recipe names. Raises ConfigError where they were trained over different ones.
    """
    from t2i.errors import ConfigError

    found = {_base_of(folder) for folder in folders}
    if len(found) > 1:
        names = ", ".join(folder.name for folder in folders)
        raise ConfigError(
            f"weights_from: {names} were trained over different models; their adapters do not go together."
        )
    return next(iter(found), None)


def _base_of(folder: Path) -> Path | None:
    config, inputs = _read(folder / "config.json"), _read(folder / "provenance.json").get("inputs", {})
    settings = config.get("settings", {})
    if settings.get("type") == "train":
        trained = inputs.get(settings.get("model_from"))
        return None if trained is None else trained_model(_beside(folder, trained))
    # The difference of a whole model from `model` goes with that one, whatever the whole was trained over.
    if settings.get("kind") == "extract":
        return None
    sources = settings.get("weights_from") or ()
    names = [sources] if isinstance(sources, str) else sources
    return trained_over([_beside(folder, inputs[name]) for name in names if name in inputs])


def _ancestors(folder: Path) -> Iterator[Path]:
    """The folder and all that it was made from, each once."""
    todo, seen = [folder], set()
    while todo:
        current = todo.pop()
        if current not in seen:
            seen.add(current)
            yield current
            todo += _inputs(current)


def _inputs(folder: Path) -> list[Path]:
    return [_beside(folder, name) for name in _read(folder / "provenance.json").get("inputs", {}).values()]


def _beside(folder: Path, name: str) -> Path:
    """The folder of a stage that another was made from; the same fingerprint where it was made again, renamed."""
    named = folder.parent / name
    same = sorted(folder.parent.glob(f"*-{name.rpartition('-')[2]}"))
    return named if named.is_dir() or not same else same[0]


def _deciding(folder: Path, *, picks: bool) -> Iterator[dict[str, Any]]:
    """Descriptions of the scorers whose numbers a stage chose by; nothing for a stage that chose by none."""
    labels = _labels(_read(folder / "config.json").get("identity", {}))
    for source in _scored_by(folder) if labels else ():
        yield from (row for row in json.loads((source / SCORERS_FILE).read_text()) if row["label"] in labels)
    # A filter that scored by itself, and a guard, say by what.
    facts = _read(folder / "done.json").get("facts", {})
    for name in ("chosen_by", "picked_by") if picks else ("chosen_by",):
        yield from ({"id": one} for one in facts.get(name, ()))


def _labels(identity: dict[str, Any]) -> set[str]:
    """Labels of the scorers that a stage chose by."""
    fields = identity.get("fields", {})
    if identity.get("type") == "pair":
        return set(fields["rule"]["scorers"]) if fields.get("rule") else set()
    if identity.get("type") in ("best_of", "pick"):
        return {fields["scorer"]}
    rules = fields.get("scores", ()) if identity.get("type") == "filter" else ()
    return {rule["recorded"] for rule in rules if rule.get("recorded")}


def _scored_by(folder: Path) -> Iterator[Path]:
    """The score stages that a stage reads, or else those nearest before it."""
    sources = _inputs(folder)
    read = [source for source in sources if (source / SCORERS_FILE).is_file()]
    yield from read
    for source in () if read else sources:
        yield from _scored_by(source)


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
