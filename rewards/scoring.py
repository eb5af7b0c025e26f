"""Score many images with several scorers: decode once, in batches, from the cache where it knows the answer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from rewards.base import Described, Fingerprinted, ImageLike, Reward, Scores1D, TextLimited, check_prompts, check_scores
from rewards.cache import ScoreCache, image_digest, score_key
from rewards.errors import ImageError, InputError
from rewards.images import open_image
from rewards.registry import RewardSpec, load
from rewards.sharing import SharedEncodings, share_encoders


@dataclass(frozen=True)
class Scores:
    """Raw scores of the same images by several scorers, in order of the images."""

    names: tuple[str, ...]
    values: Mapping[str, Scores1D]
    """Scorer name -> [B] float32, in that scorer's published scale."""
    scales: Mapping[str, str]
    versions: Mapping[str, str]
    images: tuple[str, ...]
    """Path of each image, or `images[i]`."""
    prompts: tuple[str, ...] | None
    truncated: Mapping[str, int]
    """Scorer name -> prompts it could not read to the end; only scorers with a limit."""

    def __getitem__(self, name: str) -> Scores1D:
        """[B] scores of one scorer."""
        return self.values[name]

    def __len__(self) -> int:
        return len(self.images)

    def to_rows(self) -> list[dict[str, object]]:
        """One JSON-ready dict per image: image, prompt (if any), scores."""
        prompts = self.prompts or (None,) * len(self.images)
        rows: list[dict[str, object]] = []
        for index, (image, prompt) in enumerate(zip(self.images, prompts, strict=True)):
            scores = {name: plain_float(self.values[name][index]) for name in self.names}
            row: dict[str, object] = {"image": image, "scores": scores}
            rows.append(row if prompt is None else row | {"prompt": prompt})
        return rows


@dataclass(frozen=True)
class ScoredImage:
    """One image's scores; those that could not be had are absent, never zero."""

    image: str
    prompt: str | None
    scores: dict[str, float] = field(default_factory=dict)
    problem: str | None = None
    """Why the image could not be read."""


def score(
    images: Sequence[ImageLike],
    prompts: Sequence[str] | None = None,
    rewards: Sequence[Reward | RewardSpec] = (),
    batch_size: int = 32,
    device: str = "cpu",
    cache: ScoreCache | Path | str | None = None,
) -> Scores:
    """Score B images, each against its prompt, with every scorer in `rewards` (names, options or scorers of your own).

    batch_size: images decoded and scored together; changes speed and memory only. cache: file of scores to reuse and
    extend. Raises ImageError naming an image that cannot be read, InputError for missing prompts or scorers.
    """
    scorers = load_all(rewards, device)
    needing = next((scorer.name for scorer in scorers if scorer.needs_prompt), None)
    if needing is not None or prompts is not None:
        prompts = check_prompts(needing or "score", len(images), prompts)
    rows = []
    for row in score_each(images, prompts, scorers, batch_size, cache):
        if row.problem is not None:
            raise ImageError(row.problem)
        rows.append(row)
    return Scores(
        names=tuple(scorer.name for scorer in scorers),
        values={s.name: np.array([row.scores[s.name] for row in rows], dtype=np.float32) for s in scorers},
        scales={scorer.name: scorer.scale for scorer in scorers},
        versions={scorer.name: scorer.version for scorer in scorers},
        images=tuple(row.image for row in rows),
        prompts=None if prompts is None else tuple(prompts),
        truncated=count_truncated(scorers, prompts or ()),
    )


def score_each(
    images: Sequence[ImageLike],
    prompts: Sequence[str | None] | None,
    scorers: Sequence[Reward],
    batch_size: int = 32,
    cache: ScoreCache | Path | str | None = None,
) -> Iterator[ScoredImage]:
    """Yield each image's scores in order, going on past images that cannot be read and prompts that are None.

    A scorer that needs a prompt has no score for an image without one. Only images with a score still to be computed
    are decoded, and a scorer whose scores are all in the cache opens no model.
    """
    if batch_size < 1:
        raise InputError(f"batch_size is {batch_size}; expected at least 1.")
    store = ScoreCache(cache) if isinstance(cache, str | Path) else cache
    fingerprints = (
        {s.name: s.fingerprint() for s in scorers if isinstance(s, Fingerprinted)} if store is not None else {}
    )
    for start in range(0, len(images), batch_size):
        batch = [
            _Item(image, prompts[position] if prompts is not None else None, position)
            for position, image in enumerate(images[start : start + batch_size], start)
        ]
        if store is not None:
            _look_up(batch, scorers, fingerprints, store)
        _decode(batch, scorers)
        encodings = SharedEncodings()
        for scorer in scorers:
            _score_batch(scorer, batch, encodings, fingerprints.get(scorer.name), store)
        yield from (ScoredImage(item.label, item.prompt, item.scores, item.problem) for item in batch)


