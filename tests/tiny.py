"""A tiny Stable Diffusion checkpoint with random weights, photographs to train it on, and stages: all made in code."""

from __future__ import annotations

import atexit
import functools
import json
import shutil
import string
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel

from t2i.stages.base import StageContext

if TYPE_CHECKING:
    from t2i.captioners import Answer, Captioner
    from t2i.families.sd1 import SD1
    from t2i.records import CaptionedImage
    from t2i.training.settings import FullSettings, LoraSettings
    from t2i.training.tasks import Task

WORDS = ("a", "the", "of", "on", "photo", "cat", "coffee", "cup", "woman", "rocket", "red", "space", "moon")
SIZE_PX = 32
"""What the tiny checkpoint paints; latents are 4 x 16 x 16."""
TOKENS = 12
"""Token limit of the tiny text encoder, the two marks included."""
PHOTOGRAPHS = {
    "astronaut": "a photo of the woman",
    "coffee": "a red cup of coffee on the moon",
    "chelsea": "a cat",
    "rocket": "the rocket on space",
    "camera": "a photo",
    "moon": "the moon",
}
"""Name of a photograph that scikit-image ships -> caption."""

AnyModel = TypeVar("AnyModel", bound=BaseModel)


@functools.cache
def temporary_folder() -> Path:
    """A folder for what all tests of a session share; removed when Python ends."""
    folder = tempfile.mkdtemp(prefix="t2i-tests-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


@functools.cache
def sd1(prediction_type: str = "epsilon") -> Path:
    """Folder of a StableDiffusionPipeline of 350,000 random parameters, the same every time. Do not write into it."""
    folder = temporary_folder() / f"sd1-{prediction_type}"
    build_pipeline(prediction_type).save_pretrained(folder)
    return folder


def load_sd1(prediction_type: str = "epsilon") -> SD1:
    """A fresh copy of the checkpoint, as the toolkit loads it."""
    from t2i.families import load_family

    return load_family(str(sd1(prediction_type)))  # pyright: ignore[reportReturnType]


def build_pipeline(prediction_type: str) -> Any:
    """The pipeline in memory."""
    import torch
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextModel

    tokens = tokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        unet = UNet2DConditionModel(
            sample_size=SIZE_PX // 2,
            block_out_channels=(16, 32),
            layers_per_block=1,
            norm_num_groups=8,
            attention_head_dim=4,
            cross_attention_dim=32,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        )
        vae = AutoencoderKL(
            block_out_channels=(16, 16),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            norm_num_groups=8,
            sample_size=SIZE_PX,
            scaling_factor=0.5,
        )
        text_encoder = CLIPTextModel(clip_config(tokens, width=32))
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type=prediction_type,
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )
    return StableDiffusionPipeline(
        vae.eval(), text_encoder.eval(), tokens, unet.eval(), scheduler, None, None, requires_safety_checker=False
    )


@functools.cache
def sdxl(prediction_type: str = "epsilon") -> Path:
    """Folder of a StableDiffusionXLPipeline of random parameters, the same every time. Do not write into it."""
    folder = temporary_folder() / f"sdxl-{prediction_type}"
    build_sdxl_pipeline(prediction_type).save_pretrained(folder)
    return folder


FAMILIES_TINY: dict[str, Callable[[], Path]] = {"sd1": sd1, "sdxl": sdxl}
"""Family -> builder of the folder of its tiny checkpoint."""


def build_sdxl_pipeline(prediction_type: str) -> Any:
    """The pipeline in memory, with the scheduler and the second padding token of the published checkpoint."""
    import torch
    from diffusers import AutoencoderKL, EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    first, second = tokenizer(), tokenizer(padding="!")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        unet = UNet2DConditionModel(
            sample_size=SIZE_PX // 2,
            block_out_channels=(16, 32),
            layers_per_block=1,
            norm_num_groups=8,
            attention_head_dim=(2, 4),
            transformer_layers_per_block=(1, 2),
            cross_attention_dim=32 + 24,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=20 + 6 * 8,
        )
        vae = AutoencoderKL(
            block_out_channels=(16, 16),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            norm_num_groups=8,
            sample_size=SIZE_PX,
            scaling_factor=0.13025,
        )
        text_encoder = CLIPTextModel(clip_config(first, width=32))
        text_encoder_2 = CLIPTextModelWithProjection(clip_config(second, width=24, projection_dim=20, layers=3))
    scheduler = EulerDiscreteScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type=prediction_type,
        timestep_spacing="leading",
        steps_offset=1,
    )
    models = vae.eval(), text_encoder.eval(), text_encoder_2.eval()
    return StableDiffusionXLPipeline(*models, first, second, unet.eval(), scheduler, add_watermarker=False)


def clip_config(tokens: Any, *, width: int, projection_dim: int = 512, layers: int = 2) -> Any:
    """Configuration of a CLIP text encoder for a tokenizer."""
    from transformers import CLIPTextConfig

    return CLIPTextConfig(
        vocab_size=len(tokens),
        hidden_size=width,
        intermediate_size=2 * width,
        projection_dim=projection_dim,
        num_hidden_layers=layers,
        num_attention_heads=4,
        max_position_embeddings=TOKENS,
        bos_token_id=tokens.bos_token_id,
        eos_token_id=tokens.eos_token_id,
        pad_token_id=tokens.pad_token_id,
    )


