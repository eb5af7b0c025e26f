"""The caption stage: every image with its captions, and a list of those that got none."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
from PIL import Image
from pydantic import ValidationError

from t2i import engine
from t2i.data.sources import load_records, save_records
from t2i.errors import ConfigError, DataError
from t2i.recipe import Recipe
from t2i.records import Caption, CaptionedImage
from t2i.stages.base import InspectContext
from t2i.stages.caption import SHARD_SIZE, CaptionStage


def run(folder: Path, source: Path, **fields: object) -> dict[str, Any]:
    data = {"type": "folder", "path": str(source)}
    return tiny.run_stage(CaptionStage, folder, {"data": data, "captioner": {"type": "files"}, **fields})


def refused(folder: Path) -> dict[str, str]:
    rows = [json.loads(line) for line in (folder / "refused.jsonl").read_text().splitlines()]
    return {Path(row["image"]).name: row["reason"] for row in rows}


def test_every_image_gets_its_own_caption(tmp_path: Path) -> None:
    source = tiny.write_photographs(tmp_path / "photographs")
    facts = run(tmp_path / "run/caption", source)
    assert facts == {"images": 6, "captioned": 6, "refused": 0}
    rows = load_records(tmp_path / "run/caption/records.jsonl")
    assert {Path(row.image).stem: row.caption("caption") for row in rows} == tiny.PHOTOGRAPHS
    assert refused(tmp_path / "run/caption") == {}


@pytest.mark.parametrize("captioner", [None, {"type": "files"}])
def test_pictures_of_formats_that_are_not_read_are_told(tmp_path: Path, captioner: dict[str, str] | None) -> None:
    source = tiny.write_photographs(tmp_path / "photographs", count=2)
    (source / "loop.gif").write_bytes(b"")
    facts = run(tmp_path / "run/caption", source, captioner=captioner)
    assert facts["summary"] == [f"1 pictures are of formats that are not read: {source}/loop.gif"]
    stage = CaptionStage.model_validate({"data": {"type": "folder", "path": str(source)}, "captioner": captioner})
    assert stage.inspect(InspectContext({}, 0)) == {"images": 2, "not read": [f"{source}/loop.gif"]}


def test_images_without_a_usable_sidecar_are_listed_and_kept(tmp_path: Path) -> None:
    source = tiny.write_photographs(tmp_path / "photographs")
    (source / "moon.txt").unlink()
    (source / "camera.txt").write_text("")
    (source / "coffee.txt").write_text("a cup\na dog\n")
    (source / "rocket.txt").write_bytes(b"caf\xe9")
    folder = tmp_path / "run/caption"
    assert run(folder, source) == {"images": 6, "captioned": 2, "refused": 4}
    assert set(refused(folder)) == {"moon.png", "camera.png", "coffee.png", "rocket.png"}
    rows = load_records(folder / "records.jsonl")
    assert sorted(Path(row.image).stem for row in rows if not row.captions) == ["camera", "coffee", "moon", "rocket"]


@pytest.mark.parametrize(("max_refused", "passes"), [(0, False), (0.16, False), (0.17, True), (1, True)])
def test_share_of_refused_images_is_bounded(tmp_path: Path, max_refused: float, passes: bool) -> None:
    source = tiny.write_photographs(tmp_path / "photographs")
    (source / "moon.txt").unlink()
    folder = tmp_path / "run/caption"
    if passes:
        assert run(folder, source, max_refused=max_refused)["refused"] == 1
        return
    with pytest.raises(DataError, match=r"(?s)1 of 6 images got no caption:.*moon\.png: no caption file moon\.txt"):
        run(folder, source, max_refused=max_refused)
    assert list(refused(folder)) == ["moon.png"]
    assert not (folder / "records.jsonl").exists()


def test_no_caption_at_all_is_an_error_however_many_may_be_refused(tmp_path: Path) -> None:
    source = tiny.write_photographs(tmp_path / "photographs", count=2)
    for path in source.glob("*.txt"):
        path.unlink()
    with pytest.raises(DataError, match="2 of 2 images got no caption"):
        run(tmp_path / "run/caption", source, max_refused=1)


def test_new_caption_replaces_that_of_its_kind_and_leaves_the_others(tmp_path: Path) -> None:
    source = tiny.write_photographs(tmp_path / "photographs", count=1)
    captions = (Caption("alt", "old alt"), Caption("caption", "old"))
    row = CaptionedImage("1", str(source / "astronaut.png"), 64, 64, captions, {"url": "x"})
    (tmp_path / "run/first").mkdir(parents=True)
    save_records(tmp_path / "run/first", [row])
    fields = {"captioner": {"type": "files"}}
    tiny.run_stage(CaptionStage, tmp_path / "run/caption", fields, {"data_from": tmp_path / "run/first"})
    [found] = load_records(tmp_path / "run/caption/records.jsonl")
    text = tiny.PHOTOGRAPHS["astronaut"]
    assert found.captions == (Caption("alt", "old alt"), Caption("caption", text, "file:.txt"))
    assert found.extra == {"url": "x"}


def test_alt_text_is_never_replaced(tmp_path: Path) -> None:
    source = tiny.write_photographs(tmp_path / "photographs", count=2)
    run(tmp_path / "run/first", source, captioner={"type": "files", "kind": "alt"})
    fields = {"captioner": {"type": "files", "kind": "alt"}}
    with pytest.raises(ConfigError, match=r"astronaut\.png has an alt text, which is never replaced"):
        tiny.run_stage(CaptionStage, tmp_path / "run/caption", fields, {"data_from": tmp_path / "run/first"})


def test_stage_run_twice_writes_the_same_bytes(tmp_path: Path) -> None:
    data = {"type": "shapes", "count": 70, "max_objects": 2}
    fields = {"data": data, "captioner": {"type": "shapes", "kind": "dense"}}
    written = []
    for _ in range(2):
        facts = tiny.run_stage(CaptionStage, tmp_path / "run/caption", fields)
        assert facts["captioned"] == 70
        written.append((tmp_path / "run/caption/records.jsonl").read_bytes())
    assert written[0] == written[1]
    rows = load_records(tmp_path / "run/caption/records.jsonl")
    assert all([caption.kind for caption in row.captions] == ["alt", "dense"] for row in rows)
    assert all(Path(row.image).is_file() for row in rows)


def test_images_may_be_collected_without_a_captioner(tmp_path: Path) -> None:
    source = tiny.write_photographs(tmp_path / "photographs")
    rows = "".join(json.dumps({"file_name": f"{n}.png", "text": t}) + "\n" for n, t in tiny.PHOTOGRAPHS.items())
    (source / "metadata.jsonl").write_text(rows)
    data = {"type": "metadata", "path": str(source), "captions": {"text": "alt"}}
    assert tiny.run_stage(CaptionStage, tmp_path / "run/caption", {"data": data}) == {"images": 6}
    found = load_records(tmp_path / "run/caption/records.jsonl")
    assert {Path(row.image).stem: row.caption("alt") for row in found} == tiny.PHOTOGRAPHS


def test_number_of_workers_does_not_change_a_byte(tmp_path: Path) -> None:
    source = tmp_path / "run/photographs"
    source.mkdir(parents=True)
    for number in range(SHARD_SIZE + 40):
        Image.new("RGB", (8, 8), (number % 256, number // 256, 0)).save(source / f"{number:03d}.bmp")
        (source / f"{number:03d}.txt").write_text(f"picture {number}" if number % 7 else "")
    for workers in (1, 2):
        facts = run(tmp_path / f"run/{workers}", source, workers=workers)
        assert facts == {"images": 296, "captioned": 253, "refused": 43}
    names = sorted(path.name for path in (tmp_path / "run/1").iterdir())
    assert names == ["records.jsonl", "refused.jsonl"]
    assert all((tmp_path / "run/1" / name).read_bytes() == (tmp_path / "run/2" / name).read_bytes() for name in names)


ENDPOINT = {"type": "endpoint", "url": "http://localhost:1/v1", "model": "m"}


@pytest.mark.parametrize("wrap", [lambda model: model, lambda model: {"type": "fuse", "model": model}])
def test_a_rate_limit_is_that_of_one_process(wrap: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    limited = wrap({**ENDPOINT, "requests_per_minute": 60})
    data = {"type": "folder", "path": "x"}
    with pytest.raises(ValidationError, match=r"each of 4 processes would send its own requests_per_minute \(60\)"):
        tiny.from_recipe(CaptionStage, {"data": data, "captioner": limited, "workers": 4})
    tiny.from_recipe(CaptionStage, {"data": data, "captioner": limited})
    tiny.from_recipe(CaptionStage, {"data": data, "captioner": wrap(ENDPOINT), "workers": 4})


def test_caption_files_are_read_anew_by_every_run(tmp_path: Path) -> None:
    source = tiny.write_photographs(tmp_path / "photographs", count=1)
    run(tmp_path / "run/caption", source)
    (source / "astronaut.txt").write_text("another text")
    run(tmp_path / "run/caption", source)
    [row] = load_records(tmp_path / "run/caption/records.jsonl")
    assert row.texts("caption") == ("another text",)


def test_exactly_one_source_of_images() -> None:
    data = {"type": "folder", "path": "x"}
    for fields in ({}, {"data": data, "data_from": "caption"}):
        with pytest.raises(ValidationError, match="exactly one of `data`"):
            tiny.from_recipe(CaptionStage, {"captioner": {"type": "files"}, **fields})


def test_captions_beside_the_images_of_records_are_refused(tmp_path: Path) -> None:
    """Their files are no part of what decides whether the stage runs again."""
    fields = {"data": {"type": "records", "path": "r.jsonl"}, "captioner": {"type": "files"}}
    with pytest.raises(ValidationError, match="are not watched; read their folder"):
        tiny.from_recipe(CaptionStage, fields)


@pytest.mark.parametrize("between", ["", "  - {type: filter, data_from: collect, min_side: 1}\n"])
def test_captions_beside_the_images_of_records_are_refused_through_other_stages_too(
    tmp_path: Path, between: str
) -> None:
    (tmp_path / "r.jsonl").write_text("")
    source = "filter" if between else "collect"
    text = (
        f"stages:\n  - {{type: caption, name: collect, data: {{type: records, path: {tmp_path}/r.jsonl}}}}\n{between}"
        f"  - {{type: caption, data_from: {source}, captioner: {{type: files}}}}\n"
    )
    (tmp_path / "demo.yaml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        Recipe.load(tmp_path / "demo.yaml")
    [line] = str(caught.value).splitlines()
    assert line.startswith(f"{tmp_path}/demo.yaml:{4 if between else 3}  caption.captioner: files beside the images of")


def test_what_was_finished_with_more_refused_images_is_not_finished(tmp_path: Path) -> None:
    source = tiny.write_photographs(tmp_path / "photographs", count=3)
    text = (source / "astronaut.txt").read_text()
    (source / "astronaut.txt").unlink()
    data = f"{{type: folder, path: {source}}}"
    (tmp_path / "demo.yaml").write_text(f"stages: [{{type: caption, data: {data}, captioner: {{type: files}}}}]")
    runs = tmp_path / "runs"
    engine.run(Recipe.load(tmp_path / "demo.yaml"), runs)
    strict = Recipe.load(tmp_path / "demo.yaml", ["caption.max_refused=0"])
    [planned] = engine.plan(strict, runs)
    assert (planned.status, planned.reason) == (
        "resume",
        "was finished, but 1 of 3 images got no caption, and max_refused is 0",
    )
    with pytest.raises(DataError, match="1 of 3 images got no caption"):
        engine.run(strict, runs)
    assert [item.status for item in engine.run(Recipe.load(tmp_path / "demo.yaml"), runs)] == ["resume"]
    assert [item.status for item in engine.plan(Recipe.load(tmp_path / "demo.yaml"), runs)] == ["skip"]
    (source / "astronaut.txt").write_text(text)
    engine.run(strict, runs)
    assert [item.status for item in engine.plan(strict, runs)] == ["skip"]
