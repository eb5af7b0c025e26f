"""Work over many items that survives kills: items in shards, one function, each shard renamed in with a done-record.

A shard's answers are written to a journal as they come, so that work cut off in its middle is not done again. When all
are there, the shard is written whole under a temporary name and renamed, then its done-record likewise: number of rows,
hash of the inputs, hash of the shard. Only a done-record whose hashes agree counts. Shards that another process works
on are locked; the lock goes with its process.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import multiprocessing
import queue
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from filelock import FileLock, Timeout

from t2i.errors import RunError, T2IError
from t2i.files import replacing, write_bytes, write_text

Item = TypeVar("Item")
Item_contra = TypeVar("Item_contra", contravariant=True)
Work = Callable[[Sequence[Item]], Iterator[tuple[int, Any]]]
"""Items -> (number of an item, its answer as JSON values), every number once, in any order."""


class Task(Protocol[Item_contra]):
    """What is done. Sent to worker processes, so it must be picklable; `load` is called once in each."""

    def load(self) -> Work[Item_contra]:
        """Open what the work needs."""
        ...

    def identity(self, item: Item_contra) -> str:
        """Text that tells one item from another, for the hash of the inputs."""
        ...


@dataclass(frozen=True)
class Shards(Generic[Item]):
    """Items cut into shards of one size, in a folder. The same items, size and task give the same files."""

    folder: Path
    items: Sequence[Item]
    size: int
    task: Task[Item]

    def __len__(self) -> int:
        return -(-len(self.items) // self.size)

    def run(self, workers: int, advance: Callable[[int], None]) -> None:
        """Do what is not done, in this process or in several. advance: told the number of finished items.

        Raises RunError if a worker was ended, and what the work raises; finished shards and answers are kept.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        if workers == 1 or len(self) == 1:
            self.work(advance)
        elif any(self.done(number) is None for number in range(len(self))):
            self._spread(workers, advance)

    def work(self, advance: Callable[[int], None]) -> None:
        """Do, in this process, the shards that nobody else has done or works on; then wait for those of others."""
        work: Work[Item] | None = None
        taken: list[int] = []
        for patience, numbers in ((0, range(len(self))), (-1, taken)):
            for number in numbers:
                try:
                    with FileLock(self.folder / f"{number:05d}.lock", timeout=patience):
                        if self.done(number) is None:
                            work = work or self.task.load()
                            self._finish(number, work)
                except Timeout:
                    taken.append(number)
                advance(min((number + 1) * self.size, len(self.items)))

    def answers(self) -> Iterator[Any]:
        """Every item's answer, in order. Raises RunError unless all shards are done."""
        for number in range(len(self)):
            data = self.done(number)
            if data is None:
                raise RunError(f"{self._path(number)}: is not done, or was changed; run again.")
            yield from map(json.loads, data.splitlines())

    def seed(self, known: Callable[[int], Any | None]) -> None:
        """Give shards of which nothing is there the answers that are known already.

        known: number of an item -> its answer, or None where the task must be asked.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        for number in range(len(self)):
            path = self.folder / f"{number:05d}.journal"
            if path.exists() or self.done(number) is not None:
                continue
            identities = [self.task.identity(item) for item in self._items(number)]
            # Renamed in whole: a kill must not leave a journal that lacks answers which are known.
            with replacing(path) as temporary, Journal(temporary, identities) as journal:
                for place in range(len(identities)):
                    if (answer := known(number * self.size + place)) is not None:
                        journal.add(place, answer)

    def reopen(self, keep: Callable[[Any], bool]) -> None:
        """Forget the answers that are not to be kept, so that the next run asks for those again, and for no others."""
        for number in range(len(self)):
            data = self.done(number)
            answers = [json.loads(line) for line in data.splitlines()] if data is not None else []
            if all(keep(answer) for answer in answers):
                continue
            identities = [self.task.identity(item) for item in self._items(number)]
            path = self.folder / f"{number:05d}.journal"
            # One may be left of a kill, here or at the end of `_finish`; the shard, which is whole, says it all.
            path.unlink(missing_ok=True)
            with Journal(path, identities) as journal:
                for place, answer in enumerate(answers):
                    if keep(answer):
                        journal.add(place, answer)
            self._record(number).unlink()
            self._path(number).unlink()

    def done(self, number: int) -> bytes | None:
        """The shard's bytes if its done-record says that they are whole and of these items; else None."""
        try:
            record = json.loads(self._record(number).read_bytes())
            data = self._path(number).read_bytes()
        except (OSError, ValueError):
            return None
        return data if record == self._facts(number, data) else None

    def _facts(self, number: int, data: bytes) -> dict[str, Any]:
        inputs = "\n".join(self.task.identity(item) for item in self._items(number))
        return {
            "rows": data.count(b"\n"),
            "inputs": hashlib.sha256(inputs.encode()).hexdigest(),
            "sha256": hashlib.sha256(data).hexdigest(),
        }

    def _items(self, number: int) -> Sequence[Item]:
        return self.items[number * self.size : (number + 1) * self.size]

    def _finish(self, number: int, work: Work[Item]) -> None:
        """Complete a shard from its journal. Nothing is written but the journal before every answer is there."""
        items = self._items(number)
        journal = Journal(self.folder / f"{number:05d}.journal", [self.task.identity(item) for item in items])
        waiting = [place for place in range(len(items)) if place not in journal.answers]
        with journal:
            for place, answer in work([items[place] for place in waiting]) if waiting else ():
                journal.add(waiting[place], answer)
        if len(journal.answers) != len(items):
            raise RunError(f"{self._path(number)}: {len(journal.answers)} answers to {len(items)} items.")
        lines = [json.dumps(journal.answers[place], ensure_ascii=False, sort_keys=True) for place in range(len(items))]
        data = "".join(line + "\n" for line in lines).encode()
        write_bytes(self._path(number), data)
        write_text(self._record(number), json.dumps(self._facts(number, data), sort_keys=True) + "\n")
        journal.path.unlink()

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:05d}.jsonl"

    def _record(self, number: int) -> Path:
        return self.folder / f"{number:05d}.done.json"

    def _spread(self, workers: int, advance: Callable[[int], None]) -> None:
        context = multiprocessing.get_context("spawn")
        problems: Any = context.Queue()
        processes = [context.Process(target=_work, args=(self, problems)) for _ in range(min(workers, len(self)))]
        for process in processes:
            process.start()
        problem: T2IError | None = None
        while problem is None and any(process.is_alive() for process in processes):
            try:
                problem = problems.get(timeout=0.2)
            except queue.Empty:
                finished = sum(self._record(number).exists() for number in range(len(self)))
                advance(min(finished * self.size, len(self.items)))
        for process in processes:
            if problem is not None:
                process.terminate()
            process.join()
        if problem is None and not all(self._record(number).exists() for number in range(len(self))):
            with contextlib.suppress(queue.Empty):  # said by a worker just before it ended
                problem = problems.get(timeout=1)
        # Of a worker that was killed the others take over the shard, whose lock went with it.
        ended = [str(process.exitcode) for process in processes if process.exitcode]
        if problem is None and ended and any(self.done(number) is None for number in range(len(self))):
            problem = RunError(
                f"{self.folder}: {len(ended)} of {len(processes)} workers were ended (exit status {', '.join(ended)}); "
                "run again: what is done is kept."
            )
        if problem is not None:
            raise problem


