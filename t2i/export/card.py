"""What an exported adapter says of itself: strings in its header, and a model card beside it, ready for the Hub.

No dates and no paths: the same adapter has the same bytes wherever and whenever it is written.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from t2i.data.formats.card import licence_of
from t2i.export.factors import Adapter, Factors
from t2i.export.layouts import ModelLayers
from t2i.families.base import ModelFamily
from t2i.records import CaptionedImage

_ARCHITECTURES = {
    "sd1": "stable-diffusion-v1/lora",
    "sdxl": "stable-diffusion-xl-v1-base/lora",
    "sd3": "stable-diffusion-3/lora",
    "flux": "flux-1-dev/lora",
    "pixart": "pixart/lora",
}
"""Family -> `modelspec.architecture` of the first of its models."""


@dataclass(frozen=True)
class Base:
    """The model that an adapter belongs to. sha256: of its files, empty for a hub model, which its name identifies."""

    family: str
    name: str
    sha256: str = ""


def architecture(family: ModelFamily) -> str:
    """`modelspec.architecture` of an adapter of a loaded model."""
    name, noise = family.facts.name, family.noise
    denoiser: Any = family.denoiser
    if ModelLayers.of(family.facts, family.pipeline).is_sd2:
        # The published models that predict the velocity are those of 768 px.
        is_768 = noise.prediction_type == "v_prediction"
        return f"stable-diffusion-v2-{'768-v' if is_768 else '512'}/lora"
    # Models made of dev may lack its guidance embedding; they still shift by the resolution.
    if name == "flux" and not denoiser.config["guidance_embeds"] and noise.default_timesteps.shift != "resolution":
        return "flux-1-schnell/lora"
    return _ARCHITECTURES.get(name, f"{name}/lora")


def dataset_strings(records: Iterable[CaptionedImage], trigger_words: str) -> dict[str, str]:
    """Header strings about what was trained on: hashes over the ids of images and over captions, and licences.

    Licences are those of `licence_of`, with the number of images of each.
    """
    images, captions = hashlib.sha256(), hashlib.sha256()
    licences: dict[str, int] = {}
    count = 0
    for record in records:
        count += 1
        images.update(f"{record.id}\n".encode())
        captions.update(json.dumps([(one.kind, one.text) for one in record.captions], ensure_ascii=False).encode())
        licence = licence_of(record) or "not stated"
        licences[licence] = licences.get(licence, 0) + 1
    return {
        "t2i_images": str(count),
        "t2i_dataset_sha256": images.hexdigest(),
        "t2i_captions_sha256": captions.hexdigest(),
        "t2i_licences": json.dumps(dict(sorted(licences.items())), ensure_ascii=False),
        "t2i_trigger_words": trigger_words,
    }


def header(
    adapter: Adapter,
    base: Base,
    layout: str,
    title: str,
    source: Mapping[str, str],
    scores: Sequence[Mapping[str, Any]],
) -> dict[str, str]:
    """The strings of an exported file but for its architecture, which `write_adapter` tells by the loaded model.

    source: those of the trained file; scores: rows of a comparison.
    """
    strings = {key: value for key, value in source.items() if key.startswith("t2i_")} | {
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.implementation": "diffusers" if layout in ("diffusers", "peft") else "https://github.com/kohya-ss",
        "modelspec.title": title,
        "t2i_family": base.family,
        "t2i_model": base.name,
        "t2i_model_sha256": base.sha256,
        "t2i_layout": layout,
        "t2i_version": version("t2i-toolkit"),
        **sizes(adapter, layout),
    }
    if source.get("t2i_trigger_words"):
        strings["modelspec.trigger_phrase"] = source["t2i_trigger_words"]
    if scores:
        strings["t2i_scores"] = json.dumps([_score(row) for row in scores], ensure_ascii=False)
    return strings


def sizes(named: Mapping[str, Factors], layout: str) -> dict[str, str]:
    """The strings about ranks and alphas. named: the layers of a file, which fusing gives larger ones than trained."""
    ranks = sorted({factors.rank for factors in named.values()})
    alphas = sorted({round(factors.alpha, 6) for factors in named.values()})
    strings = {"t2i_ranks": json.dumps(ranks), "t2i_alphas": json.dumps(alphas)}
    if layout == "kohya":
        # What interfaces show of such a file.
        strings |= {"ss_network_module": "networks.lora", "ss_network_dim": str(ranks[-1])}
        strings["ss_network_alpha"] = str(alphas[-1])
    return strings


def _score(row: Mapping[str, Any]) -> dict[str, Any]:
    names = ("label", "mean_a", "mean_b", "difference", "low", "high", "prompts", "verdict")
    return {name: row.get(name) for name in names}


def card(title: str, base: Base, strings: Mapping[str, str], files: Sequence[Path]) -> str:
    """A model card: YAML for the Hub, then what a person wants to know."""
    trigger = strings.get("t2i_trigger_words", "")
    front = ["---", f"base_model: {json.dumps(base.name)}", "library_name: diffusers", "pipeline_tag: text-to-image"]
    front += ["tags: [lora, text-to-image, t2i-toolkit]"]
    front += [f"instance_prompt: {json.dumps(trigger, ensure_ascii=False)}"] if trigger else []
    lines = [*front, "---", "", f"# {title}", "", f"A LoRA for `{base.name}` ({base.family})."]
    if trigger:
        lines.append(f"Write `{trigger}` in the prompt.")
    lines += ["", "| file | layout |", "|---|---|"]
    lines += [
        f"| `{path.name}` | {path.name.split('.')[-2 if path.suffix == '.safetensors' else -1]} |" for path in files
    ]
    lines += ["", *_score_lines(strings), *_origin_lines(base, strings)]
    return "\n".join(lines) + "\n"


def _score_lines(strings: Mapping[str, str]) -> list[str]:
    if "t2i_scores" not in strings:
        return ["No scores: the recipe's export stage names no comparison.", ""]
    lines = ["| scorer | without | with | difference | 95 % interval | verdict |", "|---|---:|---:|---:|---|---|"]
    for row in json.loads(strings["t2i_scores"]):
        if row["mean_a"] is None:
            lines.append(f"| {row['label']} | | | | | {row['verdict']} |")
            continue
        interval = f"{row['low']:.4g} to {row['high']:.4g}"
        means = f"{row['mean_a']:.4g} | {row['mean_b']:.4g} | {row['difference']:+.4g}"
        lines.append(f"| {row['label']} | {means} | {interval} | {row['verdict']} |")
    return [*lines, ""]


def _origin_lines(base: Base, strings: Mapping[str, str]) -> list[str]:
    facts = {
        "base model, SHA-256": base.sha256,
        "images": strings.get("t2i_images", ""),
        "images, SHA-256 of their ids": strings.get("t2i_dataset_sha256", ""),
        "captions, SHA-256": strings.get("t2i_captions_sha256", ""),
        "licences of the images": _licences(strings.get("t2i_licences", "")),
        "recipe": strings.get("t2i_recipe", ""),
        "run": strings.get("t2i_run", ""),
        "steps": strings.get("t2i_steps", ""),
        "ranks": strings.get("t2i_ranks", ""),
        "t2i-toolkit": strings.get("t2i_version", ""),
    }
    return ["## Where it comes from", "", *(f"- {name}: {value}" for name, value in facts.items() if value)]


def _licences(text: str) -> str:
    return ", ".join(f"{name} ({count})" for name, count in json.loads(text).items()) if text else ""
