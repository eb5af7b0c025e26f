"""Asking many questions about many images: each pair once, in batches, and never again once it is answered."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal, TypeAlias

from PIL import Image

from rewards.base import ImageLike, TextLimited
from rewards.cache import image_digest
from rewards.errors import InputError, ScoringError
from rewards.faithfulness.backends import VqaBackend, VqaSpec, YesNo, load_backend
from rewards.images import open_image

Mode: TypeAlias = Literal["answer", "yes_no"]
Answer: TypeAlias = str | YesNo

_LINE_START = b'{"key": "'


class AnswerCache:
    """Key -> answer, in memory and in a JSONL file that is only appended to, a batch at a time in one write.

    A process killed while writing leaves a torn last line, which is skipped and asked again. Raises InputError for a
    file that cannot be read, or that is something else.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.torn_lines = 0
        self._answers: dict[str, Answer] = {}
        self._needs_newline = False
        self._read()

    def __len__(self) -> int:
        return len(self._answers)

    def get(self, key: str) -> Answer | None:
        """Answer of a key, or None."""
        return self._answers.get(key)

    def put(self, answers: Mapping[str, tuple[str, Answer]]) -> None:
        """Append key -> (question, answer); the question is there for the reader of the file only."""
        if not answers:
            return
        lines = []
        for key, (question, answer) in answers.items():
            value = answer if isinstance(answer, str) else [answer.yes, answer.no]
            lines.append(json.dumps({"key": key, "question": question, "answer": value}) + "\n")
        text = ("\n" if self._needs_newline else "") + "".join(lines)
        try:
            with self.path.open("ab", buffering=0) as file:
                file.write(text.encode())
        except OSError as error:
            raise InputError(f"{self.path}: cannot be written ({error.strerror}).") from error
        self._needs_newline = False
        self._answers.update((key, answer) for key, (_, answer) in answers.items())

    def _read(self) -> None:
        try:
            data = self.path.read_bytes() if self.path.exists() else b""
        except OSError as error:
            raise InputError(f"{self.path}: cannot be read as a file of answers ({error.strerror}).") from error
        self._needs_newline = bool(data) and not data.endswith(b"\n")
        for number, line in enumerate(data.splitlines(), 1):
            entry = _parse(line)
            if entry is not None:
                self._answers[entry[0]] = entry[1]
            elif _LINE_START.startswith(line[: len(_LINE_START)]):
                self.torn_lines += 1
            else:
                raise InputError(f"{self.path}:{number}: not a line of a file of answers; name another file.")


def _parse(line: bytes) -> tuple[str, Answer] | None:
    try:
        entry = json.loads(line)
        key, value = entry["key"], entry["answer"]
        answer = value if isinstance(value, str) else YesNo(float(value[0]), float(value[1]))
    except (ValueError, KeyError, TypeError, IndexError):
        return None
    return (key, answer) if isinstance(key, str) else None


class Interrogator:
    """A VQA backend with its cache of answers.

    vqa: what `load_backend` takes; batch_size: pairs of image and question at once, which changes speed and memory
    only; answers: JSONL of answers to reuse and extend, keyed by the image's bytes, the question and the backend's
    fingerprint. Where all is known no model is opened. cuts_questions: whether one that is longer than the
    backend can read may lose its end (the caller counts them); else it is an InputError.
    """

    def __init__(
        self,
        vqa: VqaSpec,
        device: str = "cpu",
        batch_size: int = 32,
        answers: Path | str | None = None,
        cuts_questions: bool = False,
    ) -> None:
        if batch_size < 1:
            raise InputError(f"batch_size is {batch_size}; expected at least 1.")
        self.backend: VqaBackend = load_backend(vqa, device)
        self._batch_size = batch_size
        self._cache = AnswerCache(answers) if answers is not None else None
        self._cuts_questions = cuts_questions

    def answer(self, images: Sequence[ImageLike], questions: Sequence[Sequence[str]]) -> list[list[str]]:
        """Free answers to each image's questions. Raises ImageError for one that cannot be read, ScoringError when the
        backend returns something else than it should."""
        found = self._ask("answer", images, questions)
        return [[answer for answer in own if isinstance(answer, str)] for own in found]

    def yes_no(self, images: Sequence[ImageLike], questions: Sequence[Sequence[str]]) -> list[list[YesNo]]:
        """Probabilities of yes and no for each image's questions. Errors as `answer`."""
        found = self._ask("yes_no", images, questions)
        return [[answer for answer in own if isinstance(answer, YesNo)] for own in found]

    def _ask(self, mode: Mode, images: Sequence[ImageLike], questions: Sequence[Sequence[str]]) -> list[list[Answer]]:
        digests = [image_digest(image) for image in images]
        asked = [(digest, text) for digest, own in zip(digests, questions, strict=True) for text in own]
        fingerprint = dict(self.backend.fingerprint()) if self._cache is not None else {}
        keys = {pair: _key(mode, *pair, fingerprint) for pair in dict.fromkeys(asked)}
        known: dict[tuple[str, str], Answer] = {}
        if self._cache is not None:
            for pair, key in keys.items():
                found = self._cache.get(key)
                if found is not None:
                    known[pair] = found
        for batch, answers in self._batches(mode, [pair for pair in keys if pair not in known], images, digests):
            known.update(zip(batch, answers, strict=True))
            if self._cache is not None:
                self._cache.put({keys[pair]: (pair[1], known[pair]) for pair in batch})
        return [[known[digest, text] for text in own] for digest, own in zip(digests, questions, strict=True)]

    def _batches(
        self, mode: Mode, pairs: list[tuple[str, str]], images: Sequence[ImageLike], digests: list[str]
    ) -> Iterator[tuple[list[tuple[str, str]], list[Answer]]]:
        sources = dict(zip(digests, images, strict=True))
        for start in range(0, len(pairs), self._batch_size):
            batch = pairs[start : start + self._batch_size]
            opened: dict[str, Image.Image] = {}
            for digest, _ in batch:
                if digest not in opened:
                    opened[digest] = open_image(sources[digest])
            pictures, texts = [opened[digest] for digest, _ in batch], [text for _, text in batch]
            self._check_lengths(texts)
            if mode == "answer":
                yield batch, _checked(self.backend.answer(pictures, texts), len(batch), str)
            else:
                yield batch, _checked(self.backend.yes_no(pictures, texts), len(batch), YesNo)

    def _check_lengths(self, texts: Sequence[str]) -> None:
        if isinstance(self.backend, TextLimited) and not self._cuts_questions and self.backend.count_truncated(texts):
            long = next(text for text in texts if self.backend.count_truncated([text]))
            raise InputError(
                f"question {long[:60]!r}... is longer than the {self.backend.token_limit} tokens it may be."
            )


def _key(mode: Mode, digest: str, question: str, fingerprint: Mapping[str, str]) -> str:
    parts = json.dumps([mode, digest, question, sorted(fingerprint.items())])
    return hashlib.sha256(parts.encode()).hexdigest()


def _checked(answers: Sequence[Answer], count: int, kind: type) -> list[Answer]:
    if len(answers) != count or not all(isinstance(answer, kind) for answer in answers):
        raise ScoringError(f"the VQA backend gave {len(answers)} answers to {count} questions, or not {kind.__name__}.")
    for answer in answers:
        if isinstance(answer, YesNo) and not all(
            math.isfinite(value) and -1e-6 <= value <= 1 + 1e-6 for value in (answer.yes, answer.no)
        ):
            raise ScoringError(f"the VQA backend gave {answer}; expected probabilities.")
    return list(answers)
