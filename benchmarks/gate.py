"""Precision and recall of the quality gate's checks, each on scenes of the shapes world with 20 % planted faults.

python benchmarks/gate.py [SCENES]

Each check sees one kind of fault alone, planted into every fifth scene; the rest have true dense captions. Precision:
of what it drops, the share that was planted. Recall: of what was planted, the share it drops. The VQA that errs gives
another of a question's choices to one question in ten, keyed by image and question.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import io
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from machine import describe
from PIL import Image, ImageFilter

from rewards.faithfulness.tifa import Tifa
from t2i.data.images import content_id
from t2i.data.quality.captions import near_texts
from t2i.data.quality.images import blurred, near_images
from t2i.data.quality.texts import TEXT_CHECKS
from t2i.randomness import generator
from t2i.records import Caption, CaptionedImage
from t2i.shapes import describe as describe_scene
from t2i.shapes import render, sample_scene
from t2i.shapes.captions import parse_caption
from t2i.shapes.scenes import COLOURS, SHAPES, SIZES, Scene, opposite
from t2i.shapes.vqa import JudgeVqa, parse_question

SCENES = 1000
EVERY = 5
SEED = 11
QUESTIONS = "t2i.shapes.vqa:ShapesQuestions"


@dataclass(frozen=True)
class Sample:
    """A scene, its picture and what is said about it."""

    scene: Scene
    image: Image.Image
    text: str


def samples(count: int) -> list[Sample]:
    """Scenes of at most two groups with true dense captions."""
    scenes = [sample_scene(SEED, index, "train", max_objects=2) for index in range(count)]
    return [Sample(scene, render(scene), describe_scene(scene, "dense")) for scene in scenes]


def plant(clean: Sequence[Sample], fault: Callable[[Sequence[Sample], int], Sample]) -> tuple[list[Sample], set[int]]:
    """The samples with a fault in every fifth one, and which those are."""
    planted = set(range(0, len(clean), EVERY))
    return [fault(clean, n) if n in planted else sample for n, sample in enumerate(clean)], planted


def invented(clean: Sequence[Sample], number: int) -> Sample:
    """One thing in the caption is not so: a colour, shape, size, number, the relation or the background."""
    scene = clean[number].scene.without_positions()
    random = generator(SEED, "invented", number)
    group, rest = scene.groups[0], scene.groups[1:]
    changes: list[Scene] = [
        dataclasses.replace(scene, groups=(dataclasses.replace(group, colour=_other(COLOURS, group.colour)), *rest)),
        dataclasses.replace(scene, groups=(dataclasses.replace(group, shape=_other(SHAPES, group.shape)), *rest)),
        dataclasses.replace(scene, groups=(dataclasses.replace(group, size=_other(SIZES, group.size)), *rest)),
        dataclasses.replace(scene, groups=(dataclasses.replace(group, number=1 if group.number != 1 else 2), *rest)),
    ]
    if scene.relation is not None:
        changes.append(dataclasses.replace(scene, relation=opposite(scene.relation)))
    wrong = changes[int(random.integers(len(changes)))]
    return dataclasses.replace(clean[number], text=describe_scene(wrong, "dense"))


def misaligned(clean: Sequence[Sample], number: int) -> Sample:
    """The caption of the next image that has another one."""
    texts = [clean[(number + step) % len(clean)].text for step in range(1, len(clean))]
    return dataclasses.replace(clean[number], text=next(text for text in texts if text != clean[number].text))


def _other(known: Sequence[str] | dict[str, object], value: str | None) -> str:
    names = list(known)
    return names[(names.index(value or names[0]) + 1) % len(names)]


def paraphrased(text: str, number: int) -> str:
    """Another wording that the world's grammar takes: order and relation turned, `one` for `a`, capitals, a dot."""
    scene = parse_caption(text)
    if scene is not None and scene.relation is not None and len(scene.groups) == 2 and number % 2:
        turned = dataclasses.replace(scene, groups=scene.groups[::-1], relation=opposite(scene.relation))
        text = describe_scene(turned, "dense")
    words = ["one" if word in ("a", "an") and place == 0 else word for place, word in enumerate(text.split())]
    return " ".join(words).capitalize() + "."


class ErringVqa(JudgeVqa):
    """The judge, but one answer in ten is another of the question's choices."""

    rate = 0.1

    def answer(self, images: Sequence[Image.Image], questions: Sequence[str]) -> list[str]:
        """As the judge's, spoilt."""
        found = super().answer(images, questions)
        return [self._spoilt(image, text, right) for image, text, right in zip(images, questions, found, strict=True)]

    def _spoilt(self, image: Image.Image, text: str, right: str) -> str:
        random = generator(SEED, f"vqa/{text}", int.from_bytes(image.tobytes()[:64], "big") % 2**61, hash_of(image))
        if random.random() >= self.rate:
            return right
        others = [choice for choice in parse_question(text).choices if choice != right]
        return others[int(random.integers(len(others)))]


