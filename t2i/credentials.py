"""Keys, tokens and passwords where they must not stand: a recipe is copied into logs, locks, headers and cards.

Known forms are recognised: addresses with a password or key, tokens of the hub, of model and code hosts, of clouds. A
secret that looks like any other text is not.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from pydantic import JsonValue

if TYPE_CHECKING:
    from t2i.document import Document, Key, Problem

_QUERY = r"api[_-]?key|key|token|access_token|password|auth|secret|sig|signature|x-amz-signature"
_PATTERNS = {
    "an address with a user name or password": re.compile(r"[a-z][a-z0-9+.-]*://[^/\s@]*@", re.IGNORECASE),
    "an address with a key": re.compile(rf"://\S*[?&](?:{_QUERY})=[^&\s]*", re.IGNORECASE),
    "an access token": re.compile(
        r"\b(?:hf_[A-Za-z0-9]{30,}|sk-[A-Za-z0-9_-]{20,}|gh[oprsu]_[A-Za-z0-9]{30,}|github_pat_[A-Za-z0-9_]{30,}|"
        r"(?:AKIA|ASIA)[0-9A-Z]{16}\b|AIza[A-Za-z0-9_-]{30,}|xox[abprs]-[A-Za-z0-9-]{20,})"
    ),
}
_ADVICE = "take it out and put it into the environment (HF_TOKEN, or the variable that key_env names)"


def credential_in(text: str) -> str:
    """What kind of credential a text holds, in words; empty if none is seen."""
    return next((words for words, pattern in _PATTERNS.items() if pattern.search(text)), "")


def masked(text: str) -> str:
    """The text with every credential that is seen in it replaced by ***."""
    for pattern in _PATTERNS.values():
        text = pattern.sub("***", text)
    return text


def refuse_credentials(document: Document) -> None:
    """Raise ConfigError that names every place with a credential, and never the credential."""
    from t2i.document import raise_problems

    raise_problems(_problems(document))


def refuse_in_overrides(overrides: Sequence[str]) -> None:
    """The same for `key=value` arguments as they were typed, before anything else is said of them."""
    from t2i.document import Place, Problem, raise_problems

    raise_problems(
        Problem(
            Place("command line"), "", f"an argument holds {found}, which would be copied into every lock; {_ADVICE}"
        )
        for found in map(credential_in, overrides)
        if found
    )


def _problems(document: Document) -> Iterator[Problem]:
    from t2i.document import Problem

    for key, text in _texts(document.data, ()):
        found = credential_in(text)
        if found:
            path = ".".join(str(part) for part in key)
            yield Problem(document.place(key), path, f"holds {found}, which would be copied into every lock; {_ADVICE}")


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
