"""A recipe: one YAML file that lists stages in order. Reading it reports every mistake at once."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field, JsonValue, ValidationError

from t2i.config import FrozenModel, ModelPath, PathMark, Written, explain, output_fields, path_mark, with_default_kinds
from t2i.credentials import refuse_credentials, refuse_in_overrides
from t2i.document import Document, Key, Problem, apply_overrides, raise_problems, read_document, show
from t2i.errors import ConfigError
from t2i.expansion import (
    Draft,
    Matrix,
    Report,
    Rounds,
    expand_matrix,
    expand_rounds,
    matches,
    round_stop,
    stop_problems,
)
from t2i.resources import local_path
from t2i.rounds import RoundStop
from t2i.stages.base import Stage
from t2i.suggestions import did_you_mean

StageTypes = Mapping[str, type[Stage]]
_SAFE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]*(/[A-Za-z0-9_-]+)*")


def is_safe_name(name: str) -> bool:
    """Whether a recipe or stage of that name has a folder inside its root and nowhere else."""
    return _SAFE_NAME.fullmatch(name) is not None


class RecipeFile(FrozenModel):
    """The keys at the top of a recipe."""

    name: str | None = None
    """Folder of its runs; the file's name if absent."""
    description: str = ""
    """What it shows, in a sentence or more."""
    model: ModelPath | None = None
    """Model of every stage that names none and takes none from another stage."""
    revision: str | None = None
    """Commit or tag of a hub model, for the stages that get `model` from here."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Seed of every stage that has none of its own."""
    stages: list[dict[str, JsonValue]] = Field(min_length=1)
    """What to do, in order."""
    matrix: Matrix | None = None
    """Repeats stages for arms and seeds."""
    rounds: Rounds | None = None
    """Repeats stages, each round reading the one before."""


@dataclass(frozen=True)
class Recipe:
    """A validated recipe with `matrix` and `rounds` written out. path: the file it came from."""

    name: str
    seed: int
    stages: tuple[Stage, ...]
    description: str = ""
    path: Path | None = None
    stop: RoundStop | None = None
    """When later rounds are not run."""

    def seed_of(self, stage: Stage) -> int:
        """The stage's own seed, or else the recipe's."""
        return self.seed if stage.seed is None else stage.seed

    @classmethod
    def load(cls, path: Path | str, overrides: Sequence[str] = ()) -> Recipe:
        """Read a recipe made of the toolkit's stages. Raises ConfigError with one line per mistake."""
        from t2i.stages import STAGE_TYPES

        return load_recipe(Path(path), overrides, STAGE_TYPES)


def load_recipe(path: Path, overrides: Sequence[str], stage_types: StageTypes) -> Recipe:
    """Read a recipe whose stages are of the given types. Raises ConfigError with one line per mistake."""
    return _Loader(read_document(path), path, stage_types).load(overrides)


