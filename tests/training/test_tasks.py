"""From the words of a train stage to a model on disk, for every kind of model that can be trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import tiny_pairs
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

from t2i import processes
from t2i.data.sources import load_records
from t2i.errors import ConfigError, DataError, RunError
from t2i.objectives import Autoencoder
from t2i.objectives.base import DiffusionBatch
from t2i.records import CaptionedImage
from t2i.stages.train import Train
from t2i.training.image_tasks import AutoencoderTask
from t2i.training.log import read_metrics
from t2i.training.settings import FullSettings, SpeedSettings
from t2i.training.speed import apply_speed
from t2i.training.tasks import TaskSettings, build_task

LOOP = {"steps": 2, "batch_size": 4, "log_every": 1}
OPTIMIZER = {"learning_rate": 1e-3}


def train(folder: Path, **fields: object) -> dict[str, Any]:
    """Run a train stage on the photographs."""
    inputs = {"data_from": tiny.captioned_photographs()}
    return tiny.run_stage(Train, folder, {"optimizer": OPTIMIZER, "loop": LOOP, **fields}, inputs)


def weights(folder: Path) -> dict[str, Tensor]:
    """Every tensor of every safetensors file."""
    files = sorted(folder.rglob("*.safetensors"))
    return {f"{file.parent.name}/{key}": value for file in files for key, value in load_file(file).items()}


def test_lora_facts_tell_what_was_trained(tmp_path: Path) -> None:
    trained = {"type": "lora", "rank": 2}
    facts = train(tmp_path / "train", model=str(tiny.sd1()), captions={"caption": 1}, trained=trained)
    state = load_file(tmp_path / "train" / facts["adapter"])
    assert facts["family"] == "sd1"
    assert (facts["images"], facts["steps"], facts["resolution"]) == (6, 2, 32)
    assert facts["trained_parameters"] == sum(value.numel() for value in state.values())
    assert {key.partition(".")[0] for key in state} == {"unet"}


def test_captions_beyond_the_limit_are_counted(tmp_path: Path) -> None:
    rows = load_records(tiny.captioned_photographs() / "records.jsonl")
    lengths = [len(tiny.tokenizer()(row.caption("caption")).input_ids) for row in rows]
    trained = {"type": "lora", "rank": 1}
    facts = train(tmp_path / "train", model=str(tiny.sd1()), captions={"caption": 1}, trained=trained)
    longer = sum(length > tiny.TOKENS for length in lengths)
    assert facts["captions_longer_than_the_text_encoder"] == {"text_encoder": longer}


def test_full_training_changes_the_named_components_alone(tmp_path: Path) -> None:
    trained = {"type": "full", "components": ["unet"]}
    facts = train(tmp_path / "train", model=str(tiny.sd1()), captions={"caption": 1}, trained=trained)
    before, after = weights(tiny.sd1()), weights(tmp_path / "train" / facts["model"])
    assert before.keys() == after.keys()
    changed = {key.partition("/")[0] for key in before if not torch.equal(before[key], after[key])}
    assert changed == {"unet"}
    StableDiffusionPipeline.from_pretrained(tmp_path / "train" / facts["model"], safety_checker=None)


def test_whole_model_of_one_stage_is_what_the_next_goes_on_from(tmp_path: Path) -> None:
    trained = {"type": "full", "components": ["unet"]}
    fields = {"captions": {"caption": 1}, "trained": trained, "optimizer": OPTIMIZER, "loop": LOOP}
    inputs = {"data_from": tiny.captioned_photographs()}
    tiny.run_stage(Train, tmp_path / "first", {**fields, "model": str(tiny.sd1())}, inputs)
    still = {**fields, "optimizer": {"learning_rate": 1e-12, "weight_decay": 0}}
    tiny.run_stage(Train, tmp_path / "second", still, {**inputs, "model_from": tmp_path / "first"})
    first, second = weights(tmp_path / "first/model"), weights(tmp_path / "second/model")
    assert all(torch.allclose(value, second[key], atol=1e-9) for key, value in first.items())


def test_random_initialisation_is_a_function_of_the_seed(tmp_path: Path) -> None:
    trained = {"type": "full", "components": ["unet", "text_encoder"]}
    fields = {"model": str(tiny.sd1()), "captions": {"caption": 1}, "init": "random", "trained": trained}
    states = []
    for name in ("a", "b"):
        torch.manual_seed(len(states))
        states.append(weights(tmp_path / name / train(tmp_path / name, **fields)["model"]))
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())
    original = weights(tiny.sd1())
    assert not torch.allclose(states[0]["unet/conv_in.weight"], original["unet/conv_in.weight"], atol=0.01)


def test_unknown_component_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    trained = {"type": "full", "components": ["unet", "transformer"]}
    with pytest.raises(ConfigError, match=r"transformer.*known: .*unet"):
        train(tmp_path / "train", model=str(tiny.sd1()), captions={"caption": 1}, trained=trained)


def test_missing_caption_kind_is_refused_before_anything_is_encoded(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"6 of 6 images have no caption of kind 'dense'"):
        train(tmp_path / "train", model=str(tiny.sd1()), captions={"dense": 1})
    assert not (tmp_path / "train/latents").exists()


def test_resolution_must_fit_the_model(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="34 is not a multiple of 4"):
        train(tmp_path / "train", model=str(tiny.sd1()), captions={"caption": 1}, resolution=34)


def test_checkpoint_that_cannot_be_trained_on_is_found_at_the_first_step(tmp_path: Path) -> None:
    task = tiny.diffusion_task(tmp_path)
    batch = task.examples.collate([task.examples.example(0, 0, 0)])
    check = task.trainable.check
    assert check is not None
    check(batch)
    broken = DiffusionBatch(batch.latents * float("nan"), batch.noise, batch.uniform, batch.prompts)
    with pytest.raises(RunError, match="step 0: the loss of the untrained model is not finite"):
        check(broken)


def test_adapter_that_is_not_neutral_is_found_at_the_first_step(tmp_path: Path) -> None:
    task = tiny.diffusion_task(tmp_path)
    batch = task.examples.collate([task.examples.example(0, 0, 0)])
    check = task.trainable.check
    assert check is not None
    parameter = next(p for name, p in task.trainable.parameters().items() if ".lora_B." in name)
    parameter.data += 0.1
    with pytest.raises(RunError, match="fresh adapter changes the model's output"):
        check(batch)
    parameter.data -= 0.1
    base = next(p for name, p in task.trainable.module.named_parameters() if ".lora_" not in name)
    base.requires_grad_(True)
    with pytest.raises(RunError, match="parameters other than the adapter's"):
        check(batch)


@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")  # torch's own inductor
def test_the_first_step_is_checked_before_anything_is_compiled(tmp_path: Path) -> None:
    """Adapters on and off are two graphs; compiled, they differ by rounding in models of the published shapes."""
    from torch._dynamo.utils import counters

    task: Any = tiny.diffusion_task(tmp_path)
    apply_speed(task.family, SpeedSettings(compile=True))
    counters.clear()
    task.trainable.check(task.examples.collate([task.examples.example(0, 0, 0)]))
    assert not counters["frames"]


def test_full_training_is_not_held_to_the_rules_of_adapters(tmp_path: Path) -> None:
    task = tiny.diffusion_task(tmp_path, trained=FullSettings(components=("unet",)))
    assert task.trainable.check is not None
    task.trainable.check(task.examples.collate([task.examples.example(0, 0, 0)]))


def test_autoencoder_is_trained_and_scaled(tmp_path: Path) -> None:
    trained = {"type": "full", "components": ["vae"]}
    fields = {"model": str(tiny.sd1()), "init": "random", "objective": {"type": "autoencoder"}, "trained": trained}
    facts = train(tmp_path / "train", **fields, loop={**LOOP, "steps": 20}, optimizer={"learning_rate": 5e-3})
    rows = read_metrics(tmp_path / "train/metrics.jsonl")
    assert rows[-1]["reconstruction"] < 0.7 * rows[0]["reconstruction"]
    assert rows[0]["loss"] == pytest.approx(rows[0]["reconstruction"] + 1e-3 * rows[0]["kl"], rel=1e-5)
    vae = AutoencoderKL.from_pretrained(tmp_path / "train/model", subfolder="vae")
    from t2i.data.encode import load_pixels

    records = load_records(tiny.captioned_photographs() / "records.jsonl")
    pixels = torch.stack([load_pixels(record, 32) for record in records])
    with torch.no_grad():
        mean = vae.encode(pixels).latent_dist.mean
        painted = vae.decode(mean).sample.clamp(-1, 1)
    assert float((mean * vae.config.scaling_factor).std()) == pytest.approx(1, rel=1e-4)
    # Peak 2 in [-1, 1]: 10 log10(4 / mean squared error).
    error = float((painted - pixels).square().mean())
    assert facts["psnr_db"] == pytest.approx(10 * np.log10(4 / error), abs=1e-3)
    assert facts["scaling_factor"] == vae.config.scaling_factor


def test_trained_autoencoder_keeps_the_scale_that_its_denoiser_knows(tmp_path: Path) -> None:
    trained = {"type": "full", "components": ["vae"]}
    fields = {"model": str(tiny.sd1()), "objective": {"type": "autoencoder"}, "trained": trained}
    facts = train(tmp_path / "train", **fields, loop={**LOOP, "steps": 2})
    scale = AutoencoderKL.from_pretrained(tiny.sd1(), subfolder="vae").config.scaling_factor
    kept = AutoencoderKL.from_pretrained(tmp_path / "train/model", subfolder="vae").config.scaling_factor
    assert kept == facts["scaling_factor"] == scale
    made, shipped = weights(tmp_path / "train/model"), weights(tiny.sd1())
    assert torch.equal(made["unet/conv_in.weight"], shipped["unet/conv_in.weight"])
    assert not torch.equal(made["vae/encoder.conv_in.weight"], shipped["vae/encoder.conv_in.weight"])


def saved_autoencoder(folder: Path, portion: int, count: int = 6) -> tuple[dict[str, Any], list[int], list[int]]:
    """Facts of saving an autoencoder of fresh weights, and how many images it encoded and decoded at a time."""
    folder.mkdir()
    photographs = list(load_records(tiny.captioned_photographs() / "records.jsonl"))
    common: dict[str, Any] = {"mix": None, "resolution": 32, "posterior": "mode", "revision": None, "random_seed": 3}
    common |= {"trained": FullSettings(components=("vae",)), "records": (photographs * count)[:count]}
    settings = TaskSettings(model=str(tiny.sd1()), seed=7, folder=folder, encode_batch_size=portion, **common)
    task = AutoencoderTask(settings, Autoencoder())
    encoded: list[int] = []
    decoded: list[int] = []
    task.vae.encoder.register_forward_pre_hook(lambda _, inputs: encoded.append(len(inputs[0])))
    task.vae.decoder.register_forward_pre_hook(lambda _, inputs: decoded.append(len(inputs[0])))
    return task.save({}), encoded, decoded


def test_an_autoencoder_is_measured_in_portions_that_change_nothing(tmp_path: Path) -> None:
    facts, encoded, decoded = saved_autoencoder(tmp_path / "portions", 2)
    assert encoded == decoded == [2, 2, 2]
    whole, *at_once = saved_autoencoder(tmp_path / "whole", 64)
    assert at_once == [[6], [6]]
    assert facts["psnr_db"] == pytest.approx(whole["psnr_db"], abs=1e-3)
    assert facts["scaling_factor"] == pytest.approx(whole["scaling_factor"], rel=1e-4)


def test_an_autoencoder_is_measured_on_512_images_at_most(tmp_path: Path) -> None:
    _, encoded, decoded = saved_autoencoder(tmp_path / "train", 50, count=513)
    assert encoded == [50, 50, 50, 50, 50, 7]
    assert decoded == [50, 14]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny CLIPModel of 16 px pictures."""
    folder = tmp_path_factory.mktemp("clip")
    tokens = tiny.tokenizer()
    width = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    special = {
        "bos_token_id": tokens.bos_token_id,
        "eos_token_id": tokens.eos_token_id,
        "pad_token_id": tokens.pad_token_id,
    }
    text = {**width, **special, "vocab_size": len(tokens), "max_position_embeddings": tiny.TOKENS}
    config = CLIPConfig(text_config=text, vision_config={**width, "image_size": 16, "patch_size": 8}, projection_dim=8)
    torch.manual_seed(0)
    CLIPModel(config).save_pretrained(folder)
    tokens.save_pretrained(folder)
    CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}).save_pretrained(folder)
    return folder


