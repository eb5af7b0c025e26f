"""Questions about prompts, as data: what is asked, what answer is right, and which questions hang on which."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Literal, TypeAlias

from rewards.errors import InputError

YES_NO = ("yes", "no")

DefectKind: TypeAlias = Literal[
    "answer_not_a_choice",
    "cycle",
    "missing_parent",
    "non_numeric_parent",
    "repeated_choice",
    "repeated_id",
    "repeated_prompt",
    "repeated_question",
    "self_dependency",
    "several_prompts",
    "too_few_choices",
    "unwritten",
]


@dataclass(frozen=True)
class Question:
    """One question about a prompt. id: unique among the questions of that prompt."""

    id: str
    text: str
    answer: str = "yes"
    choices: tuple[str, ...] = YES_NO
    category: str = ""
    parents: tuple[str, ...] = ()
    """Ids of questions that must be answered rightly for this one to count (DSG)."""
    negative: str | None = None
    """The opposite form, to which "no" is right when "yes" is right to `text` (PN-VQA)."""

    @property
    def is_yes_no(self) -> bool:
        """Whether yes and no are the choices."""
        return sorted(self.choices) == sorted(YES_NO)


@dataclass(frozen=True)
class PromptQuestions:
    """The questions of one prompt."""

    id: str
    prompt: str
    questions: tuple[Question, ...]
    category: str = ""


@dataclass(frozen=True)
class Defect:
    """Something wrong in a question file, and what was made of it."""

    kind: DefectKind
    item: str
    """Id of the prompt."""
    question: str
    """Id of the question; empty where the whole item is meant."""
    detail: str


@dataclass(frozen=True)
class QuestionBook:
    """Questions of many prompts from one source, with all that was wrong in it."""

    source: str
    items: tuple[PromptQuestions, ...]
    defects: tuple[Defect, ...] = ()
    _by_prompt: dict[str, PromptQuestions] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for item in self.items:
            self._by_prompt.setdefault(item.prompt.strip(), item)

    def __len__(self) -> int:
        return len(self.items)

    def __contains__(self, prompt: str) -> bool:
        return prompt.strip() in self._by_prompt

    def lookup(self, prompts: Sequence[str]) -> list[PromptQuestions]:
        """Questions of each prompt; a prompt that is there several times has those of its first item.

        Space around a prompt does not matter: published files have some, and readers of prompts strip it.
        Raises InputError naming the first prompt without questions, and how many there are.
        """
        missing = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self]
        if missing:
            raise InputError(
                f"{self.source}: no questions for {len(missing)} of {len(set(prompts))} prompts, first {missing[0]!r}; "
                "write them (rewards.faithfulness.writer) or score only prompts of the file."
            )
        return [self._by_prompt[prompt.strip()] for prompt in prompts]

    def count_defects(self) -> dict[str, int]:
        """Kind of defect -> how many, sorted by kind."""
        return dict(sorted(Counter(defect.kind for defect in self.defects).items()))

    def defective(self, kind: DefectKind) -> tuple[str, ...]:
        """Ids of the items with a defect of that kind, each once, in order."""
        return tuple(dict.fromkeys(defect.item for defect in self.defects if defect.kind == kind))

    @cached_property
    def digest(self) -> str:
        """SHA-256 of all questions as they are asked; where they were read from does not matter."""
        return hashlib.sha256(json.dumps([asdict(item) for item in self.items]).encode()).hexdigest()


def find_defects(items: Iterable[PromptQuestions]) -> list[Defect]:
    """Defects of questions as they stand: repeated ids, prompts and questions, choices that cannot work, cycles.

    Nothing found here stops a scorer: a repeated question counts twice, as in the published scores.
    """
    defects: list[Defect] = []
    prompts: dict[str, str] = {}
    ids: set[str] = set()
    for item in items:
        if item.id in ids:
            defects.append(Defect("repeated_id", item.id, "", "the id is there before"))
        ids.add(item.id)
        if item.prompt.strip() in prompts:
            first = prompts[item.prompt.strip()]
            defects.append(Defect("repeated_prompt", item.id, "", f"prompt of {first}, whose questions are asked"))
        prompts.setdefault(item.prompt.strip(), item.id)
        defects += _defects_of(item)
    return defects


def _defects_of(item: PromptQuestions) -> list[Defect]:
    defects: list[Defect] = []
    texts: set[str] = set()
    for question in item.questions:
        if question.text in texts:
            defects.append(Defect("repeated_question", item.id, question.id, question.text))
        texts.add(question.text)
        if question.answer not in question.choices:
            defects.append(Defect("answer_not_a_choice", item.id, question.id, question.answer))
        if len(set(question.choices)) < len(question.choices):
            defects.append(Defect("repeated_choice", item.id, question.id, ", ".join(question.choices)))
        if len(set(question.choices)) < 2:
            defects.append(Defect("too_few_choices", item.id, question.id, ", ".join(question.choices)))
    repeated = Counter(question.id for question in item.questions)
    defects += [Defect("repeated_id", item.id, key, f"{n} questions") for key, n in repeated.items() if n > 1]
    cyclic = in_cycles({question.id: question.parents for question in item.questions})
    if cyclic:
        defects.append(Defect("cycle", item.id, cyclic[0], " -> ".join(cyclic)))
    return defects


def in_cycles(parents: Mapping[str, Sequence[str]]) -> list[str]:
    """Ids that are among their own ancestors, by way of another question, in order. A plain self-loop is none."""
    without_loops = {child: [one for one in ones if one != child] for child, ones in parents.items()}
    return [child for child in without_loops if child in ancestors(child, without_loops)]


def ancestors(child: str, parents: Mapping[str, Sequence[str]]) -> set[str]:
    """All questions that one hangs on, at any distance; itself only where it is in a cycle. Ends for any graph."""
    found: set[str] = set()
    waiting = list(parents.get(child, ()))
    while waiting:
        parent = waiting.pop()
        if parent not in found:
            found.add(parent)
            waiting += parents.get(parent, ())
    return found