class _Loader:
    """One reading of one file; collects problems on the way."""

    def __init__(self, document: Document, path: Path, stage_types: StageTypes) -> None:
        self.document = document
        self.path = path
        self.stage_types = stage_types
        self.problems: list[Problem] = []

    def load(self, overrides: Sequence[str]) -> Recipe:
        # Before anything else is said, which could show them.
        refuse_in_overrides(overrides)
        refuse_credentials(self.document)
        roots: dict[str, Key] = {draft.base: draft.origin for draft in self._drafts()}
        roots |= {name: (name,) for name in RecipeFile.model_fields}
        self.document = apply_overrides(self.document, overrides, roots)
        refuse_credentials(self.document)
        self.problems.extend(self.document.problems)
        file = self._read_top()
        drafts = self._drafts()
        self._check_names(drafts)
        written, drafts = self._expanded(drafts, file), []
        for draft in written:
            drafts.append(self._with_model(draft, drafts))
        if file is not None or not ({"matrix", "rounds"} & set(self.document.data)):
            drafts = [self._with_references(draft, drafts[:index], drafts) for index, draft in enumerate(drafts)]
        if file is not None and file.rounds is not None and file.rounds.stop_by is not None:
            matrix = file.matrix.stages if file.matrix else ()
            self.problems += [
                draft.written(self.document).problem(key, message) if draft else self._problem(key, message)
                for draft, key, message in stop_problems(file.rounds, matrix, drafts, self.stage_types)
            ]
        stages = [self._stage(draft) for draft in drafts]
        self._check_together(drafts, stages)
        raise_problems(self.problems)
        assert file is not None, "a file that cannot be read has problems"
        valid = tuple(stage for stage in stages if stage is not None)
        stop = round_stop(file.rounds, [stage.label for stage in valid]) if file.rounds else None
        return Recipe(self._name(), file.seed, valid, file.description.strip(), self.path, stop)

    def _report(self, key: Key, message: str) -> None:
        self.problems.append(self._problem(key, message))

    def _problem(self, key: Key, message: str) -> Problem:
        return Written(self.document.data, self.document.place).problem(key, message)

    def _name(self) -> str:
        return str(self.document.data.get("name") or self.path.stem)

    def _read_top(self) -> RecipeFile | None:
        if not _SAFE_NAME.fullmatch(self._name()) or "/" in self._name():
            self._report(("name",), _UNSAFE.format(show(self._name())))
        try:
            file = RecipeFile.model_validate_json(json.dumps(self.document.data))
        except ValidationError as error:
            top = Written(self.document.data, self.document.place)
            self.problems.extend(explain(error, RecipeFile, top))
            self._check_written_paths(RecipeFile, top.data, self._report)
            return None
        self._check_paths(file, self._report)
        return file

    def _drafts(self) -> list[Draft]:
        """The stages as written, called by name or else type. What is no mapping is reported by `_read_top`."""
        stages = self.document.data.get("stages")
        return [
            Draft(name=name, base=name, data=item, origin=("stages", index))
            for index, item in enumerate(stages if isinstance(stages, list) else [])
            if isinstance(item, dict) and (name := str(item.get("name") or item.get("type") or f"stages.{index}"))
        ]

    def _check_names(self, drafts: Sequence[Draft]) -> None:
        first: dict[str, Draft] = {}
        for draft in drafts:
            if draft.base in first:
                place = self.document.place((*first[draft.base].origin, "name"))
                message = f"the name {draft.base!r} is taken ({place}); give one of the two stages another `name`"
                self._report((*draft.origin, "name"), message)
            elif draft.base in RecipeFile.model_fields:
                self._report((*draft.origin, "name"), f"{draft.base!r} is a key of the recipe; choose another `name`")
            elif "type" in draft.data and not _SAFE_NAME.fullmatch(draft.base):
                self._report((*draft.origin, "name"), _UNSAFE.format(show(draft.base)))
            first.setdefault(draft.base, draft)

    def _expanded(self, drafts: list[Draft], file: RecipeFile | None) -> list[Draft]:
        if file is not None and file.rounds is not None:
            drafts = expand_rounds(drafts, file.rounds, self.document, self._report)
        if file is not None and file.matrix is not None:
            drafts = expand_matrix(drafts, file.matrix, self.document, self._report)
        written: set[str] = set()
        copies = {draft.name for draft in drafts if draft.name != draft.base}
        for draft in drafts:
            if draft.name != draft.base and not _SAFE_NAME.fullmatch(draft.name):
                self._report(("matrix",), _UNSAFE.format(show(draft.name)))
            elif draft.name in copies and draft.name in written:
                message = f"a stage and a copy of another are both called {draft.name!r}; give one another name"
                self._report((*draft.origin, "name"), message)
            written.add(draft.name)
        return drafts

    def _type_of(self, draft: Draft) -> type[Stage] | None:
        return self.stage_types.get(str(draft.data.get("type")))

    def _with_model(self, draft: Draft, earlier: Sequence[Draft]) -> Draft:
        """A model and its revision, put into a stage that can take a model and was given none: those that the weights
        it reads were trained over, which fit no other, or else the recipe's. A revision of its own stays."""
        stage_type = self._type_of(draft)
        if stage_type is None or draft.data.get("model") is not None or draft.data.get("model_from") is not None:
            return draft
        trained = _trained_over(draft, earlier) if "model" in stage_type.model_fields else []
        models = [show(source["model"]) for source in trained]
        if len(set(models)) > 1:
            names = ", ".join(dict.fromkeys(models))
            message = f"trained over different models ({names}); set `model` to the one that they are to go with"
            key = next(name for name in _WEIGHTS if draft.data.get(name) is not None)
            self.problems.append(draft.written(self.document).problem((key,), message))
        source = trained[0] if trained else self.document.data
        for name in ("model", "revision"):
            is_open = name in stage_type.model_fields and draft.data.get(name) is None
            if is_open and source.get(name) is not None:
                draft = draft.changed(draft.name, {name: source[name]}, self.document.place((name,)))
        return draft

    def _with_references(self, draft: Draft, earlier: Sequence[Draft], drafts: Sequence[Draft]) -> Draft:
        """Check what a stage reads, and write wildcards out."""
        stage_type = self._type_of(draft)
        data: dict[str, JsonValue] = {}
        for name in [] if stage_type is None else stage_type.model_fields:
            value = draft.data.get(name)
            if name.endswith("_from") and isinstance(value, str):
                self._check_reference(draft, (name,), value, earlier, drafts)
            elif name.endswith("_from") and isinstance(value, list):
                data[name] = self._references(draft, name, value, earlier, drafts)
        return draft.changed(draft.name, data)

    def _references(
        self, draft: Draft, name: str, items: list[JsonValue], earlier: Sequence[Draft], drafts: Sequence[Draft]
    ) -> list[JsonValue]:
        names: list[JsonValue] = []
        for index, item in enumerate(items):
            if isinstance(item, str) and "*" not in item and item in items[:index]:
                problem = f"stage {item!r} is named twice; name it once"
                self.problems.append(draft.written(self.document).problem((name, index), problem))
            found = [other.name for other in earlier if isinstance(item, str) and matches(other.name, item)]
            if isinstance(item, str) and "*" in item and not found:
                known = _in_short(other.name for other in earlier)
                problem = f"no earlier stage matches {item!r}; earlier stages: {known}"
                self.problems.append(draft.written(self.document).problem((name, index), problem))
            elif isinstance(item, str):
                for match in found or [item]:
                    self._check_reference(draft, (name, index), match, earlier, drafts)
            names.extend(found or [item])
        return list(dict.fromkeys(names)) if all(isinstance(item, str) for item in names) else names

    def _check_reference(
        self, draft: Draft, key: Key, name: str, earlier: Sequence[Draft], drafts: Sequence[Draft]
    ) -> None:
        message = ""
        target = next((other for other in earlier if other.name == name), None)
        stage_type, target_type = self._type_of(draft), target and self._type_of(target)
        accepted = stage_type.accepts.get(str(key[0])) if stage_type else None
        if target is None and name == draft.name:
            message = f"{name!r} is this stage itself; a stage reads earlier ones"
        elif target is None and any(other.name == name for other in drafts):
            message = f"stage {name!r} comes later; move it before {draft.name!r}"
        elif target is None:
            message = f"no stage {name!r}{did_you_mean(name, [other.name for other in earlier], what='earlier stages')}"
        elif target_type and accepted and target_type.produces not in accepted:
            message = f"stage {name!r} produces {target_type.produces}, expected {' or '.join(accepted)}"
        if message:
            self.problems.append(draft.written(self.document).problem(key, message))

    def _stage(self, draft: Draft) -> Stage | None:
        written = draft.written(self.document)
        stage_type = self._type_of(draft)
        if stage_type is None:
            tag = draft.data.get("type")
            message = f"unknown stage type {show(tag)}{did_you_mean(str(tag), self.stage_types)}"
            missing = f"required, but missing; one of {', '.join(self.stage_types)}"
            self.problems.append(written.problem(("type",), missing if tag is None else message))
            return None
        named = draft.data if not isinstance(draft.data.get("name", ""), str) else draft.data | {"name": draft.name}
        inherited = draft.moved.get(("model",)) == self.document.place(("model",))

        def report(key: Key, message: str) -> None:
            if not (inherited and key == ("model",)):  # reported once, at the top
                self.problems.append(written.problem(key, message))

        try:
            stage = stage_type.model_validate_json(json.dumps(with_default_kinds(stage_type, named)))
        except ValidationError as error:
            self.problems.extend(explain(error, stage_type, written))
            self._check_written_paths(stage_type, draft.data, report)
            return None
        self._check_paths(stage, report)
        return stage

    def _check_together(self, drafts: Sequence[Draft], stages: Sequence[Stage | None]) -> None:
        """Report stages that cannot follow those they read."""
        earlier: dict[str, Stage] = {}
        for draft, stage in zip(drafts, stages, strict=True):
            field, message = ("", "") if stage is None else stage.misfit(earlier)
            if message:
                self.problems.append(draft.written(self.document).problem((field,), message))
            if stage is not None:
                earlier[stage.label] = stage

    def _check_paths(self, model: FrozenModel, report: Report) -> None:
        """Report local paths that do not exist."""

        def visit(key: Key, mark: PathMark, text: str) -> JsonValue:
            message = _missing_path(text, mark)
            if message:
                report(key, message)
            return None

        output_fields(model, visit)

    def _check_written_paths(self, model: type[FrozenModel], data: Mapping[str, JsonValue], report: Report) -> None:
        """The same for a mapping with other mistakes, so that one look shows all of them; not inside nested models."""
        for name, info in model.model_fields.items():
            mark, text = path_mark(info), data.get(name)
            if mark is not None and isinstance(text, str) and (message := _missing_path(text, mark)):
                report((name,), message)


