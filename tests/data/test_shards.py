"""Sharded work: killed, raced for, resumed, and always the same bytes."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from t2i.data.shards import Journal, Shards, Work
from t2i.errors import DataError, RunError

ITEMS = [f"item {number}" for number in range(23)]


@dataclass(frozen=True)
class Shout:
    """Answers in capitals. log: a line for every item; deadly: an item at which the process dies, once."""

    log: Path
    deadly: str = ""

    def load(self) -> Work[str]:
        return self._work

    def _work(self, items: Sequence[str]) -> Iterator[tuple[int, Any]]:
        # Backwards: answers need not come in order.
        for number, item in reversed(list(enumerate(items))):
            mark = self.log.with_suffix(".died")
            if item == self.deadly and not mark.exists():
                mark.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            with self.log.open("a") as file:
                file.write(item + "\n")
            yield number, {"text": item.upper()}

    def identity(self, item: str) -> str:
        return item


@dataclass(frozen=True)
class Faulty:
    """Gives no answer to the last item, two to the first, or fails."""

    fault: str

    def load(self) -> Work[str]:
        return self._work

    def _work(self, items: Sequence[str]) -> Iterator[tuple[int, Any]]:
        for number in range(len(items)):
            if self.fault == "fails" and int(items[number].split()[1]) % 5 == 2:  # one of every shard, whoever asks
                raise DataError("item 2 is broken")
            if not (self.fault == "lacks" and number == len(items) - 1):
                yield number, number
            if self.fault == "twice":
                yield number, number

    def identity(self, item: str) -> str:
        return item


@dataclass(frozen=True)
class Deadly:
    """Kills every process that loads it."""

    def load(self) -> Work[str]:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError

    def identity(self, item: str) -> str:
        return item


def ignore(done: int) -> None:
    """Nobody watches."""


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.suffix != ".lock"}


def test_answers_come_in_the_order_of_the_items(tmp_path: Path) -> None:
    told: list[int] = []
    shards = Shards(tmp_path / "a", ITEMS, 5, Shout(tmp_path / "log"))
    shards.run(1, told.append)
    assert list(shards.answers()) == [{"text": item.upper()} for item in ITEMS]
    assert told == [5, 10, 15, 20, 23]
    record = json.loads((tmp_path / "a/00004.done.json").read_text())
    assert record["rows"] == 3


def test_done_work_is_not_done_again_and_changed_inputs_are(tmp_path: Path) -> None:
    log = tmp_path / "log"
    Shards(tmp_path / "a", ITEMS, 5, Shout(log)).run(1, ignore)
    Shards(tmp_path / "a", ITEMS, 5, Shout(log)).run(1, ignore)
    assert len(log.read_text().splitlines()) == len(ITEMS)
    changed = [*ITEMS[:7], "another", *ITEMS[8:]]
    shards = Shards(tmp_path / "a", changed, 5, Shout(log))
    shards.run(1, ignore)
    assert len(log.read_text().splitlines()) == len(ITEMS) + 5
    assert [answer["text"] for answer in shards.answers()][7] == "ANOTHER"


def test_known_answers_are_not_asked_for_and_what_is_there_stands(tmp_path: Path) -> None:
    Shards(tmp_path / "whole", ITEMS, 5, Shout(tmp_path / "other")).run(1, ignore)
    shards = Shards(tmp_path / "a", ITEMS, 5, Shout(tmp_path / "log"))
    shards.seed(lambda number: {"text": ITEMS[number].upper()} if number != 7 else None)
    shards.seed(lambda number: {"text": "another"})
    shards.run(1, ignore)
    assert (tmp_path / "log").read_text().splitlines() == ["item 7"]
    assert bytes_of(tmp_path / "a") == bytes_of(tmp_path / "whole")


def test_a_shard_that_was_changed_is_done_again(tmp_path: Path) -> None:
    shards = Shards(tmp_path / "a", ITEMS, 5, Shout(tmp_path / "log"))
    shards.run(1, ignore)
    whole = bytes_of(tmp_path / "a")
    (tmp_path / "a/00001.jsonl").write_text("{}\n" * 5)
    with pytest.raises(RunError, match=r"00001\.jsonl: is not done, or was changed"):
        list(shards.answers())
    shards.run(1, ignore)
    assert bytes_of(tmp_path / "a") == whole


@pytest.mark.parametrize(
    ("fault", "complaint"),
    [("lacks", "4 answers to 5 items"), ("twice", "a second answer to item 0 of 5"), ("fails", "item 2 is broken")],
)
def test_what_failed_never_counts_as_done(tmp_path: Path, fault: str, complaint: str) -> None:
    shards = Shards(tmp_path / "a", ITEMS, 5, Faulty(fault))
    with pytest.raises((RunError, DataError), match=complaint):
        shards.run(1, ignore)
    if fault == "fails":
        with pytest.raises(DataError, match=complaint):
            shards.run(2, ignore)
    assert not list((tmp_path / "a").glob("*.done.json"))
    assert not list((tmp_path / "a").glob("*.jsonl"))


def race(folder: Path, log: Path, deadly: str = "") -> None:
    Shards(folder, ITEMS, 3, Shout(log, deadly)).run(1, ignore)


def start(*arguments: Any) -> Any:
    process = multiprocessing.get_context("spawn").Process(target=race, args=arguments)
    process.start()
    return process


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("whole")
    race(folder / "a", folder / "log")
    return bytes_of(folder / "a")


def test_work_of_a_killed_worker_is_taken_over_by_the_others(tmp_path: Path, whole: dict[str, bytes]) -> None:
    log = tmp_path / "log"
    Shards(tmp_path / "a", ITEMS, 3, Shout(log, deadly="item 12")).run(4, ignore)
    assert log.with_suffix(".died").exists()
    assert bytes_of(tmp_path / "a") == whole
    # Items 13 and 14 of the shard were answered before: the journal of the killed worker was read.
    assert sorted(log.read_text().splitlines()) == sorted(ITEMS)


def test_killed_run_goes_on_where_it_was_and_gives_the_same_bytes(tmp_path: Path, whole: dict[str, bytes]) -> None:
    killed = start(tmp_path / "a", tmp_path / "log", "item 12")
    killed.join()
    assert killed.exitcode == -signal.SIGKILL
    assert (tmp_path / "log").read_text().splitlines()[-2:] == ["item 14", "item 13"]
    race(tmp_path / "a", tmp_path / "log")
    assert bytes_of(tmp_path / "a") == whole
    assert sorted((tmp_path / "log").read_text().splitlines()) == sorted(ITEMS)


@pytest.mark.parametrize("cut", ["reopen", "finish"])
def test_answers_are_asked_for_again_after_a_kill_between_journal_and_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cut: str
) -> None:
    shards = Shards(tmp_path / "shards", ITEMS, 8, Shout(tmp_path / "log"))
    unlink = Path.unlink

    def killed(self: Path, missing_ok: bool = False) -> None:
        if self.name.endswith(".done.json" if cut == "reopen" else ".journal") and self.exists():
            raise KeyboardInterrupt
        unlink(self, missing_ok)

    def keep(answer: Any) -> bool:
        return answer["text"] != "ITEM 3"

    if cut == "reopen":
        shards.run(1, ignore)
    monkeypatch.setattr(Path, "unlink", killed)
    with pytest.raises(KeyboardInterrupt):
        shards.reopen(keep) if cut == "reopen" else shards.run(1, ignore)
    monkeypatch.setattr(Path, "unlink", unlink)
    shards.run(1, ignore)
    (tmp_path / "log").write_text("")
    shards.reopen(keep)
    shards.run(1, ignore)
    assert (tmp_path / "log").read_text() == "item 3\n"
    assert [answer["text"] for answer in shards.answers()] == [item.upper() for item in ITEMS]


def test_all_workers_killed_is_an_error(tmp_path: Path) -> None:
    shards = Shards(tmp_path / "a", ITEMS, 12, Deadly())
    with pytest.raises(RunError, match=r"2 of 2 workers were ended \(exit status -9, -9\)"):
        shards.run(4, ignore)


def test_runs_that_race_for_shards_do_each_once(tmp_path: Path, whole: dict[str, bytes]) -> None:
    runs = [start(tmp_path / "a", tmp_path / "log") for _ in range(2)]
    for run in runs:
        run.join()
    assert [run.exitcode for run in runs] == [0, 0]
    assert sorted((tmp_path / "log").read_text().splitlines()) == sorted(ITEMS)
    assert bytes_of(tmp_path / "a") == whole


def test_journal_keeps_whole_lines_about_the_same_items_alone(tmp_path: Path) -> None:
    with Journal(tmp_path / "j", ["a", "b", "c"]) as journal:
        for place, answer in ((2, "C"), (0, "A")):
            journal.add(place, answer)
    whole = (tmp_path / "j").read_bytes()
    (tmp_path / "j").write_bytes(whole + b'[1, "')
    assert Journal(tmp_path / "j", ["a", "b", "c"]).answers == {0: "A", 2: "C"}
    assert (tmp_path / "j").read_bytes() == whole
    assert Journal(tmp_path / "j", ["a", "b", "other"]).answers == {0: "A"}
