"""Cards and fingerprints of scorers that ask a model questions: what is theirs, and what is the model's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from rewards.base import Preprocessing, ScorerCard
from rewards.faithfulness.backends import VqaBackend

UNTOLD = "unknown: the VQA backend does not say"


@dataclass(frozen=True)
class BackendCard:
    """What a VQA backend is. Fields as in `ScorerCard`."""

    weights: str | None
    revision: str | None
    licence: str
    token_limit: int | None
    """Tokens of a question that are read; None where nothing is cut."""
    preprocessing: Preprocessing | None
    trained_on: str


@runtime_checkable
class DescribedBackend(Protocol):
    """A VQA backend with a card. Reading it opens and downloads nothing."""

    @property
    def card(self) -> BackendCard:
        """What the backend is."""
        ...


def card_of(name: str, version: str, scale: str, backend: VqaBackend) -> ScorerCard:
    """Card of a scorer of images against prompts in [0, 1] over a backend, which need not describe itself."""
    own = backend.card if isinstance(backend, DescribedBackend) else BackendCard(None, None, UNTOLD, None, None, UNTOLD)
    return ScorerCard(
        name=name,
        version=version,
        weights=own.weights,
        revision=own.revision,
        licence=own.licence,
        scale=scale,
        low=0.0,
        high=1.0,
        token_limit=own.token_limit,
        preprocessing=own.preprocessing,
        needs_prompt=True,
        differentiable=False,
        higher_is_better=True,
        trained_on=own.trained_on,
    )


def joint_fingerprint(own: Mapping[str, str], parts: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    """Facts of a scorer and, by their names, of its parts. A key that is taken already gets its part's name before it.

    A plug-in may well say `name` or `version` too, and a score depends on both.
    """
    facts = dict(own)
    for part, told in parts.items():
        facts |= {f"{part}.{key}" if key in facts else key: value for key, value in told.items()}
    return facts
