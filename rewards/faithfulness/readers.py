"""Question files: TIFA's JSON, DSG's CSV, and this project's JSONL. Each is read whole, its defects told, not mended.

A parent that is no number, that no question has, or that is the question itself is left out of that question alone;
upstream's DSG code drops all dependencies of a prompt when one of them is no number.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from rewards.errors import InputError
from rewards.faithfulness.questions import (
    YES_NO,
    Defect,
    PromptQuestions,
    Question,
    QuestionBook,
    find_defects,
)
from rewards.score_files import replace_text

_DSG_COLUMNS = ("item_id", "text", "proposition_id", "dependency", "category_broad", "question_natural_language")
OWN_SUITE = "compositional"


def load_questions(source: str | Path) -> QuestionBook:
    """Questions from a .json (TIFA), .csv (DSG) or .jsonl (own) file, or "compositional", the shipped suite.

    Raises InputError for a file that is not of its format, with the place; what can be lived with is a defect instead.
    """
    if str(source) == OWN_SUITE:
        data = resources.files("rewards.suites") / "data" / f"{OWN_SUITE}.jsonl"
        return _parse_own(data.read_text(encoding="utf-8"), OWN_SUITE)
    path = Path(source)
    reader = {".csv": _parse_dsg, ".json": _parse_tifa, ".jsonl": _parse_own}.get(path.suffix)
    if reader is None:
        raise InputError(f"{path}: expected questions as .json (TIFA), .csv (DSG) or .jsonl, or {OWN_SUITE!r}.")
    return reader(read_text(path), str(path))


def read_text(path: Path) -> str:
    """A UTF-8 file. Raises InputError for one that is missing or is not UTF-8."""
    try:
        return path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}).") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start}).") from error


def write_questions(book: QuestionBook, path: Path) -> None:
    """Write a book in the own format, one prompt a line, at once or not at all."""
    lines = []
    for item in book.items:
        questions = []
        for question in item.questions:
            row: dict[str, object] = {"id": question.id, "question": question.text}
            row |= {} if question.answer == "yes" else {"answer": question.answer}
            row |= {} if question.choices == YES_NO else {"choices": list(question.choices)}
            row |= {"category": question.category} if question.category else {}
            row |= {"parents": list(question.parents)} if question.parents else {}
            row |= {"negative": question.negative} if question.negative else {}
            questions.append(row)
        head: dict[str, object] = {"id": item.id, "prompt": item.prompt}
        head |= {"category": item.category} if item.category else {}
        lines.append(json.dumps(head | {"questions": questions}, ensure_ascii=False) + "\n")
    replace_text(path, "".join(lines))


@dataclass(frozen=True)
class _Row:
    """One question as a file has it."""

    item: str
    prompt: str
    question: Question


def _book(source: str, rows: Iterable[_Row], defects: Sequence[Defect] = ()) -> QuestionBook:
    by_item: dict[str, list[_Row]] = {}
    for row in rows:
        by_item.setdefault(row.item, []).append(row)
    found = list(defects)
    items = []
    for item, own in by_item.items():
        prompts = list(dict.fromkeys(row.prompt for row in own))
        found += [Defect("several_prompts", item, "", f"also {other!r}; the first is kept") for other in prompts[1:]]
        items.append(PromptQuestions(item, prompts[0], tuple(row.question for row in own)))
    if not items:
        raise InputError(f"{source}: there are no questions in it.")
    return QuestionBook(source, tuple(items), (*found, *find_defects(items)))


def _parse_tifa(text: str, source: str) -> QuestionBook:
    """TIFA: a list of rows with id, caption, question, choices, answer, element_type."""
    rows = _json(text, source)
    if not isinstance(rows, list):
        raise InputError(f"{source}: expected a list of questions, found {type(rows).__name__}.")
    numbers: dict[str, int] = {}
    parsed = []
    for position, row in enumerate(rows):
        where = f"{source}: row {position}"
        item = _text(row, "id", where)
        numbers[item] = numbers.get(item, 0) + 1
        choices = _texts(row, "choices", where)
        question = Question(
            id=str(numbers[item]),
            text=_text(row, "question", where),
            answer=_text(row, "answer", where),
            choices=choices,
            category=_text(row, "element_type", where),
        )
        parsed.append(_Row(item, _text(row, "caption", where), question))
    return _book(source, parsed)


def _parse_dsg(text: str, source: str) -> QuestionBook:
    """DSG: a CSV with a row for each proposition; all answers are yes."""
    reader = csv.DictReader(io.StringIO(text, newline=""))
    lacking = [name for name in _DSG_COLUMNS if name not in (reader.fieldnames or ())]
    if lacking:
        raise InputError(f"{source}: lacks the columns {', '.join(lacking)}; expected DSG's CSV.")
    table = list(reader)
    short = next((n for n, row in enumerate(table, 2) if None in row or None in row.values()), None)
    if short is not None:
        raise InputError(f"{source}: record {short} has not {len(reader.fieldnames or ())} columns.")
    ids: dict[str, set[str]] = {}
    for row in table:
        ids.setdefault(row["item_id"], set()).add(row["proposition_id"])
    defects: list[Defect] = []
    parsed = []
    for row in table:
        item, number = row["item_id"], row["proposition_id"]
        raw = [part.strip() for part in row["dependency"].split(",")]
        parents, found = _keep_parents(item, number, raw, ids[item])
        defects += found
        question = Question(
            number, row["question_natural_language"].strip(), category=row["category_broad"], parents=parents
        )
        parsed.append(_Row(item, row["text"], question))
    return _book(source, parsed, defects)


def _keep_parents(item: str, number: str, raw: Sequence[str], ids: set[str]) -> tuple[tuple[str, ...], list[Defect]]:
    """Parents that can be used (0 and - stand for none), and a defect for each question and way to be unusable."""
    named = [part for part in raw if part not in ("", "-", "0")]
    numeric = [part for part in named if part.isascii() and part.isdigit()]
    defects = []
    if len(numeric) < len(named):
        defects.append(Defect("non_numeric_parent", item, number, ", ".join(raw)))
    if number in numeric:
        defects.append(Defect("self_dependency", item, number, ", ".join(raw)))
    if missing := [part for part in numeric if part not in ids]:
        defects.append(Defect("missing_parent", item, number, ", ".join(missing)))
    return tuple(part for part in dict.fromkeys(numeric) if part in ids and part != number), defects


def _parse_own(text: str, source: str) -> QuestionBook:
    """Own JSONL. Written by this project, so what is wrong with a parent is an error, not a defect."""
    items = []
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            items.append(_own_item(_json(line, f"{source}:{number}"), f"{source}:{number}"))
    if not items:
        raise InputError(f"{source}: there are no questions in it.")
    return QuestionBook(source, tuple(items), tuple(find_defects(items)))


def _own_item(row: object, where: str) -> PromptQuestions:
    listed = row.get("questions") if isinstance(row, dict) else None
    if not isinstance(row, dict) or not isinstance(listed, list) or not listed:
        raise InputError(f'{where}: expected an object with "id", "prompt" and a list of "questions".')
    questions = tuple(parse_question(entry, where) for entry in listed)
    ids = {question.id for question in questions}
    for question in questions:
        wrong = [parent for parent in question.parents if parent not in ids or parent == question.id]
        if wrong:
            raise InputError(f"{where}: question {question.id} hangs on {wrong[0]!r}, which is no other question.")
    category = _text(row, "category", where) if "category" in row else ""
    return PromptQuestions(_text(row, "id", where), _text(row, "prompt", where), questions, category)


_OWN_KEYS = ("id", "question", "answer", "choices", "category", "parents", "negative")


def parse_question(row: object, where: str) -> Question:
    """A question of the own format. Raises InputError, with `where`, for a key or value that is not of it."""
    if not isinstance(row, dict):
        raise InputError(f"{where}: a question is an object, found {type(row).__name__}.")
    unknown = [key for key in row if key not in _OWN_KEYS]
    if unknown:
        raise InputError(f"{where}: a question has no {unknown[0]!r}; expected {', '.join(_OWN_KEYS)}.")
    question = Question(
        id=str(row["id"]) if isinstance(row.get("id"), int) else _text(row, "id", where),
        text=_text(row, "question", where),
        answer=_text(row, "answer", where) if "answer" in row else "yes",
        choices=_texts(row, "choices", where) if "choices" in row else YES_NO,
        category=_text(row, "category", where) if "category" in row else "",
        parents=_texts(row, "parents", where) if "parents" in row else (),
        negative=_text(row, "negative", where) if row.get("negative") is not None else None,
    )
    if question.answer not in question.choices:
        raise InputError(f"{where}: answer {question.answer!r} is not among {', '.join(question.choices)}.")
    return question


def _json(text: str, where: str) -> object:
    try:
        return json.loads(text)
    except ValueError as error:
        raise InputError(f"{where}: not JSON ({error}).") from error


def _text(row: object, key: str, where: str) -> str:
    value = row.get(key) if isinstance(row, dict) else None
    if not isinstance(value, str) or not value.strip():
        raise InputError(f"{where}: {key!r} is {value!r}; expected text.")
    return value


def _texts(row: object, key: str, where: str) -> tuple[str, ...]:
    values = row.get(key) if isinstance(row, dict) else None
    if not isinstance(values, list) or not all(type(value) in (str, int) for value in values):
        raise InputError(f"{where}: {key!r} is {values!r}; expected a list of texts.")
    return tuple(str(value) for value in values)
