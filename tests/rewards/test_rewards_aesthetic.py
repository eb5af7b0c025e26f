"""The published LAION heads on fixed embeddings, and the collapse of several layers to one."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from rewards.aesthetic import V1, V2, Aesthetic, AestheticV1
from rewards.affine_head import collapse
from rewards.checkpoints import published_file, read_state
from rewards.errors import InputError, ModelError

HEADS = {
    Aesthetic: "aesthetic-v2/sac+logos+ava1-l14-linearMSE.pth",
    AestheticV1: "aesthetic-v1/sa_0_4_vit_l_14_linear.pth",
}
GOLDEN = {
    Aesthetic: [5.320581, 5.58249, 6.077201, 4.694154],
    AestheticV1: [2.356522, 3.246564, 5.041531, 3.13277],
}
"""Of the four embeddings below, from the files as they are: five matrix products in float64, or one."""


def _embeddings() -> torch.Tensor:
    """[4, 768], not of length 1, without a generator of random numbers."""
    positions = torch.arange(768, dtype=torch.float64)
    return torch.stack([torch.sin((row + 1) * 0.7 * positions) * (row + 1) for row in range(4)]).float()


def _layer_by_layer(path: Path, vectors: torch.Tensor) -> torch.Tensor:
    """What the authors' code does in evaluation, in float64."""
    state = torch.load(path, map_location="cpu", weights_only=True)
    x = (vectors / vectors.norm(dim=-1, keepdim=True)).double()
    for name in [key.removesuffix("weight") for key in state if key.endswith("weight")]:
        x = x @ state[f"{name}weight"].double().T + state[f"{name}bias"].double()
    return x[:, 0]


@pytest.mark.parametrize("scorer_class", HEADS)
def test_published_heads_on_fixed_embeddings(scorer_class: type[Aesthetic], test_data: Callable[[str], Path]):
    path = test_data(HEADS[scorer_class])
    found = scorer_class(head=str(path)).score_embeddings(_embeddings())
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.numpy(), GOLDEN[scorer_class], rtol=2e-6)
    np.testing.assert_allclose(found.numpy(), _layer_by_layer(path, _embeddings()), rtol=2e-6)


@pytest.mark.parametrize(("published", "scorer_class"), [(V2, Aesthetic), (V1, AestheticV1)])
def test_the_range_in_the_card_is_that_of_the_published_head(
    published, scorer_class: type[Aesthetic], test_data: Callable[[str], Path]
):
    path = test_data(HEADS[scorer_class])
    assert hashlib.sha256(path.read_bytes()).hexdigest() == published.sha256
    head = collapse(read_state(path), str(path))
    reach = float(head.weight.norm())
    assert (published.low, published.high) == pytest.approx((head.bias - reach, head.bias + reach), abs=0.1)


def test_the_two_heads_are_two_scores(test_data: Callable[[str], Path]):
    v1, v2 = (read_state(test_data(HEADS[kind])) for kind in (AestheticV1, Aesthetic))
    first, second = collapse(v1, "v1").weight, collapse(v2, "v2").weight
    assert torch.nn.functional.cosine_similarity(first, second, dim=0).item() == pytest.approx(0.369, abs=1e-3)


def test_layers_collapse_to_one_by_hand():
    # First layer: (x, y) -> (x + 2y + 1, 3x - 1); second: 10 a + b + 5 = 13 x + 20 y + 14.
    state = {
        "layers.0.weight": torch.tensor([[1.0, 2.0], [3.0, 0.0]]),
        "layers.0.bias": torch.tensor([1.0, -1.0]),
        "layers.2.weight": torch.tensor([[10.0, 1.0]]),
        "layers.2.bias": torch.tensor([5.0]),
    }
    head = collapse(state, "head")
    assert head.weight.tolist() == [13.0, 20.0]
    assert head.bias == 14.0
    assert head(torch.tensor([[1.0, 1.0], [0.0, 0.0]])).tolist() == [47.0, 14.0]
    with pytest.raises(ModelError, match="takes 2 numbers, the encoder gives 3"):
        head(torch.zeros(1, 3))
    with pytest.raises(ModelError, match="do not follow on each other"):
        collapse(state | {"layers.2.weight": torch.ones(1, 3)}, "head")
    with pytest.raises(ModelError, match=r"'layers\.0\.running_mean' is no weight"):
        collapse(state | {"layers.0.running_mean": torch.ones(2)}, "head")


def test_the_length_of_an_embedding_does_not_count(scorer_options: dict, tiny_clip: Path, images: list):
    scorer = Aesthetic(**scorer_options["aesthetic"])
    embeddings = scorer.encoder.encode_images(images)
    expected = torch.from_numpy(scorer.score(images))
    torch.testing.assert_close(scorer.score_embeddings(embeddings), expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(scorer.score_embeddings(7 * embeddings), expected, rtol=1e-5, atol=1e-5)
    for wrong in (torch.zeros(2, 16), torch.ones(16), torch.ones(2, 16, dtype=torch.long)):
        with pytest.raises(InputError, match=r"embeddings? "):
            scorer.score_embeddings(wrong)


def test_a_head_of_another_encoder_and_a_missing_one_are_refused(
    tiny_clip: Path, tmp_path: Path, images: list, test_data: Callable[[str], Path]
):
    head = test_data(HEADS[AestheticV1])
    with pytest.raises(ModelError, match="takes 768 numbers, the encoder gives 16"):
        Aesthetic(head=str(head), model=str(tiny_clip)).score(images)
    with pytest.raises(ModelError, match=r"there is no head .*published at https"):
        Aesthetic(head=str(tmp_path / "absent.pth"), model=str(tiny_clip)).score(images)
    (tmp_path / "torn.pth").write_bytes(head.read_bytes()[:1000])
    with pytest.raises(ModelError, match=r"torn\.pth: weights cannot be read"):
        Aesthetic(head=str(tmp_path / "torn.pth"), model=str(tiny_clip)).score(images)


def test_weights_are_read_without_running_code(tmp_path: Path):
    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"weight": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(ModelError, match="weights cannot be read"):
        read_state(tmp_path / "evil.pth")
    assert not (tmp_path / "ran").exists()
    save_file({"weight": torch.ones(2)}, tmp_path / "plain.safetensors")
    assert read_state(tmp_path / "plain.safetensors")["weight"].tolist() == [1.0, 1.0]


def test_the_fingerprint_knows_the_head(scorer_options: dict, tmp_path: Path):
    options = scorer_options["aesthetic"]
    other = tmp_path / "head.pth"
    other.write_bytes(Path(options["head"]).read_bytes() + b" ")
    assert Aesthetic(**options).fingerprint() != Aesthetic(**options | {"head": str(other)}).fingerprint()


def test_a_published_file_is_fetched_once_and_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import huggingface_hub.constants as constants

    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "home"))
    source = tmp_path / "head.pth"
    source.write_bytes(b"weights")
    digest = hashlib.sha256(b"weights").hexdigest()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match="HF_HUB_OFFLINE is set"):
        published_file(source.as_uri(), digest)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with pytest.raises(ModelError, match="the published file was changed"):
        published_file(source.as_uri(), "0" * 64)
    path = published_file(source.as_uri(), digest)
    source.unlink()
    assert published_file(source.as_uri(), digest) == path
    assert path.read_bytes() == b"weights"
    with pytest.raises(ModelError, match="cannot be downloaded"):
        published_file(source.as_uri(), "1" * 64)