def test_contrastive_model_learns_and_can_be_loaded(tmp_path: Path, clip: Path) -> None:
    fields = {
        "model": str(clip),
        "captions": {"caption": 1},
        "caption_dropout": 0.0,
        "objective": {"type": "contrastive"},
    }
    full = {"type": "full", "components": ["model"]}
    loop = {**LOOP, "steps": 40, "batch_size": 6}
    train(tmp_path / "train", **fields, trained=full, loop=loop, optimizer={"learning_rate": 3e-3})
    rows = read_metrics(tmp_path / "train/metrics.jsonl")
    assert rows[-1]["loss"] < 0.5 * rows[0]["loss"]
    assert 0 <= rows[0]["accuracy"] <= 1
    model = CLIPModel.from_pretrained(tmp_path / "train/model")
    assert not torch.equal(model.logit_scale, CLIPModel.from_pretrained(clip).logit_scale)
    saved, original = (CLIPTokenizer.from_pretrained(folder) for folder in (tmp_path / "train/model", clip))
    assert saved("a photo of the cat").input_ids == original("a photo of the cat").input_ids
    name = "preprocessor_config.json"
    assert (tmp_path / "train/model" / name).read_bytes() == (clip / name).read_bytes()


def test_contrastive_loss_cannot_be_cut_into_portions() -> None:
    fields = {"model": "m", "data_from": "caption", "captions": {"caption": 1}, "objective": {"type": "contrastive"}}
    loop = {**LOOP, "micro_batch_size": 2}
    with pytest.raises(ValidationError, match="couples the whole batch"):
        tiny.from_recipe(Train, {**fields, "optimizer": OPTIMIZER, "loop": loop})


