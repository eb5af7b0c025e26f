"""A checkpoint is what its files say it is; a broken, pickled or foreign one is refused in one line."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny
import tiny_flow
import torch
from checkpoints import CLASSES, all_weights, assert_refused, assert_same_weights, change, copied, state_of
from safetensors.torch import save_file

from t2i.errors import ModelError
from t2i.families import describe_checkpoint, load_family
from t2i.families.recognise import FAMILIES
from t2i.families.sdxl import SDXL

WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


@pytest.mark.parametrize("family", CLASSES)
def test_family_is_read_from_the_checkpoint_not_from_its_name(tmp_path: Path, family: str) -> None:
    folder = copied(tmp_path, "flux-dev-sd3-turbo", family)
    assert isinstance(load_family(str(folder), expected=family), CLASSES[family])


def test_checkpoint_of_another_family_than_expected_names_its_own() -> None:
    assert_refused("is of family sdxl; expected sd1", tiny.sdxl(), expected="sd1")
    with pytest.raises(ModelError, match="is of family sd1; expected sdxl"):
        SDXL.load(str(tiny.sd1()), dtype=torch.float32)


def test_unsupported_class_names_the_supported_ones(tmp_path: Path) -> None:
    folder = copied(tmp_path, "stable-diffusion-v1-5")
    change(folder / "model_index.json", _class_name="StableCascadeCombinedPipeline")
    assert_refused(f"'StableCascadeCombinedPipeline' is not supported; supported: {', '.join(FAMILIES)}", folder)


def test_class_made_of_the_same_components_is_accepted(tmp_path: Path) -> None:
    folder = copied(tmp_path, family="sdxl")
    change(folder / "model_index.json", _class_name="StableDiffusionXLImg2ImgPipeline", requires_aesthetics_score=False)
    loaded = load_family(str(folder))
    assert type(loaded.pipeline).__name__ == "StableDiffusionXLPipeline"
    assert_same_weights(loaded, load_family(str(tiny.sdxl())))


def test_refiner_is_refused(tmp_path: Path) -> None:
    folder = copied(tmp_path, family="sdxl")
    none = [None, None]
    change(
        folder / "model_index.json",
        _class_name="StableDiffusionXLImg2ImgPipeline",
        requires_aesthetics_score=True,
        text_encoder=none,
        tokenizer=none,
    )
    assert_refused("lacks text_encoder, tokenizer, which sdxl needs", folder)


def test_components_of_another_class_are_refused(tmp_path: Path) -> None:
    folder = copied(tmp_path, family="sdxl")
    change(folder / "model_index.json", _class_name="StableDiffusionPipeline")
    assert_refused("holds text_encoder_2, tokenizer_2, which no StableDiffusionPipeline has", folder)


def test_components_of_another_library_are_refused(tmp_path: Path) -> None:
    folder = copied(tmp_path)
    change(folder / "model_index.json", unet=["my_unet", "UNet"])
    assert_refused("unet is of 'my_unet'; expected diffusers classes", folder)


def test_safety_checker_is_never_loaded(tmp_path: Path) -> None:
    folder = copied(tmp_path)
    checker = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    change(folder / "model_index.json", safety_checker=checker, requires_safety_checker=True)
    for seed in (None, 1):
        loaded = load_family(str(folder), random_seed=seed)
        assert loaded.pipeline.components["safety_checker"] is None


@pytest.mark.parametrize(
    ("values", "match"),
    [
        ({"in_channels": 9}, "takes 9 channels, the latents have 4"),
        ({"time_cond_proj_dim": 8}, "takes the guidance scale as an input"),
    ],
)
def test_unet_that_is_told_more_than_text_is_refused(tmp_path: Path, values: dict[str, int], match: str) -> None:
    folder = copied(tmp_path)
    change(folder / "unet/config.json", **values)
    assert_refused(match, folder, random_seed=1)


def test_absent_checkpoint_is_refused(tmp_path: Path) -> None:
    for model in (str(tmp_path / "none"), "./none", "none"):
        assert_refused("no such folder", model)


def test_folder_that_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    assert_refused(r"no model_index\.json", tmp_path)
    (tmp_path / "model_index.json").write_text("{")
    assert_refused(r"model_index\.json: not JSON", tmp_path)
    (tmp_path / "model_index.json").write_text("[]")
    assert_refused("expected a JSON object, found list", tmp_path)


def test_revision_of_a_local_path_is_refused() -> None:
    assert_refused("a local path; a revision .'v1'. is for hub ids", tiny.sd1(), revision="v1")


def test_hub_model_that_cannot_be_had_is_refused() -> None:
    assert_refused("'nobody/nothing': neither a local folder nor to be had from the hub", "nobody/nothing")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A hub's cache that holds owner/name at two revisions; the network is off in every test."""
    repository = tmp_path / "models--owner--name"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs/main").write_text("a" * 40)
    copied(repository / "snapshots", "a" * 40, "sd1")
    copied(repository / "snapshots", "b" * 40, "sdxl")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    return repository


