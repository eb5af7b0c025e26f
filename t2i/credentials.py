"""Keys, tokens and passwords where they must not stand: a recipe is copied into logs, locks, headers and cards."""

from __future__ import annotations

import re
from collections.abc import Iterator

from pydantic import JsonValue

from t2i.document import Document, Key, Place, Problem, raise_problems

_PATTERNS = {
    "an address with a user name or password": re.compile(r"[a-z][a-z0-9+.-]*://[^/\s@]*@", re.IGNORECASE),
    "an address with a key": re.compile(r"://\S*[?&](?:api_?key|key|token|access_token|password)=", re.IGNORECASE),
    "an access token": re.compile(
        r"\b(?:hf_[A-Za-z0-9]{30,}|sk-[A-Za-z0-9_-]{20,}|gh[opsu]_[A-Za-z0-9]{30,}|AKIA[0-9A-Z]{16}\b)"
    ),
}


def credential_in(text: str) -> str:
    """What kind of credential a text holds, in words; empty if none is seen."""
    return next((words for words, pattern in _PATTERNS.items() if pattern.search(text)), "")


def refuse_credentials(document: Document) -> None:
    """Raise ConfigError that names every place with a credential, and never the credential."""
    raise_problems(_problems(document))


def _problems(document: Document) -> Iterator[Problem]:
    for key, text in _texts(document.data, ()):
        found = credential_in(text)
        if found:
            path = ".".join(str(part) for part in key if not credential_in(str(part)))
            advice = "take it out and put it into the environment (HF_TOKEN, or the variable that key_env names)"
            place = document.place(key)
            if credential_in(place.source):  # an override shows what was written
                place = Place(place.source.partition("=")[0], place.line)
            yield Problem(place, path, f"holds {found}, which would be copied into every lock; {advice}")


def _texts(value: JsonValue, key: Key) -> Iterator[tuple[Key, str]]:
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, dict):
        for name, inner in value.items():
            yield (*key, name), name
            yield from _texts(inner, (*key, name))
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            yield from _texts(inner, (*key, number))
