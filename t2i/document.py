"""A YAML file that remembers where each value stands, so that a mistake can be reported with file and line."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml
from pydantic import JsonValue

from t2i.credentials import masked
from t2i.errors import ConfigError
from t2i.suggestions import did_you_mean

Key = tuple[str | int, ...]
"""Where a value stands in nested mappings and lists: ("stages", 2, "steps")."""
_MAX_DEPTH = 50
_MAX_VALUES = 1_000_000
"""Of a file, every use of an alias counted: a few lines of aliases to aliases would fill the memory."""


@dataclass(frozen=True)
class Place:
    """Where a person wrote something: a line of a file, or an argument of the command line."""

    source: str
    line: int | None = None

    def __str__(self) -> str:
        return self.source if self.line is None else f"{self.source}:{self.line}"


@dataclass(frozen=True)
class Problem:
    """One mistake. path: dotted, as an override would name it; empty where it concerns the whole file."""

    place: Place
    path: str
    message: str

    def __str__(self) -> str:
        return masked(f"{self.place}  {self.path}: {self.message}" if self.path else f"{self.place}  {self.message}")


def raise_problems(problems: Iterable[Problem]) -> None:
    """Raise one ConfigError with a line per distinct problem, in the order of the file; return if there are none."""
    distinct = sorted(dict.fromkeys(problems), key=_order)
    if distinct:
        raise ConfigError("\n".join(str(problem) for problem in distinct))


def _order(problem: Problem) -> tuple[bool, int]:
    return (problem.place.line is None, problem.place.line or 0)


@dataclass(frozen=True)
class Document:
    """What a file says: plain values, and the place of every key and list item."""

    data: dict[str, JsonValue]
    places: Mapping[Key, Place]
    problems: tuple[Problem, ...] = ()

    def place(self, key: Key) -> Place:
        """Place of a value, or of the innermost thing around it that was written."""
        return next(self.places[key[:end]] for end in range(len(key), -1, -1) if key[:end] in self.places)


def set_value(data: dict[str, JsonValue], key: Sequence[str], value: JsonValue) -> None:
    """Set a nested value in place; absent mappings are made. Raises ValueError where the key leads through a scalar."""
    container: JsonValue = data
    for number, part in enumerate(key):
        last = number == len(key) - 1
        seen = ".".join(key[:number])
        if isinstance(container, list):
            index = _list_index(container, part, seen)
            if last:
                container[index] = value
            container = container[index]
        elif isinstance(container, dict):
            if last:
                container[part] = value
            elif container.get(part) is None:
                container[part] = {}
            container = container[part]
        else:
            raise ValueError(f"{seen} is {show(container)}, which has no key {part!r}")


def _list_index(items: list[JsonValue], part: str, seen: str) -> int:
    if part.isdecimal() and int(part) < len(items):
        return int(part)
    raise ValueError(f"{seen} is a list of {len(items)} items; write an index from 0 to {len(items) - 1}, not {part!r}")


def show(value: JsonValue) -> str:
    """A value as a message quotes it, at most 60 characters."""
    if isinstance(value, bool) or value is None:
        text = {True: "true", False: "false", None: "null"}[value]
    else:
        text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def apply_overrides(document: Document, overrides: Sequence[str], roots: Mapping[str, Key]) -> Document:
    """A copy with every `path.to.key=value` set. roots: what a path may begin with -> where that stands.

    Mistakes are added to the copy's problems; one that would undo another is one. The place of an overridden value is
    the argument itself.
    """
    data, places, problems = copy.deepcopy(document.data), dict(document.places), list(document.problems)
    given: dict[Key, str] = {}
    for argument in overrides:
        place = Place(f"command line: {argument}")
        try:
            key, value = _parse_override(argument, roots)
            undone = [earlier for known, earlier in given.items() if known[: len(key)] == key]
            if undone:
                raise ValueError(f"would undo {', '.join(undone)}; give only one of them")
            set_value(data, [str(part) for part in key], value)
        except ValueError as error:
            problems.append(Problem(place, argument.partition("=")[0], str(error)))
            continue
        given[key] = argument
        places = {known: at for known, at in places.items() if known[: len(key)] != key} | {key: place}
    return Document(data, places, tuple(problems))


def _parse_override(argument: str, roots: Mapping[str, Key]) -> tuple[Key, JsonValue]:
    path, equals, text = argument.partition("=")
    first, *rest = path.split(".")
    if not equals or "" in (first, *rest):
        raise ValueError("write an override as path.to.key=value, for example train.steps=200")
    if first not in roots:
        raise ValueError(f"no stage or top-level key {first!r}{did_you_mean(first, roots)}")
    return (*roots[first], *(int(part) if part.isdecimal() else part for part in rest)), parse_value(text)


def parse_value(text: str) -> JsonValue:
    """Read one YAML value, as on the right of an override. Raises ValueError if it is not YAML."""
    builder = _Builder("value")
    try:
        node = yaml.compose(text, Loader=_CoreLoader)
    except yaml.YAMLError as error:
        raise ValueError(f"not YAML: {_reason(error)} (got {text!r})") from error
    except RecursionError as error:
        raise ValueError(_too_deep()) from error
    value = None if node is None else builder.build(node, (), frozenset())
    if builder.problems:
        raise ValueError(builder.problems[0].message)
    return value


def read_document(path: Path) -> Document:
    """Read a YAML file. Raises ConfigError if it cannot be read, is not YAML, or holds anything but a mapping."""
    try:
        text = path.read_text(encoding="utf-8")
        node = yaml.compose(text, Loader=_CoreLoader)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}).") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start}).") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        raise ConfigError(f"{Place(str(path), mark.line + 1 if mark else None)}  not YAML: {_reason(error)}") from error
    except RecursionError as error:
        raise ConfigError(f"{path}: {_too_deep()}.") from error
    if not isinstance(node, yaml.MappingNode):
        found = "nothing" if node is None else "a list or a single value"
        raise ConfigError(f"{path}:1  found {found}, expected `key: value` lines.")
    builder = _Builder(str(path))
    builder.places[()] = Place(str(path), 1)
    data = {str(name): value for name, value in builder.mapping(node, (), frozenset()).items()}
    return Document(data, builder.places, tuple(builder.problems))


def _too_deep() -> str:
    return f"nested more than {_MAX_DEPTH} levels deep"


def _reason(error: yaml.YAMLError) -> str:
    parts = [getattr(error, "context", None), getattr(error, "problem", None) or getattr(error, "reason", None)]
    return masked(", ".join(part for part in parts if part))


class _CoreLoader(yaml.SafeLoader):
    """Scalars as in YAML 1.2's core schema: `no` and dates are text, `010` is not octal, and `1e-4` is a number."""

    yaml_implicit_resolvers = {}  # noqa: RUF012 (PyYAML reads it from the class)


