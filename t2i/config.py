"""What a person writes: strict frozen models, their paths, and a readable message for every mistake."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, get_args

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError
from pydantic.fields import FieldInfo

from t2i.document import Key, Place, Problem, show
from t2i.suggestions import did_you_mean


class FrozenModel(BaseModel):
    """Base of everything that a recipe contains: unknown keys are errors, nothing is coerced, nothing changes later.

    Recipes are validated in pydantic's JSON mode, where a list may fill a tuple and a mapping a nested model.
    """

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


def speed_only(default: Any, **constraints: Any) -> Any:
    """A field that changes how fast a stage runs, never what it writes: it stays out of the fingerprint."""
    return Field(default, json_schema_extra={"affects_output": False}, **constraints)


@dataclass(frozen=True)
class PathMark:
    """Says that a string names files whose content decides what a stage writes.

    written: keys of a mapping whose files are filled while the stage runs, and decide nothing.
    may_be_code, must_be_code: whether it may, or can only, be the `module:Class` of somebody's own code.
    named_images: of a file that names images, these; their content decides too, as that of a folder's images does.
    """

    may_be_hub_id: bool
    written: tuple[str, ...] = ()
    may_be_code: bool = False
    must_be_code: bool = False
    named_images: Callable[[Path], Iterable[Path]] | None = None


LocalPath = Annotated[str, PathMark(may_be_hub_id=False)]
"""A file or folder (`pkg:package/path` for package data); its content goes into the fingerprint."""
ModelPath = Annotated[str, PathMark(may_be_hub_id=True)]
"""A hub id, or a local folder: hashed if it exists or begins with `pkg:`, `/`, `./`, `../` or `~`."""
Options = Annotated[
    dict[str, str | int | float | bool], PathMark(may_be_hub_id=True, written=("answers",), may_be_code=True)
]
"""Options of a scorer; a text among them may name files, as a `ModelPath` does, or code. `answers` is a cache of its
own."""
CodeName = Annotated[str, PathMark(may_be_hub_id=True, must_be_code=True)]
"""A name that is known, or `module:Class`: the content of that module's file, not of others that it imports, goes into
the fingerprint."""

PathVisitor = Callable[[Key, PathMark, str], JsonValue]
"""Called for every path in a model with its key, its mark and the string; returns what to put in its place."""


def output_fields(model: BaseModel, visit: PathVisitor, key: Key = ()) -> dict[str, JsonValue]:
    """The fields that decide what is written, as JSON values; at any depth, speed-only ones are left out.

    Raises TypeError for a value that JSON cannot hold (a fault of the stage's author, not of the user).
    """
    return {
        name: _output_value(getattr(model, name), path_mark(info), visit, (*key, name))
        for name, info in type(model).model_fields.items()
        if affects_output(info)
    }


def _output_value(value: object, mark: PathMark | None, visit: PathVisitor, key: Key) -> JsonValue:
    if isinstance(value, BaseModel):
        return output_fields(value, visit, key)
    if isinstance(value, str) and mark is not None:
        return visit(key, mark, value)
    if isinstance(value, list | tuple):
        return [_output_value(item, mark, visit, (*key, index)) for index, item in enumerate(value)]
    if isinstance(value, Mapping):
        read = {name: None if mark and name in mark.written else mark for name in value}
        return {str(name): _output_value(item, read[name], visit, (*key, str(name))) for name, item in value.items()}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"{'.'.join(map(str, key))}: a recipe cannot hold a {type(value).__name__}")


def affects_output(info: FieldInfo) -> bool:
    """False for fields made with `speed_only`."""
    extra = info.json_schema_extra
    return not (isinstance(extra, dict) and extra.get("affects_output") is False)


def path_mark(info: FieldInfo) -> PathMark | None:
    """The mark of a field that holds paths, wherever in its annotation it stands (`LocalPath | None`, lists)."""
    return next(_marks([info.annotation, *info.metadata]), None)


def _marks(parts: list[Any]) -> Iterator[PathMark]:
    for part in parts:
        if isinstance(part, PathMark):
            yield part
        elif not isinstance(part, type):
            yield from _marks([*get_args(part), *getattr(part, "__metadata__", ())])
        else:
            yield from _marks(list(get_args(part)))


def with_default_kinds(model: type[BaseModel], data: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
    """A copy in which nested mappings without `type` have that of their field's default, at any depth.

    So `train.trained.rank=8` changes the default LoRA and need not say that it is one.
    """
    filled = dict(data)
    for name, value in data.items():
        default = model.model_fields[name].default if name in model.model_fields else None
        if isinstance(value, dict) and isinstance(default, BaseModel) and "type" in type(default).model_fields:
            kind = default.model_dump(include={"type"})["type"]
            value = {"type": kind} | value
            filled[name] = with_default_kinds(type(default), value) if value["type"] == kind else value
    return filled


@dataclass(frozen=True)
class Written:
    """One mapping as it was written: its values, where each stands, and what messages call it."""

    data: Mapping[str, JsonValue]
    place: Callable[[Key], Place]
    label: str = ""

    def problem(self, key: Key, message: str) -> Problem:
        """A problem with the value at `key`."""
        return Problem(self.place(key), ".".join(map(str, (self.label, *key) if self.label else key)), message)


def explain(error: ValidationError, model: type[BaseModel], written: Written) -> list[Problem]:
    """Turn pydantic's errors about a mapping into problems with place, path and advice."""
    problems = []
    details = error.errors(include_url=False)
    for detail in details:
        kind, location = detail["type"], detail["loc"]
        if kind == "too_short" and any(other["loc"][:-1][: len(location)] == location for other in details):
            continue  # pydantic counts valid items only: the mistake is in one of them
        key = _key_in(written.data, location, kind)
        message = _message(kind, detail["msg"], detail.get("ctx", {}), detail["input"])
        if kind == "extra_forbidden":
            name = str(location[-1])
            message = f"unknown key {name!r}{did_you_mean(name, known_keys(model, location[:-1]), what='known keys')}"
        problems.append(written.problem(key, message))
    return problems


def _message(kind: str, message: str, context: Mapping[str, Any], found: Any) -> str:
    if kind == "missing":
        return "required, but missing"
    if kind in ("union_tag_invalid", "literal_error"):
        expected = str(context.get("expected_tags", context.get("expected"))).replace(" or ", ", ")
        known = [part.strip().strip("'") for part in expected.split(",")]
        value = str(context.get("tag", found))
        return f"unknown value {value!r}{did_you_mean(value, known)}"
    if kind == "union_tag_not_found":
        return f"needs a key {context['discriminator']} that says which kind it is"
    if kind in ("value_error", "assertion_error"):
        return message.partition(", ")[2]
    words = message.replace("an object", "a mapping").replace("valid array", "list").replace("valid tuple", "list")
    return f"{words[0].lower()}{words[1:]} (got {show(found)})"


def _key_in(data: Any, location: Key, kind: str) -> Key:
    """pydantic's location without the names of union members, which nobody wrote."""
    key: Key = ()
    for number, part in enumerate(location):
        missing = kind == "missing" and number == len(location) - 1
        if _holds(data, part):
            data = data[part]
        elif not missing:
            continue
        key = (*key, part)
    return (*key, "type") if kind == "union_tag_invalid" else key


def _holds(data: Any, part: str | int) -> bool:
    is_index = isinstance(data, list) and isinstance(part, int) and part < len(data)
    return is_index or (isinstance(data, Mapping) and part in data)


def known_keys(model: type[BaseModel], location: Key) -> list[str]:
    """Names of the fields at a location of pydantic's inside a model."""
    models = [model]
    for part in location:
        nested = [
            inner
            for outer in models
            if part in outer.model_fields
            for inner in _models_in(outer.model_fields[str(part)].annotation)
        ]
        models = nested or [candidate for candidate in models if part in _tags(candidate)] or models
    return list(dict.fromkeys(name for candidate in models for name in candidate.model_fields))


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in get_args(annotation) for model in _models_in(argument)]


def _tags(model: type[BaseModel]) -> tuple[str, ...]:
    tag = model.model_fields.get("type")
    return (model.__name__, *(get_args(tag.annotation) if tag else ()))
