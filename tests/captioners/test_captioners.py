"""Captioners answer for every record, with a caption or with the reason why there is none."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny
from PIL import Image

from t2i.captioners import FilesCaptioner, Refusal, ShapesCaptioner
from t2i.records import Caption, CaptionedImage


def record(path: Path) -> CaptionedImage:
    return CaptionedImage(path.name, str(path), 8, 8)


def read(folder: Path, data: bytes | None, **fields: object) -> Caption | Refusal:
    """What the sidecar of one picture says."""
    if data is not None:
        (folder / "a.b.txt").write_bytes(data)
    [answer] = tiny.from_recipe(FilesCaptioner, {"type": "files", **fields}).caption([record(folder / "a.b.jpg")])
    return answer


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"a cat", "a cat"),
        (b"  a cat\r\n\n", "a cat"),
        (b"\xef\xbb\xbfa cat\n", "a cat"),
        ("eine Katze, Größe 3, 猫\n".encode(), "eine Katze, Größe 3, 猫"),
    ],
)
def test_sidecar_is_the_caption(tmp_path: Path, data: bytes, text: str) -> None:
    assert read(tmp_path, data) == Caption("caption", text, "file:.txt")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (None, r"no caption file a\.b\.txt"),
        (b"", r"a\.b\.txt is empty"),
        (b" \n\t\n", r"a\.b\.txt is empty"),
        (b"a cat\na dog\n", r"a\.b\.txt has 2 lines; expected one"),
        (b"a cat\ra dog", r"a\.b\.txt has 2 lines"),
        (b"caf\xe9", r"a\.b\.txt cannot be read as UTF-8"),
    ],
)
def test_sidecar_that_is_no_caption_is_refused(tmp_path: Path, data: bytes | None, reason: str) -> None:
    answer = read(tmp_path, data)
    assert isinstance(answer, Refusal)
    assert reason.replace("\\", "") in answer.reason


def test_sidecar_that_is_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.b.txt").mkdir()
    assert isinstance(read(tmp_path, None), Refusal)


def test_kind_and_ending_are_the_recipes(tmp_path: Path) -> None:
    (tmp_path / "a.b.caption").write_text("a cat")
    assert read(tmp_path, None, kind="dense", extension=".caption") == Caption("dense", "a cat", "file:.caption")


def test_answers_come_in_the_order_of_the_records(tmp_path: Path) -> None:
    tiny.write_photographs(tmp_path)
    rows = [record(tmp_path / f"{name}.png") for name in ("moon", "none", "chelsea")]
    answers = FilesCaptioner().caption(rows)
    assert [getattr(answer, "text", None) for answer in answers] == ["the moon", None, "a cat"]


def test_shapes_captioner_reads_the_picture_not_the_record(tmp_path: Path) -> None:
    from t2i.shapes import describe, render, sample_scene

    scenes = [sample_scene(3, index, "train", max_objects=2) for index in range(4)]
    for index, scene in enumerate(scenes):
        render(scene).save(tmp_path / f"{index}.png")
    Image.effect_noise((64, 64), 90).convert("RGB").save(tmp_path / "noise.png")
    rows = [record(tmp_path / f"{name}.png") for name in (2, 0, "noise")]
    second, first, noise = ShapesCaptioner(kind="dense").caption(rows)
    assert second == Caption("dense", describe(scenes[2], "dense"), "shapes-judge")
    assert first == Caption("dense", describe(scenes[0], "dense"), "shapes-judge")
    assert isinstance(noise, Refusal)
    assert noise.reason.startswith("the judge is unsure")
