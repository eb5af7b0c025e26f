"""Score the images of a folder into a table, going on past everything that is broken or missing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from rewards.base import Reward, TextLimited
from rewards.prompts import Pairing
from rewards.registry import load
from rewards.score_files import facts_of
from rewards.score_table import Row, ScoreTable
from rewards.scoring import score_each

_BLANK = "blank"


def score_folder(
    name: str,
    pairing: Pairing,
    scorers: Sequence[Reward],
    descriptions: Mapping[str, Mapping[str, object]],
    *,
    batch_size: int = 32,
    cache: Path | None = None,
    expects_prompts: bool = True,
    on_image: Callable[[], None] = lambda: None,
) -> ScoreTable:
    """Score all images of a pairing with all scorers; what cannot be scored is told in the table.

    descriptions: of the scorers, see `score_files.describe_all`; cache: file of scores to go on from, and to extend
    with each batch; expects_prompts: whether an image without a prompt is a gap; on_image: called after each image.
    """
    asked = scorers if any(scorer.name == _BLANK for scorer in scorers) else [*scorers, load(_BLANK)]
    names = [scorer.name for scorer in scorers]
    cut = _cut_prompts(scorers, [prompt for prompt in pairing.prompts if prompt is not None])
    categories = pairing.categories or ("",) * len(pairing.images)
    rows = []
    scored = score_each(pairing.images, pairing.prompts, asked, batch_size, cache)
    for image, category, row in zip(pairing.images, categories, scored, strict=True):
        rows.append(
            Row(
                image=image,
                prompt=row.prompt,
                scores={one: row.scores[one] for one in names if one in row.scores},
                category=category,
                problem=row.problem,
                is_blank=row.scores.get(_BLANK) == 1.0,
                truncated_by=tuple(one for one in names if row.prompt in cut.get(one, ())),
            )
        )
        on_image()
    facts = tuple(facts_of(descriptions[one]) for one in names)
    return ScoreTable(name, tuple(rows), facts, pairing.missing_images, expects_prompts, pairing.not_read)


def _cut_prompts(scorers: Sequence[Reward], prompts: Sequence[str]) -> dict[str, set[str]]:
    """Scorer -> prompts that it cannot read to the end."""
    distinct = list(dict.fromkeys(prompts))
    found = {}
    for scorer in scorers:
        if scorer.needs_prompt and isinstance(scorer, TextLimited) and scorer.count_truncated(distinct):
            found[scorer.name] = {prompt for prompt in distinct if scorer.count_truncated([prompt])}
    return found
