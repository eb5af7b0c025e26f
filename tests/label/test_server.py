"""The server by plain HTTP: what the page gets, what other sites get, and what a kill leaves."""

from __future__ import annotations

import io
import json
import signal
import socket
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from painted_pairs import BLUE, RED, Server, folders, serving
from PIL import Image

from t2i.label.votes import VoteLog

PAIRS = 3


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    parent = tmp_path_factory.mktemp("label")
    with serving(folders(parent, PAIRS), parent / "study") as running:
        yield running


def votes(server: Server) -> dict[str, dict[int, str]]:
    """What the server has counted for a rater, read from its file."""
    path = Path(server.said[0].split("votes go to ")[1].split(". Ctrl-C")[0])
    return VoteLog(path, PAIRS).ballots


def test_every_image_comes_from_the_side_that_the_votes_file_will_name(server: Server) -> None:
    session = server.session("sides")
    for item in session["items"]:
        for place in ("first", "second"):
            address = f"/images/{session['session']}/{item['pair']}/{place}?rater=sides"
            status, headers, body = server.ask("GET", address)
            assert (status, headers["content-type"]) == (200, "image/png")
            assert not {"content-disposition"} & headers.keys()
            red, _, blue = Image.open(io.BytesIO(body)).getpixel((0, 0))
            side = "left" if red > blue else "right"
            assert server.vote(session, item["pair"], place) == 200
            assert votes(server)["sides"][item["pair"]] == side
    assert {RED[0] > RED[2], BLUE[0] > BLUE[2]} == {True, False}


def test_nothing_tells_where_images_are_from(server: Server) -> None:
    session = server.session("blind")
    assert [set(item) for item in session["items"]] == [{"pair", "prompt", "choice"}] * PAIRS
    for address in ("/", "/page.js", "/page.css", "/session?rater=blind", "/agreement"):
        _, headers, body = server.ask("GET", address)
        assert not any(word in body + str(headers).encode() for word in (b"red/", b"blue/", b".png"))


def test_a_session_resumes_with_the_choices_as_places(server: Server) -> None:
    session = server.session("resume")
    for item, choice in zip(session["items"], ("second", "tie", "skip"), strict=True):
        assert server.vote(session, item["pair"], choice) == 200
    again = server.session("%20resume")
    assert again["session"] == session["session"]
    assert [item["choice"] for item in again["items"]] == ["second", "tie", "skip"]


@pytest.mark.parametrize(
    ("method", "headers", "status"),
    [
        ("GET", {}, 200),
        ("GET", {"Host": "localhost:9000"}, 200),
        ("GET", {"Host": "evil.example"}, 421),
        ("GET", {"Host": "evil.example:80"}, 421),
        ("GET", {"Host": "127.0.0.1.evil.example"}, 421),
        ("GET", {"Host": ""}, 421),
        ("GET", {"Sec-Fetch-Site": "cross-site"}, 403),
        ("GET", {"Sec-Fetch-Site": "same-site"}, 403),
        ("GET", {"Origin": "http://evil.example"}, 403),
        ("POST", {}, 400),
        ("POST", {"Origin": None}, 403),
        ("POST", {"Origin": "null"}, 403),
        ("POST", {"Origin": "http://evil.example"}, 403),
        ("POST", {"Origin": "http://127.0.0.1:1"}, 403),
        ("POST", {"Host": "evil.example", "Origin": "http://evil.example"}, 421),
        ("POST", {"Content-Type": "text/plain"}, 415),
        ("POST", {"Content-Type": "application/x-www-form-urlencoded"}, 415),
        ("POST", {"Content-Length": "100000"}, 413),
        ("OPTIONS", {"Origin": "http://evil.example", "Access-Control-Request-Method": "POST"}, 403),
        ("DELETE", {}, 403),
    ],
)
def test_only_our_own_page_is_served(
    server: Server, method: str, headers: Mapping[str, str | None], status: int
) -> None:
    path = "/" if method == "GET" else "/votes"
    found, answered, body = server.ask(method, path, {} if method == "POST" else None, headers)
    assert found == status
    assert not any(name.startswith("access-control") for name in answered)
    assert answered["x-content-type-options"] == "nosniff"
    assert "default-src 'none'" in answered["content-security-policy"]
    assert b"Traceback" not in body


