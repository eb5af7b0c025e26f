"""Preference pairs from files of others: plain tables, the layouts of Pick-a-Pic and HPD, and votes of people."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from t2i.config import FrozenModel, LocalPath
from t2i.data.named_images import PairsPath
from t2i.data.pairs import iterate_pairs
from t2i.errors import DataError
from t2i.records import PreferencePair
from t2i.resources import resolve_path

Layout = Literal["plain", "pick_a_pic", "hpd"]


class PairTable(FrozenModel):
    """A .jsonl, .csv, .json or .parquet file with a row for each pair (or, of HPD, for each ranked set of images)."""

    path: PairsPath
    """The file; paths of images in it are relative to its folder."""
    layout: Layout = "plain"
    """`plain`: columns prompt, chosen, rejected, and optionally prompt_id, preference, aspect. `pick_a_pic`: caption,
    image_0, image_1, label_0, label_1 (1 for the winner, 0.5 for both of a tie). `hpd`: prompt, image_path or
    file_path (a list), and human_preference (1 for the liked ones and 0 for others) or rank (1 is the best)."""

    def read(self) -> Iterator[PreferencePair]:
        """The pairs, ties included, with absolute paths. Raises DataError that names the row."""
        path = resolve_path(self.path)
        parse = {"plain": _plain, "pick_a_pic": _pick_a_pic, "hpd": _hpd}[self.layout]
        count = 0
        for number, row in enumerate(table_rows(path), 1):
            where = f"{path}, row {number}"
            for pair in parse(row, where):
                count += 1
                yield _absolute(pair, path.parent.resolve())
        if not count:
            raise DataError(f"{path}: no pair.")


class VoteFile(FrozenModel):
    """What people chose. A vote is a line `{"rater": ..., "pair": ..., "choice": "left" | "right" | "tie"}`."""

    path: LocalPath
    """JSONL file of votes; the last vote of a rater on a pair counts."""
    pairs: PairsPath
    """The pairs voted on, a `pairs.jsonl`: `left` is a pair's chosen image, `right` its rejected one, whatever side
    they were shown on. A vote names a pair by its row, counted from 0."""

    def read(self) -> Iterator[PreferencePair]:
        """The pairs that have votes, with the majority's choice; `preference` is its share, a tie half a vote."""
        path = resolve_path(self.path)
        pairs = list(iterate_pairs(resolve_path(self.pairs)))
        ballots = _ballots(path, len(pairs))
        if not ballots:
            raise DataError(f"{path}: no vote.")
        for number, choices in sorted(ballots.items()):
            counts = Counter(choices.values())
            left = (counts["left"] + 0.5 * counts["tie"]) / counts.total()
            pair = replace(pairs[number], source="people", extra={"votes": dict(counts)})
            if left < 0.5:
                pair = replace(
                    pair, chosen=pair.rejected, rejected=pair.chosen, chosen_id=pair.rejected_id,
                    rejected_id=pair.chosen_id,
                )  # fmt: skip
            yield replace(pair, preference=max(left, 1 - left))


def _ballots(path: Path, count: int) -> dict[int, dict[str, str]]:
    """Pair -> rater -> choice. Raises DataError for a line that is no vote on one of `count` pairs."""
    ballots: dict[int, dict[str, str]] = {}
    for number, row in enumerate(table_rows(path), 1):
        pair, rater, choice = row.get("pair"), row.get("rater"), row.get("choice")
        if choice == "skip":
            continue
        known = isinstance(pair, int) and not isinstance(pair, bool) and 0 <= pair < count
        if not known or not isinstance(rater, str) or choice not in ("left", "right", "tie"):
            raise DataError(
                f"{path}:{number}: not a vote on one of {count} pairs: {json.dumps(row)[:100]}; expected pair (a "
                'row from 0), rater (text) and choice ("left", "right", "tie" or "skip").'
            )
        ballots.setdefault(int(pair), {})[rater] = choice  # type: ignore[arg-type]
    return ballots


