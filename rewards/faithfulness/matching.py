"""From a free answer to one of the choices of a question."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from rewards.checkpoints import local_folder
from rewards.devices import full_precision, runtime_facts
from rewards.errors import InputError
from rewards.faithfulness.loading import checkpoint_hash, load_model, load_tokenizer

if TYPE_CHECKING:
    import torch

_NUMBERS = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"),
    *("thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty"),
)
_DIGITS = {word: str(number) for number, word in enumerate(_NUMBERS)}


def plain(answer: str) -> str:
    """Lower case, without punctuation, articles and double spaces; number words up to twenty as digits."""
    words = re.sub(r"[^\w\s]", " ", answer.lower().replace("'s", "")).split()
    return " ".join(_DIGITS.get(word, word) for word in words if word not in ("a", "an", "the"))


class Nearest(Protocol):
    """Finds the choice nearest in meaning."""

    def nearest(self, answer: str, choices: Sequence[str]) -> str | None:
        """One of the choices, or None for none of them."""
        ...

    def fingerprint(self) -> dict[str, str]:
        """Everything the choice depends on."""
        ...


def match_choice(answer: str, choices: Sequence[str], nearest: Nearest | None = None) -> str | None:
    """The choice that an answer means: the equal one, then the one equal in `plain` form, then the nearest.

    None when `nearest` finds none, or there is none to ask.
    """
    if answer in choices:
        return answer
    wanted = plain(answer)
    equal = [choice for choice in choices if plain(choice) == wanted]
    if len(equal) == 1:
        return equal[0]
    return nearest.nearest(answer, choices) if nearest is not None else None


class SentenceNearest:
    """Nearest by cosine of sentence embeddings (mean of the last states over the tokens, as sentence-transformers).

    model: folder or hub id of an encoder; TIFA uses all-mpnet-base-v2. min_similarity: below it, none of the choices;
    None: always the nearest, as published, so that "0" dogs can become "1".
    """

    def __init__(
        self,
        model: str = "sentence-transformers/all-mpnet-base-v2",
        revision: str | None = None,
        min_similarity: float | None = None,
        device: str = "cpu",
    ) -> None:
        self.model_id = str(model)
        self.revision = revision
        self.device = device
        self._min_similarity = min_similarity
        self._known: dict[str, torch.Tensor] = {}

    def fingerprint(self) -> dict[str, str]:
        """Hash of the checkpoint, threshold, libraries."""
        hashed = {"nearest": "sentence/1", "nearest_weights": checkpoint_hash(self._folder)}
        return hashed | {"min_similarity": str(self._min_similarity)} | runtime_facts(self.device)

    def nearest(self, answer: str, choices: Sequence[str]) -> str | None:
        """The choice of the highest cosine, the first of equals."""
        own, *others = (self.embed(text) for text in (answer, *choices))
        with full_precision(own.device.type):
            cosines = [float(own @ other) for other in others]
        best = max(range(len(choices)), key=lambda index: cosines[index])
        return choices[best] if self._min_similarity is None or cosines[best] >= self._min_similarity else None

    def embed(self, text: str) -> torch.Tensor:
        """[D] unit vector of a text. Each text goes alone, so that none depends on others."""
        import torch

        if text not in self._known:
            tokens = self._tokenizer(text, truncation=True, max_length=self._limit, return_tensors="pt")
            tokens = {key: value.to(self._model.device) for key, value in tokens.items()}
            with torch.no_grad(), full_precision(self._model.device.type):
                states = self._model(**tokens).last_hidden_state[0]
            self._known[text] = torch.nn.functional.normalize(states.mean(dim=0), dim=0)
        return self._known[text]

    @property
    def _limit(self) -> int:
        # 384 is what the published sentence encoder was run with.
        return min(384, int(self._tokenizer.model_max_length), int(self._model.config.max_position_embeddings))

    @cached_property
    def _folder(self) -> Path:
        return local_folder(self.model_id, self.revision)

    @cached_property
    def _tokenizer(self) -> Any:
        return load_tokenizer(self._folder, self.model_id)

    @cached_property
    def _model(self) -> Any:
        from transformers import AutoModel

        return load_model(AutoModel, self._folder, self.model_id, self.device)


class WordNearest:
    """Nearest by shared words: the choice of the highest F1 over words of `plain`; none where no word is shared or
    two choices tie. Needs no model."""

    def fingerprint(self) -> dict[str, str]:
        """Its version."""
        return {"nearest": "words/1"}

    def nearest(self, answer: str, choices: Sequence[str]) -> str | None:
        """The only choice of the highest F1."""
        scores = [_word_f1(plain(answer).split(), plain(choice).split()) for choice in choices]
        best = max(scores)
        return choices[scores.index(best)] if best > 0 and scores.count(best) == 1 else None


def _word_f1(found: Sequence[str], wanted: Sequence[str]) -> float:
    shared = sum(min(found.count(word), wanted.count(word)) for word in set(found))
    return 2 * shared / (len(found) + len(wanted)) if shared else 0.0


def load_nearest(kind: str, model: str | None, min_similarity: float | None, device: str) -> Nearest | None:
    """kind: "sentence", "words" or "none" (only equal answers count, as in DSG's comparison with TIFA)."""
    if kind != "sentence" and (model is not None or min_similarity is not None):
        raise InputError(f"nearest {kind!r} takes neither nearest_model nor min_similarity.")
    if kind == "sentence":
        named = {} if model is None else {"model": model}
        return SentenceNearest(**named, min_similarity=min_similarity, device=device)
    if kind == "words":
        return WordNearest()
    if kind == "none":
        return None
    raise InputError(f"nearest is {kind!r}; expected sentence, words or none.")
