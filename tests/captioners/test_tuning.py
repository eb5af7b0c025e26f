"""A captioner tuned on a few captions: what it is shown, how its loss is measured, and how it goes on after a kill."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from PIL import Image
from pydantic import ValidationError

from t2i.captioners import VlmCaptioner
from t2i.captioners.chat import LocalModel, Request
from t2i.captioners.lessons import Example, Lesson, caption_loss
from t2i.captioners.opened import open_model
from t2i.captioners.tuning import CaptionerLora, TuningLoop, tune
from t2i.data.sources import load_records, save_records
from t2i.errors import ConfigError, DataError, ModelError
from t2i.records import Caption, CaptionedImage
from t2i.stages.caption import CaptionStage
from t2i.stages.tune_captioner import TuneCaptioner
from t2i.training.parallel import build_accelerator

sys.path.append(str(Path(__file__).parents[1] / "rewards"))
import vqa_tiny

pytest.importorskip("trl", reason="the extra trl is not installed")
COLOURS = {"red": "A red wall.", "navy": "Dark.", "white": "Snow, all of it."}
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@pytest.fixture(scope="module", params=["qwen", "idefics"])
def vlm(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny image-text model of a real class."""
    return getattr(vqa_tiny, request.param)(tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return vqa_tiny.qwen(tmp_path_factory.mktemp("qwen"))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Finished folder of a caption stage: three walls, each with a caption by a person and an alt text."""
    folder = tmp_path / "run/human"
    folder.mkdir(parents=True)
    rows = []
    for number, (colour, text) in enumerate(COLOURS.items()):
        Image.new("RGB", (32, 32), colour).save(folder / f"{number}.png")
        captions = (Caption("human", text), Caption("alt", f"IMG_{number}"))
        rows.append(CaptionedImage(f"{number:032x}", str(folder / f"{number}.png"), 32, 32, captions))
    save_records(folder, rows)
    return folder


def captioner(model: Path, **fields: object) -> dict[str, Any]:
    own = {"type": "vlm", "model": str(model), "dtype": "float32", "max_tokens": 24, "wording": {"prompt": "what?"}}
    return own | fields


def lesson(model: Path, data: Path) -> Lesson:
    opened = open_model(tiny.from_recipe(LocalModel, {"model": str(model), "dtype": "float32", "max_tokens": 24}))
    rows = load_records(data / "records.jsonl")
    return Lesson(opened, [Example(Request("what?", Path(row.image)), row.texts("human")[0]) for row in rows])


def tuned(folder: Path, model: Path, data: Path, steps: int = 30, **fields: object) -> dict[str, Any]:
    loop = {"steps": steps, "batch_size": 3, "learning_rate": 0.02}
    own = {"captions": "human", "captioner": captioner(model), "loop": loop, "lora": {"rank": 16, "targets": TARGETS}}
    return tiny.run_stage(TuneCaptioner, folder, {**own, "held_out": None, **fields}, {"data_from": data})


def test_labels_are_the_caption_and_its_end_and_the_request_is_that_of_captioning(vlm: Path, data: Path) -> None:
    own = lesson(vlm, data)
    batch, tokenizer = own.batch([0, 1]), own.opened.tokenizer
    asked = own.opened.inputs([("what?", Image.open(data / f"{number}.png")) for number in range(2)])
    place = asked["input_ids"].shape[1]
    # Letters are tokens, so that by hand: 11 and 5 of them, and an end each.
    for row, text in enumerate(("A red wall.", "Dark.")):
        learned = batch["labels"][row]
        wanted = [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]
        assert len(wanted) == len(text) + 1
        assert learned[learned != -100].tolist() == wanted
        assert learned[:place].eq(-100).all()
        assert batch["input_ids"][row, place : place + len(wanted)].tolist() == wanted
        assert batch["attention_mask"][row, place:].tolist() == [1] * len(wanted) + [0] * (12 - len(wanted))
    assert torch.equal(batch["input_ids"][:, :place], asked["input_ids"])
    assert torch.equal(batch["pixel_values"], asked["pixel_values"])


def test_loss_is_the_mean_over_tokens_and_padding_does_not_count(vlm: Path, data: Path) -> None:
    own = lesson(vlm, data)
    alone = []
    for number in range(3):
        batch = own.batch([number])
        with torch.no_grad():
            chances = own.opened.model(**{k: v for k, v in batch.items() if k != "labels"}).logits.log_softmax(-1)
        places = [place for place, label in enumerate(batch["labels"][0].tolist()) if label != -100]
        alone += [-chances[0, place - 1, batch["input_ids"][0, place]].item() for place in places]
    assert caption_loss(own.opened.model, own, 3) == pytest.approx(sum(alone) / len(alone), rel=1e-4)


def test_stage_asks_as_captioning_does_alt_text_and_all(qwen: Path, data: Path) -> None:
    own = captioner(qwen, wording={"prompt": "what?", "show_alt": True}) | {"kind": "short"}
    loop = {"steps": 1, "batch_size": 1, "learning_rate": 1e-4}
    fields = {"data_from": "human", "captions": "human", "captioner": own, "loop": loop}
    stage, rows = tiny.from_recipe(TuneCaptioner, fields), load_records(data / "records.jsonl")
    examples = stage.examples(rows)
    assert [example.request for example in examples] == [stage.captioner.wording.request("short", row) for row in rows]
    assert '"IMG_2"' in examples[2].request.text
    assert [example.caption for example in examples] == list(COLOURS.values())


def test_held_out_loss_is_measured_before_and_after(qwen: Path, data: Path, tmp_path: Path) -> None:
    rows = load_records(data / "records.jsonl")
    # The same walls under other ids: what is learned of one helps with its twin.
    twins = [
        CaptionedImage(f"{n + 100 * k:032x}", row.image, 32, 32, row.captions)
        for k in (1, 2)
        for n, row in enumerate(rows)
    ]
    save_records(data, twins)
    facts = tuned(tmp_path / "run/tune", qwen, data, held_out=0.3)
    assert facts["held_out_captions"] + facts["captions"] == 6
    assert facts["held_out_captions"] > 0
    assert facts["held_out_loss_after"] < 0.5 * facts["held_out_loss_before"]
    assert facts["summary"][0].startswith("loss per token of held-out captions:")
    assert not (tmp_path / "run/tune/checkpoints").exists()


def test_a_run_that_was_killed_ends_with_the_same_bits(qwen: Path, data: Path, tmp_path: Path) -> None:
    lora = CaptionerLora(dropout=0.1)
    settings = {"steps": 6, "batch_size": 2, "micro_batch_size": 1, "learning_rate": 1e-2, "warmup_steps": 2}
    loop = TuningLoop.model_validate(settings | {"schedule": "cosine", "checkpoint_every": 2})

    def weights(folder: Path, seed: int = 3) -> dict[str, torch.Tensor]:
        from peft import get_peft_model_state_dict

        model = tune(lesson(qwen, data), None, lora, loop, seed, folder).model
        return {name: value.clone() for name, value in get_peft_model_state_dict(model).items()}

    first = weights(tmp_path / "a")
    kept = sorted(path.name for path in (tmp_path / "a/checkpoints").glob("checkpoint-*"))
    assert kept == ["checkpoint-4", "checkpoint-6"]
    # Killed while it wrote the last checkpoint.
    shutil.rmtree(tmp_path / "a/checkpoints/checkpoint-6")
    (tmp_path / "a/checkpoints/checkpoint-6").mkdir()
    resumed, other = weights(tmp_path / "a"), weights(tmp_path / "b", seed=4)
    assert all(torch.equal(first[name], resumed[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_a_train_stage_of_the_same_process_has_its_own_precision(qwen: Path, data: Path, tmp_path: Path) -> None:
    tuned(tmp_path / "run/tune", qwen, data, steps=1, captioner=captioner(qwen, dtype="bfloat16"))
    assert build_accelerator(tmp_path, None).mixed_precision == "no"


def test_adapter_files_name_their_layers_in_order(qwen: Path, data: Path, tmp_path: Path) -> None:
    tuned(tmp_path / "run/tune", qwen, data, steps=1)
    # Sets have another order in every process.
    layers = json.loads((tmp_path / "run/tune/adapter/adapter_config.json").read_text())["target_modules"]
    assert layers == sorted(layers)
    assert len(layers) == 2 * len(TARGETS)
    assert all(".language_model." in layer for layer in layers)
    assert "torchvision" not in sys.modules


def test_captions_that_cannot_be_learned_are_listed_before_a_step(qwen: Path, data: Path, tmp_path: Path) -> None:
    rows = load_records(data / "records.jsonl")
    rows[1] = CaptionedImage(rows[1].id, rows[1].image, 32, 32, (Caption("human", "x" * 600),))
    save_records(data, rows)
    with pytest.raises(DataError, match=r"\d+ tokens with the request, and the model reads 512"):
        tuned(tmp_path / "run/tune", qwen, data, captioner=captioner(qwen, max_tokens=1000))
    rows[1] = CaptionedImage(rows[1].id, rows[1].image, 32, 32)
    save_records(data, rows)
    with pytest.raises(DataError, match="1 of 3 images have no caption of kind 'human'"):
        tuned(tmp_path / "run/tune", qwen, data)
    assert not (tmp_path / "run/tune/adapter").exists()


def test_adapter_is_worn_by_its_own_model_and_asked_as_it_was_tuned(qwen: Path, data: Path, tmp_path: Path) -> None:
    adapter = tmp_path / "run/tune/adapter"
    tuned(tmp_path / "run/tune", qwen, data, steps=1)

    def load(model: Path = qwen, **fields: object) -> None:
        tiny.from_recipe(VlmCaptioner, captioner(model, adapter=str(adapter), **fields)).load()

    load()
    with pytest.raises(ConfigError, match="tuned with max_side_px 1024, and is asked with 64"):
        load(max_side_px=64)
    with pytest.raises(ConfigError, match="tuned with prompt 'what"):
        load(wording={})
    with pytest.raises(ModelError, match="was tuned on"):
        load(vqa_tiny.idefics(tmp_path / "idefics"))
    (adapter / "tuned.json").unlink()
    load(max_side_px=64)  # the LoRA of another tool may be asked anything
    with pytest.raises(ModelError, match="does not fit"):
        load(tmp_path / "idefics")
    (adapter / "adapter_model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"adapter_model\.safetensors is missing"):
        load()


def test_what_cannot_be_meant_is_refused(qwen: Path, data: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"lora\.targets: 'to_q' is no layer of the language model; it has down_proj"):
        tuned(tmp_path / "run/tune", qwen, data, lora={"targets": ["to_q"]})
    alt = captioner(qwen, wording={"show_alt": True})
    with pytest.raises(ValidationError, match="learn to copy them"):
        tuned(tmp_path / "run/tune", qwen, data, captions="alt", captioner=alt)
    for fields in ({"captioner": {"type": "files"}}, {"captioner": captioner(qwen, adapter="./x")}):
        with pytest.raises(ValidationError, match="adapter_from"):
            tiny.from_recipe(CaptionStage, {"data_from": "human", "adapter_from": "tune", **fields})