def table_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a table. Raises DataError for a file of another kind, or one that cannot be read."""
    readers = {".jsonl": _jsonl, ".json": _json, ".csv": _csv, ".parquet": _parquet}
    if path.suffix not in readers:
        raise DataError(f"{path}: {path.suffix or 'no suffix'}; expected one of {', '.join(readers)}.")
    try:
        yield from readers[path.suffix](path)
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error}).") from error


def _jsonl(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield _object(line, f"{path}:{number}")


def _object(text: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(text)
    except ValueError as error:
        raise DataError(f"{where}: not JSON ({error}).") from error
    if not isinstance(row, dict):
        raise DataError(f"{where}: found {type(row).__name__}, expected a JSON object.")
    return row


def _json(path: Path) -> Iterator[dict[str, Any]]:
    try:
        rows = json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise DataError(f"{path}: not JSON ({error}).") from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise DataError(f"{path}: expected a list of objects.")
    yield from rows


def _csv(path: Path) -> Iterator[dict[str, Any]]:
    import csv

    with path.open(encoding="utf-8-sig", newline="") as file:
        # Not strict, a stray quote would take the rows after it into its own, without a word.
        reader = csv.DictReader(file, strict=True)
        try:
            for row in reader:
                # DictReader puts surplus values under None.
                if None in row:
                    count = len(reader.fieldnames or ())
                    raise DataError(f"{path}:{reader.line_num}: more values than the {count} columns of the header.")
                yield row
        except csv.Error as error:
            # The reader has counted the rows before the one that it could not read.
            raise DataError(f"{path}:{reader.line_num + 1}: not CSV ({error}).") from error


def _parquet(path: Path) -> Iterator[dict[str, Any]]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(1024):
                yield from batch.to_pylist()
    except pyarrow.ArrowException as error:
        raise DataError(f"{path}: not a Parquet file ({error}).") from error


def _text(row: Mapping[str, Any], name: str, where: str) -> str:
    value = row.get(name)
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{where}: {name} is {value!r}, expected text; the row has {', '.join(map(str, row))}.")
    return value


def _number(value: object, name: str, where: str) -> float:
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise DataError(f"{where}: {name} is {value!r}, expected a number.")
    return number


def _plain(row: Mapping[str, Any], where: str) -> Iterator[PreferencePair]:
    for name in ("chosen_prompt", "rejected_prompt"):
        if row.get(name) not in (None, "", row.get("prompt")):
            raise DataError(
                f"{where}: {name} is {row[name]!r} and prompt {row.get('prompt')!r}; both images must be of one prompt."
            )
    preference = row.get("preference")
    yield PreferencePair(
        _text(row, "prompt", where),
        _text(row, "chosen", where),
        _text(row, "rejected", where),
        prompt_id=str(row.get("prompt_id") or ""),
        preference=1.0 if preference in (None, "") else _number(preference, "preference", where),
        aspect=str(row.get("aspect") or ""),
        source=str(row.get("source") or "file"),
    )


def _pick_a_pic(row: Mapping[str, Any], where: str) -> Iterator[PreferencePair]:
    first = _number(row.get("label_0"), "label_0", where)
    second = _number(row.get("label_1"), "label_1", where)
    if not (0 <= first <= 1 and abs(first + second - 1) < 1e-6):
        raise DataError(f"{where}: label_0 {first:g} and label_1 {second:g}; expected shares that add up to 1.")
    images = [_text(row, name, where) for name in ("image_0", "image_1")]
    chosen, rejected = images if first >= second else reversed(images)
    prompt = _text(row, "caption", where)
    yield PreferencePair(prompt, chosen, rejected, preference=max(first, second), source="pick_a_pic")


def _list(row: Mapping[str, Any], name: str, where: str) -> list[Any]:
    """A list, as such or as JSON text, which is how CSV holds one."""
    value = row.get(name)
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError as error:
            raise DataError(f"{where}: {name} is {value[:60]!r}, expected a list.") from error
    if not isinstance(value, list):
        raise DataError(f"{where}: {name} is {value!r}, expected a list.")
    return value


def _hpd(row: Mapping[str, Any], where: str) -> Iterator[PreferencePair]:
    prompt = _text(row, "prompt", where)
    images = _list(row, "image_path" if "image_path" in row else "file_path", where)
    said = "human_preference" if "human_preference" in row else "rank"
    values = [_number(value, said, where) for value in _list(row, said, where)]
    if len(images) != len(values):
        raise DataError(f"{where}: {len(images)} images and {len(values)} numbers in {said}.")
    # Marks are zeros and ones, the liked with 1; ranks begin with the best at 1.
    is_marked = said == "human_preference" and set(values) <= {0, 1}
    if not is_marked and min(values, default=1) < 1:
        raise DataError(f"{where}: {said} is {values}; expected marks 0 and 1, or ranks from 1 on.")
    better = values if is_marked else [-value for value in values]
    for i in range(len(images)):
        for j in range(i + 1, len(images)):
            first, second = (i, j) if better[i] >= better[j] else (j, i)
            preference = 0.5 if better[i] == better[j] else 1.0
            yield PreferencePair(prompt, str(images[first]), str(images[second]), preference=preference, source="hpd")


def _absolute(pair: PreferencePair, folder: Path) -> PreferencePair:
    return replace(pair, chosen=str(folder / pair.chosen), rejected=str(folder / pair.rejected))
