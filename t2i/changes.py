"""Why a stage has to run again, told as the difference between two `config.json`."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import JsonValue

from t2i.document import show

NAMED_IMAGES = "named_images"
"""Key of an identity, beside the `sha256` of a file: one hash of the images that the file names."""


def describe_change(old: Mapping[str, JsonValue], new: Mapping[str, JsonValue]) -> str:
    """One line: "steps: 100 -> 200; input caption changed". Never empty."""
    before, after = _mapping(old, "identity"), _mapping(new, "identity")
    parts = [
        f"{words}: {show(before.get(name))} -> {show(after.get(name))}"
        for name, words in (("type", "type"), ("version", "version of the stage"), ("seed", "seed"))
        if before.get(name) != after.get(name)
    ]
    parts += _changed_fields(old, new)
    parts += _changed_inputs(old, new)
    return "; ".join(parts) or "its earlier folder is not the same work"


def _changed_fields(old: Mapping[str, JsonValue], new: Mapping[str, JsonValue]) -> list[str]:
    before, after = (flatten(_mapping(config, "identity").get("fields")) for config in (old, new))
    paths_before, paths_after = (_paths(config) for config in (old, new))
    parts = []
    for name in dict.fromkeys([*before, *after]):
        if before.get(name, _ABSENT) == after.get(name, _ABSENT):
            continue
        if name.endswith(f".{NAMED_IMAGES}"):
            field = name.removesuffix(f".{NAMED_IMAGES}")
            parts.append(f"{field}: images that {paths_after.get(field, field)} names changed")
            continue
        field = name.removesuffix(".sha256")
        if field != name and (field in before or field in after):
            continue  # a file in place of nothing: said of the field itself
        shown_before = paths_before.get(field, before.get(name, _ABSENT))
        shown_after = paths_after.get(field, after.get(name, _ABSENT))
        if shown_before == shown_after:
            parts.append(f"{field}: content of {shown_after} changed")
        else:
            parts.append(f"{field}: {_show(shown_before)} -> {_show(shown_after)}")
    return parts


def _changed_inputs(old: Mapping[str, JsonValue], new: Mapping[str, JsonValue]) -> list[str]:
    before, after = (_mapping(_mapping(config, "identity"), "inputs") for config in (old, new))
    names_before, names_after = (_mapping(config, "settings") for config in (old, new))
    shown_before, shown_after = (_mapping(_mapping(config, "identity"), "names") for config in (old, new))
    parts = []
    for field in dict.fromkeys([*before, *after]):
        if (before.get(field), shown_before.get(field)) == (after.get(field), shown_after.get(field)):
            continue
        old_names, new_names = _names(names_before.get(field)), _names(names_after.get(field))
        if old_names != new_names:
            parts.append(f"{field}: {', '.join(old_names) or 'nothing'} -> {', '.join(new_names) or 'nothing'}")
            continue
        pairs = zip(new_names, _names(before.get(field)), _names(after.get(field)), strict=True)
        parts += [f"input {name} {_how(was, now)}" for name, was, now in pairs if was != now]
    return list(dict.fromkeys(parts))


def _how(was: str, now: str) -> str:
    """How an input differs; a round that was passed over has no fingerprint."""
    return "is not run now" if now == _PASSED_OVER else "was not run before" if was == _PASSED_OVER else "changed"


_ABSENT = "(absent)"
_PASSED_OVER = str(None)


def _show(value: JsonValue) -> str:
    return _ABSENT if value == _ABSENT else show(value)


def flatten(value: JsonValue, prefix: str = "") -> dict[str, JsonValue]:
    """Nested values by dotted path; empty lists and mappings are values too."""
    if isinstance(value, dict) and value:
        items = [(str(name), item) for name, item in value.items()]
    elif isinstance(value, list) and value:
        items = [(str(index), item) for index, item in enumerate(value)]
    else:
        return {prefix: value}
    return {
        path: leaf
        for name, item in items
        for path, leaf in flatten(item, f"{prefix}.{name}" if prefix else name).items()
    }


def _mapping(value: Mapping[str, JsonValue], name: str) -> dict[str, JsonValue]:
    found = value.get(name)
    return found if isinstance(found, dict) else {}


def _names(value: JsonValue) -> list[str]:
    return [value] if isinstance(value, str) else [str(item) for item in value] if isinstance(value, list) else []


def _paths(config: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
    return {field: entry["path"] for field, entry in _mapping(config, "files").items() if isinstance(entry, dict)}