def test_contrastive_loss_is_refused_for_several_processes_before_anything_runs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fields = {"model": "m", "data_from": "caption", "captions": {"caption": 1}, "objective": {"type": "contrastive"}}
    fields |= {"trained": {"type": "full", "components": ["model"]}, "caption_dropout": 0}
    stage = tiny.from_recipe(Train, {**fields, "optimizer": OPTIMIZER, "loop": LOOP})
    stage.check()
    monkeypatch.setattr(processes, "count", lambda: 2)
    with pytest.raises(
        ConfigError, match=r"^objective: contrastive couples the whole batch, so it runs in one process"
    ):
        stage.check()


class Reader(nn.Module):
    """Tells from the mean colour whether a picture is wide."""

    image_size = 16
    noise_shape = (1, 1, 1)

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 2)

    def labels(self, record: CaptionedImage) -> dict[str, np.ndarray]:
        return {"wide": np.array(int(record.width > record.height))}

    def augment(self, pixels: Tensor, labels: dict[str, Tensor], noise: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return pixels + 0.01 * noise, labels

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        return {"wide": self.head(pixels.mean(dim=(2, 3)))}

    def save_pretrained(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        save_file(self.state_dict(), folder / "model.safetensors")


def test_reader_is_trained_from_its_labels(tmp_path: Path) -> None:
    objective = {"type": "classification", "reader": "test_tasks:Reader"}
    fields = {"objective": objective, "trained": {"type": "full", "components": ["model"]}, "init": "random"}
    states = []
    for name in ("a", "b"):
        train(tmp_path / name, **fields, loop={**LOOP, "steps": 30}, optimizer={"learning_rate": 0.1})
        states.append(weights(tmp_path / name / "model"))
    rows = read_metrics(tmp_path / "a/metrics.jsonl")
    assert rows[-1]["loss"] < 0.9 * rows[0]["loss"]
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())


@pytest.mark.parametrize("reader", ["test_tasks:Nobody", "no_such_module:Reader", "Reader"])
def test_reader_that_cannot_be_imported_is_refused(tmp_path: Path, reader: str) -> None:
    full = {"type": "full", "components": ["model"]}
    with pytest.raises(ConfigError, match="cannot be imported"):
        train(tmp_path / "train", objective={"type": "classification", "reader": reader}, trained=full)


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({}, "captions: name the kinds"),
        ({"captions": {"alt": 0.0}}, "every weight must be above 0"),
        ({"captions": {"alt": 1}, "data": {"type": "folder", "path": "x"}}, "exactly one of `data`"),
        ({"captions": {"alt": 1}, "init": "random"}, "a LoRA over random weights is of no use"),
        ({"captions": {"alt": 1}, "trained": {"type": "lora", "rank": 0}}, "greater than or equal to 1"),
        ({"captions": {"alt": 1}, "caption_dropout": 1.5}, "less than or equal to 1"),
        (
            {
                "captions": {"alt": 1},
                "objective": {"type": "denoising", "zero_terminal_snr": True},
                "samples": {"prompts": ["a cat"]},
            },
            r"samples\.sampling\.zero_terminal_snr: the objective trains with it",
        ),
        (
            {
                "captions": {"alt": 1},
                "trained": {"type": "full", "components": ["unet"]},
                "samples": {"prompts": ["a cat"], "sampling": {"lora_scale": 0.5}},
            },
            r"samples\.sampling\.lora_scale: it scales an adapter, and `trained` is full",
        ),
        (
            {
                "captions": {"alt": 1},
                "trained": {"type": "full", "components": ["unet"]},
                "layouts": ["kohya"],
            },
            "layouts: only the LoRA of a denoiser",
        ),
        ({"captions": {"alt": 1}, "objective": {"type": "contrastive"}}, r"contrastive trains .*\[model\]"),
        ({"objective": {"type": "autoencoder"}, "trained": {"type": "full", "components": ["unet"]}}, r"\[vae\]"),
        (
            {
                "captions": {"alt": 1},
                "objective": {"type": "contrastive"},
                "trained": {"type": "full", "components": ["model"]},
            },
            "caption_dropout: a batch of a contrastive objective needs different texts",
        ),
        (
            {
                "data_from": None,
                "pairs_from": "pair",
                "objective": {"type": "bradley_terry"},
                "trained": {"type": "lora", "rank": 2},
                "adapter": "x.safetensors",
            },
            "bradley_terry starts from no LoRA",
        ),
        (
            {
                "objective": {"type": "autoencoder"},
                "trained": {"type": "full", "components": ["vae"]},
                "captions": {"alt": 1},
            },
            "captions: autoencoder does not use it",
        ),
        (
            {
                "model": None,
                "objective": {"type": "classification", "reader": "a:B"},
                "trained": {"type": "full", "components": ["model"]},
                "posterior": "mode",
                "init": "random",
            },
            "posterior: classification does not use it",
        ),
        (
            {
                "data_from": None,
                "pairs_from": "pair",
                "objective": {"type": "bradley_terry"},
                "trained": {"type": "lora", "rank": 2},
                "resolution": 64,
            },
            "resolution: bradley_terry does not use it",
        ),
        ({"captions": {"alt": 1}, "loop": {**LOOP, "batch_size": 3, "micro_batch_size": 2}}, "must be a multiple"),
        ({"captions": {"alt": 1}, "loop": {**LOOP, "ema_decay": 1.0}}, "less than 1"),
    ],
)
def test_recipe_that_makes_no_sense_is_refused(fields: dict[str, object], complaint: str) -> None:
    with pytest.raises(ValidationError, match=complaint):
        tiny.from_recipe(Train, {"model": "m", "data_from": "caption", "optimizer": OPTIMIZER, "loop": LOOP, **fields})