@pytest.mark.usefixtures("hub")
def test_hub_model_is_loaded_at_its_revision() -> None:
    assert load_family("owner/name").facts.name == "sd1"
    assert load_family("owner/name", revision="b" * 40).facts.name == "sdxl"
    assert describe_checkpoint("owner/name", revision="b" * 40).family == "sdxl"
    assert_refused("is of family sd1; expected sdxl", "owner/name", expected="sdxl")
    assert_refused("neither a local folder nor to be had", "owner/name", revision="c" * 40)


def without_weights(folder: Path) -> None:
    (folder / WEIGHTS).unlink()


def truncated_weights(folder: Path) -> None:
    path = folder / WEIGHTS
    path.write_bytes(path.read_bytes()[:-1])


def truncated_header(folder: Path) -> None:
    path = folder / WEIGHTS
    path.write_bytes(path.read_bytes()[:500])


def empty_weights(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes(b"")


def pickled_weights(folder: Path) -> None:
    torch.save(state_of(folder / WEIGHTS), folder / "unet/diffusion_pytorch_model.bin")
    without_weights(folder)


def pickled_under_another_name(folder: Path) -> None:
    torch.save(state_of(folder / WEIGHTS), folder / WEIGHTS)


def pickled_text_encoder(folder: Path) -> None:
    torch.save(state_of(folder / "text_encoder/model.safetensors"), folder / "text_encoder/pytorch_model.bin")
    (folder / "text_encoder/model.safetensors").unlink()


def other_variant(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "unet/diffusion_pytorch_model.fp16.safetensors")


def missing_shard(folder: Path) -> None:
    without_weights(folder)
    index = {"weight_map": {"conv_in.weight": "diffusion_pytorch_model-00001-of-00002.safetensors"}}
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps(index))


def stray_shard(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "stray.safetensors")
    index = {"weight_map": {"conv_in.weight": "../stray.safetensors"}}
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps(index))


def other_width(folder: Path) -> None:
    change(folder / "unet/config.json", block_out_channels=[16, 64])


def without_tokenizer(folder: Path) -> None:
    shutil.rmtree(folder / "tokenizer")


def without_vocabulary(folder: Path) -> None:
    (folder / "tokenizer/tokenizer.json").unlink()


def without_token_limit(folder: Path) -> None:
    (folder / "tokenizer/tokenizer_config.json").unlink()


def broken_config(folder: Path) -> None:
    (folder / "unet/config.json").write_text("{")


def other_prediction(folder: Path) -> None:
    change(folder / "scheduler/scheduler_config.json", prediction_type="sample")


BREAKS: dict[Callable[[Path], None], str] = {
    without_weights: "unet: no safetensors weights; the checkpoint is incomplete",
    truncated_weights: "truncated: .* bytes of weights are there",
    truncated_header: "truncated or not a safetensors file",
    empty_weights: "truncated or not a safetensors file",
    pickled_weights: r"pickled .* python -m t2i\.families\.unpickle diffusion_pytorch_model\.bin",
    pickled_under_another_name: "pickled checkpoint",
    pickled_text_encoder: r"pickled .* pytorch_model\.bin pytorch_model\.safetensors",
    other_variant: r"found diffusion_pytorch_model\.fp16\.safetensors, another variant",
    missing_shard: "lacks diffusion_pytorch_model-00001-of-00002",
    stray_shard: "names '../stray.safetensors'; expected files beside it",
    other_width: "cannot be loaded as StableDiffusionPipeline",
    without_tokenizer: "lacks tokenizer/",
    without_vocabulary: "lacks tokenizer/",
    without_token_limit: "lacks tokenizer/tokenizer_config",
    broken_config: "not JSON",
    other_prediction: "'sample'",
}


@pytest.mark.parametrize("break_it", BREAKS, ids=lambda function: function.__name__)
def test_broken_checkpoint_is_refused(tmp_path: Path, break_it: Callable[[Path], None]) -> None:
    folder = copied(tmp_path)
    break_it(folder)
    assert_refused(BREAKS[break_it], folder)


