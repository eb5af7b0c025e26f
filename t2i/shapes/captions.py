"""Captions of scenes, from complete to web-like, and the parser that reads them back.

Grammar: GROUP [[is|are] RELATION GROUP | PLACE] ["on a" BACKGROUND "background"], where GROUP is
[a|an|two|three|four] [size] [color] (shape | "object") with a plural s, and RELATION may also be the vague "and".
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

import numpy as np

from t2i.errors import ConfigError, DataError
from t2i.randomness import generator
from t2i.shapes.scenes import BACKGROUNDS, COLOURS, RELATIONS, SHAPES, SIZES, Group, Scene

CaptionKind = Literal["dense", "short", "spatial", "alt"]

# What is wrong with alt text: rates per caption, or per attribute where it says so.
FILE_NAME_RATE = 0.10
FIRST_GROUP_ONLY_RATE = 0.20
WRONG_ATTRIBUTE_RATE = 0.15
"""Per attribute of a group, and for the background."""
DROPPED_ATTRIBUTE_RATE = 0.20
"""Per attribute of a group, when it is not wrong."""
SWAPPED_GROUPS_RATE = 0.15
VAGUE_RELATION_RATE = 0.40
NO_BACKGROUND_RATE = 0.40

_NUMBERS = {"two": 2, "three": 3, "four": 4}
_NUMBER_WORDS = {number: word for word, number in _NUMBERS.items()}
_CENTRE = "in the center of the picture"
_SPREAD = "spread over the picture"
_FILE_NAMES = ("IMG_{:04d}.jpg", "DSC{:05d}.JPG", "clipart", "image {}", "untitled-{}.png", "stock picture {}")


def _all_words() -> tuple[str, ...]:
    nouns = [noun + plural for noun in (*SHAPES, "object") for plural in ("", "s")]
    attributes = [*COLOURS, *SIZES, *BACKGROUNDS, *RELATIONS, *_NUMBERS]
    phrases = [*attributes, *nouns, _CENTRE, _SPREAD, "a an and is are on background"]
    return tuple(sorted({word for phrase in phrases for word in phrase.split()}))


WORDS = _all_words()
"""Every word of every caption that is not a file name (see `FILE_NAME_RATE`), sorted."""


def write_caption(scene: Scene, kind: CaptionKind, seed: int, index: int) -> str:
    """Caption of one kind. Only `alt` is drawn by lot, keyed by seed and index; the others equal `describe`."""
    return _alt_text(scene, generator(seed, "shapes/alt", index)) if kind == "alt" else describe(scene, kind)


def describe(scene: Scene, kind: CaptionKind) -> str:
    """What a captioner that saw the scene writes; unknown parts are left out. kind: not `alt`, which no viewer writes.

    dense: everything. short: neither size nor background. spatial: as short, but about where things are.
    Raises DataError for more than two groups or a group of more than four, which the grammar cannot say.
    """
    if kind not in ("dense", "short", "spatial"):
        raise ConfigError(f"caption kind: found {kind!r}, expected dense, short or spatial.")
    number = scene.groups[0].number
    if len(scene.groups) > 2:
        raise DataError(f"shapes scene: {len(scene.groups)} groups, a caption can tell of two at most.")
    if kind == "dense":
        return _join(scene, [describe_group(group) for group in scene.groups], scene.relation or "and")
    phrases = [describe_group(replace(group, size=None)) for group in scene.groups]
    plain = replace(scene, background=None)
    if kind == "short":
        return _join(plain, phrases, scene.relation or "and")
    if len(phrases) == 1:
        return phrases[0] if number is None else f"{phrases[0]} {_CENTRE if number == 1 else _SPREAD}"
    verb = "is" if number in (1, None) else "are"
    return _join(plain, phrases, f"{verb} {scene.relation}" if scene.relation else "and")


def describe_group(group: Group) -> str:
    """Noun phrase of a group: "a small red circle", "two objects", or without an article when the number is None."""
    if group.number is not None and group.number not in (1, *_NUMBER_WORDS):
        raise DataError(f"shapes group: {group.number} objects, a caption can count to four.")
    words = [word for word in (group.size, group.colour, group.shape or "object") if word]
    if group.number is None:
        return " ".join(words)
    if group.number > 1:
        return " ".join([_NUMBER_WORDS[group.number], *words]) + "s"
    return " ".join(["an" if words[0][0] in "aeiou" else "a", *words])


def _join(scene: Scene, phrases: list[str], relation: str) -> str:
    text = f" {relation} ".join(phrases)
    return f"{text} on a {scene.background} background" if scene.background else text


def _alt_text(scene: Scene, random: np.random.Generator) -> str:
    """Web-like alt text: often vague, sometimes wrong, sometimes a file name."""
    if random.random() < FILE_NAME_RATE:
        return _FILE_NAMES[int(random.integers(len(_FILE_NAMES)))].format(int(random.integers(1, 10_000)))
    is_first_only, is_swapped, is_vague, has_background = random.random(4) < [
        FIRST_GROUP_ONLY_RATE,
        SWAPPED_GROUPS_RATE,
        VAGUE_RELATION_RATE,
        1 - NO_BACKGROUND_RATE,
    ]
    groups = [_spoil(group, random) for group in scene.groups]
    # Swapped groups keep the relation, so that the caption claims the opposite.
    groups = groups[:1] if is_first_only else groups[::-1] if is_swapped else groups
    background = _spoil_value(scene.background, tuple(BACKGROUNDS), random, drop_rate=0.0) if has_background else None
    phrases = [describe_group(group) for group in groups]
    relation = "and" if is_vague or scene.relation is None else scene.relation
    return _join(replace(scene, background=background), phrases, relation)


def _spoil(group: Group, random: np.random.Generator) -> Group:
    number = None if group.number is None else str(group.number)
    spoiled_number = _spoil_value(number, ("1", "2", "3", "4"), random)
    return Group(
        _spoil_value(group.shape, SHAPES, random),
        _spoil_value(group.colour, tuple(COLOURS), random),
        _spoil_value(group.size, SIZES, random),
        None if spoiled_number is None else int(spoiled_number),
    )


def _spoil_value(
    value: str | None, known: tuple[str, ...], random: np.random.Generator, drop_rate: float = DROPPED_ATTRIBUTE_RATE
) -> str | None:
    luck, others = random.random(), [other for other in known if other != value]
    wrong = others[int(random.integers(len(others)))]
    if luck < WRONG_ATTRIBUTE_RATE:
        return wrong
    return None if luck < WRONG_ATTRIBUTE_RATE + drop_rate else value


def _one_of(words: Mapping[str, object] | tuple[str, ...]) -> str:
    return "|".join(words)


def _group_pattern(suffix: int) -> str:
    number, noun = _one_of(("an?", "one", *_NUMBERS)), _one_of((*SHAPES, "object"))
    return (
        rf"(?:(?P<number{suffix}>{number}) )?(?:(?P<size{suffix}>{_one_of(SIZES)}) )?"
        rf"(?:(?P<colour{suffix}>{_one_of(COLOURS)}) )?(?P<noun{suffix}>{noun})(?P<plural{suffix}>s?)"
    )


_CAPTION = re.compile(
    rf"{_group_pattern(1)}"
    rf"(?: (?:(?:(?:is |are )?(?P<relation>{_one_of(RELATIONS)})|and) {_group_pattern(2)}"
    rf"|(?P<place>{_CENTRE}|{_SPREAD})))?"
    rf"(?: on an? (?P<background>{_one_of(BACKGROUNDS)}) background)?"
)


def parse_caption(text: str) -> Scene | None:
    """The scene a caption tells, None where it is silent, without positions; None for text outside the grammar.

    Inverts dense, short and spatial captions exactly. Case, commas, extra spaces and a final dot do not matter.
    """
    found = _CAPTION.fullmatch(" ".join(text.lower().replace(",", " ").strip().removesuffix(".").split()))
    if found is None:
        return None
    suffixes = (1, 2) if found["noun2"] else (1,)
    groups = tuple(_parse_group(found, suffix) for suffix in suffixes)
    is_consistent = all(_agrees(found, group, suffix) for group, suffix in zip(groups, suffixes, strict=True))
    if found["place"] and (found["place"] == _CENTRE) != (groups[0].number == 1):
        return None
    return Scene(groups, found["relation"], found["background"]) if is_consistent else None


def _parse_group(found: re.Match[str], suffix: int) -> Group:
    word, noun = found[f"number{suffix}"], found[f"noun{suffix}"]
    number = None if word is None else _NUMBERS.get(word, 1)
    shape = None if noun == "object" else noun
    return Group(shape, found[f"colour{suffix}"], found[f"size{suffix}"], number)


def _agrees(found: re.Match[str], group: Group, suffix: int) -> bool:
    """Whether the noun's ending fits the number word; without one either will do."""
    return group.number is None or (group.number > 1) == bool(found[f"plural{suffix}"])
