"""Where a scorer's questions come from, opened when they are first needed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Protocol, TypeAlias, cast

from rewards.errors import InputError
from rewards.faithfulness.plugins import PluginSpec, load_plugin
from rewards.faithfulness.questions import PromptQuestions, QuestionBook
from rewards.faithfulness.readers import load_questions

QuestionSpec: TypeAlias = PluginSpec | Path | QuestionBook
"""A file or "compositional" (see `load_questions`), a book, or a class: "module:Class", or a mapping with options."""


class Asker(Protocol):
    """A question source that knows what to ask about any prompt of its world."""

    def ask(self, prompts: Sequence[str]) -> QuestionBook:
        """Questions of these prompts. Raises InputError for a prompt it knows nothing to ask about."""
        ...

    def fingerprint(self) -> Mapping[str, str]:
        """Everything the questions of a prompt depend on."""
        ...


class QuestionSource:
    """The questions of a scorer. Listing scorers reads no file: a source is opened by its first use."""

    def __init__(self, questions: QuestionSpec) -> None:
        self._questions = questions

    def fingerprint(self) -> dict[str, str]:
        """What the questions depend on: their digest, or what an `Asker` says."""
        opened = self._opened
        return {"questions": opened.digest} if isinstance(opened, QuestionBook) else dict(opened.fingerprint())

    def lookup(self, prompts: Sequence[str], *, yes_no_for: str | None = None) -> list[PromptQuestions]:
        """Questions of each prompt; yes_no_for: name of a scorer that can ask yes/no questions only.

        Raises InputError for a prompt without questions, or a question of another kind.
        """
        opened = self._opened
        book = opened if isinstance(opened, QuestionBook) else opened.ask(list(dict.fromkeys(prompts)))
        items = book.lookup(prompts)
        for item in items if yes_no_for else ():
            other = next((question for question in item.questions if not question.is_yes_no), None)
            if other is not None:
                raise InputError(
                    f"{book.source}: {yes_no_for} asks yes/no questions; question {other.id} of {item.id} has the "
                    f"choices {', '.join(other.choices)}. Score these with tifa."
                )
        return items

    @cached_property
    def _opened(self) -> QuestionBook | Asker:
        spec = self._questions
        if isinstance(spec, QuestionBook):
            return spec
        if isinstance(spec, Mapping) or (isinstance(spec, str) and ":" in spec and not Path(spec).exists()):
            return cast("Asker", load_plugin(spec, {}, "question source", ("ask", "fingerprint")))
        return load_questions(spec)
