"""Which prompt of a suite an image was made from, by the name of its file."""

from __future__ import annotations

import re
from pathlib import Path

from rewards.errors import InputError
from rewards.prompts import Pairing, find_images, pictures_not_read
from rewards.suites.reading import Suite, SuitePrompt


def pair_suite(folder: Path, suite: Suite) -> Pairing:
    """Find a folder's images and their prompts in a suite.

    An image is named after its prompt, `ID.png`, or is somewhere in a folder of that name, `ID/samples/any.png`; or
    after its place in the suite, from 0: `00012.png` at the top, or a folder `00012` as GenEval has it. `-SAMPLE` may
    follow the name of a file: `00012-01.png`. Images of other names have no prompt; prompts without an image are named.
    Raises InputError when no image has a prompt.
    """
    images = find_images(folder)
    by_id = {prompt.id: prompt for prompt in suite.prompts}
    found = [_prompt_of(image.relative_to(folder), by_id, suite.prompts) for image in images]
    if not any(found):
        raise InputError(
            f"{folder}: no image is named after a prompt of suite {suite.name}; expected {suite.prompts[0].id}.png or "
            "00000.png, or give --prompts with image and prompt."
        )
    used = {prompt.id for prompt in found if prompt is not None}
    return Pairing(
        images=tuple(images),
        prompts=tuple(prompt.prompt if prompt else None for prompt in found),
        missing_images=tuple(prompt.id for prompt in suite.prompts if prompt.id not in used),
        categories=tuple(prompt.category if prompt else "" for prompt in found),
        not_read=pictures_not_read(folder),
    )


def _prompt_of(image: Path, by_id: dict[str, SuitePrompt], prompts: tuple[SuitePrompt, ...]) -> SuitePrompt | None:
    """image: below the folder. In a folder of a prompt the file's own name is that of a sample, not of a prompt."""
    names = [image.stem, re.sub(r"-[0-9]+$", "", image.stem)]
    folders = image.parts[:-1]
    words = [name for name in names if not name.isdecimal()]
    for name in (*folders, *words):
        if name in by_id:
            return by_id[name]
    place = next((name for name in folders if _is_place(name, prompts)), None)
    if place is not None:
        return prompts[int(place)]
    known = next((by_id[name] for name in names if name in by_id), None)
    # Below a folder that is no prompt's a bare number may be a sample's as well.
    return prompts[int(names[1])] if known is None and not folders and _is_place(names[1], prompts) else known


def _is_place(name: str, prompts: tuple[SuitePrompt, ...]) -> bool:
    return re.fullmatch("[0-9]{1,9}", name) is not None and int(name) < len(prompts)
