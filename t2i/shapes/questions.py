"""Multiple-choice questions about a scene, answered from another reading of it by logic, not by comparing text.

TIFA (Hu et al. 2023, arXiv:2303.11897) with exact answers. Answering is three-valued: an observed group whose attribute
is None *may* match a description, and whatever hangs on it stays unsure. Unsure counts as wrong, so that neither an
unreadable picture nor one crowded with objects can earn a score.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, get_args

from t2i.errors import DataError
from t2i.randomness import derive_key
from t2i.shapes.captions import describe_group
from t2i.shapes.scenes import (
    BACKGROUNDS,
    COLOURS,
    MAX_OBJECTS,
    RELATIONS,
    SHAPES,
    SIZES,
    Group,
    Scene,
    opposite,
    relation_between,
)

Category = Literal["object", "shape", "colour", "size", "counting", "spatial", "background"]
CATEGORIES: tuple[Category, ...] = get_args(Category)

_ANYTHING = Group()
_YES_NO = ("yes", "no")
_COUNTS = tuple(str(number) for number in range(MAX_OBJECTS + 1))
_IDENTIFIERS: dict[str, tuple[tuple[str, ...], ...]] = {
    "shape": (("colour",), ("colour", "size")),
    "colour": (("shape",), ("shape", "size")),
    "size": (("shape",), ("colour",), ("shape", "colour")),
}


@dataclass(frozen=True)
class Question:
    """One question. subject, other: descriptions of what it is about, where None stands for any; see `answer`."""

    text: str
    choices: tuple[str, ...]
    answer: str
    category: Category
    subject: Group = _ANYTHING
    other: Group | None = None
    """Only for category spatial: where is the subject, seen from the other?"""


def questions(scene: Scene) -> list[Question]:
    """What can be asked about a scene; the same scene gives the same list. 9 for a complete scene of one group,
    12 to 14 for two.

    A partial scene gives questions about what it tells. It is taken to tell of every object: an absent shape is asked
    for with answer "no".
    """
    asked: list[Question] = []
    for group in scene.groups:
        asked += _about_existence(group)
        for attribute in ("shape", "colour", "size"):
            asked += _about_attribute(scene, group, attribute)
        asked += _about_number(group)
    return asked + _about_absence(scene) + _about_total(scene) + _about_relation(scene) + _about_background(scene)


def answer(question: Question, observed: Scene | None) -> str | None:
    """One of the question's choices as `observed` tells it; None when that is unsure or among none of them."""
    if observed is None:
        return None
    found = _ANSWERS[question.category](question, observed)
    return found if found in question.choices else None


def graded(scene: Scene, observed: Scene | None) -> list[tuple[Question, bool]]:
    """The scene's questions, each with whether `observed` answers it rightly."""
    return [(question, answer(question, observed) == question.answer) for question in questions(scene)]


def faithfulness(scene: Scene, observed: Scene | None) -> float:
    """Share in [0, 1] of the scene's questions answered rightly. Raises DataError if there is nothing to ask."""
    return _mean([is_right for _, is_right in graded(scene, observed)], scene)


def faithfulness_by_category(scene: Scene, observed: Scene | None) -> dict[Category, float]:
    """As `faithfulness`, for each category that the scene has questions of."""
    shares: dict[Category, float] = {}
    grades = graded(scene, observed)
    for category in CATEGORIES:
        own = [is_right for question, is_right in grades if question.category == category]
        if own:
            shares[category] = _mean(own, scene)
    return shares


def _about_existence(group: Group) -> list[Question]:
    subject = replace(group, number=None)
    if subject == _ANYTHING:
        return []
    return [Question(f"is there {_one(subject)}?", _YES_NO, "yes", "object", subject)]


def _about_attribute(scene: Scene, group: Group, attribute: Literal["shape", "colour", "size"]) -> list[Question]:
    value, subject = getattr(group, attribute), _identify(scene, group, _IDENTIFIERS[attribute])
    if value is None or subject is None:
        return []
    name = _the(group, subject)
    text, choices = {
        "shape": (f"what shape {name}?", SHAPES),
        "colour": (f"what color {name}?", tuple(COLOURS)),
        "size": (f"{name} small or large?", SIZES),
    }[attribute]
    return [Question(text, choices, value, attribute, subject)]


def _identify(scene: Scene, group: Group, identifiers: tuple[tuple[str, ...], ...]) -> Group | None:
    """The first description that fits this group and can fit no other one of the scene; None if none does."""
    if len(scene.groups) == 1:
        return Group(**{name: getattr(group, name) for name in identifiers[0]})
    for names in identifiers:
        subject = Group(**{name: getattr(group, name) for name in names})
        if all(_matches(other, subject) is False for other in scene.groups if other is not group):
            return subject
    return None


def _about_number(group: Group) -> list[Question]:
    subject = replace(group, number=None)
    if group.number is None or subject == _ANYTHING:
        return []
    return [
        Question(f"how many {describe_group(subject)}s are there?", _COUNTS, str(group.number), "counting", subject)
    ]


