"""TIFA (Hu et al. 2023, arXiv:2303.11897): the share of multiple-choice questions about a prompt answered rightly.

The VQA model answers freely, without seeing the choices; the nearest choice is taken for its answer. A prompt's score
is the mean over its questions; accuracy of a category is over all questions of that category, whatever their prompts.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from rewards.base import ImageLike, ScorerCard, Scores1D, check_prompts, check_scores
from rewards.errors import InputError
from rewards.faithfulness.answers import Interrogator
from rewards.faithfulness.backends import DEFAULT_BACKEND, VqaSpec
from rewards.faithfulness.cards import card_of, joint_fingerprint
from rewards.faithfulness.matching import Nearest, load_nearest, match_choice
from rewards.faithfulness.questions import Question
from rewards.faithfulness.readers import OWN_SUITE
from rewards.faithfulness.source import QuestionSource, QuestionSpec


@dataclass(frozen=True)
class Graded:
    """A question with what was answered. points: 1 or 0, or a probability."""

    question: Question
    answer: str
    taken: str | None
    """The choice that the answer was taken for; None for none."""
    points: float


def grade_choices(questions: Sequence[Question], answers: Sequence[str], nearest: Nearest | None) -> list[Graded]:
    """Grade free answers, one a question: 1 where the choice taken is the right one."""
    if len(questions) != len(answers):
        raise InputError(f"{len(answers)} answers to {len(questions)} questions; expected one each.")
    graded = []
    for question, answer in zip(questions, answers, strict=True):
        taken = match_choice(answer, question.choices, nearest)
        graded.append(Graded(question, answer, taken, float(taken == question.answer)))
    return graded


def tifa_score(questions: Sequence[Question], answers: Sequence[str], nearest: Nearest | None = None) -> float:
    """Share in [0, 1] of the questions answered rightly. nearest: for answers that are no choice; None: they are wrong.

    Raises InputError for no questions, or as many answers.
    """
    return mean_points(grade_choices(questions, answers, nearest))


def mean_points(graded: Sequence[Graded]) -> float:
    """Mean points of one image's questions. Raises InputError for none."""
    if not graded:
        raise InputError("there are no questions to score; a prompt needs at least one.")
    return sum(one.points for one in graded) / len(graded)


def points_by_category(graded: Iterable[Graded]) -> dict[str, float]:
    """Mean points over all questions of each category, sorted by category."""
    found: dict[str, list[float]] = {}
    for one in graded:
        found.setdefault(one.question.category, []).append(one.points)
    return {category: sum(points) / len(points) for category, points in sorted(found.items())}


class Tifa:
    """TIFA score of images against prompts that have questions.

    questions: see `QuestionSpec`; vqa: see `load_backend`; nearest: "sentence", "words" or "none", with nearest_model
    and min_similarity as `SentenceNearest`; answers: JSONL of answers to reuse and extend; batch_size: questions at
    once, speed only; device: a torch device.
    """

    name: ClassVar[str] = "tifa"
    version: ClassVar[str] = "1"
    scale: ClassVar[str] = "share of the prompt's questions answered rightly, 0 to 1"
    needs_prompt: ClassVar[bool] = True
    differentiable: ClassVar[bool] = False
    higher_is_better: ClassVar[bool] = True

    def __init__(
        self,
        questions: QuestionSpec = OWN_SUITE,
        vqa: VqaSpec = DEFAULT_BACKEND,
        nearest: str = "sentence",
        nearest_model: str | None = None,
        min_similarity: float | None = None,
        answers: str | Path | None = None,
        device: str = "cpu",
        batch_size: int = 32,
    ) -> None:
        self._source = QuestionSource(questions)
        self._interrogator = Interrogator(vqa, device, batch_size, answers)
        self._nearest = load_nearest(nearest, nearest_model, min_similarity, device)

    @property
    def card(self) -> ScorerCard:
        """What the scorer is; weights are those of its VQA backend."""
        return card_of(self.name, self.version, self.scale, self._interrogator.backend)

    def fingerprint(self) -> dict[str, str]:
        """Questions, VQA backend, matching and their versions."""
        matching = self._nearest.fingerprint() if self._nearest is not None else {"nearest": "none"}
        own = {"name": self.name, "version": self.version}
        return matching | joint_fingerprint(
            own, {"questions": self._source.fingerprint(), "vqa": self._interrogator.backend.fingerprint()}
        )

    def grade(self, images: Sequence[ImageLike], prompts: Sequence[str] | None) -> list[list[Graded]]:
        """Each image's questions with their answers, for tables by category. Errors as `score`."""
        texts = check_prompts(self.name, len(images), prompts)
        items = self._source.lookup(texts)
        found = self._interrogator.answer(images, [[one.text for one in item.questions] for item in items])
        return [grade_choices(item.questions, own, self._nearest) for item, own in zip(items, found, strict=True)]

    def score(self, images: Sequence[ImageLike], prompts: Sequence[str] | None = None) -> Scores1D:
        """Score B images against their B prompts. Returns [B] in [0, 1]. Errors as `Reward.score`, InputError for a
        prompt without questions, ModelError."""
        values = [mean_points(graded) for graded in self.grade(images, prompts)]
        return check_scores(self.name, np.array(values, dtype=np.float32), len(images))