@pytest.mark.parametrize(
    "path",
    [
        "/../../etc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "/page.html", "/votes.jsonl", "/page.css/..%2fweb.py",
        "/images/{session}/0/..%2f..%2fvotes.jsonl?rater=path", "/images/{session}/3/first?rater=path",
        "/images/{session}/-1/first?rater=path", "/images/{session}/0/left?rater=path",
        "/images/{session}/99999999999999999999/first?rater=path",
    ],
)  # fmt: skip
def test_no_address_reaches_another_file(server: Server, path: str) -> None:
    assert server.ask("GET", path.format(session=server.session("path")["session"]))[0] == 404


def test_rubbish_is_refused_and_not_written(server: Server) -> None:
    session = server.session("rubbish")
    good = {"rater": "rubbish", "session": session["session"], "pair": 0, "choice": "first", "seconds": 1}
    assert server.ask("POST", "/votes", good | {"session": "0" * 16})[0] == 409
    assert server.ask("POST", "/votes", good | {"rater": "somebody else"})[0] == 409
    bad = [{"pair": 3}, {"pair": -1}, {"pair": "0"}, {"pair": True}, {"choice": "left"}, {"choice": ["first"]}]
    bad += [{"seconds": -1}, {"seconds": "1"}, {"rater": ""}, {"rater": "a\nb"}, {"rater": "x" * 41}, {"rater": 3}]
    for change in bad:
        assert server.ask("POST", "/votes", good | change)[0] == 400, change
    for body in (b"", b"[]", b"3", b"\xff", b"[" * 4000, b'{"rater": "\\ud800"}', b'{"pair": NaN}'):
        assert server.ask("POST", "/votes", body)[0] == 400, body
    for rater in ("", "%00", "x" * 41, "%F0%9F"):
        assert server.ask("GET", f"/session?rater={rater}")[0] in (200, 400)
    assert "rubbish" not in votes(server)


def test_votes_of_many_at_once_are_all_there(server: Server) -> None:
    raters = [f"crowd{number}" for number in range(8)]
    failed = []

    def vote_often(rater: str) -> None:
        session = server.session(rater)
        for turn in range(12):
            status = server.vote(session, turn % PAIRS, ("first", "second", "tie")[turn % 3])
            failed.extend([status] if status != 200 else [])

    threads = [threading.Thread(target=vote_often, args=(rater,)) for rater in raters]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert {rater: len(votes(server)[rater]) for rater in raters} == dict.fromkeys(raters, PAIRS)


def test_it_listens_on_this_machine_alone(server: Server) -> None:
    # Another address of the loopback network: a server bound to all addresses would answer it.
    with pytest.raises(OSError, match=r"refused|unreachable|timed out|assign"):
        socket.create_connection(("127.0.0.2", server.port), timeout=5)


def test_every_vote_that_was_acknowledged_outlives_a_kill(tmp_path: Path) -> None:
    sources, study = folders(tmp_path, PAIRS), tmp_path / "study"
    acknowledged: list[tuple[int, str]] = []
    with serving(sources, study) as server:
        session = server.session("ann")

        def vote_on() -> None:
            for turn in range(10_000):
                choice = ("tie", "first", "second")[turn % 3]
                try:
                    if server.vote(session, turn % PAIRS, choice) == 200:
                        acknowledged.append((turn % PAIRS, choice))
                except OSError:
                    return

        thread = threading.Thread(target=vote_on)
        thread.start()
        while len(acknowledged) < 40:
            thread.join(0.001)
        server.stop(signal.SIGKILL)
        thread.join()
    lines = (study / "votes.jsonl").read_bytes().splitlines()
    # One more may have been written whose answer did not arrive.
    assert len(acknowledged) <= len(lines) <= len(acknowledged) + 1
    assert [json.loads(line)["pair"] for line in lines[: len(acknowledged)]] == [pair for pair, _ in acknowledged]
    with (study / "votes.jsonl").open("ab") as file:
        file.write(b'{"rater": "ann", "pa')
    with serving(sources, study) as server:
        assert "the last line was cut short" in server.said[0]
        assert server.session("ann")["session"] == session["session"]
        ended = server.stop()
    assert ended.startswith("ann: 3 of 3 pairs: ")
    assert "Traceback" not in ended
    assert len((study / "votes.jsonl").read_bytes().splitlines()) == len(lines)


def test_a_second_server_on_the_same_votes_is_refused(tmp_path: Path) -> None:
    sources, study = folders(tmp_path, PAIRS), tmp_path / "study"
    with (
        serving(sources, study),
        pytest.raises(AssertionError, match=r"RunError: .*another t2i label has it open"),
        serving(sources, study),
    ):
        raise ValueError("two processes would not know of each other's votes")
