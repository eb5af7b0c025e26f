"""Near duplicates and crowded concepts by vectors: worked out by hand, and against a full comparison."""

from __future__ import annotations

import numpy as np
import pytest

from t2i.data.quality import embeddings
from t2i.data.quality.embeddings import beyond, clusters_of, crowded, near_embeddings, near_vectors
from t2i.errors import DataError
from t2i.records import CaptionedImage


def at_degrees(*angles: float) -> embeddings.Vectors:
    radians = np.deg2rad(angles)
    return np.stack([np.cos(radians), np.sin(radians)], axis=1).astype(np.float32)


def rows(number: int) -> list[CaptionedImage]:
    return [CaptionedImage(str(n), f"/images/{n}.png", 8, 8) for n in range(number)]


@pytest.mark.parametrize("block", [1, 2, 3, 1024])
def test_copies_are_compared_with_what_is_kept_and_the_first_is_named(block: int) -> None:
    # cos 10 = 0.985, cos 20 = 0.940: at 0.98, 10 goes for 0; 20 is near the dropped 10 alone and stays; 28 goes for 20,
    # and 14 for 20 (6 degrees), not for 0 (14 degrees).
    found = list(near_vectors(at_degrees(0, 10, 20, 90, 28, 14), 0.98, block=block))
    assert [(place, kept) for place, kept, _ in found] == [(1, 0), (4, 2), (5, 2)]
    assert [cosine for _, _, cosine in found] == pytest.approx(np.cos(np.deg2rad([10, 8, 6])), abs=1e-6)


def test_threshold_of_one_finds_equal_vectors_alone() -> None:
    draw = np.random.default_rng(0).normal(size=(50, 768)).astype(np.float32)
    unit = draw / np.linalg.norm(draw, axis=1, keepdims=True)
    assert [(place, kept) for place, kept, _ in near_vectors(np.concatenate([unit, unit]), 1.0)] == [
        (50 + n, n) for n in range(50)
    ]


@pytest.mark.parametrize("block", [1, 7, 64, 1024])
def test_blocks_find_what_one_comparison_after_the_other_finds(block: int) -> None:
    draw = np.random.default_rng(1).normal(size=(200, 4)).astype(np.float32)
    unit = draw / np.linalg.norm(draw, axis=1, keepdims=True)
    kept: list[int] = []
    expected = []
    for place in range(200):
        near = next((one for one in kept if float(unit[one] @ unit[place]) >= 0.9), None)
        if near is None:
            kept.append(place)
        else:
            expected.append((place, near))
    assert 20 < len(expected) < 180
    assert [(place, near) for place, near, _ in near_vectors(unit, 0.9, block=block)] == expected


def test_reason_names_the_one_that_is_kept() -> None:
    found = near_embeddings(rows(3), lambda _: at_degrees(0, 90, 0), 0.99, lambda row: f"name {row.id}")
    assert list(found) == [(2, "embeddings.near: cosine 1.0000 to name 0")]


def test_too_many_images_are_refused_before_any_is_encoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embeddings, "MAX_IMAGES", 2)
    encoded: list[int] = []

    def embed(records: object) -> embeddings.Vectors:
        encoded.append(1)
        return at_degrees(0, 1, 2)

    with pytest.raises(DataError, match=r"3 images; compares all with all and takes at most 2\..*near_images"):
        list(near_embeddings(rows(3), embed, 0.9, lambda row: row.id))
    assert encoded == []


def test_those_after_the_first_few_of_a_label_are_beyond() -> None:
    assert list(beyond([5, 1, 5, 5, 1, 1, 2], 2)) == [(3, 5), (5, 1)]


@pytest.mark.parametrize("seed", range(5))
def test_clusters_that_lie_apart_are_found_and_each_keeps_its_first(seed: int) -> None:
    vectors = at_degrees(0, 120, 2, 240, 1, 122, 3)
    labels = clusters_of(vectors, 3, seed)
    assert len(set(labels.tolist())) == 3
    assert len(set(labels[[0, 2, 4, 6]].tolist())) == len(set(labels[[1, 5]].tolist())) == 1
    dropped = dict(crowded(rows(7), lambda _: vectors, 3, 1, seed))
    assert list(dropped) == [2, 4, 5, 6]
    assert dropped[4] == f"embeddings.clusters: cluster {labels[0]} has 4 images"


def test_clusters_depend_on_seed_alone() -> None:
    vectors = np.random.default_rng(2).normal(size=(60, 3)).astype(np.float32)
    first = clusters_of(vectors, 6, 1).tolist()
    assert clusters_of(vectors, 6, 1).tolist() == first
    assert any(clusters_of(vectors, 6, seed).tolist() != first for seed in (2, 3, 4))


def test_more_clusters_than_different_vectors_are_refused() -> None:
    with pytest.raises(DataError, match="3 clusters of 4 images with 2 different embeddings"):
        clusters_of(at_degrees(0, 90, 0, 90), 3, 0)
