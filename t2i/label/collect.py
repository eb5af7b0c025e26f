"""The pairs that people are to compare: of one generate stage, of two, of two folders of pictures, or of a file."""

from __future__ import annotations

import itertools
import os
from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from t2i.data.images import IMAGE_SUFFIXES, content_id, list_images, pictures_not_read, told_not_read
from t2i.data.pairs import PAIRS_FILE, iterate_pairs
from t2i.errors import DataError
from t2i.records import GeneratedImage, PreferencePair, read_jsonl
from t2i.stages.generate import GENERATIONS_FILE

Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True)
class Collected:
    """Pairs whose `chosen` image is called left and `rejected` right, and how many of equal images were left out."""

    pairs: tuple[PreferencePair, ...]
    equal: int = 0


def collect(sources: Sequence[Path]) -> Collected:
    """The pairs of one source (all pairs of a prompt's images, or a file's pairs) or of two (image by image).

    A source is the folder of a generate stage, or of pictures with `picture.txt` beside `picture.png`; alone also a
    file of pairs, or a folder with a `pairs.jsonl`. Raises DataError for anything else, for images that cannot be
    opened, and where two sources do not have the same prompts and images.
    """
    if len(sources) == 1:
        found = list(_of_one(sources[0]))
    elif len(sources) == 2:
        found = list(_of_two(*sources))
    else:
        raise DataError(f"{len(sources)} sources; expected one, or two to compare with each other.")
    pairs = tuple(pair for pair in found if pair.chosen_id != pair.rejected_id)
    if not pairs:
        raise DataError(f"{', '.join(map(str, sources))}: no two different images of one prompt to compare.")
    for path in {image for pair in pairs for image in (pair.chosen, pair.rejected)}:
        _check_image(Path(path))
    return Collected(pairs, len(found) - len(pairs))


def _of_one(source: Path) -> Iterable[PreferencePair]:
    file = source / PAIRS_FILE if source.is_dir() else source
    if file.is_file():
        # What somebody chose before is none of the raters' business; it stays readable in the source.
        return [_pair(p.prompt, p.prompt_id, Path(p.chosen), Path(p.rejected)) for p in iterate_pairs(file)]
    if not (source / GENERATIONS_FILE).is_file():
        raise DataError(
            f"{source}: neither the folder of a generate stage nor a file of pairs; give one of these, "
            "or two folders of pictures to compare with each other."
        )
    prompts: dict[tuple[str, str], list[Path]] = defaultdict(list)
    for row in _generations(source):
        prompts[row.prompt_id, row.prompt].append(source / row.image)
    return [
        _pair(prompt, prompt_id, left, right)
        for (prompt_id, prompt), images in prompts.items()
        for left, right in itertools.combinations(images, 2)
    ]


def _of_two(left: Path, right: Path) -> list[PreferencePair]:
    if all((source / GENERATIONS_FILE).is_file() for source in (left, right)):
        rows = [{row.key: row for row in _generations(source)} for source in (left, right)]
        _check_same(rows[0], rows[1], (left, right))
        for key, row in rows[0].items():
            if row.prompt != rows[1][key].prompt:
                raise DataError(
                    f"prompt {row.prompt_id} is {row.prompt!r} in {left}, {rows[1][key].prompt!r} in {right}."
                )
        return [
            _pair(row.prompt, row.prompt_id, left / row.image, right / rows[1][key].image)
            for key, row in rows[0].items()
        ]
    files = [_pictures(source) for source in (left, right)]
    _check_same(files[0], files[1], (left, right))
    return [_pair(_prompt(path, files[1][name]), name, path, files[1][name]) for name, path in files[0].items()]


def _generations(source: Path) -> list[GeneratedImage]:
    return list(read_jsonl(source / GENERATIONS_FILE, GeneratedImage))


def _pictures(source: Path) -> dict[str, Path]:
    """Path below the folder, without its ending -> file. Raises DataError for what would be left out."""
    found: dict[str, Path] = {}
    for path in list_images(source):
        name = path.relative_to(source).with_suffix("").as_posix()
        if name in found:
            raise DataError(f"{source}: {found[name].name} and {path.name} are both {name}; rename all but one.")
        found[name] = path
    if not_read := told_not_read(pictures_not_read(source)):
        raise DataError(f"{source}: {not_read}; convert them to PNG or JPEG, or move them away.")
    return found


def _check_same(left: Mapping[Key, object], right: Mapping[Key, object], sources: tuple[Path, Path]) -> None:
    alone = [key for key in (*left, *right) if (key in left) != (key in right)]
    if alone:
        raise DataError(
            f"{len(alone)} images have no partner, first {alone[0]}; {sources[0]} and {sources[1]} must hold the same "
            "prompts, samples and seeds (or file names)."
        )


def _prompt(left: Path, right: Path) -> str:
    """The text beside either picture. Raises DataError if there is none, or two that differ."""
    texts = [path.with_suffix(".txt") for path in (left, right)]
    try:
        found = {text.read_text(encoding="utf-8-sig").strip() for text in texts if text.is_file()} - {""}
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{texts[0]} or {texts[1]}: cannot be read ({error}).") from error
    if len(found) != 1:
        raise DataError(f"{texts[0]}: {len(found)} prompts beside {left.name}, expected one, in either folder.")
    return found.pop()


def _pair(prompt: str, prompt_id: str, left: Path, right: Path) -> PreferencePair:
    """Undecided, so that nobody trains on the file of pairs in place of the votes."""
    paths = [Path(os.path.abspath(path)) for path in (left, right)]
    for path in paths:
        if not path.is_file():
            raise DataError(f"{path}: no such image.")
    chosen, rejected = map(str, paths)
    ids = [content_id(path) for path in paths]
    return PreferencePair(
        prompt, chosen, rejected, prompt_id=prompt_id, preference=0.5, source="undecided", chosen_id=ids[0],
        rejected_id=ids[1],
    )  # fmt: skip


def _check_image(path: Path) -> None:
    from PIL import Image, UnidentifiedImageError

    if path.suffix.lower() not in IMAGE_SUFFIXES:
        raise DataError(f"{path}: not an image by its ending; known are {', '.join(sorted(IMAGE_SUFFIXES))}.")
    try:
        with Image.open(path):
            pass
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise DataError(f"{path}: cannot be opened as an image ({error}).") from error