def _work(shards: Shards[Any], problems: Any) -> None:
    try:
        shards.work(lambda done: None)
    except T2IError as error:
        problems.put(error)


class Journal:
    """The answers of one shard so far, a line each; a line that a kill cut off does not count."""

    def __init__(self, path: Path, identities: Sequence[str]) -> None:
        """identities: of the shard's items; an answer that was given to another item at its place does not count."""
        self.path = path
        self.answers: dict[int, Any] = {}
        self._keys = [hashlib.sha256(text.encode()).hexdigest()[:16] for text in identities]
        kept = b""
        for line in path.read_bytes().splitlines(keepends=True) if path.exists() else ():
            found = _entry(line)
            if found is not None and found[0] < len(self._keys) and found[1] == self._keys[found[0]]:
                self.answers[found[0]] = found[2]
                kept += line
        if path.exists():
            write_bytes(path, kept)

    def __enter__(self) -> Journal:
        self._file = self.path.open("ab")
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()

    def add(self, place: int, answer: Any) -> None:
        """Keep an answer. Raises RunError for a place that has one, or that there is not."""
        if place in self.answers or not 0 <= place < len(self._keys):
            raise RunError(f"{self.path}: a second answer to item {place} of {len(self._keys)}.")
        line = json.dumps([place, self._keys[place], answer], ensure_ascii=False) + "\n"
        self._file.write(line.encode())
        # Out of this process: a kill loses what is being asked, not what was answered.
        self._file.flush()
        self.answers[place] = answer


def _entry(line: bytes) -> tuple[int, str, Any] | None:
    if not line.endswith(b"\n"):
        return None
    try:
        place, key, answer = json.loads(line)
    except (ValueError, TypeError):
        return None
    return (place, key, answer) if isinstance(place, int) and isinstance(key, str) else None