_SCALARS: dict[str, tuple[str, Callable[[str], JsonValue]]] = {
    "null": (r"~|null|Null|NULL|", lambda text: None),
    "bool": (r"true|True|TRUE|false|False|FALSE", lambda text: text.lower() == "true"),
    "int": (r"[-+]?(0|[1-9][0-9]*(_[0-9]{3})*)", lambda text: int(text)),
    "float": (r"[-+]?(\.[0-9]+|(0|[1-9][0-9]*)(\.[0-9]*)?)([eE][-+]?[0-9]+)?", lambda text: float(text)),
    "str": (r"", lambda text: text),
}
for _name in ("null", "bool", "int", "float"):
    _CoreLoader.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", re.compile(f"^(?:{_SCALARS[_name][0]})$"), None)


class _Builder:
    """Turns YAML nodes into plain values and notes the place of each."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.places: dict[Key, Place] = {}
        self.problems: list[Problem] = []

    def build(self, node: yaml.Node, key: Key, around: frozenset[int]) -> JsonValue:
        """around: the nodes that contain this one; an alias to one of them would never end."""
        if id(node) in around:
            self._problem(node, key, "refers to itself")
            return None
        if len(key) > _MAX_DEPTH:
            self._problem(node, key[:3], _too_deep())
            return None
        if len(self.places) > _MAX_VALUES:
            place = Place(self.source, node.start_mark.line + 1)
            raise ConfigError(f"{place}  more than {_MAX_VALUES:,} values, every use of an alias counted.")
        if isinstance(node, yaml.MappingNode):
            return self.mapping(node, key, around)
        if isinstance(node, yaml.SequenceNode):
            return self._sequence(node, key, around)
        return self._scalar(node, key)

    def mapping(self, node: yaml.MappingNode, key: Key, around: frozenset[int]) -> dict[str, JsonValue]:
        """Keys are text, whatever they look like; one that comes twice is a problem."""
        values: dict[str, JsonValue] = {}
        first: dict[str, int] = {}
        for name_node, value_node in node.value:
            name, line = str(name_node.value), name_node.start_mark.line + 1
            if not isinstance(name_node, yaml.ScalarNode):
                self._problem(name_node, key, "a key must be a single word or number")
                continue
            if name in values:
                self._problem(name_node, (*key, name), f"key appears twice (first in line {first[name]})")
                continue
            self.places[(*key, name)] = Place(self.source, line)
            first[name] = line
            values[name] = self.build(value_node, (*key, name), around | {id(node)})
        return values

    def _sequence(self, node: yaml.SequenceNode, key: Key, around: frozenset[int]) -> list[JsonValue]:
        values: list[JsonValue] = []
        for index, item in enumerate(node.value):
            self.places[(*key, index)] = Place(self.source, item.start_mark.line + 1)
            values.append(self.build(item, (*key, index), around | {id(node)}))
        return values

    def _scalar(self, node: yaml.Node, key: Key) -> JsonValue:
        kind = node.tag.removeprefix("tag:yaml.org,2002:")
        if kind not in _SCALARS:
            self._problem(node, key, f"tag {node.tag!r} is not allowed")
            return None
        try:
            return _SCALARS[kind][1](node.value)
        except ValueError:
            self._problem(node, key, f"{node.value!r} is not of type {kind}")
            return None

    def _problem(self, node: yaml.Node, key: Key, message: str) -> None:
        place = Place(self.source, node.start_mark.line + 1)
        self.problems.append(Problem(place, ".".join(map(str, key)), message))