@dataclass
class _Item:
    """One image on its way through a batch."""

    image: ImageLike
    prompt: str | None
    position: int
    digest: str = ""
    scores: dict[str, float] = field(default_factory=dict)
    pixels: Image.Image | None = None
    problem: str | None = None

    @property
    def label(self) -> str:
        return str(self.image) if isinstance(self.image, str | Path) else f"images[{self.position}]"

    def lacks(self, scorer: Reward) -> bool:
        """Whether this scorer has a score still to give."""
        wanted = self.prompt is not None or not scorer.needs_prompt
        return wanted and self.problem is None and scorer.name not in self.scores

    def key(self, scorer: Reward, fingerprint: Mapping[str, str]) -> str:
        return score_key(self.digest, self.prompt if scorer.needs_prompt else None, fingerprint)


def _look_up(
    batch: list[_Item], scorers: Sequence[Reward], fingerprints: Mapping[str, Mapping[str, str]], store: ScoreCache
) -> None:
    for item in batch:
        try:
            item.digest = image_digest(item.image)
        except ImageError as error:
            item.problem = str(error)
            continue
        for scorer in scorers:
            if item.lacks(scorer) and scorer.name in fingerprints:
                value = store.get(item.key(scorer, fingerprints[scorer.name]))
                if value is not None:
                    item.scores[scorer.name] = value


def _decode(batch: list[_Item], scorers: Sequence[Reward]) -> None:
    for item in batch:
        if any(item.lacks(scorer) for scorer in scorers):
            try:
                item.pixels = open_image(item.image, item.label)
            except ImageError as error:
                item.problem = str(error)


def _score_batch(
    scorer: Reward,
    batch: list[_Item],
    encodings: SharedEncodings,
    fingerprint: Mapping[str, str] | None,
    store: ScoreCache | None,
) -> None:
    todo = [item for item in batch if item.lacks(scorer)]
    if not todo:
        return
    pixels = [item.pixels for item in todo if item.pixels is not None]
    prompts = [item.prompt for item in todo if item.prompt is not None] if scorer.needs_prompt else None
    values = check_scores(scorer.name, encodings.score(scorer, pixels, prompts), len(todo))
    for item, value in zip(todo, values, strict=True):
        item.scores[scorer.name] = float(value)
    if store is not None and fingerprint is not None:
        store.put({item.key(scorer, fingerprint): item.scores[scorer.name] for item in todo}, scorer.name)


def load_all(rewards: Sequence[Reward | RewardSpec], device: str = "cpu") -> list[Reward]:
    """Load scorers; ready ones are taken as they are. Raises InputError for none at all, or two of one name."""
    if isinstance(rewards, str | Mapping) or not rewards:
        raise InputError("rewards is a list of scorers such as ['clip_score', 'brightness']; it may not be empty.")
    scorers = [load(item, device) if isinstance(item, str | Mapping) else item for item in rewards]
    names = [scorer.name for scorer in scorers]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise InputError(f"scorer {twice!r} is there twice; scores are kept by name, so score once for each.")
    share_encoders(scorers)
    return scorers


def count_truncated(scorers: Sequence[Reward], prompts: Sequence[str]) -> dict[str, int]:
    """Scorer name -> prompts longer than it can read, for the scorers that have such a limit."""
    return {s.name: s.count_truncated(prompts) for s in scorers if s.needs_prompt and isinstance(s, TextLimited)}


def describe(scorer: Reward) -> dict[str, object]:
    """What a score by this scorer is, JSON-ready: name, version, scale, direction; card and fingerprint if any.

    Of a scorer without a fingerprint its plain attributes stand for the options that it was made with.
    """
    facts: dict[str, object] = {
        "name": scorer.name,
        "version": scorer.version,
        "scale": scorer.scale,
        "needs_prompt": scorer.needs_prompt,
        "higher_is_better": scorer.higher_is_better,
    }
    if isinstance(scorer, Described):
        facts["card"] = asdict(scorer.card)
    if isinstance(scorer, Fingerprinted):
        facts["fingerprint"] = dict(scorer.fingerprint())
    else:
        plain = {name: value for name, value in vars(scorer).items() if isinstance(value, str | int | float | None)}
        facts["options"] = {name: plain[name] for name in sorted(plain.keys() - facts.keys())}
    return facts


def plain_float(value: np.floating | float) -> float:
    """The shortest decimal that reads back as the same float32: 0.1, not 0.10000000149011612."""
    return float(str(np.float32(value)))
