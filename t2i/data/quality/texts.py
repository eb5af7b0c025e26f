"""What is wrong with a caption as a text, whatever the image. Each check gives a reason, or None."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Literal

TextCheck = Literal["refusal", "boilerplate", "loop", "truncated", "private", "file_name"]

_REFUSAL = re.compile(
    r"\b(?:i(?:'m| am) (?:sorry|unable|not able)|i (?:can(?:'t|not)|won't|do(?:n't| not) (?:see|have))|"
    r"(?:as|being) an ai\b|language model|no image (?:was )?(?:provided|attached|found)|"
    r"(?:cannot|can't|unable to) (?:assist|help|process|view|see|describe|identify|provide))",
    re.IGNORECASE,
)
_BOILERPLATE = re.compile(
    r"^\W*(?:(?:sure|certainly|of course|okay|here(?:'s| is| are))\b.*?[:!,]|"
    r"(?:in |on )?(?:the|this|an?) (?:image|picture|photo(?:graph)?|caption|scene|illustration)s?"
    r"(?: you (?:have )?(?:provided|shared))?,? (?:is|are|was|shows?|showcases?|depicts?|features?|displays?|captures?|"
    r"contains?|presents?|portrays?|we see|there (?:is|are)|describes?|reads?)\b|caption\s*:)",
    re.IGNORECASE,
)
_PRIVATE = {
    "e-mail address": re.compile(r"\b[\w.+-]+@[\w-]+\.[\w.-]*\w"),
    "phone number": re.compile(r"(?<![\w.])(?:\+\d{1,3}[ ./-]?|\(?0)\(?\d{1,5}\)?(?:[ ./-]?\d{2,5}){2,4}(?![\w])"),
    "US phone number": re.compile(r"(?<![\w.])\(?\d{3}\)?[ .-]\d{3}[ .-]\d{4}(?!\w)"),
    "card number": re.compile(r"(?<!\d)(?:\d{4}[ -]?){3}\d{1,4}(?!\d)"),
    "social security number": re.compile(r"(?<!\d)\d{3}-\d{2}-\d{4}(?!\d)"),
    "bank account (IBAN)": re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){3,7}(?: ?[A-Z0-9]{1,3})?\b"),
}
_FILE_NAME = re.compile(
    r"^\W*(?:\S*\.(?:jpe?g|png|gif|webp|bmp|tiff?|heic)|(?:img|dsc|dscn|pict?|screenshot|untitled|image|photo|"
    r"stock (?:photo|picture|image)|clip ?art)[\s_-]*\d*)\W*$",
    re.IGNORECASE,
)
_ENDINGS = tuple(".!?)]}\"'\u2026\u201d\u2019\u3002\uff01\uff1f\u300d")
"""Ends of sentences, quotations and brackets, those of Chinese and Japanese among them."""
LOOP_WORDS = 4
LOOP_TIMES = 3


def refusal(text: str) -> str | None:
    """A model that says it will not or cannot describe the image."""
    found = _REFUSAL.search(text)
    return f"refusal: {found.group(0)!r}" if found else None


def boilerplate(text: str) -> str | None:
    """An opening that says nothing about the image: `The image shows`, `Sure, here is a caption:`."""
    found = _BOILERPLATE.match(text)
    return f"boilerplate: {found.group(0).strip()!r}" if found else None


def loop(text: str) -> str | None:
    """Four words in a row that come three times, or one word or phrase said three times without a break."""
    words = re.findall(r"\w+", text.lower())
    grams = Counter(tuple(words[place : place + LOOP_WORDS]) for place in range(len(words) - LOOP_WORDS + 1))
    if grams:
        often, times = grams.most_common(1)[0]
        if times >= LOOP_TIMES:
            return f"loop: {' '.join(often)!r} comes {times} times"
    for length in range(1, LOOP_WORDS):
        for place in range(len(words) - LOOP_TIMES * length + 1):
            unit = words[place : place + length]
            if words[place : place + LOOP_TIMES * length] == unit * LOOP_TIMES:
                return f"loop: {' '.join(unit)!r} comes {LOOP_TIMES} times in a row"
    return None


def truncated(text: str) -> str | None:
    """A text of several sentences whose last one has no end, or a last word cut off by a hyphen or comma."""
    bare = text.rstrip()
    sentences = re.search(r"[.!?\u3002\uff01\uff1f]\s+\S", bare)
    if bare.endswith((",", "-", ";", ":", "&")) or (sentences and not bare.endswith(_ENDINGS)):
        return f"truncated: ends in {bare[-30:]!r}"
    if re.search(r"\b(?:a|an|the|and|or|of|with|in|on|at|to|is|are|by|for|from)$", bare, re.IGNORECASE):
        return f"truncated: ends in {bare[-30:]!r}"
    return None


def private(text: str) -> str | None:
    """An e-mail address, phone number, card, account or social security number, as captioners copy from pictures."""
    for name, pattern in _PRIVATE.items():
        if pattern.search(text):
            # Not the number itself: the list of what was dropped is kept and shared.
            return f"private: {name}"
    return None


def file_name(text: str) -> str | None:
    """The name of a file or a placeholder instead of a caption: `IMG_0412.jpg`, `untitled-3`."""
    return f"file_name: {text.strip()[:60]!r}" if _FILE_NAME.match(text) else None


TEXT_CHECKS: Mapping[TextCheck, Callable[[str], str | None]] = {
    "refusal": refusal,
    "boilerplate": boilerplate,
    "loop": loop,
    "truncated": truncated,
    "private": private,
    "file_name": file_name,
}
