"""Positive and negative questions: each element is asked for in two opposite forms, so that saying yes is no gain.

After PN-VQA of EvalMuse-40K (2024). How that combines the two could not be looked up: the numbers are not its. Here a
question's points are the mean of p(yes | positive) and p(no | negative), each of yes and no alone. A model that says
yes with the same probability to everything gets exactly one half, whatever that probability is.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np

from rewards.base import ImageLike, ScorerCard, Scores1D, check_prompts, check_scores
from rewards.errors import InputError
from rewards.faithfulness.answers import Interrogator
from rewards.faithfulness.backends import DEFAULT_BACKEND, VqaSpec, YesNo
from rewards.faithfulness.cards import card_of, joint_fingerprint
from rewards.faithfulness.questions import Question
from rewards.faithfulness.readers import OWN_SUITE
from rewards.faithfulness.source import QuestionSource, QuestionSpec
from rewards.faithfulness.tifa import Graded, mean_points

NEGATIVE = 'Is the answer to the question "{question}" no?'
"""The opposite of a question that has no opposite form of its own."""


def pn_points(questions: Sequence[Question], positive: Sequence[float], negative: Sequence[float]) -> list[float]:
    """Points in [0, 1] of yes/no questions: 1/2 (p + 1 - n), or 1 minus that where "no" is the right answer.

    positive, negative: p and n, the probability of yes (of yes and no) to the question and to its opposite.
    """
    if not len(questions) == len(positive) == len(negative):
        raise InputError(f"{len(positive)} and {len(negative)} answers to {len(questions)} questions; expected equal.")
    points = [(p + 1.0 - n) / 2.0 for p, n in zip(positive, negative, strict=True)]
    return [
        value if question.answer == "yes" else 1.0 - value for question, value in zip(questions, points, strict=True)
    ]


def yes_bias(positive: Sequence[float], negative: Sequence[float]) -> float:
    """Mean of p + n - 1, in [-1, 1]: 0 for answers that agree with each other, 1 for always yes, -1 for always no."""
    if len(positive) != len(negative) or not positive:
        raise InputError(
            f"{len(positive)} positive and {len(negative)} negative answers; expected equal, at least one."
        )
    return sum(p + n - 1.0 for p, n in zip(positive, negative, strict=True)) / len(positive)


def negative_of(question: Question) -> str:
    """Its own opposite form, or `NEGATIVE` around it."""
    return question.negative or NEGATIVE.format(question=question.text)


class PnVqa:
    """Mean points of a prompt's questions, each asked in two opposite forms.

    questions: see `QuestionSpec`; vqa: see `load_backend`; answers: JSONL of answers to reuse and extend; batch_size:
    questions at once, speed only; device: a torch device.
    """

    name: ClassVar[str] = "pn_vqa"
    version: ClassVar[str] = "1"
    scale: ClassVar[str] = "mean over questions of (p(yes|question) + p(no|opposite)) / 2, 0 to 1; a blind model: 0.5"
    needs_prompt: ClassVar[bool] = True
    differentiable: ClassVar[bool] = False
    higher_is_better: ClassVar[bool] = True

    def __init__(
        self,
        questions: QuestionSpec = OWN_SUITE,
        vqa: VqaSpec = DEFAULT_BACKEND,
        answers: str | Path | None = None,
        device: str = "cpu",
        batch_size: int = 32,
    ) -> None:
        self._source = QuestionSource(questions)
        self._interrogator = Interrogator(vqa, device, batch_size, answers)

    @property
    def card(self) -> ScorerCard:
        """What the scorer is; weights are those of its VQA backend."""
        return card_of(self.name, self.version, self.scale, self._interrogator.backend)

    def fingerprint(self) -> dict[str, str]:
        """Questions, wording of opposites, VQA backend and their versions."""
        own = {"name": self.name, "version": self.version, "negative": NEGATIVE}
        return joint_fingerprint(
            own, {"questions": self._source.fingerprint(), "vqa": self._interrogator.backend.fingerprint()}
        )

    def grade(self, images: Sequence[ImageLike], prompts: Sequence[str] | None) -> list[list[Graded]]:
        """Each image's questions with their points, for tables by category. Errors as `score`."""
        graded = []
        for questions, positive, negative in self._asked(images, prompts):
            points = pn_points(questions, positive, negative)
            answers = [f"{p:.3f} / {n:.3f}" for p, n in zip(positive, negative, strict=True)]
            graded.append([Graded(*one) for one in zip(questions, answers, [None] * len(points), points, strict=True)])
        return graded

    def score(self, images: Sequence[ImageLike], prompts: Sequence[str] | None = None) -> Scores1D:
        """Score B images against their B prompts. Returns [B] in [0, 1]. Errors as `Dsg.score`."""
        values = [mean_points(graded) for graded in self.grade(images, prompts)]
        return check_scores(self.name, np.array(values, dtype=np.float32), len(images))

    def yes_bias(self, images: Sequence[ImageLike], prompts: Sequence[str]) -> list[float]:
        """Bias of the VQA model to yes on each image's questions; see `yes_bias`."""
        return [yes_bias(positive, negative) for _, positive, negative in self._asked(images, prompts)]

    def _asked(
        self, images: Sequence[ImageLike], prompts: Sequence[str] | None
    ) -> list[tuple[tuple[Question, ...], list[float], list[float]]]:
        texts = check_prompts(self.name, len(images), prompts)
        items = self._source.lookup(texts, yes_no_for=self.name)
        forms = [[form for one in item.questions for form in (one.text, negative_of(one))] for item in items]
        found = self._interrogator.yes_no(images, forms)
        return [(item.questions, _p_yes(own[0::2]), _p_yes(own[1::2])) for item, own in zip(items, found, strict=True)]


def _p_yes(answers: Sequence[YesNo]) -> list[float]:
    return [answer.p_yes for answer in answers]
