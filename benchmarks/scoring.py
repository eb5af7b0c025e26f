"""Speed of scoring, as ratios measured in one run: python benchmarks/scoring.py

With tiny random checkpoints: what is measured is the cost of this package, not of a model. Processor time of one
thread, which is the time on an idle machine; every pair is taken in turn, several times, and the smallest of each is
kept, which a busy machine disturbs least.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from machine import describe
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "rewards"))

REPEATS = 15
IMAGES = 96
MEGABYTE_IMAGES = 40


def main() -> None:
    """Measure and print the table."""
    import torch

    import rewards

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        clip, head = _checkpoints(folder)
        images, prompts = _images(IMAGES, 64), [f"a photo of {number} cats" for number in range(IMAGES)]
        score = rewards.load({"name": "clip_score", "model": str(clip)}).score
        rows = [
            _row(
                "one at a time / batched",
                ">= 2.5",
                lambda: _one_by_one(score, images, prompts),
                lambda: score(images, prompts),
            ),
            _row(
                "processor + CLIPModel loop / batched",
                ">= 1",
                _bare_loop(clip, images, prompts),
                lambda: score(images, prompts),
            ),
            _row("three heads / one, same encoder", "<= 1.15", *_heads(clip, head, images)),
            _cached(folder, clip),
        ]
    print("\n".join(["| measured | wanted | found | times |", "|---|---|---|---|", *rows]))
    print(
        f"\nProcessor time of one thread, smallest of {REPEATS} taken in turn, {IMAGES} images of 64 px. {describe()}."
    )


def _row(label: str, wanted: str, above: Callable[[], object], below: Callable[[], object]) -> str:
    first, second = _alternate(above, below)
    return f"| {label} | {wanted} | {first / second:.2f} | {1000 * first:.1f} ms / {1000 * second:.1f} ms |"


def _alternate(*jobs: Callable[[], object]) -> list[float]:
    """Smallest time of each job, in seconds; a first round is thrown away."""
    times: list[list[float]] = [[] for _ in jobs]
    for _ in range(REPEATS + 1):
        for job, taken in zip(jobs, times, strict=True):
            began = time.process_time()
            job()
            taken.append(time.process_time() - began)
    return [min(taken[1:]) for taken in times]


def _checkpoints(folder: Path) -> tuple[Path, Path]:
    """A tiny CLIP (32 px, 2 layers of 32) and a head of the size of its embedding."""
    import tiny_scorers
    from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

    clip = folder / "clip"
    vocabulary = {
        token: number for number, token in enumerate([*tiny_scorers.byte_tokens(), "<|startoftext|>", "<|endoftext|>"])
    }
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=77, pad_token="<|endoftext|>")
    tokenizer.save_pretrained(clip)
    CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(clip)
    layers = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    text = {"vocab_size": len(tokenizer), "max_position_embeddings": 77, "eos_token_id": tokenizer.eos_token_id}
    text |= {"bos_token_id": tokenizer.bos_token_id, "pad_token_id": tokenizer.pad_token_id}
    vision = layers | {"image_size": 32, "patch_size": 8}
    CLIPModel(CLIPConfig(text_config=layers | text, vision_config=vision, projection_dim=16)).save_pretrained(clip)
    return clip, tiny_scorers.write_aesthetic_head(folder / "head.pth")


def _images(count: int, side: int) -> list[Image.Image]:
    random = np.random.default_rng(0)
    return [Image.fromarray(random.integers(0, 256, (side, side, 3), dtype=np.uint8)) for _ in range(count)]


def _one_by_one(score: Callable[..., object], images: Sequence[Image.Image], prompts: Sequence[str]) -> None:
    for image, prompt in zip(images, prompts, strict=True):
        score([image], [prompt])


def _bare_loop(clip: Path, images: Sequence[Image.Image], prompts: Sequence[str]) -> Callable[[], object]:
    """What one would write by hand: the processor and the model on batches of 32."""
    import torch
    from transformers import CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

    model = CLIPModel.from_pretrained(clip).eval()
    processor = CLIPImageProcessorPil.from_pretrained(clip)
    tokenizer = CLIPTokenizer.from_pretrained(clip)

    def run() -> list[float]:
        scores: list[float] = []
        for start in range(0, len(images), 32):
            texts = tokenizer(prompts[start : start + 32], padding=True, truncation=True, return_tensors="pt")
            pixels = processor(images=list(images[start : start + 32]), return_tensors="pt")["pixel_values"]
            with torch.no_grad():
                output = model(**texts, pixel_values=pixels)
            scores += (100 * (output.text_embeds * output.image_embeds).sum(-1)).tolist()
        return scores

    return run


def _heads(clip: Path, head: Path, images: Sequence[Image.Image]) -> tuple[Callable[[], object], Callable[[], object]]:
    """The same images through three heads on one encoder, and through one of them."""
    import rewards
    from rewards.scoring import load_all

    plain = {"model": str(clip)}
    three = load_all(
        [{"name": name, **plain, "head": str(head)} for name in ("aesthetic", "aesthetic_v1")]
        + [{"name": "clip_iqa", **plain}]
    )
    one = load_all([{"name": "aesthetic", **plain, "head": str(head)}])
    return lambda: rewards.score(images, None, three), lambda: rewards.score(images, None, one)


def _cached(folder: Path, clip: Path) -> str:
    """A second run on files whose scores are all known, per file of 1 MB; the cache file is read each time."""
    import rewards

    paths = [folder / f"{number:03d}.bmp" for number in range(MEGABYTE_IMAGES)]
    for path, image in zip(paths, _images(MEGABYTE_IMAGES, 592), strict=True):
        image.save(path)
    prompts = [f"prompt {number}" for number in range(MEGABYTE_IMAGES)]
    cache = folder / "cache.jsonl"
    scorer = rewards.load({"name": "clip_score", "model": str(clip)})

    def run() -> object:
        return rewards.score(paths, prompts, [scorer], cache=cache)

    run()
    scorer.fingerprint()  # pyright: ignore[reportAttributeAccessIssue]
    [taken] = _alternate(run)
    size = paths[0].stat().st_size / 1e6
    each = 1000 * taken / MEGABYTE_IMAGES
    return f"| cached rerun, per image of {size:.2f} MB | <= 1 ms | {each:.2f} ms | {1000 * taken:.1f} ms for all |"


if __name__ == "__main__":
    main()
