"""What an exported file says of itself, in its header and in the card beside it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import tiny
import tiny_adapters
import tiny_flow
from safetensors import safe_open
from transformers import CLIPTextModel

from t2i.data.formats.card import count_records
from t2i.export.adapter import write_adapter
from t2i.export.card import architecture, dataset_strings
from t2i.families import load_family
from t2i.records import Caption, CaptionedImage, ImageOrigin
from t2i.stages.export import Export

RECORDS = [
    CaptionedImage("a" * 32, "a.png", 8, 8, (Caption("alt", "one"),), {"license": "CC0"}),
    CaptionedImage("b" * 32, "b.png", 8, 8, (Caption("alt", "two"),), {"licence": "CC-BY-4.0"}),
    CaptionedImage("c" * 32, "c.png", 8, 8),
]
ROW = {"label": "judge", "mean_a": 0.5, "mean_b": 0.75, "difference": 0.25, "low": 0.1, "high": 0.4, "prompts": 9}


def test_hashes_name_the_images_and_the_captions_apart() -> None:
    strings = dataset_strings(RECORDS, "sks")
    assert json.loads(strings["t2i_licences"]) == {"CC-BY-4.0": 1, "CC0": 1, "not stated": 1}
    other = CaptionedImage("c" * 32, "moved.png", 8, 8, (Caption("alt", "three"),))
    changed = dataset_strings([*RECORDS[:2], other], "sks")
    assert changed["t2i_dataset_sha256"] == strings["t2i_dataset_sha256"]
    assert changed["t2i_captions_sha256"] != strings["t2i_captions_sha256"]


def test_both_cards_count_the_same_licences() -> None:
    of_set = replace(RECORDS[2], origin=ImageOrigin(dataset="set", licence="MIT"))
    records = [RECORDS[0], of_set, replace(of_set, extra={"licence": "CC0"}), RECORDS[2]]
    counted = json.loads(dataset_strings(records, "")["t2i_licences"])
    assert counted == {"CC0": 2, "MIT": 1, "not stated": 1}
    assert dict(count_records(records).licences) == {
        ("unknown", "CC0"): 1,
        ("set", "MIT"): 1,
        ("set", "CC0"): 1,
        ("unknown", "unknown"): 1,
    }


def test_the_architecture_is_that_of_the_model_and_not_of_its_family_alone() -> None:
    assert architecture(tiny.load_sd1("v_prediction")) == "stable-diffusion-v1/lora"
    sd2 = {"epsilon": "stable-diffusion-v2-512/lora", "v_prediction": "stable-diffusion-v2-768-v/lora"}
    for prediction_type, expected in sd2.items():
        family = tiny.load_sd1(prediction_type)
        config = tiny.clip_config(family.pipeline.tokenizer, width=1024, layers=1)
        family.pipeline.text_encoder = CLIPTextModel(config)
        assert architecture(family) == expected
    for guidance, expected in ((True, "flux-1-dev/lora"), (False, "flux-1-schnell/lora")):
        assert architecture(load_family(str(tiny_flow.flux(guidance)))) == expected


def test_header_and_card_say_what_the_file_was_made_from(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    from t2i.files import write_tensors

    plain = tiny.write_adapter(tmp_path / "plain.safetensors")
    source = {"t2i_recipe": "mine", "t2i_run": "train-0123", **dataset_strings(RECORDS, "sks")}
    (tmp_path / "train/adapter").mkdir(parents=True)
    write_tensors(tmp_path / "train/adapter/pytorch_lora_weights.safetensors", load_file(plain), source)
    (tmp_path / "compare").mkdir()
    (tmp_path / "compare/comparison.json").write_text(json.dumps({"overall": [{**ROW, "verdict": "better"}]}))
    inputs = {"weights_from": tmp_path / "train", "compare_from": tmp_path / "compare"}
    fields = {"model": str(tiny.sd1()), "layouts": ["diffusers", "kohya"], "file_name": "style"}
    tiny.run_stage(Export, tmp_path / "out", fields, inputs)
    with safe_open(tmp_path / "out/style.kohya.safetensors", "pt") as file:
        strings = file.metadata()
    assert strings["modelspec.architecture"] == "stable-diffusion-v1/lora"
    assert strings["modelspec.trigger_phrase"] == "sks"
    assert (strings["ss_network_dim"], strings["t2i_ranks"]) == ("4", "[4]")
    assert {key: strings[key] for key in source} == source
    assert json.loads(strings["t2i_scores"]) == [{**ROW, "verdict": "better"}]
    text = (tmp_path / "out/README.md").read_text()
    assert "| judge | 0.5 | 0.75 | +0.25 | 0.1 to 0.4 | better |" in text
    assert "CC-BY-4.0 (1), CC0 (1), not stated (1)" in text
    assert "`style.diffusers.safetensors` | diffusers" in text
    assert str(tmp_path) not in text


def test_the_header_has_the_ranks_of_the_file_and_not_those_that_were_trained(tmp_path: Path) -> None:
    """Parts of one fused layer with different inputs become one of all their ranks."""
    family = tiny_adapters.family("flux")
    adapter = tiny_adapters.adapter("flux")
    path = tmp_path / "x.safetensors"
    metadata = {"t2i_ranks": "[4]", "t2i_alphas": "[3.0]"}
    write_adapter(adapter, path, family, layout="kohya", precision="fp32", metadata=metadata)
    with safe_open(path, "pt") as file:
        strings = file.metadata()
        ranks = {file.get_slice(key).get_shape()[0] for key in file.keys() if key.endswith("lora_down.weight")}  # noqa: SIM118
    assert json.loads(strings["t2i_ranks"]) == sorted(ranks)
    assert max(ranks) > 4
    assert strings["ss_network_dim"] == str(max(ranks))
