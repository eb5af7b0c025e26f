"""The losses other than denoising, worked out by hand on a few numbers."""

from __future__ import annotations

import math

import pytest
import torch

from t2i.objectives import Autoencoder, Contrastive
from t2i.objectives.autoencoder import kl_to_standard_normal, reconstruction_loss
from t2i.objectives.base import ImageBatch
from t2i.objectives.classification import classification_loss
from t2i.objectives.contrastive import contrastive_loss
from t2i.objectives.denoising import denoising_loss


def test_reconstruction_loss_is_mean_absolute_plus_mean_squared_error() -> None:
    pixels = torch.zeros(2, 3, 1, 1)
    reconstruction = torch.tensor([[0.5, -0.5, 0.0], [0.0, 0.0, 0.3]]).reshape(2, 3, 1, 1)
    assert reconstruction_loss(reconstruction, pixels).tolist() == pytest.approx([1 / 3 + 0.5 / 3, 0.1 + 0.03])


def test_kl_is_zero_for_the_standard_normal_and_by_hand_elsewhere() -> None:
    mean = torch.tensor([[0.0, 0.0], [1.0, -2.0]])
    logvar = torch.tensor([[0.0, 0.0], [math.log(4.0), 0.0]])
    by_hand = (0.5 * (1 + 4 - 1 - math.log(4)) + 0.5 * (4 + 1 - 1)) / 2
    assert kl_to_standard_normal(mean, logvar).tolist() == pytest.approx([0.0, by_hand])


def test_kl_equals_that_of_torch() -> None:
    mean, logvar = torch.randn(2, 3, 4, 5, 5, generator=torch.Generator().manual_seed(0))
    ours = kl_to_standard_normal(mean, logvar)
    normal = torch.distributions.Normal(mean, (logvar / 2).exp())
    theirs = torch.distributions.kl_divergence(normal, torch.distributions.Normal(0.0, 1.0)).flatten(1).mean(1)
    torch.testing.assert_close(ours, theirs)


def test_autoencoder_decodes_a_draw_of_the_posterior() -> None:
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownEncoderBlock2D",), "up_block_types": ("UpDecoderBlock2D",)}
    vae = AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, **blocks)
    draw = torch.Generator().manual_seed(1)
    pixels, noise = torch.rand(2, 3, 8, 8, generator=draw) * 2 - 1, torch.randn(2, 4, 8, 8, generator=draw)
    output = Autoencoder(kl_weight=0.5)(vae, ImageBatch(pixels, noise, ("", "")))
    posterior = vae.encode(pixels).latent_dist
    image = vae.decode(posterior.mean + posterior.std * noise).sample
    error, kl = reconstruction_loss(image, pixels), kl_to_standard_normal(posterior.mean, posterior.logvar)
    torch.testing.assert_close(output.loss, error + 0.5 * kl)
    torch.testing.assert_close(output.metrics, {"reconstruction": error.detach(), "kl": kl.detach()})


@pytest.mark.parametrize("size", [1, 2, 7])
def test_contrastive_loss_is_log_of_the_batch_size_for_equal_embeddings(size: int) -> None:
    embeddings = torch.ones(size, 5)
    loss = contrastive_loss(embeddings, 3 * embeddings, torch.tensor(20.0))
    assert loss.tolist() == pytest.approx([math.log(size)] * size, abs=1e-6)


def test_contrastive_loss_by_hand() -> None:
    images = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
    texts = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    # Cosines: image 0 with both texts 1, image 1 with both 0.
    to_text = [math.log(2), math.log(2)]
    to_image = [math.log(math.exp(3) + 1) - 3, math.log(math.exp(3) + 1)]
    by_hand = [(a + b) / 2 for a, b in zip(to_text, to_image, strict=True)]
    assert contrastive_loss(images, texts, torch.tensor(3.0)).tolist() == pytest.approx(by_hand)


def test_contrastive_loss_is_symmetric_in_its_two_sides() -> None:
    images, texts = torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(0))
    scale = torch.tensor(5.0)
    torch.testing.assert_close(contrastive_loss(images, texts, scale), contrastive_loss(texts, images, scale))


def test_contrastive_loss_and_its_mean_equal_those_of_clip() -> None:
    from transformers.models.clip.modeling_clip import image_text_contrastive_loss

    images, texts = torch.nn.functional.normalize(
        torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(0)), dim=-1
    )
    theirs = image_text_contrastive_loss(5.0 * texts @ images.T)
    assert float(contrastive_loss(images, texts, torch.tensor(5.0)).mean()) == pytest.approx(float(theirs), rel=1e-6)


def test_contrastive_accuracy_counts_images_that_find_their_own_caption() -> None:
    images = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.1]])
    texts = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    output = Contrastive()(images, texts, torch.tensor(1.0))
    assert output.metrics["accuracy"].tolist() == [1.0, 1.0, 0.0]


def test_classification_loss_by_hand() -> None:
    # Even odds of two classes cost log 2; odds of 3 to 1 cost log(4/3) for the likely one and log 4 for the other.
    odds = [0.0, math.log(3.0)]
    logits = {"shape": torch.tensor([[0.0, 0.0], odds]), "cells": torch.tensor([[odds, odds], [odds, odds]]).mT}
    labels = {"shape": torch.tensor([0, 1]), "cells": torch.tensor([[0, 1], [1, -100]])}
    expected = [math.log(2) + (math.log(4) + math.log(4 / 3)) / 2, math.log(4 / 3) + math.log(4 / 3)]
    assert classification_loss(logits, labels).tolist() == pytest.approx(expected)


def test_head_without_a_counted_place_adds_nothing() -> None:
    logits = {"shape": torch.randn(2, 3, 4)}
    loss = classification_loss(logits, {"shape": torch.full((2, 4), -100)})
    assert loss.tolist() == [0.0, 0.0]


def test_loss_of_an_example_does_not_depend_on_the_others_of_its_batch() -> None:
    draw = torch.Generator().manual_seed(0)
    prediction, target = torch.randn(2, 5, 4, 4, 4, generator=draw)
    singly = torch.cat([denoising_loss(prediction[i : i + 1], target[i : i + 1]) for i in range(5)])
    torch.testing.assert_close(denoising_loss(prediction, target), singly)
    logits, labels = {"head": torch.randn(5, 3, 4, generator=draw)}, {"head": torch.tensor([[0, 1, 2, -100]] * 5)}
    parts = [classification_loss({"head": logits["head"][i : i + 1]}, {"head": labels["head"][:1]}) for i in range(5)]
    torch.testing.assert_close(classification_loss(logits, labels), torch.cat(parts))