def tokenizer(*, padding: str = "<|endoftext|>") -> Any:
    """A CLIP tokenizer in which each of WORDS is one token and every other character one of its own."""
    from transformers import CLIPTokenizer

    characters = sorted(set(string.printable) - set(string.whitespace))
    tokens = [*characters, *(character + "</w>" for character in characters)]
    merges: list[tuple[str, str]] = []
    for word in WORDS:
        parts = [*word[:-1], word[-1] + "</w>"]
        while len(parts) > 1:
            merges.append((parts[0], parts[1]))
            parts = [parts[0] + parts[1], *parts[2:]]
            tokens.append(parts[0])
    # The end mark has the highest number, by which CLIP finds it.
    tokens = [*dict.fromkeys(tokens), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    merges = list(dict.fromkeys(merges))
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=TOKENS, pad_token=padding)


def write_photographs(folder: Path, *, count: int = len(PHOTOGRAPHS), longer_side: int = 64) -> Path:
    """Save photographs as PNG, each with its caption in a text file beside it. Sizes and aspects differ."""
    import numpy as np
    import skimage.data
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    for name, caption in list(PHOTOGRAPHS.items())[:count]:
        image = Image.fromarray(np.asarray(getattr(skimage.data, name)()))
        image.thumbnail((longer_side, longer_side))
        image.save(folder / f"{name}.png")
        (folder / f"{name}.txt").write_text(caption + "\n")
    return folder


@functools.cache
def captioned_photographs() -> Path:
    """Finished folder of a caption stage over all photographs. Do not write into it."""
    from t2i.stages.caption import CaptionStage

    source = write_photographs(temporary_folder() / "photographs")
    folder = temporary_folder() / "run" / "caption"
    data = {"type": "folder", "path": str(source)}
    run_stage(CaptionStage, folder, {"data": data, "captioner": {"type": "files"}, "max_refused": 0})
    return folder


def captions(captioner: Captioner, records: Sequence[CaptionedImage]) -> list[Answer]:
    """Answers of a captioner, in the order of the records."""
    found = dict(captioner.load()(records))
    return [found[number] for number in range(len(records))]


def diffusion_task(
    folder: Path,
    *,
    trained: LoraSettings | FullSettings | None = None,
    prediction_type: str = "epsilon",
    cache_text: bool = False,
) -> Task:
    """A fresh copy of the checkpoint, ready to be trained on the photographs; latents go into `folder`."""
    from t2i.data.captions import CaptionMix
    from t2i.data.settings import CacheSettings
    from t2i.data.sources import load_records
    from t2i.objectives import Denoising
    from t2i.training.settings import LoraSettings
    from t2i.training.tasks import TaskSettings, build_task

    folder.mkdir(parents=True, exist_ok=True)
    settings = TaskSettings(
        model=str(sd1(prediction_type)),
        revision=None,
        random_seed=None,
        trained=trained or LoraSettings(rank=4, text_encoder=not cache_text),
        cache=CacheSettings(text=cache_text),
        mix=CaptionMix({"caption": 1.0}, dropout=0.1),
        resolution=SIZE_PX,
        posterior="sample",
        records=load_records(captioned_photographs() / "records.jsonl"),
        seed=7,
        folder=folder,
        encode_batch_size=4,
    )
    return build_task(settings, Denoising())


def from_recipe(model: type[AnyModel], fields: Mapping[str, object]) -> AnyModel:
    """A model as a recipe gives it: through JSON, strictly."""
    return model.model_validate_json(json.dumps(fields))


def context(folder: Path, inputs: Mapping[str, Path] | None = None, *, seed: int = 7) -> StageContext:
    """What the engine would give to a stage; makes the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    named = {field: [(path.name, path)] for field, path in (inputs or {}).items()}
    return StageContext(folder, named, seed, "test")


def run_stage(
    stage: type[Any],
    folder: Path,
    fields: Mapping[str, object],
    inputs: Mapping[str, Path] | None = None,
    *,
    seed: int = 7,
) -> dict[str, Any]:
    """Run one stage in a folder; returns its facts. The fields that name stages are filled from `inputs`."""
    named = {field: path.name for field, path in (inputs or {}).items()}
    return from_recipe(stage, {**fields, **named}).run(context(folder, inputs, seed=seed))


def write_adapter(path: Path, *, rank: int = 4, scale: float = 0.2) -> Path:
    """A LoRA file for the checkpoint, U-Net and text encoder, as if it had been trained."""
    import torch
    from torch import nn

    from t2i import lora
    from t2i.training.settings import LoraSettings

    modules: dict[str, nn.Module] = lora.inject(load_sd1(), LoraSettings(rank=rank, text_encoder=True), seed=3)
    draw = torch.Generator().manual_seed(1)
    for module in modules.values():
        for name, parameter in module.named_parameters():
            if ".lora_B." in name:
                parameter.data = scale * torch.randn(parameter.shape, generator=draw)
    path.parent.mkdir(parents=True, exist_ok=True)
    lora.save(modules, path, {"t2i": "test"})
    return path
