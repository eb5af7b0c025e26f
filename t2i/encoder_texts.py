"""A prompt that says one thing to one text encoder and another to the next."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias


@dataclass(frozen=True)
class EncoderTexts:
    """Texts for some text encoders by name, and one for the rest.

    A name is that of one encoder (`clip_l`, `clip_g`, `t5`), or `clip`: every CLIP that is not named itself.
    """

    rest: str
    """For encoders that `texts` does not name."""
    texts: tuple[tuple[str, str], ...]
    """(name, text), each name once."""

    def of(self, encoder: str) -> str:
        """The text for an encoder, by its own name."""
        named = dict(self.texts)
        return next((named[name] for name in names_of(encoder) if name in named), self.rest)


EncoderPrompt: TypeAlias = str | EncoderTexts
"""What is encoded: the same text for every encoder, or a text for each."""


def names_of(encoder: str) -> tuple[str, ...]:
    """Names by which an encoder may be called, its own first: `clip_l` and `clip`."""
    return tuple(dict.fromkeys((encoder, encoder.partition("_")[0])))


def texts_for(prompts: Sequence[EncoderPrompt], encoder: str) -> list[str]:
    """What the prompts say to one encoder."""
    return [prompt if isinstance(prompt, str) else prompt.of(encoder) for prompt in prompts]


def route_problem(routed: Sequence[str], encoders: Sequence[str], *, has_rest: bool) -> str | None:
    """Why texts for the encoders in `routed` do not fit a model with `encoders`; None if they do.

    has_rest: whether there is a text for those that are not routed.
    """
    if len(encoders) < 2:
        return "the model has one text encoder; leave per_encoder out"
    known = tuple(dict.fromkeys(name for encoder in encoders for name in names_of(encoder)))
    unknown = [name for name in routed if name not in known]
    if unknown:
        return f"the model has no text encoder {unknown[0]!r}; it has {', '.join(known)}"
    answering = {encoder: next((name for name in names_of(encoder) if name in routed), None) for encoder in encoders}
    unheard = [name for name in routed if name not in answering.values()]
    if unheard:
        return f"{unheard[0]!r} means no encoder, as each of its kind is named itself; leave it out"
    rest = [encoder for encoder, name in answering.items() if name is None]
    if rest and not has_rest:
        return f"nothing is said to {', '.join(rest)}; name it too, or say in `captions` what the others are given"
    if has_rest and not rest:
        return "every text encoder is named, so `captions` would be drawn for none; leave `captions` out"
    return None
