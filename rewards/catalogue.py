"""The built-in scorers as a table, from their cards."""

from __future__ import annotations

from rewards.base import Described, ScorerCard
from rewards.registry import available, load, required_options

_HEAD = ("scorer", "weights", "licence of the weights", "scale", "tokens", "gradient", "trained on", "key map")


def markdown_table() -> str:
    """One row per scorer that needs no options, as its card says it. Opens and downloads nothing."""
    rows = [_HEAD, ("---",) * len(_HEAD)]
    for name in available():
        if required_options(name):
            continue
        scorer = load(name)
        if isinstance(scorer, Described):
            rows.append(_row(name, scorer.card))
    return "".join(f"| {' | '.join(_escaped(cell) for cell in row)} |\n" for row in rows)


def _row(name: str, card: ScorerCard) -> tuple[str, ...]:
    return (
        f"`{name}`",
        card.weights or "none",
        card.licence,
        card.scale + ("" if card.higher_is_better else "; smaller is better"),
        str(card.token_limit or ""),
        "yes" if card.differentiable else "",
        card.trained_on,
        "" if card.key_map == "none" else card.key_map,
    )


def _escaped(cell: str) -> str:
    return cell.replace("|", "\\|")
