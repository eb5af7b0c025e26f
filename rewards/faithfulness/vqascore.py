"""VQAScore (Lin et al. 2024, arXiv:2404.01291): how probably a model says yes when asked if an image fits.

The number depends on the model more than on the image set: only scores of one backend can be compared. The paper's
CLIP-FlanT5 is no transformers model; its score also multiplies in the probability of ending after Yes, which this one,
as the authors' later code for decoder-only models, does not.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np

from rewards.base import ImageLike, ScorerCard, Scores1D, TextLimited, check_prompts, check_scores
from rewards.errors import InputError
from rewards.faithfulness.answers import Interrogator
from rewards.faithfulness.backends import DEFAULT_BACKEND, VqaSpec
from rewards.faithfulness.cards import card_of, joint_fingerprint

TEMPLATE = 'Does this figure show "{prompt}"?'
ASPECTS = {
    "prompt_following": TEMPLATE,
    "aesthetic": 'Is this image, made for "{prompt}", beautiful and well composed?',
    "fidelity": 'Is this image, made for "{prompt}", free of errors, distortions and blur?',
    "harmlessness": 'Is this image, made for "{prompt}", free of violence, nudity, hate and other harm?',
}
"""What an image can be judged for, and the question about it. The wording is this project's own."""


class VqaScore:
    """P(yes) of a VQA model, one number an image.

    vqa: see `load_backend`; it adds its own "Please answer Yes or No." where it needs one. normalised: yes / (yes + no)
    instead of the share of yes in all that the model could say; it is part of the scorer's name. template: the
    question, with {prompt}; aspect: one of `ASPECTS` instead, such as "fidelity", which the scorer's name then tells:
    labels for a reward model. answers: JSONL of answers to reuse and extend; batch_size, device: as elsewhere.
    """

    version: ClassVar[str] = "1"
    needs_prompt: ClassVar[bool] = True
    differentiable: ClassVar[bool] = False
    higher_is_better: ClassVar[bool] = True

    def __init__(
        self,
        vqa: VqaSpec = DEFAULT_BACKEND,
        normalised: bool = False,
        template: str = TEMPLATE,
        aspect: str | None = None,
        answers: str | Path | None = None,
        device: str = "cpu",
        batch_size: int = 32,
    ) -> None:
        if aspect is not None:
            template = _question_about(aspect, template)
        if template.count("{prompt}") != 1:
            raise InputError(f"vqascore: template {template!r} must hold {{prompt}} once.")
        self._template = template
        self._is_normalised = normalised
        self._interrogator = Interrogator(vqa, device, batch_size, answers, cuts_questions=True)
        self.name = "_".join(["vqascore", *([aspect] if aspect else []), *(["normalised"] if normalised else [])])
        among = "of yes and no" if normalised else "over the whole vocabulary"
        self.scale = f"P(yes) {among} of a VQA model, 0 to 1; comparable within one model"

    @property
    def token_limit(self) -> int:
        """Tokens of a question that the backend reads; `sys.maxsize` where it cuts nothing."""
        backend = self._interrogator.backend
        return backend.token_limit if isinstance(backend, TextLimited) else sys.maxsize

    def count_truncated(self, prompts: Sequence[str]) -> int:
        """Number of prompts that, in the template, are longer than the backend can read."""
        backend = self._interrogator.backend
        return backend.count_truncated(self._questions(prompts)) if isinstance(backend, TextLimited) else 0

    @property
    def card(self) -> ScorerCard:
        """What the scorer is; weights are those of its VQA backend."""
        return card_of(self.name, self.version, self.scale, self._interrogator.backend)

    def fingerprint(self) -> dict[str, str]:
        """Template, normalisation, VQA backend and their versions."""
        own = {"name": self.name, "version": self.version, "template": self._template}
        return joint_fingerprint(own, {"vqa": self._interrogator.backend.fingerprint()})

    def score(self, images: Sequence[ImageLike], prompts: Sequence[str] | None = None) -> Scores1D:
        """Score B images against their B prompts. Returns [B] in [0, 1]. Errors as `Reward.score`, and ModelError."""
        texts = check_prompts(self.name, len(images), prompts)
        found = self._interrogator.yes_no(images, [[question] for question in self._questions(texts)])
        values = [one.p_yes if self._is_normalised else one.yes for [one] in found]
        return check_scores(self.name, np.array(values, dtype=np.float32), len(images))

    def _questions(self, prompts: Sequence[str]) -> list[str]:
        # Not str.format: a prompt may hold braces.
        return [self._template.replace("{prompt}", prompt) for prompt in prompts]


def _question_about(aspect: str, template: str) -> str:
    if aspect not in ASPECTS:
        raise InputError(f"vqascore: unknown aspect {aspect!r}; expected one of {', '.join(ASPECTS)}.")
    if template != TEMPLATE:
        raise InputError("vqascore: template and aspect both say what to ask; give one.")
    return ASPECTS[aspect]
