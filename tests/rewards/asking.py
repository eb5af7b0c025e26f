"""A question source that knows what to ask about any prompt, and a VQA backend that guesses."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from PIL import Image

from rewards.faithfulness import PromptQuestions, Question, QuestionBook, YesNo

WORDS = ("red", "blue", "two", "a cat", "a dog", "many", "there", "the")


class EveryPrompt:
    """Up to eight yes/no questions about each prompt, the later ones hanging on the first."""

    def __init__(self, count: int = 8) -> None:
        self.count = count

    def ask(self, prompts: Sequence[str]) -> QuestionBook:
        asked = [_questions(prompt, self.count) for prompt in prompts]
        items = [PromptQuestions(str(number), *one) for number, one in enumerate(zip(prompts, asked, strict=True))]
        return QuestionBook("every prompt", tuple(items))

    def fingerprint(self) -> dict[str, str]:
        return {"questions": f"every prompt/{self.count}"}


def _questions(prompt: str, count: int) -> tuple[Question, ...]:
    return tuple(
        Question(
            str(number),
            f"{prompt} {word}?",
            answer="yes",
            parents=("0",) if number > 4 else (),
            negative=f"no {prompt} {word}?",
        )
        for number, word in enumerate(WORDS[:count])
    )


class Guessing:
    """Yes or no by a hash of the image's pixels and the question."""

    def answer(self, images: Sequence[Image.Image], questions: Sequence[str]) -> list[str]:
        return ["yes" if one.yes > 0.5 else "no" for one in self.yes_no(images, questions)]

    def yes_no(self, images: Sequence[Image.Image], questions: Sequence[str]) -> list[YesNo]:
        shares = [_share(image, question) for image, question in zip(images, questions, strict=True)]
        return [YesNo(share, 1.0 - share) for share in shares]

    def fingerprint(self) -> dict[str, str]:
        return {"backend": "guessing/1"}


def _share(image: Image.Image, question: str) -> float:
    digest = hashlib.sha256(image.tobytes() + f"{image.size} {question}".encode()).digest()
    return digest[0] / 255.0