@pytest.mark.parametrize(
    ("part", "tensor"),
    [
        ("text_encoder", "encoder.layers.0.self_attn.q_proj.weight"),
        ("unet", "conv_in.weight"),
        ("vae", "decoder.conv_in.bias"),
    ],
)
def test_folder_that_lacks_a_tensor_is_refused(tmp_path: Path, part: str, tensor: str) -> None:
    folder = copied(tmp_path)
    [path] = (folder / part).glob("*.safetensors")
    state = state_of(path)
    [name] = [name for name in state if name.endswith(tensor)]
    del state[name]
    save_file(state, path, metadata={"format": "pt"})
    assert_refused(f"{part}: lacks 1 of the tensors that its config asks for: .*{tensor.rpartition('.')[0]}", folder)


def test_a_tokenizer_that_is_a_sentencepiece_model_alone_is_read(tmp_path: Path) -> None:
    """As PixArt's T5 has it; transformers needs sentencepiece and protobuf for that."""
    import sentencepiece

    folder = tmp_path / "pixart"
    shutil.copytree(tiny_flow.pixart(), folder)
    limit = load_family(str(folder)).pipeline.components["tokenizer"].model_max_length
    shutil.rmtree(folder / "tokenizer")
    (folder / "tokenizer").mkdir()
    file = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["a photo of a red cat on a mat", "the blue dog runs"] * 20),
        model_writer=file, vocab_size=24, pad_id=0, eos_id=1, unk_id=2, bos_id=-1, minloglevel=2,
    )  # fmt: skip
    (folder / "tokenizer/spiece.model").write_bytes(file.getvalue())
    config = {"tokenizer_class": "T5Tokenizer", "extra_ids": 0, "model_max_length": limit}
    (folder / "tokenizer/tokenizer_config.json").write_text(json.dumps(config))
    change(folder / "model_index.json", tokenizer=["transformers", "T5Tokenizer"])
    tokenizer = load_family(str(folder)).pipeline.components["tokenizer"]
    ids = tokenizer("a red cat").input_ids
    assert ids[-1] == 1
    assert tokenizer.decode(ids, skip_special_tokens=True) == "a red cat"


def test_sharded_weights_are_loaded(tmp_path: Path) -> None:
    folder = copied(tmp_path)
    whole = load_family(str(folder))
    without_weights(folder)
    whole.pipeline.components["unet"].save_pretrained(folder / "unet", max_shard_size="200KB")
    assert len(list((folder / "unet").glob("*.safetensors"))) > 1
    assert_same_weights(load_family(str(folder)), whole)


@pytest.mark.parametrize("family", CLASSES)
def test_random_weights_need_configs_alone_and_are_a_function_of_the_seed(tmp_path: Path, family: str) -> None:
    folder = copied(tmp_path, family=family, weights=False)
    torch.manual_seed(0)
    families = [load_family(str(folder), random_seed=seed) for seed in (1, 1, 2)]
    expected = torch.rand(1, generator=torch.Generator().manual_seed(0))
    assert torch.equal(torch.rand(1), expected)
    states = [all_weights(family) for family in families]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    drawn = [key for key, value in states[0].items() if value.is_floating_point() and value.std() > 0]
    assert len(drawn) > 50
    assert not any(torch.equal(states[0][key], states[2][key]) for key in drawn)


@pytest.mark.parametrize("family", CLASSES)
@pytest.mark.parametrize("seed", [None, 1])
def test_precision_is_that_asked_for(family: str, seed: int | None) -> None:
    loaded = load_family(str(tiny.FAMILIES_TINY[family]()), dtype=torch.bfloat16, random_seed=seed)
    models = [part for part in loaded.pipeline.components.values() if isinstance(part, torch.nn.Module)]
    assert len(models) >= 3
    for model in models:
        assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
        assert not model.training


@pytest.mark.parametrize("family", CLASSES)
def test_description_needs_no_weights(tmp_path: Path, family: str) -> None:
    folder = copied(tmp_path, family=family, weights=False)
    description = describe_checkpoint(str(folder))
    assert (description.family, description.path, description.configs) == (family, folder, folder)
    models = {name for name, part in description.components.items() if part.is_model}
    assert models == {"unet", "vae", *CLASSES[family].facts.text_encoders}
    unet = description.components["unet"]
    assert (unet.library, unet.class_name) == ("diffusers", "UNet2DConditionModel")
    assert unet.config["sample_size"] == tiny.SIZE_PX // 2
    assert description.components["scheduler"].config["num_train_timesteps"] == 1000
    forces_zeros = {"force_zeros_for_empty_prompt": True} if family == "sdxl" else {"requires_safety_checker": False}
    assert description.settings == forces_zeros