GUARD = {
    "prompts": {"type": "list", "prompts": ["a cat", "a cup"]},
    "every": 1,
    "rewards": [{"name": "brightness", "role": "train"}, {"name": "saturation", "role": "held_out"}],
}


def test_a_guard_samples_as_the_chosen_images_are_trained_on() -> None:
    objective = {"type": "chosen_denoising", "denoising": {"zero_terminal_snr": True}}
    stage = {"model": "m", "pairs_from": "pair", "optimizer": OPTIMIZER, "loop": LOOP, "objective": objective}
    with pytest.raises(ValidationError, match=r"guard\.sampling\.zero_terminal_snr: the objective trains with it"):
        tiny.from_recipe(Train, {**stage, "guard": GUARD})
    tiny.from_recipe(Train, {**stage, "guard": {**GUARD, "sampling": {"zero_terminal_snr": True}}})


def test_a_model_trained_on_chosen_images_tells_that_its_noise_ends_in_noise_alone(tmp_path: Path) -> None:
    pairs = tiny_pairs.write_pairs(tmp_path / "pair")
    fields = {
        "model": str(tiny.sd1("v_prediction")),
        "objective": {"type": "chosen_denoising", "denoising": {"zero_terminal_snr": True}},
        "trained": {"type": "full", "components": ["unet"]},
        "optimizer": OPTIMIZER,
        "loop": {"steps": 1, "batch_size": 4},
    }
    facts = tiny.run_stage(Train, tmp_path / "train", fields, {"pairs_from": pairs})
    told = json.loads((tmp_path / "train" / facts["model"] / "scheduler/scheduler_config.json").read_text())
    assert (told["rescale_betas_zero_snr"], told["timestep_spacing"]) == (True, "trailing")


