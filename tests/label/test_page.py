"""The page as a person uses it, in a real headless Chromium; skipped where there is none."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import chromium
import pytest
from painted_pairs import Server, folders, serving

pytestmark = pytest.mark.skipif(bool(chromium.missing()), reason=f"no browser to drive: {chromium.missing()}")

READY = "!state.isBusy && (state.isShown || !document.getElementById('end').hidden)"
COLOURS = """[...document.querySelectorAll('.card img')].map((image) => {
  const canvas = document.createElement('canvas');
  const context = canvas.getContext('2d');
  context.drawImage(image, 0, 0);
  const [red, , blue] = context.getImageData(0, 0, 1, 1).data;
  return red > blue ? 'left' : 'right';
})"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[chromium.Browser]:
    with chromium.chromium(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


def begin(browser: chromium.Browser, server: Server, rater: str) -> None:
    browser.open(f"http://127.0.0.1:{server.port}/")
    browser.until("document.activeElement?.id === 'name'")
    browser.press(rater + chromium.KEYS["enter"])
    browser.until(READY)


def press(browser: chromium.Browser, keys: str) -> None:
    for key in keys:
        browser.press(key)
        browser.until(READY)


def rows(study: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (study / "votes.jsonl").read_text().splitlines()]


def test_two_raters_choose_look_back_resume_and_see_their_agreement(tmp_path: Path, browser: chromium.Browser) -> None:
    sources, study = folders(tmp_path, 4), tmp_path / "study"
    with serving(sources, study) as server:
        begin(browser, server, "ann")
        assert browser.run("document.getElementById('prompt').innerText").startswith("prompt <b>")
        seen = []
        for key in "12t":
            seen.append(browser.run(COLOURS))
            assert set(seen[-1]) == {"left", "right"}
            press(browser, key)
        assert [row["choice"] for row in rows(study)] == [seen[0][0], seen[1][1], "tie"]
        assert [row["first"] for row in rows(study)] == [colours[0] for colours in seen]

        press(browser, chromium.KEYS["left"])
        assert browser.run("document.querySelector('nav .chosen').id") == "tie"
        press(browser, "1")
        assert [row["pair"] for row in rows(study)][2:] == [rows(study)[2]["pair"]] * 2

        begin(browser, server, "ann")
        assert browser.run("document.getElementById('count').innerText") == "3 of 4 pairs judged"
        press(browser, "s")
        assert "1 skipped" in browser.run("document.getElementById('end-count').innerText")
        browser.click("#again")
        browser.until(READY)
        press(browser, "2")
        assert len(rows(study)) == 6

        begin(browser, server, "bob")
        order = browser.run("state.items.map((item) => item.pair)")
        assert sorted(order) == [0, 1, 2, 3]
        for _ in order:
            browser.click("#first")
            browser.until(READY)
        ours = {row["pair"]: row["choice"] for row in rows(study) if row["rater"] == "ann"}
        theirs = {row["pair"]: row["choice"] for row in rows(study) if row["rater"] == "bob"}
        same = 25 * sum(ours[pair] == theirs[pair] for pair in order)
        assert f"ann, bob\t4\t{same} %" in browser.until("document.querySelector('#end table')?.innerText")
        assert [said for said in browser.console() if str(server.port) in said] == []


def test_a_vote_outlives_a_server_that_is_gone_and_comes_back(tmp_path: Path, browser: chromium.Browser) -> None:
    sources, study = folders(tmp_path), tmp_path / "study"
    with serving(sources, study) as server:
        begin(browser, server, "ann")
        port = server.port
        server.stop()
    browser.press("1")
    assert "Not saved yet" in browser.until("document.getElementById('trouble').innerText")
    assert browser.run("state.at") == 0
    browser.press("2")
    with serving(sources, study, "--port", str(port)):
        browser.until(READY)
        assert [row["choice"] for row in rows(study)] == [rows(study)[0]["first"]]
        assert browser.run("document.getElementById('trouble').hidden")


def test_a_page_of_other_pairs_cannot_vote(tmp_path: Path, browser: chromium.Browser) -> None:
    sources = folders(tmp_path)
    with serving(sources, tmp_path / "study") as server:
        begin(browser, server, "ann")
        port = server.port
        server.stop()
    with serving(sources[::-1], tmp_path / "other", "--port", str(port)):
        browser.press("1")
        said = browser.until("document.getElementById('trouble').innerText")
        assert said == "Not saved: this page was opened for other pairs; reload it."
        assert rows(tmp_path / "other") == []


def test_another_site_in_the_browser_can_neither_read_nor_vote(tmp_path: Path, browser: chromium.Browser) -> None:
    with serving(folders(tmp_path), tmp_path / "study") as server:
        own = f"http://127.0.0.1:{server.port}"
        session = server.session("ann")
        vote = {"rater": "ann", "session": session["session"], "pair": 0, "choice": "first", "seconds": 1}
        body = json.dumps(vote)
        # Another origin, as another site has: a page without one of its own.
        browser.open("data:text/html,<title>evil</title>")
        browser.run(
            f"""(window.found = [], ['text/plain', 'application/json'].forEach((type) => {{
              fetch('{own}/votes', {{method: 'POST', mode: type === 'text/plain' ? 'no-cors' : 'cors',
                headers: {{'Content-Type': type}}, body: {json.dumps(body)}}})
                .then((answer) => found.push(answer.type), () => found.push('refused'));
            }}), fetch('{own}/session?rater=ann').then(() => found.push('read'), () => found.push('refused')), 0)"""
        )
        browser.until("found.length === 3")
        assert "read" not in browser.run("found")
        image = f"{own}/images/{session['session']}/0/first?rater=ann"
        browser.run(f"(window.shown = '', image = new Image(), image.onload = () => shown = 'shown', "
                    f"image.onerror = () => shown = 'refused', image.src = '{image}', 0)")  # fmt: skip
        assert browser.until("shown") == "refused"
        assert rows(tmp_path / "study") == []
