"""Captions from a server that fails, hangs, cuts and babbles, asked by a client that is killed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import tiny
from PIL import Image
from stub_server import KEY, Fault, caption_of, issue_faults, serve

from t2i.captioners import EndpointCaptioner, FuseCaptioner, Refusal
from t2i.data.sources import load_records, save_records
from t2i.engine import fingerprint, identity
from t2i.errors import DataError, ModelError
from t2i.records import Caption, CaptionedImage
from t2i.resources import ContentHashes
from t2i.stages.caption import CaptionStage

IMAGES = int(os.environ.get("T2I_ENDPOINT_IMAGES", "1000"))
PARALLEL = 16
TESTS = Path(__file__).parents[1]
PATHS = os.pathsep.join([str(TESTS.parent), str(TESTS)])
CLIENT = """
import json, sys
from pathlib import Path
import tiny
from t2i.stages.caption import CaptionStage
print(json.dumps(tiny.run_stage(CaptionStage, Path(sys.argv[1]), json.loads(sys.argv[2]))))
"""


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STUB_KEY", KEY)


def colour(number: int) -> tuple[int, int, int]:
    return number % 256, number // 256, 7


def write_images(folder: Path, count: int) -> Path:
    folder.mkdir(parents=True)
    for number in range(count):
        Image.new("RGB", (8, 8), colour(number)).save(folder / f"{number:04d}.png")
    return folder


def settings(url: str, **fields: object) -> dict[str, Any]:
    own = {"type": "endpoint", "url": url, "model": "stub", "key_env": "STUB_KEY", "parallel": PARALLEL}
    return own | {"timeout_s": 1.5, "attempts": 8, "backoff_s": 0.001} | fields


def finished(folder: Path) -> set[str]:
    """Images whose captions are in a journal or shard, by the server's words."""
    texts = set()
    for path in [*folder.glob("shards/*.journal"), *folder.glob("shards/*.jsonl")]:
        for line in path.read_bytes().splitlines(keepends=True):
            values = json.loads(line) if line.endswith(b"\n") else {}
            answer = values[2] if isinstance(values, list) else values
            texts |= {caption["text"] for caption in answer.get("captions", ())}
    return texts