RESOLUTION = {"timesteps": {"shift": "resolution"}}
SNR = {"zero_terminal_snr": True}


@pytest.mark.parametrize(
    ("objective", "complaint"),
    [
        ({"type": "denoising", **RESOLUTION}, "cuts images into tokens"),
        ({"type": "diffusion_dpo", "beta": 1, **RESOLUTION}, "cuts images into tokens"),
        ({"type": "chosen_denoising", "denoising": RESOLUTION}, "cuts images into tokens"),
        ({"type": "chosen_denoising", "denoising": SNR}, "v_prediction checkpoint"),
    ],
)
def test_noise_that_does_not_fit_the_model_is_refused_by_the_check(objective: dict[str, Any], complaint: str) -> None:
    images = {"data_from": "caption", "captions": {"a": 1}}
    data = images if objective["type"] == "denoising" else {"pairs_from": "pair"}
    stage = {"model": str(tiny.sd1()), **data, "optimizer": OPTIMIZER, "loop": LOOP, "objective": objective}
    with pytest.raises(ConfigError, match=complaint):
        tiny.from_recipe(Train, stage).check()


def test_a_batch_that_processes_cannot_share_is_refused_by_the_check(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"LOCAL_RANK": "0", "RANK": "0", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    stage = {"model": str(tiny.sd1()), "data_from": "caption", "captions": {"a": 1}, "optimizer": OPTIMIZER}
    with pytest.raises(ConfigError, match="batch_size 3 is not a multiple of micro_batch_size 1 x 2 processes"):
        tiny.from_recipe(Train, {**stage, "loop": {"steps": 1, "batch_size": 3}}).check()
    tiny.from_recipe(Train, {**stage, "loop": {"steps": 1, "batch_size": 4}}).check()


def test_held_out_batches_are_the_share_of_one_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from t2i.stages.train_inputs import read_inputs
    from t2i.stages.train_run import _watch

    fields = {"model": str(tiny.sd1()), "captions": {"caption": 1}, "trained": {"type": "lora", "rank": 1}}
    held_out = {"share": 0.5, "examples": 8}
    stage = tiny.from_recipe(
        Train, {**fields, "data_from": "caption", "optimizer": OPTIMIZER, "loop": LOOP, "held_out": held_out}
    )
    settings = read_inputs(stage, tiny.context(tmp_path, {"data_from": tiny.captioned_photographs()}))
    task = build_task(settings, stage.objective)
    for name, value in {"LOCAL_RANK": "0", "RANK": "0", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    watch: Any = _watch(stage, task, settings)
    assert watch.held_out_loss.func.batch_size == LOOP["batch_size"] / 2


def test_metadata_of_the_adapter_names_the_recipe_and_the_steps(tmp_path: Path) -> None:
    from safetensors import safe_open

    trained = {"type": "lora", "rank": 1}
    facts = train(tmp_path / "train", model=str(tiny.sd1()), captions={"caption": 1}, trained=trained)
    with safe_open(tmp_path / "train" / facts["adapter"], "pt") as file:
        metadata = file.metadata()
    assert metadata["t2i_recipe"] == "test"
    assert metadata["t2i_steps"] == "2"
    assert "lora_adapter_metadata" not in json.dumps(metadata)


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"trained": {"type": "lora", "rank": 2, "targets": ["to_qq"]}}, "to_qq"),
        ({"resolution": 33}, "33 is not a multiple"),
    ],
)
@pytest.mark.parametrize("objective", ["diffusion_dpo", "diffusion_kto", "chosen_denoising"])
def test_a_stage_of_pairs_is_checked_before_pairs_are_made(
    fields: dict[str, object], complaint: str, objective: str
) -> None:
    """Candidates take hours: what is wrong with the training after them is said before."""
    beta = {} if objective == "chosen_denoising" else {"beta": 10}
    own = {"model": str(tiny.sd1()), "pairs_from": "pair", "objective": {"type": objective, **beta}}
    stage = {**own, "optimizer": OPTIMIZER, "loop": LOOP, "trained": {"type": "lora", "rank": 2}}
    tiny.from_recipe(Train, stage).check()
    with pytest.raises(ConfigError, match=complaint):
        tiny.from_recipe(Train, {**stage, **fields}).check()
