"""Checks over the captions of many images: texts that are nearly the same, and how many objects they name."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

from t2i.data.quality.images import DEDUP
from t2i.data.quality.sieve import Dropped
from t2i.data.quality.texts import TEXT_CHECKS, TextCheck
from t2i.errors import MissingDependencyError
from t2i.records import CaptionedImage

_NUMBERS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
_COUNTS = {"a": 1, "an": 1} | {word: number for number, word in enumerate(_NUMBERS, 1)}
_NO_OBJECTS = re.compile(r"\b(?:on|against|with|in|at) an? (?:\w+ ){0,2}(?:background|backdrop|row|line)\b")
PERMUTATIONS = 128


def text_problems(records: Sequence[CaptionedImage], kinds: Sequence[str], checks: Sequence[TextCheck]) -> Dropped:
    """Images with a caption of these kinds that fails a check; the first one that it fails is the reason."""
    for place, row in enumerate(records):
        texts = [caption.text for caption in row.captions if caption.kind in kinds]
        reasons = (TEXT_CHECKS[check](text) for text in texts for check in checks)
        reason = next((reason for reason in reasons if reason), None)
        if reason:
            yield place, reason


def near_texts(records: Sequence[CaptionedImage], kind: str, at_least: float, at_most: int) -> Dropped:
    """Images whose caption shares most words with those of so many earlier ones that are kept.

    at_least: Jaccard similarity of the sets of three words in a row, estimated by MinHash (datasketch); at_most: images
    that may share a text. Memory: about
    5 kB an image.
    """
    try:
        from datasketch import MinHash, MinHashLSH
    except ImportError as error:
        raise MissingDependencyError(f"near-duplicate texts need datasketch: {DEDUP}") from error
    index = MinHashLSH(threshold=at_least, num_perm=PERMUTATIONS)
    sketches: list[tuple[MinHash, str]] = []
    for place, row in enumerate(records):
        sketch = MinHash(num_perm=PERMUTATIONS, seed=1)
        sketch.update_batch([part.encode() for part in shingles(row.caption(kind) or "")])
        found = [int(str(key)) for key in index.query(sketch)]
        near = [number for number in found if sketches[number][0].jaccard(sketch) >= at_least]
        if len(near) >= at_most:
            yield place, f"near_texts: as {len(near)} earlier ones, such as that of {Path(sketches[min(near)][1]).name}"
            continue
        index.insert(len(sketches), sketch)
        sketches.append((sketch, row.image))


def shingles(text: str) -> set[str]:
    """Every three words in a row, in lower case; of a shorter text, all of it."""
    words = re.findall(r"\w+", text.lower())
    return {" ".join(words[place : place + 3]) for place in range(max(1, len(words) - 2))}


def count_objects(text: str) -> int:
    """Objects that a caption names: of a structured one the sum of `number`, else of its numbers and articles.

    A count of words, not of things: it ranks captions of one captioner, and a background is left out.
    """
    if text.lstrip().startswith("{"):
        try:
            objects = json.loads(text).get("objects", [])
            return sum(int(one.get("number") or 1) if isinstance(one, dict) else 1 for one in objects)
        except (ValueError, TypeError, AttributeError):
            return 0
    words = re.findall(r"\w+", _NO_OBJECTS.sub(" ", text.lower()))
    return sum(int(word) if word.isdigit() and len(word) < 3 else _COUNTS.get(word, 0) for word in words)


def few_objects(records: Sequence[CaptionedImage], kind: str, at_least: int) -> Dropped:
    """Images whose caption of a kind names fewer objects; those of SPRIGHT's set had more than 18."""
    for place, row in enumerate(records):
        number = max((count_objects(caption.text) for caption in row.captions if caption.kind == kind), default=0)
        if number < at_least:
            yield place, f"min_objects: {number}"