_WEIGHTS = ("weights_from", "adapter_from")
"""Fields that name stages whose weights go with one model."""


def _trained_over(draft: Draft, earlier: Sequence[Draft]) -> list[Mapping[str, JsonValue]]:
    """What holds `model` and `revision` of the weights that a stage reads, looked for through `pick` and `merge`."""
    read = [draft.data.get(name) for name in _WEIGHTS]
    names = [one for value in read for one in (value if isinstance(value, list) else [value]) if isinstance(one, str)]
    found: list[Mapping[str, JsonValue]] = []
    for other in earlier:
        if any(matches(other.name, name) for name in names):
            found += [other.data] if other.data.get("model") is not None else _trained_over(other, earlier)
    return found


def _missing_path(text: str, mark: PathMark) -> str:
    """What to say if a marked string names a local path that does not exist; else empty."""
    try:
        path = local_path(text, mark)
    except ConfigError as error:
        return str(error)
    if path is None or path.exists():
        return ""
    return f"no file or folder {text!r}" if str(path) == text else f"no file or folder {text!r} ({path.absolute()})"


_UNSAFE = "{} is not usable as a folder name; use letters, digits, _ and - (in a stage's name also /)"


def _in_short(names: Iterable[str]) -> str:
    """Names of stages, the copies of each as one: `train/...`."""
    heads = [name.split("/", 1) for name in names]
    return ", ".join(dict.fromkeys(f"{head[0]}/..." if len(head) > 1 else head[0] for head in heads)) or "none"