def hash_of(image: Image.Image) -> int:
    """The same for the same pixels in every process."""
    return int.from_bytes(hashlib.sha256(image.tobytes()).digest()[:7], "big")


def below(samples: Sequence[Sample], scorer: Tifa, at_least: float) -> set[int]:
    """Samples whose score is lower."""
    scores = scorer.score([sample.image for sample in samples], [sample.text for sample in samples])
    return {number for number, score in enumerate(scores) if score < at_least}


def wrong_text(check: str, clean: Sequence[Sample], number: int) -> Sample:
    """The sample with the fault that a check looks for in its caption."""
    text = clean[number].text
    spoilt = {
        "refusal": ("I'm sorry, but I cannot describe this image.", "I am unable to view images.", "As an AI, I do no"),
        "boilerplate": (
            f"The image shows {text}",
            f"Sure, here is a caption: {text}",
            f"In this picture we see {text}",
        ),
        "loop": (f"{text} and {text} and {text}", f"{text} red red red", f"{text}, very, very, very large"),
        "truncated": (f"{text}. There is also a", f"{text}. The light comes from", f"{text}, with"),
        "private": (f"{text}, ann@example.org", f"{text}, call +49 381 555 0192", f"{text}, card 4111 1111 1111 1111"),
        "file_name": ("IMG_0412.JPG", "untitled-3.png", "stock photo 8812"),
    }
    return dataclasses.replace(clean[number], text=spoilt[check][number // EVERY % 3])


def records(samples: Sequence[Sample], folder: Path) -> list[CaptionedImage]:
    """The samples as image files with records."""
    rows = []
    for number, sample in enumerate(samples):
        path = folder / f"{number:05d}.png"
        sample.image.save(path)
        rows.append(CaptionedImage(content_id(path), str(path), 64, 64, (Caption("dense", sample.text),)))
    return rows


def recompressed(clean: Sequence[Sample], number: int) -> Sample:
    """The picture of the sample before, as a JPEG: other bytes, the same sight."""
    file = io.BytesIO()
    clean[number - 1 if number else 1].image.save(file, "JPEG", quality=85)
    return dataclasses.replace(clean[number], image=Image.open(file).convert("RGB"))


def soft(clean: Sequence[Sample], number: int) -> Sample:
    """The picture out of focus."""
    return dataclasses.replace(clean[number], image=clean[number].image.filter(ImageFilter.GaussianBlur(4)))


def measured(found: set[int], planted: set[int]) -> str:
    """Precision, recall and counts as table cells."""
    right = len(found & planted)
    precision = right / len(found) if found else float("nan")
    return f"{precision:.3f} | {right / len(planted):.3f} | {len(planted)} | {len(found)}"


def main(count: int) -> None:
    """Print a row for each check."""
    clean = samples(count)
    print("| check | planted | precision | recall | planted | dropped |\n|---|---|---:|---:|---:|---:|")
    judge = Tifa(QUESTIONS, JudgeVqa(), nearest="none")
    erring = Tifa(QUESTIONS, ErringVqa(), nearest="none")
    for name, fault in (("one invented thing", invented), ("caption of another image", misaligned)):
        spoilt, planted = plant(clean, fault)
        told = [dataclasses.replace(s, text=paraphrased(s.text, n)) for n, s in enumerate(spoilt)]
        for label, texts, scorer, limit in (
            ("VQA by the judge, all right", spoilt, judge, 1.0),
            ("the same, paraphrased captions", told, judge, 1.0),
            ("VQA wrong in 10 %, at least 0.85", spoilt, erring, 0.85),
            ("VQA wrong in 10 %, at least 0.75", spoilt, erring, 0.75),
            ("VQA wrong in 10 %, all right", spoilt, erring, 1.0),
        ):
            print(f"| {label} | {name} | {measured(below(texts, scorer, limit), planted)} |")
    for check, find in TEXT_CHECKS.items():
        spoilt, planted = plant(clean, functools.partial(wrong_text, check))
        found = {number for number, sample in enumerate(spoilt) if find(sample.text)}
        print(f"| {check} | three of its kind | {measured(found, planted)} |")
    with tempfile.TemporaryDirectory() as folder:
        spoilt, planted = plant(clean, recompressed)
        rows = records(spoilt, Path(folder))
        print(
            f"| near_images 3 | JPEG of the image before | {measured({n for n, _ in near_images(rows, 3)}, planted)} |"
        )
        spoilt, planted = plant(clean, soft)
        rows = records(spoilt, Path(folder))
        found = {number for number, _ in blurred(rows, 50)}
        print(f"| min_sharpness 50 | Gaussian blur of 4 px | {measured(found, planted)} |")
        spoilt, planted = plant(clean, lambda c, n: dataclasses.replace(c[n], text="a view of the old town at night"))
        rows = records(spoilt, Path(folder))
        found = {number for number, _ in near_texts(rows, "dense", 0.9, 1)}
        print(f"| near_texts 0.9 | one caption for all of them | {measured(found, planted)} |")
    print(f"\nMeasured with `python benchmarks/gate.py {count}`: {describe()}.")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else SCENES)
