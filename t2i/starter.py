"""The recipe that `t2i init` writes for a person's own folder of pictures."""

from __future__ import annotations

import json
from pathlib import Path

from t2i.captioners import FilesCaptioner
from t2i.data.images import list_images
from t2i.errors import ConfigError, DataError
from t2i.records import write_text

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

  - type: train
    data_from: filter
    captions: {{caption: 1}}
    trained:
      type: lora
      # Width of the adapter: 4 to 32 for a style or subject.
      rank: 16
    optimizer:
      # 1e-4 is usual for a LoRA; lower it if the pictures come out harsh.
      learning_rate: 1e-4
      warmup_steps: 20
    loop:
      # Too few: nothing learnt. Too many: your pictures come back whatever you ask for.
      steps: 500
      batch_size: 4
      # Pictures at once in memory; lower it if memory runs out, the result stays the same.
      micro_batch_size: 1

  # The same prompts and seeds without and with the LoRA, so that you see what it changed.
  - type: generate
    name: before
    prompts: &prompts
      type: list
      prompts:
{prompts}
    images_per_prompt: 2
  - type: generate
    name: after
    weights_from: train
    prompts: *prompts
    images_per_prompt: 2

  # Files for diffusers, and for interfaces that read the kohya layout.
  - type: export
    weights_from: train
    layouts: [diffusers, kohya]
"""


def write_starter(folder: str, model: str, output: Path) -> str:
    """Write a commented recipe for a folder of pictures; returns what was found, for the screen.

    Raises DataError if the folder holds no pictures, and ConfigError rather than overwrite a file.
    """
    if output.exists():
        raise ConfigError(f"{output} exists; move it away, or write elsewhere with --output.")
    if not Path(folder).expanduser().is_dir():
        raise DataError(f"{folder}: no such folder; name the one that holds your pictures.")
    pictures = list_images(Path(folder).expanduser())
    captions = _captions(pictures)
    found = f"{len(pictures)} pictures, {len(captions)} of them with a caption in a .txt file beside it"
    prompts = captions[:4] or ["a picture as you would describe it"]
    text = _TEMPLATE.format(
        folder=json.dumps(folder),
        folder_plain=folder,
        model=json.dumps(model),
        model_plain=model,
        output=output,
        found=found,
        prompts="\n".join(f"        - {json.dumps(prompt, ensure_ascii=False)}" for prompt in prompts),
    )
    write_text(output, text)
    return found


def _captions(pictures: list[Path]) -> list[str]:
    """Captions beside pictures, as the recipe's captioner will read them."""
    sidecars = [picture.with_suffix(FilesCaptioner().extension) for picture in pictures]
    texts = [path.read_text(encoding="utf-8-sig", errors="replace").strip() for path in sidecars if path.is_file()]
    return [text for text in texts if text and "\n" not in text]
