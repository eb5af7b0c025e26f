"""The file of votes: what counts, what a crash leaves, what is refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from t2i.errors import DataError
from t2i.label.votes import Choice, Vote, VoteLog


def vote(rater: str, pair: int, choice: Choice) -> Vote:
    return Vote(rater, pair, choice, "left", 1.5, "2026-01-01T00:00:00+00:00")


def test_a_vote_is_one_line_that_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "votes.jsonl"
    log = VoteLog(path, 3)
    log.append(vote("Zoë\u2028", 2, "right"))
    log.append(vote("bob", 0, "tie"))
    log.close()
    assert path.read_bytes().count(b"\n") == 2
    assert json.loads(path.read_bytes().split(b"\n")[1]) == {
        "rater": "bob", "pair": 0, "choice": "tie", "first": "left", "seconds": 1.5, "at": "2026-01-01T00:00:00+00:00",
    }  # fmt: skip
    again = VoteLog(path, 3)
    assert again.ballots == {"Zoë\u2028": {2: "right"}, "bob": {0: "tie"}}
    assert again.note == ""


def test_the_last_choice_counts_and_a_skip_takes_none_back(tmp_path: Path) -> None:
    log = VoteLog(tmp_path / "votes.jsonl", 2)
    for pair, choice in ((0, "left"), (0, "right"), (0, "skip"), (1, "skip"), (1, "tie")):
        log.append(vote("ann", pair, choice))
    assert log.ballots == VoteLog(log.path, 2).ballots == {"ann": {0: "right", 1: "tie"}}


def test_people_may_vote_while_somebody_goes_through_the_votes(tmp_path: Path) -> None:
    log = VoteLog(tmp_path / "votes.jsonl", 2)
    log.append(vote("ann", 0, "left"))
    for rater, own in log.ballots.items():
        log.append(vote("bob", 0, "right"))
        log.append(vote(rater, 1, "tie"))
        assert own == {0: "left"}
    assert log.ballots == {"ann": {0: "left", 1: "tie"}, "bob": {0: "right"}}


def test_a_line_cut_short_anywhere_is_taken_out_and_said(tmp_path: Path) -> None:
    path = tmp_path / "votes.jsonl"
    log = VoteLog(path, 2)
    log.append(vote("ann", 0, "left"))
    whole = path.read_bytes()
    for length in (1, 2, 11, 50, len(whole) - 2):
        path.write_bytes(whole + whole[:length])
        opened = VoteLog(path, 2)
        assert "the last line was cut short" in opened.note
        assert path.read_bytes() == whole
        opened.append(vote("bob", 1, "right"))
        opened.close()
        assert VoteLog(path, 2).ballots == {"ann": {0: "left"}, "bob": {1: "right"}}


def test_a_last_line_that_only_lacks_its_break_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "votes.jsonl"
    VoteLog(path, 2).append(vote("ann", 0, "left"))
    path.write_bytes(path.read_bytes().rstrip(b"\n"))
    log = VoteLog(path, 2)
    log.append(vote("ann", 1, "tie"))
    assert VoteLog(path, 2).ballots == {"ann": {0: "left", 1: "tie"}}
    assert log.note == ""


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"nonsense\n", "votes.jsonl:1: not JSON"),
        (b"\xff\xfe\n", "votes.jsonl:1: not JSON"),
        (b"[1]\n", "votes.jsonl:1: not a vote on one of 2 pairs"),
        (b'{"rater": "a", "pair": 2, "choice": "left"}\n', "not a vote on one of 2 pairs"),
        (b'{"rater": "a", "pair": true, "choice": "left"}\n', "not a vote"),
        (b'{"rater": "a", "pair": 0, "choice": "middle"}\n', "not a vote"),
        (b'{"rater": 3, "pair": 0, "choice": "left"}\n', "not a vote"),
    ],
)
def test_a_file_of_something_else_is_refused_and_left_as_it_is(tmp_path: Path, line: bytes, message: str) -> None:
    path = tmp_path / "votes.jsonl"
    path.write_bytes(line)
    with pytest.raises(DataError, match=message):
        VoteLog(path, 2)
    assert path.read_bytes() == line


FULL_DISK = """
import resource, signal, sys
from t2i.errors import RunError
from t2i.label.votes import Vote, VoteLog
from pathlib import Path
log = VoteLog(Path(sys.argv[1]), 9)
log.append(Vote("ann", 0, "left", "left", 1, ""))
before = log.path.read_bytes()
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 20, resource.RLIM_INFINITY))
try:
    log.append(Vote("ann", 1, "left", "left", 1, ""))
except RunError as error:
    assert "make room and vote again" in str(error), error
    assert log.path.read_bytes() == before and log.ballots == {"ann": {0: "left"}}
    print("refused")
"""


def test_a_vote_that_does_not_fit_on_the_disk_is_refused_whole(tmp_path: Path) -> None:
    command = [sys.executable, "-c", FULL_DISK, str(tmp_path / "votes.jsonl")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    ended = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert ended.stdout == "refused\n", ended.stderr
