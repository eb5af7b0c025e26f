"""The formats in which prompt sets are published, one function each: file -> rows in its order."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from rewards.errors import InputError
from rewards.faithfulness.readers import load_questions, read_text

_COMPBENCH = ("color", "shape", "texture", "spatial", "non_spatial", "complex", "3d_spatial", "numeracy")
"""The eight categories; the other files of the folder are parts of these."""
_GENEVAL_KEYS = ("tag", "include", "prompt")


@dataclass(frozen=True)
class Row:
    """A prompt as a file has it."""

    id: str
    prompt: str
    category: str
    facts: Mapping[str, object] = field(default_factory=dict)


def partiprompts(path: Path) -> list[Row]:
    """PartiPrompts.tsv: Prompt, Category, Challenge, Note. Quotation marks are text there, not syntax."""
    rows = _table(path, "\t", ("Prompt", "Category", "Challenge"))
    return [
        Row(
            f"partiprompts_{number}",
            row["Prompt"].strip(),
            row["Category"],
            {"challenge": row["Challenge"], "note": row.get("Note", "")},
        )
        for number, row in enumerate(rows)
    ]


def drawbench(path: Path) -> list[Row]:
    """DrawBench: a .txt with a prompt a line (no categories), or a .csv with Prompts and Category."""
    if path.suffix.lower() == ".csv":
        rows = _table(path, ",", ("Prompts", "Category"))
        return [Row(f"drawbench_{number}", row["Prompts"].strip(), row["Category"]) for number, row in enumerate(rows)]
    return [
        Row(f"drawbench_{number}", prompt, "")
        for number, prompt in enumerate(_prompts(path, "a .csv of Prompts and Category"))
    ]


def compbench(path: Path) -> list[Row]:
    """T2I-CompBench: a folder of the eight CATEGORY_val.txt (those that are there), or one .txt of any name."""
    if path.is_dir():
        files = [path / f"{category}_val.txt" for category in _COMPBENCH]
        files = [file for file in files if file.is_file()]
        if not files:
            raise InputError(f"{path}: none of {', '.join(_COMPBENCH)} + _val.txt is there.")
    else:
        files = [path]
    named = [(file.stem.removesuffix("_val"), file) for file in files]
    return [
        Row(f"{category}_{number}", prompt, category)
        for category, file in named
        for number, prompt in enumerate(_prompts(file, "a folder of *_val.txt"))
    ]


def geneval(path: Path) -> list[Row]:
    """GenEval's evaluation_metadata.jsonl: the tag is the category, what to detect is kept."""
    rows = []
    for number, line in enumerate(_lines(path)):
        row = _json(line, f"{path}:{number + 1}")
        if not isinstance(row, dict) or not all(key in row for key in _GENEVAL_KEYS):
            raise InputError(f"{path}:{number + 1}: expected an object with {', '.join(_GENEVAL_KEYS)}.")
        facts = {key: value for key, value in row.items() if key not in ("tag", "prompt")}
        rows.append(Row(f"geneval_{number}", str(row["prompt"]).strip(), str(row["tag"]), facts))
    return rows


def dsg(path: Path) -> list[Row]:
    """DSG-1k: its items; the source, which begins an item's id, is the category."""
    return [Row(item.id, item.prompt.strip(), item.id.rpartition("_")[0]) for item in load_questions(path).items]


def tifa(path: Path) -> list[Row]:
    """TIFA v1.0: text inputs, or the rows of a question file (each prompt once); the source is the category."""
    rows = _json(read_text(path), str(path))
    if not isinstance(rows, list):
        raise InputError(f"{path}: expected a list of objects with id and caption.")
    found: dict[str, Row] = {}
    for number, row in enumerate(rows):
        key, caption = (row.get("id"), row.get("caption")) if isinstance(row, dict) else (None, None)
        if not isinstance(key, str) or not isinstance(caption, str):
            raise InputError(f"{path}: row {number}: expected an object with id and caption, both text.")
        facts = {"coco_val_id": row["coco_val_id"]} if "coco_val_id" in row else {}
        if found.setdefault(key, Row(key, caption.strip(), key.rpartition("_")[0], facts)).prompt != caption.strip():
            raise InputError(f"{path}: row {number}: id {key} has another caption before.")
    return list(found.values())


def _prompts(path: Path, otherwise: str) -> list[str]:
    """The prompts of a .txt, one a line. Raises InputError for another ending: a table's header is no prompt."""
    if path.suffix.lower() != ".txt":
        raise InputError(f"{path}: expected a .txt with a prompt a line, or {otherwise}.")
    return _lines(path)


def _lines(path: Path) -> list[str]:
    """Lines that are not empty, without the space around them (some files have Windows line ends)."""
    if path.is_dir():
        raise InputError(f"{path}: expected a file, found a folder.")
    # Not splitlines: it would also split at characters that a prompt may hold.
    return [line.strip() for line in read_text(path).split("\n") if line.strip()]


def _table(path: Path, delimiter: str, columns: tuple[str, ...]) -> list[dict[str, str]]:
    quoting = csv.QUOTE_NONE if delimiter == "\t" else csv.QUOTE_MINIMAL
    reader = csv.DictReader(io.StringIO(read_text(path), newline=""), delimiter=delimiter, quoting=quoting)
    lacking = [column for column in columns if column not in (reader.fieldnames or ())]
    if lacking:
        raise InputError(f"{path}: lacks the columns {', '.join(lacking)}.")
    rows = list(reader)
    wrong = next((n for n, row in enumerate(rows, 2) if None in row or any(row[c] is None for c in columns)), None)
    if wrong is not None:
        raise InputError(f"{path}: record {wrong} has not as many columns as the header.")
    return rows


def _json(text: str, where: str) -> object:
    try:
        return json.loads(text)
    except ValueError as error:
        raise InputError(f"{where}: not JSON ({error}).") from error
