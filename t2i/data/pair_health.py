"""What a set of preference pairs looks like before anything is trained on it, and what it gives away by accident."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from t2i.errors import DataError
from t2i.records import PreferencePair

TRAITS = {
    "larger": "has more pixels",
    "brighter": "is brighter on average",
    "more colourful": "has the larger mean saturation",
    "larger file": "takes more bytes",
    "later": "was made later",
}
"""What would be learned instead of quality if the winners mostly had it."""


def health(pairs: Sequence[PreferencePair], considered: int, evaluation: Sequence[str] = ()) -> dict[str, Any]:
    """Ties, margins, duplicates, contradictions, leaking traits, and prompts that evaluation uses too.

    pairs: without ties, with absolute image paths; considered: pairs before ties were left out; evaluation: prompts.
    """
    images = {image for pair in pairs for image in (pair.chosen, pair.rejected)}
    prompts = {pair.prompt for pair in pairs}
    shared = sorted(prompts & set(evaluation))
    return {
        "pairs": len(pairs),
        "ties": considered - len(pairs),
        "tie_rate": 1 - len(pairs) / considered,
        "prompts": len(prompts),
        "images": len(images),
        "pairs_per_prompt": len(pairs) / len(prompts),
        "margins": _margins(pairs),
        **_repetitions(pairs),
        "leakage": leakage(pairs),
        "evaluation_prompts": len(set(evaluation)),
        "prompts_also_in_evaluation": {"count": len(shared), "first": shared[:5]},
    }


def leakage(pairs: Sequence[PreferencePair]) -> dict[str, dict[str, Any]]:
    """Trait -> in which share of a prompt's pairs that differ in it the winner has it, with a 95 % interval.

    Pairs of one prompt may share images, so that each prompt is one observation (`PreferencePair.group`). `leaks` is
    true where the interval lies clear of one half, which that of a single prompt never does.
    """
    from rewards.pairwise import share_by_prompt

    traits = {image: _traits(Path(image)) for pair in pairs for image in (pair.chosen, pair.rejected)}
    found: dict[str, dict[str, Any]] = {}
    for name in TRAITS:
        hits: dict[str, list[float]] = {}
        for pair in pairs:
            if sign := _sign(pair, name, traits):
                hits.setdefault(pair.group, []).append(float(sign > 0))
        if not hits:
            continue
        share = share_by_prompt(hits)
        found[name] = {
            "pairs": sum(map(len, hits.values())),
            "prompts": share.clusters,
            "winner": share.value,
            "low": share.low,
            "high": share.high,
            "leaks": share.low > 0.5 or share.high < 0.5,
        }
    return found


def warnings(report: Mapping[str, Any]) -> list[str]:
    """One sentence for each thing in a health report that a person should look at."""
    found = [
        f"the winner {TRAITS[name]} in {row['winner']:.0%} of {row['pairs']} pairs of {row['prompts']} prompts, each "
        f"prompt counting alike (95 % interval {row['low']:.0%} to {row['high']:.0%}): training may learn that instead"
        for name, row in report["leakage"].items()
        if row["leaks"]
    ]
    for name, text in (("duplicates", "pairs repeat others"), ("contradictions", "pairs contradict others")):
        if report[name]:
            found.append(f"{report[name]} {text}")
    if count := report["prompts_also_in_evaluation"]["count"]:
        found.append(f"{count} prompts are also among those of evaluation, which then measures memory")
    return found


def _sign(pair: PreferencePair, trait: str, traits: Mapping[str, Mapping[str, float]]) -> int:
    """+1 if the winner has more of it, -1 if the loser does, 0 if equal or not known."""
    if trait == "later":
        later = pair.extra.get("later")
        swap = -1 if pair.extra.get("label") == "swapped" else 1
        return 0 if later is None else swap * (1 if later else -1)
    difference = traits[pair.chosen][trait] - traits[pair.rejected][trait]
    return (difference > 0) - (difference < 0)


def _traits(path: Path) -> dict[str, float]:
    try:
        with Image.open(path) as image:
            width, height = image.size
            small = image.convert("HSV").resize((64, 64), Image.Resampling.BOX)
    except OSError as error:
        raise DataError(f"{path}: cannot be read as an image ({error}).") from error
    channels = np.asarray(small, dtype=np.float64).mean(axis=(0, 1)) / 255
    return {
        "larger": float(width * height),
        "brighter": float(channels[2]),
        "more colourful": float(channels[1]),
        "larger file": float(path.stat().st_size),
    }


def _margins(pairs: Sequence[PreferencePair]) -> dict[str, dict[str, float]]:
    """Scorer -> quantiles of the difference between chosen and rejected."""
    columns: dict[str, list[float]] = {}
    for pair in pairs:
        for name, value in pair.extra.get("margins", {}).items():
            columns.setdefault(name, []).append(value)
    quantiles = {"least": 0.0, "lower quarter": 0.25, "median": 0.5, "upper quarter": 0.75, "largest": 1.0}
    return {
        name: {label: float(np.quantile(values, share)) for label, share in quantiles.items()}
        for name, values in columns.items()
    }


def _repetitions(pairs: Sequence[PreferencePair]) -> dict[str, int]:
    """Pairs that are there more than once, and pairs that are also there the other way round."""
    keys = [(pair.prompt, pair.aspect, pair.chosen_id, pair.rejected_id) for pair in pairs]
    known = set(keys)
    contradicting = sum((prompt, aspect, rejected, chosen) in known for prompt, aspect, chosen, rejected in keys)
    return {"duplicates": len(keys) - len(known), "contradictions": contradicting // 2}