def _about_total(scene: Scene) -> list[Question]:
    """Catches pictures with more objects than asked for, which every other question could overlook."""
    numbers = [group.number for group in scene.groups if group.number is not None]
    if len(numbers) < len(scene.groups) or sum(numbers) > MAX_OBJECTS:
        return []
    return [Question("how many objects are there?", _COUNTS, str(sum(numbers)), "counting")]


def _about_absence(scene: Scene) -> list[Question]:
    """Things not in the scene: the first group in the second's color, or an absent shape; one group: both alike."""
    if any(group.shape is None or group.colour is None for group in scene.groups):
        return []
    first, last = scene.groups[0], scene.groups[-1]
    if first.shape != last.shape and first.colour != last.colour:
        return [_absent(Group(first.shape, last.colour))]
    absent_shape = _pick(scene, [shape for shape in SHAPES if shape not in (first.shape, last.shape)])
    if len(scene.groups) > 1:
        return [_absent(Group(absent_shape))]
    absent_colour = _pick(scene, [colour for colour in COLOURS if colour != first.colour])
    return [_absent(Group(absent_shape)), _absent(Group(first.shape, absent_colour))]


def _absent(subject: Group) -> Question:
    return Question(f"is there {_one(subject)}?", _YES_NO, "no", "object", subject)


def _pick(scene: Scene, values: list[str]) -> str:
    """One value by a hash of the scene: varied over scenes, fixed for each."""
    return values[derive_key(0, f"shapes/absent/{scene.groups}") % len(values)]


def _about_relation(scene: Scene) -> list[Question]:
    if scene.relation is None:
        return []
    first, second = (replace(group, size=None, number=None) for group in scene.groups)
    if _matches(scene.groups[1], first) is not False or _matches(scene.groups[0], second) is not False:
        return []
    text = f"where {_the(scene.groups[0], first)}, seen from the {_noun(scene.groups[1], second)}?"
    return [Question(text, RELATIONS, scene.relation, "spatial", first, second)]


def _about_background(scene: Scene) -> list[Question]:
    if scene.background is None:
        return []
    return [Question("what color is the background?", tuple(BACKGROUNDS), scene.background, "background")]


def _noun(group: Group, subject: Group) -> str:
    """A description of a group without an article, in its number."""
    return describe_group(subject) if group.number in (1, None) else f"{describe_group(subject)}s"


def _the(group: Group, subject: Group) -> str:
    verb = "is" if group.number in (1, None) else "are"
    return f"{verb} the {_noun(group, subject)}"


def _one(subject: Group) -> str:
    return describe_group(replace(subject, number=1))


def _matches(group: Group, subject: Group) -> bool | None:
    """Whether a group fits a description: no if a known attribute differs, None (perhaps) if one needed is unknown."""
    wanted = [(group.shape, subject.shape), (group.colour, subject.colour), (group.size, subject.size)]
    compared = [None if have is None else have == want for have, want in wanted if want is not None]
    if False in compared:
        return False
    return None if None in compared else True


def _candidates(observed: Scene, subject: Group) -> list[int] | None:
    """Indices of the groups that fit; None when some group only perhaps fits."""
    fits = [_matches(group, subject) for group in observed.groups]
    return None if None in fits else [index for index, fit in enumerate(fits) if fit]


def _answer_object(question: Question, observed: Scene) -> str | None:
    fits = [_matches(group, question.subject) for group in observed.groups]
    if True in fits:
        return "yes"
    return None if None in fits else "no"


def _answer_attribute(question: Question, observed: Scene) -> str | None:
    """The value that all fitting groups share."""
    fitting = _candidates(observed, question.subject) or []
    values = {getattr(observed.groups[index], question.category) for index in fitting}
    return values.pop() if len(values) == 1 else None


def _answer_counting(question: Question, observed: Scene) -> str | None:
    fitting = _candidates(observed, question.subject)
    if fitting is None:
        return None
    groups = [observed.groups[index] for index in fitting]
    # What has no recognised shape may be two objects that touch.
    if any(group.number is None or group.shape is None for group in groups):
        return None
    return str(sum(group.number or 0 for group in groups))


def _answer_spatial(question: Question, observed: Scene) -> str | None:
    first, second = _candidates(observed, question.subject), _candidates(observed, question.other or _ANYTHING)
    if not first or not second or set(first) & set(second):
        return None
    if observed.positions:
        points = [[point for index in indices for point in observed.positions[index]] for indices in (first, second)]
        return relation_between(*points)
    if observed.relation is None:
        return None
    return observed.relation if first == [0] else opposite(observed.relation)


def _answer_background(question: Question, observed: Scene) -> str | None:
    return observed.background


_ANSWERS: dict[Category, Callable[[Question, Scene], str | None]] = {
    "object": _answer_object,
    "shape": _answer_attribute,
    "colour": _answer_attribute,
    "size": _answer_attribute,
    "counting": _answer_counting,
    "spatial": _answer_spatial,
    "background": _answer_background,
}


def _mean(grades: list[bool], scene: Scene) -> float:
    if not grades:
        raise DataError(f"shapes scene: {scene} is too vague for a question, expected at least one known attribute.")
    return sum(grades) / len(grades)