def written(folder: Path) -> dict[str, bytes]:
    """What a finished stage left."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_every_image_ends_with_one_good_caption_or_a_reason_whatever_happens(tmp_path: Path) -> None:
    source, folder = write_images(tmp_path / "images", IMAGES), tmp_path / "run/caption"
    with serve(issue_faults) as stub:
        fields = {"data": {"type": "folder", "path": str(source)}, "captioner": settings(stub.url)}
        for last_call in (350, 800, None):
            known, before = finished(folder), len(stub.asked)
            code = [sys.executable, "-c", CLIENT, str(folder), json.dumps(fields)]
            client = subprocess.Popen(code, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": PATHS})
            if last_call is not None:
                stub.kill_at[last_call] = client.pid
            output, _ = client.communicate()
            assert client.returncode == (0 if last_call is None else -9)
            # Nothing that was finished before this run is asked in it.
            assert not known & set(stub.asked[before:])
            assert last_call is None or len(finished(folder)) > len(known) + 200
        facts = json.loads(output)
    rows = load_records(folder / "records.jsonl")
    refused = [json.loads(line) for line in (folder / "refused.jsonl").read_text().splitlines()]
    assert facts == {"images": IMAGES, "captioned": IMAGES - len(refused), "refused": len(refused)}
    for row in rows:
        expected = caption_of(colour(int(Path(row.image).stem)))
        assert [(caption.kind, caption.text) for caption in row.captions] in ([], [("dense", expected)])
    assert sum(not row.captions for row in rows) == len(refused)
    # Cut captions are listed with what there is of them, and nothing else is refused.
    assert {row["reason"] for row in refused} == {"cut at max_tokens (finish_reason length)"}
    assert all(row["text"] == "A wall in" for row in refused)
    assert 0.005 * IMAGES < len(refused) < 0.04 * IMAGES
    # Only what was on its way when the client was killed was answered twice.
    assert sum(times - 1 for times in stub.answered.values()) <= 2 * PARALLEL + stub.calls // 100
    everything = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert all(KEY.encode() not in path.read_bytes() for path in everything)


def test_origin_says_what_was_asked_of_whom(tmp_path: Path) -> None:
    source = write_images(tmp_path / "images", 2)
    rows = [CaptionedImage(str(n), str(source / f"{n:04d}.png"), 8, 8, (Caption("alt", 'a "red"'),)) for n in range(2)]
    fields = {"kind": "short", "licence": "MIT", "max_side_px": 16, "wording": {"show_alt": True}}
    with serve() as stub:
        answers = tiny.captions(tiny.from_recipe(EndpointCaptioner, settings(stub.url, **fields)), rows)
    [(first,), _] = answers
    assert isinstance(first, Caption)
    assert (first.kind, first.text, first.source) == ("short", caption_of(colour(0)), "stub")
    assert first.origin is not None
    assert (first.origin.licence, first.origin.finish_reason, first.origin.view) == ("MIT", "stop", "8x8 of 8x8")
    assert first.origin.decoding == {"temperature": 0.0, "max_tokens": 256.0}
    assert 'a \\"red\\"' in first.origin.prompt
    assert first.origin.prompt == stub.texts[0]
    assert len(first.origin.prompt_sha256) == 64


def captions(tmp_path: Path, fault: Fault, count: int = 3, **fields: object) -> list[Any]:
    source = write_images(tmp_path / "images", count)
    rows = [CaptionedImage(str(n), str(source / f"{n:04d}.png"), 8, 8) for n in range(count)]
    with serve(fault) as stub:
        return tiny.captions(tiny.from_recipe(EndpointCaptioner, settings(stub.url, **fields)), rows)


def test_a_cut_reply_is_kept_up_to_its_last_sentence_only_if_asked(tmp_path: Path) -> None:
    answers = captions(tmp_path, lambda call: "cut", wording={"when_cut": "trim"})
    # The stub cuts inside the first sentence: nothing is whole.
    assert all(isinstance(answer, Refusal) and answer.text == "A wall in" for answer in answers)


def test_one_image_that_the_server_refuses_is_a_reason_and_not_an_error(tmp_path: Path) -> None:
    answers = captions(tmp_path, lambda call: "refuses" if call == 1 else "", parallel=1)
    assert [isinstance(answer, Refusal) for answer in answers] == [False, True, False]
    assert "refused (400" in answers[1].reason


def test_a_server_that_never_answers_is_an_error_and_nothing_counts_as_done(tmp_path: Path) -> None:
    source = write_images(tmp_path / "images", 40)
    data = {"type": "folder", "path": str(source)}
    with serve(lambda call: "fails" if call < 1000 else "") as stub:
        fields = {"data": data, "captioner": settings(stub.url, attempts=2)}
        with pytest.raises(ModelError, match="20 requests in a row got no answer"):
            tiny.run_stage(CaptionStage, tmp_path / "run/caption", fields)
        stub.calls = 1000
        assert tiny.run_stage(CaptionStage, tmp_path / "run/caption", fields)["captioned"] == 40
    assert Counter(stub.answered.values()) == {1: 40}


def test_refusals_in_a_row_are_no_dead_server(tmp_path: Path) -> None:
    """After too many only such requests are left to ask, and the limit may be raised without asking all again."""
    source = write_images(tmp_path / "images", 30)
    data = {"type": "folder", "path": str(source)}
    with serve(lambda call: "refuses") as stub:
        fields = {"data": data, "captioner": settings(stub.url, attempts=2), "max_refused": 0.5}
        for _ in range(2):
            with pytest.raises(DataError, match="30 of 30 images got no caption"):
                tiny.run_stage(CaptionStage, tmp_path / "run/caption", fields)
        assert stub.calls == 60
    stages = [tiny.from_recipe(CaptionStage, {**fields, "max_refused": limit}) for limit in (0.5, 0.9)]
    first, second = (fingerprint(identity(stage, 1, {}, ContentHashes())[0]) for stage in stages)
    assert first == second


def test_a_server_that_is_not_there_is_an_error_for_the_last_few_too(tmp_path: Path) -> None:
    with serve() as stub:
        url = stub.url
    rows = [CaptionedImage(str(n), str(write_images(tmp_path / str(n), 1) / "0000.png"), 8, 8) for n in range(3)]
    with pytest.raises(ModelError, match=r"no answer in 2 attempts .*refused.*Mend that and run again"):
        tiny.captions(tiny.from_recipe(EndpointCaptioner, settings(url, attempts=2)), rows)


def test_an_account_without_credit_is_an_error_and_answers_are_kept(tmp_path: Path) -> None:
    source = write_images(tmp_path / "images", 10)
    with serve(lambda call: "broke" if call == 4 else "") as stub:
        fields = {"data": {"type": "folder", "path": str(source)}, "captioner": settings(stub.url, parallel=1)}
        with pytest.raises(ModelError, match=r"refused \(402 .*credit\. Mend that and run again"):
            tiny.run_stage(CaptionStage, tmp_path / "run/caption", fields)
        stub.fault = lambda call: ""
        before = stub.calls
        assert tiny.run_stage(CaptionStage, tmp_path / "run/caption", fields)["captioned"] == 10
        assert stub.calls == before + 6
    assert set(stub.answered.values()) == {1}


def test_a_server_silent_about_all_of_the_last_shard_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("t2i.stages.caption.SHARD_SIZE", 8)
    source = write_images(tmp_path / "images", 12)
    with serve(lambda call: "fails" if 8 <= call < 12 else "") as stub:
        fields = {"data": {"type": "folder", "path": str(source)}, "captioner": settings(stub.url, attempts=1)}
        with pytest.raises(ModelError, match="4 requests in a row got no answer"):
            tiny.run_stage(CaptionStage, tmp_path / "run/caption", fields)
        assert stub.calls == 12
        assert tiny.run_stage(CaptionStage, tmp_path / "run/caption", fields)["captioned"] == 12
        assert stub.calls == 16


def test_one_image_about_which_the_server_is_silent_is_a_reason_and_not_an_error(tmp_path: Path) -> None:
    [answer] = captions(tmp_path, lambda call: "fails", count=1, attempts=2)
    assert isinstance(answer, Refusal)
    assert "no answer in 2 attempts" in answer.reason


@pytest.mark.parametrize("came_with", [(), (Caption("dense", "An old one."),)])
def test_only_the_refused_images_of_a_finished_stage_are_asked_again(
    tmp_path: Path, came_with: tuple[Caption, ...]
) -> None:
    source, first = write_images(tmp_path / "images", 3), tmp_path / "run/first"
    first.mkdir(parents=True)
    images = [str(source / f"{number:04d}.png") for number in range(3)]
    save_records(first, [CaptionedImage(str(n), image, 8, 8, came_with) for n, image in enumerate(images)])

    def run(name: str, **fields: object) -> dict[str, Any]:
        asked = {"captioner": settings(stub.url, parallel=1), **fields}
        return tiny.run_stage(CaptionStage, tmp_path / "run" / name, asked, {"data_from": first})

    with serve(lambda call: "cut" if call == 1 else "") as stub:
        assert run("mended")["refused"] == 1
        assert run("mended", max_refused=0) == {"images": 3, "captioned": 3, "refused": 0}
        assert stub.asked == [caption_of(colour(number)) for number in (0, 1, 2, 1)]
        run("whole")
    assert written(tmp_path / "run/mended") == written(tmp_path / "run/whole")


def test_a_stage_that_ended_before_its_marker_asks_for_nothing(tmp_path: Path) -> None:
    source, folder = write_images(tmp_path / "images", 3), tmp_path / "run/caption"
    with serve() as stub:
        fields = {"data": {"type": "folder", "path": str(source)}, "captioner": settings(stub.url)}
        facts = tiny.run_stage(CaptionStage, folder, fields)
        before = written(folder)
        assert tiny.run_stage(CaptionStage, folder, fields) == facts
        assert (written(folder), stub.calls) == (before, 3)


@pytest.mark.parametrize("change", ["id", "count", "broken"])
def test_written_records_that_do_not_fit_are_asked_for_again(tmp_path: Path, change: str) -> None:
    source, folder = write_images(tmp_path / "images", 3), tmp_path / "run/caption"
    with serve() as stub:
        fields = {"data": {"type": "folder", "path": str(source)}, "captioner": settings(stub.url)}
        tiny.run_stage(CaptionStage, folder, fields)
        before = written(folder)
        lines = (folder / "records.jsonl").read_text().splitlines(keepends=True)
        others = {"id": lines[0].replace('"id": "', '"id": "0'), "count": "", "broken": "{\n"}
        (folder / "records.jsonl").write_text("".join([others[change], *lines[1:]]))
        tiny.run_stage(CaptionStage, folder, fields)
        assert (written(folder), stub.calls) == (before, 3 + (1 if change == "id" else 3))


def test_the_name_of_the_variable_with_the_key_decides_nothing(tmp_path: Path) -> None:
    data = {"type": "folder", "path": str(write_images(tmp_path / "images", 1))}
    captioners = [settings("http://localhost:1/v1", key_env=name) for name in ("STUB_KEY", "OTHER_KEY", None)]
    stages = [tiny.from_recipe(CaptionStage, {"data": data, "captioner": captioner}) for captioner in captioners]
    assert len({fingerprint(identity(stage, 1, {}, ContentHashes())[0]) for stage in stages}) == 1


def test_too_many_refused_are_asked_again_by_the_next_run_and_the_others_are_not(tmp_path: Path) -> None:
    source = write_images(tmp_path / "images", 30)
    data = {"type": "folder", "path": str(source)}
    with serve(lambda call: "cut" if call % 3 == 0 and call < 30 else "") as stub:
        fields = {"data": data, "captioner": settings(stub.url), "max_refused": 0}
        with pytest.raises(DataError, match="10 of 30 images got no caption"):
            tiny.run_stage(CaptionStage, tmp_path / "run/caption", fields)
        assert stub.calls == 30
        assert tiny.run_stage(CaptionStage, tmp_path / "run/caption", fields)["captioned"] == 30
        assert stub.calls == 40


def test_missing_key_is_an_error_that_names_the_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("STUB_KEY")
    with pytest.raises(DataError, match="environment variable STUB_KEY is not set"):
        captions(tmp_path, lambda call: "")


def test_fused_caption_knows_its_parents(tmp_path: Path) -> None:
    alt, dense = Caption("alt", "Rome\nin 1904"), Caption("dense", "a street with a tram")
    rows = [CaptionedImage("1", "none.png", 8, 8, (dense, alt)), CaptionedImage("2", "none.png", 8, 8, (alt,))]
    with serve() as stub:
        endpoint = settings(stub.url)
        fields = {"type": "fuse", "model": endpoint}
        answers = tiny.captions(tiny.from_recipe(FuseCaptioner, fields), rows)
    fused, lacking = answers
    assert isinstance(fused, tuple)
    [caption] = fused
    assert (caption.kind, caption.text) == ("fused", "A fused caption.")
    assert caption.origin is not None
    assert caption.origin.parents == (alt.id, dense.id)
    # One line each, the most trusted last.
    assert stub.texts[0].endswith('1. "Rome\\nin 1904"\n2. "a street with a tram"')
    assert isinstance(lacking, Refusal)
    assert lacking.reason == "no caption of kind dense to join"


def test_best_ranked_captions_are_fused(tmp_path: Path) -> None:
    scored = [Caption("dense", f"text {n}", scores={"clip": value}) for n, value in enumerate((0.2, 0.9, 0.1, 0.5))]
    row = CaptionedImage("1", "none.png", 8, 8, tuple(scored))
    fields = {"type": "fuse", "kinds": ["dense"], "best": 2, "ranked_by": "clip"}
    model = settings("http://localhost:1/v1")
    fuse = tiny.from_recipe(FuseCaptioner, {**fields, "model": model})
    assert fuse.parents(row) == [scored[3], scored[1]]
    assert isinstance(fuse.parents(CaptionedImage("1", "", 8, 8, (Caption("dense", "x"),))), Refusal)
