"""The recipe that `t2i init` writes for a person's own folder of pictures."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass
from pathlib import Path

from t2i.captioners import FilesCaptioner
from t2i.data.images import list_images, pictures_not_read, told_not_read
from t2i.errors import ConfigError, DataError, ModelError
from t2i.files import check_new, write_text
from t2i.recipe import is_safe_name
from t2i.resources import resolve_path

_TEMPLATE = """\
# Teach {model_plain} what the pictures in {folder_plain} look like.
#
#     t2i plan {output}       what would run, and why
#     t2i run {output}        run it; what is finished is never done twice
#     t2i run {output} train.loop.steps=1000    the same with a change
#
# Found: {found}.

description: A LoRA on my own pictures.
# A hub id, or a folder in diffusers layout.
model: {model}
# Every random draw follows from it: the same seed gives the same files.
seed: 0

stages:
  # Reads picture.txt beside picture.jpg: one caption on one line. Say what is in the picture and in which style;
  # what a caption leaves out becomes part of every picture.
  - type: caption
    data: {{type: folder, path: {folder}}}
    captioner: {{type: files}}
    # Largest share of pictures without a caption; 0 stops at the first one.
    max_refused: 0.1

  # Drops what would harm training; dropped.jsonl in its folder says what and why.
  - type: filter
    data_from: caption
    require: [caption]
    max_aspect: 3
{min_side}
  - type: train
    data_from: filter
    captions: {{caption: 1}}
{resolution}    # Captions are encoded once, before training; then the text encoders leave the GPU.
    cache: {{text: true}}
    trained:
      type: lora
      # Width of the adapter: 4 to 32 for a style or subject.
      rank: 16
      # The model itself is held in bf16, half the memory.
      base_bits: 16
{speed}    optimizer:
      # 1e-4 is usual for a LoRA; lower it if the pictures come out harsh.
      learning_rate: 1e-4
      warmup_steps: 20
    loop:
      # Too few: nothing learnt. Too many: your pictures come back whatever you ask for.
      steps: 500
      batch_size: 4
      # Pictures at once in memory; lower it if memory runs out, the result stays the same.
      micro_batch_size: 1
      precision: bf16

  # The same prompts and seeds without and with the LoRA, so that you see what it changed.
  - type: generate
    name: before
    prompts: &prompts
      type: list
      prompts:
{prompts}
    images_per_prompt: 2
{sampling}  - type: generate
    name: after
    weights_from: train
    prompts: *prompts
    images_per_prompt: 2
{sampling_again}
  # Files for other tools; the recipes of the families say which tool reads which.
  - type: export
    weights_from: train
    layouts: {layouts}
"""


@dataclass(frozen=True)
class FamilyAdvice:
    """What a starter recipe says for a family beyond what its checkpoint tells."""

    layouts: tuple[str, ...]
    held: str = "precision: bf16"
    """How the model is held while it paints."""
    speed: str = ""
    """What makes it fit while it is trained, beyond what all do."""


_T5 = "text_encoders: bf16"

ADVICE = {
    "sd1": FamilyAdvice(("diffusers", "kohya")),
    "sdxl": FamilyAdvice(("diffusers", "kohya")),
    "pixart": FamilyAdvice(("peft",), speed=_T5),
    "sd3": FamilyAdvice(("diffusers", "kohya"), speed=_T5),
    "flux": FamilyAdvice(
        ("diffusers", "kohya"),
        held="precision: bf16, offload: model",
        speed=f"{_T5}, gradient_checkpointing: true",
    ),
}
"""By name of the family."""


@dataclass(frozen=True)
class _Recognised:
    """What a checkpoint is."""

    family: str
    size_px: int
    guidance_scale: float


def write_starter(folder: str, model: str, output: Path) -> str:
    """Write a commented recipe for a folder of pictures and a model; returns what was found, for the screen.

    The model's family and size are read from its files. Raises DataError if the folder holds no pictures, ModelError
    for a local checkpoint that cannot be trained, and ConfigError rather than overwrite a file, or for a file whose
    name no recipe can have.
    """
    if not is_safe_name(output.stem):
        raise ConfigError(f"--output: {output}: a recipe has the name of its file; use letters, digits, _ and -.")
    check_new("--output", output)
    if not Path(folder).expanduser().is_dir():
        raise DataError(f"{folder}: no such folder; name the one that holds your pictures.")
    pictures = list_images(Path(folder).expanduser())
    captions = _captions(pictures)
    found = f"{len(pictures)} pictures, {len(captions)} of them with a caption in a .txt file beside it"
    recognised = _recognise(model)
    known = "could not be looked at, so that its size and sampling are left to be filled in"
    if recognised is not None:
        known = f"is of family {recognised.family}, made for {recognised.size_px} px"
    not_read = told_not_read(pictures_not_read(Path(folder).expanduser()))
    found = "; ".join(filter(None, (found, not_read, f"the model {known}")))
    prompts = captions[:4] or ["a picture as you would describe it"]
    text = _TEMPLATE.format(
        folder=json.dumps(folder),
        folder_plain=folder,
        model=json.dumps(model),
        model_plain=model,
        output=shlex.quote(str(output)),
        found=found,
        prompts="\n".join(f"        - {json.dumps(prompt, ensure_ascii=False)}" for prompt in prompts),
        **_family_lines(recognised),
    )
    output.parent.mkdir(parents=True, exist_ok=True)
    write_text(output, text)
    return found


def _recognise(model: str) -> _Recognised | None:
    """Family and size, from the small files of a checkpoint; None for a hub model that cannot be reached."""
    from t2i.families.outline import outline_family

    try:
        family = outline_family(model)
    except ModelError:
        if resolve_path(model).exists() or model.startswith(("pkg:", "/", ".", "~")):
            raise
        return None
    return _Recognised(family.facts.name, family.default_size, family.facts.guidance_scale)


def _family_lines(recognised: _Recognised | None) -> dict[str, str]:
    """Lines of the recipe that depend on what the model is, each with its own line end."""
    if recognised is None:
        blank = dict.fromkeys(("min_side", "resolution", "speed", "sampling", "sampling_again"), "")
        return {**blank, "layouts": "[diffusers]"}
    advice, size = ADVICE[recognised.family], recognised.size_px
    return {
        "min_side": f"    # Nothing is ever enlarged.\n    min_side: {size}\n",
        "resolution": f"    # Side of the squares in pixels; lower takes less memory.\n    resolution: {size}\n",
        "sampling": f"    sampling: &sampling {{guidance_scale: {recognised.guidance_scale:g}, {advice.held}}}\n",
        "speed": f"    speed: {{{advice.speed}}}\n" if advice.speed else "",
        "sampling_again": "    sampling: *sampling\n",
        "layouts": f"[{', '.join(advice.layouts)}]",
    }


def _captions(pictures: list[Path]) -> list[str]:
    """Captions beside pictures, as the recipe's captioner will read them."""
    sidecars = [picture.with_suffix(FilesCaptioner().extension) for picture in pictures]
    texts = [path.read_text(encoding="utf-8-sig", errors="replace").strip() for path in sidecars if path.is_file()]
    return [text for text in texts if text and "\n" not in text]
