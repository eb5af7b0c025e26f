"""DSG (Cho et al. 2023, arXiv:2310.18235): yes/no questions, of which one counts only if those it hangs on are right.

Two rules are in use. "one_hop", of the authors' published scoring code: a question counts 0 when a parent was answered
wrongly. "transitive", nearer to the paper's text: when any ancestor was. With cycles, as in the published file, an
ancestor is every question that can be reached. Both lower the mean and hardly change the order of models.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Literal, TypeAlias, cast, get_args

import numpy as np

from rewards.base import ImageLike, ScorerCard, Scores1D, check_prompts, check_scores
from rewards.errors import InputError
from rewards.faithfulness.answers import Interrogator
from rewards.faithfulness.backends import DEFAULT_BACKEND, VqaSpec
from rewards.faithfulness.cards import card_of, joint_fingerprint
from rewards.faithfulness.matching import match_choice
from rewards.faithfulness.questions import Question, ancestors
from rewards.faithfulness.readers import OWN_SUITE
from rewards.faithfulness.source import QuestionSource, QuestionSpec
from rewards.faithfulness.tifa import Graded, mean_points

Rule: TypeAlias = Literal["one_hop", "transitive"]


def dependent_points(questions: Sequence[Question], is_right: Sequence[bool], rule: Rule = "one_hop") -> list[float]:
    """1 for each question that is right and whose parents (one_hop) or ancestors (transitive) are; else 0.

    is_right: whether each question, by itself, was answered rightly. The order of the questions does not matter, and a
    question in a cycle, or its own parent, is no special case. Raises InputError for a parent that is no question.
    """
    if len(questions) != len(is_right):
        raise InputError(f"{len(is_right)} answers to {len(questions)} questions; expected one each.")
    right = {question.id: value for question, value in zip(questions, is_right, strict=True)}
    if len(right) < len(questions):
        raise InputError("two questions of a prompt have one id; dependencies need ids that are unique.")
    parents = {question.id: question.parents for question in questions}
    unknown = [parent for ones in parents.values() for parent in ones if parent not in right]
    if unknown:
        raise InputError(f"a question hangs on {unknown[0]!r}, which is no question; leave that parent out.")
    needed = parents if rule == "one_hop" else {child: tuple(ancestors(child, parents)) for child in parents}
    return [float(right[child] and all(right[parent] for parent in needed[child])) for child in parents]


def grade_dependent(questions: Sequence[Question], answers: Sequence[str], rule: Rule = "one_hop") -> list[Graded]:
    """Grade free answers to yes/no questions, one each. What is, in plain form, neither yes nor no is wrong."""
    taken = [match_choice(answer, question.choices) for question, answer in zip(questions, answers, strict=True)]
    is_right = [choice == question.answer for question, choice in zip(questions, taken, strict=True)]
    points = dependent_points(questions, is_right, rule)
    return [Graded(*values) for values in zip(questions, answers, taken, points, strict=True)]


def dsg_score(questions: Sequence[Question], answers: Sequence[str], rule: Rule = "one_hop") -> float:
    """Mean in [0, 1] over all questions of a prompt, those that do not count included. Errors as `dependent_points`."""
    return mean_points(grade_dependent(questions, answers, rule))


class Dsg:
    """DSG score of images against prompts that have questions.

    rule: "one_hop" or "transitive", see the module; it is part of the scorer's name. questions: see `QuestionSpec`;
    vqa: see `load_backend`; answers: JSONL of answers to reuse and extend; batch_size: questions at once, speed only;
    device: a torch device.
    """

    version: ClassVar[str] = "1"
    needs_prompt: ClassVar[bool] = True
    differentiable: ClassVar[bool] = False
    higher_is_better: ClassVar[bool] = True

    def __init__(
        self,
        questions: QuestionSpec = OWN_SUITE,
        vqa: VqaSpec = DEFAULT_BACKEND,
        rule: str = "one_hop",
        answers: str | Path | None = None,
        device: str = "cpu",
        batch_size: int = 32,
    ) -> None:
        if rule not in get_args(Rule):
            raise InputError(f"dsg: rule is {rule!r}; expected one_hop or transitive.")
        self._rule: Rule = cast("Rule", rule)
        self._source = QuestionSource(questions)
        self._interrogator = Interrogator(vqa, device, batch_size, answers)
        self.name = "dsg" if rule == "one_hop" else "dsg_transitive"
        needed = "the parents" if rule == "one_hop" else "all ancestors"
        self.scale = f"share of the prompt's questions answered rightly together with {needed}, 0 to 1"

    @property
    def card(self) -> ScorerCard:
        """What the scorer is; weights are those of its VQA backend."""
        return card_of(self.name, self.version, self.scale, self._interrogator.backend)

    def fingerprint(self) -> dict[str, str]:
        """Questions, rule, VQA backend and their versions."""
        own = {"name": self.name, "version": self.version}
        return joint_fingerprint(
            own, {"questions": self._source.fingerprint(), "vqa": self._interrogator.backend.fingerprint()}
        )

    def grade(self, images: Sequence[ImageLike], prompts: Sequence[str] | None) -> list[list[Graded]]:
        """Each image's questions with their answers, for tables by category. Errors as `score`."""
        texts = check_prompts(self.name, len(images), prompts)
        items = self._source.lookup(texts, yes_no_for=self.name)
        found = self._interrogator.answer(images, [[one.text for one in item.questions] for item in items])
        return [grade_dependent(item.questions, own, self._rule) for item, own in zip(items, found, strict=True)]

    def score(self, images: Sequence[ImageLike], prompts: Sequence[str] | None = None) -> Scores1D:
        """Score B images against their B prompts. Returns [B] in [0, 1]. Errors as `Reward.score`, InputError for a
        prompt without questions or with others than yes/no ones, ModelError."""
        values = [mean_points(graded) for graded in self.grade(images, prompts)]
        return check_scores(self.name, np.array(values, dtype=np.float32), len(images))
