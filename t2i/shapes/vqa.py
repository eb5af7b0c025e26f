"""The embedded world as a question source and as a model that answers: TIFA with exact questions and a judge's eyes.

rewards score images/ --rewards tifa --option tifa.questions=t2i.shapes.vqa:ShapesQuestions \\
    --option tifa.vqa=t2i.shapes.vqa:JudgeVqa --option tifa.nearest=none
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib.metadata import version

from PIL import Image

from rewards.errors import InputError
from rewards.faithfulness.backends import YesNo
from rewards.faithfulness.questions import PromptQuestions, QuestionBook
from rewards.faithfulness.questions import Question as AskedQuestion
from t2i.shapes.captions import parse_caption
from t2i.shapes.judge import read_scene
from t2i.shapes.questions import Category, Question, answer, questions
from t2i.shapes.scenes import BACKGROUNDS, COLOURS, MAX_OBJECTS, RELATIONS, SHAPES, SIZES, Group, Scene

UNSURE = "unsure"
"""What the judge answers when it cannot tell: no choice of any question, so it counts as wrong."""


class ShapesQuestions:
    """What can be asked about a caption of the world; see `t2i.shapes.questions`."""

    def ask(self, prompts: Sequence[str]) -> QuestionBook:
        """Questions of these captions. Raises InputError for a prompt outside the grammar, or too vague."""
        return QuestionBook("shapes world", tuple(_ask(prompt) for prompt in prompts))

    def fingerprint(self) -> dict[str, str]:
        """The version of the questions."""
        return {"questions": "shapes/1"}


class JudgeVqa:
    """The judge as a VQA backend: it answers questions of the world's own wording, and no others."""

    def answer(self, images: Sequence[Image.Image], questions: Sequence[str]) -> list[str]:
        """One of the question's choices, or `UNSURE`. Raises InputError for a question of another wording."""
        scenes: dict[int, Scene | None] = {}
        found = []
        for image, text in zip(images, questions, strict=True):
            if id(image) not in scenes:
                scenes[id(image)] = read_scene(image).scene
            found.append(answer(parse_question(text), scenes[id(image)]) or UNSURE)
        return found

    def yes_no(self, images: Sequence[Image.Image], questions: Sequence[str]) -> list[YesNo]:
        """1 for the answer yes or no, 0 for the other; one half each when unsure."""
        table = {"yes": YesNo(1.0, 0.0), "no": YesNo(0.0, 1.0)}
        return [table.get(found, YesNo(0.5, 0.5)) for found in self.answer(images, questions)]

    def fingerprint(self) -> dict[str, str]:
        """Its version and the libraries that it computes with."""
        return {"backend": "shapes judge/1"} | {name: version(name) for name in ("numpy", "pillow", "scipy")}


def _ask(prompt: str) -> PromptQuestions:
    scene = parse_caption(prompt)
    asked = questions(scene) if scene is not None else []
    if not asked:
        raise InputError(f"shapes questions: {prompt!r} is no caption of the shapes world, or too vague to ask about.")
    return PromptQuestions(
        prompt,
        prompt,
        tuple(
            AskedQuestion(str(number), one.text, one.answer, one.choices, one.category)
            for number, one in enumerate(asked, 1)
        ),
    )


def _either(words: Sequence[str]) -> str:
    return "(?:" + "|".join(words) + ")"


_NOUN = rf"(?:{_either(SIZES)} )?(?:{_either(list(COLOURS))} )?{_either([*SHAPES, 'object'])}s?"
_YES_NO = ("yes", "no")
_COUNTS = tuple(str(number) for number in range(MAX_OBJECTS + 1))
_FORMS: tuple[tuple[str, Category, tuple[str, ...]], ...] = (
    (rf"is there an? (?P<subject>{_NOUN})\?", "object", _YES_NO),
    (rf"what shape (?:is|are) the (?P<subject>{_NOUN})\?", "shape", SHAPES),
    (r"what color is the background\?", "background", tuple(BACKGROUNDS)),
    (rf"what color (?:is|are) the (?P<subject>{_NOUN})\?", "colour", tuple(COLOURS)),
    (rf"(?:is|are) the (?P<subject>{_NOUN}) small or large\?", "size", SIZES),
    (rf"how many (?P<subject>{_NOUN}) are there\?", "counting", _COUNTS),
    (rf"where (?:is|are) the (?P<subject>{_NOUN}), seen from the (?P<other>{_NOUN})\?", "spatial", RELATIONS),
)


def parse_question(text: str) -> Question:
    """The question that `t2i.shapes.questions` words so; its right answer is left empty. Raises InputError for none."""
    for pattern, category, choices in _FORMS:
        found = re.fullmatch(pattern, text)
        if found:
            parts = found.groupdict()
            other = _group(parts["other"]) if "other" in parts else None
            return Question(text, choices, "", category, _group(parts.get("subject") or "object"), other)
    raise InputError(f"shapes judge: {text!r} is no question of the shapes world.")


def _group(noun: str) -> Group:
    words = [word.removesuffix("s") for word in noun.split()]
    shape = words[-1] if words[-1] in SHAPES else None
    return Group(
        shape,
        next((word for word in words if word in COLOURS), None),
        next((word for word in words if word in SIZES), None),
    )
