"""Which parts of an image the loss looks at."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from painted import paint_one
from PIL import Image

from t2i.data.images import list_images
from t2i.data.masks import latent_mask, mask_path
from t2i.data.settings import MaskSettings, ViewSettings
from t2i.data.views import Views
from t2i.errors import DataError
from t2i.records import CaptionedImage

SIDECAR = MaskSettings()
# 32 x 16 pixels: white in columns 0 to 11, so that with cells of 8 the first is full and the second half full.
COLUMNS = np.zeros((16, 32), dtype=np.uint8)
COLUMNS[:, :12] = 255


@pytest.fixture
def record(tmp_path: Path) -> CaptionedImage:
    return paint_one(tmp_path, 0, (32, 16), "a dog", mask="masks/dog.png")


def save_mask(record: CaptionedImage, pixels: np.ndarray = COLUMNS) -> Path:
    path = Path(record.image).with_suffix(".mask.png")
    Image.fromarray(pixels).save(path)
    return path


def view(record: CaptionedImage, size: tuple[int, int], number: int = 0, **fields: object):
    return Views(ViewSettings.model_validate(fields), 1).view(record, number, size)


def test_latent_position_has_the_mean_of_its_pixels(record: CaptionedImage) -> None:
    path = save_mask(record)
    found = latent_mask(path, view(record, (32, 16)), (2, 4), 0.0)
    assert found.shape == (1, 2, 4)
    assert found[0].tolist() == [[1, 0.5, 0, 0]] * 2
    outside = latent_mask(path, view(record, (32, 16)), (2, 4), 0.2)
    torch.testing.assert_close(outside[0, 0], torch.tensor([1, 0.6, 0.2, 0.2]))


def test_mask_is_cut_and_mirrored_with_its_image(record: CaptionedImage) -> None:
    path = save_mask(record)
    # The centre 16 columns are 8 .. 23, of which 8 .. 11 are white.
    assert latent_mask(path, view(record, (16, 16)), (2, 2), 0.0)[0].tolist() == [[0.5, 0]] * 2
    mirrored = view(record, (16, 16), 1, flip=True)
    assert latent_mask(path, mirrored, (2, 2), 0.0)[0].tolist() == [[0, 0.5]] * 2


def test_mask_is_scaled_with_its_image(record: CaptionedImage) -> None:
    path = save_mask(record)
    # Half the size: 6 of 16 columns are white.
    assert latent_mask(path, view(record, (16, 8)), (1, 2), 0.0)[0].tolist() == [[0.75, 0]]


def test_mask_beside_an_image_is_found_and_is_no_image_itself(record: CaptionedImage, tmp_path: Path) -> None:
    path = save_mask(record)
    assert mask_path(record, SIDECAR) == path
    assert list_images(tmp_path) == [Path(record.image)]
    # Without a picture of its name it is a picture.
    Image.new("RGB", (8, 8)).save(tmp_path / "venetian.mask.png")
    assert list_images(tmp_path) == [Path(record.image), tmp_path / "venetian.mask.png"]


def test_mask_of_a_column_is_relative_to_the_image(record: CaptionedImage, tmp_path: Path) -> None:
    settings = MaskSettings(column="mask")
    with pytest.raises(DataError, match=r"its mask .*masks/dog\.png \(column 'mask'\) is missing"):
        mask_path(record, settings)
    (tmp_path / "masks").mkdir()
    (tmp_path / "masks/dog.png").write_bytes(save_mask(record).read_bytes())
    assert mask_path(record, settings) == tmp_path / "masks/dog.png"


def test_missing_mask_is_an_error_unless_the_whole_image_counts(record: CaptionedImage) -> None:
    with pytest.raises(
        DataError, match=r"0000\.png: has no mask \(no 0000\.mask\.png beside it\).*masks\.missing: whole"
    ):
        mask_path(record, SIDECAR)
    with pytest.raises(DataError, match="column 'other' names none"):
        mask_path(record, MaskSettings(column="other"))
    assert mask_path(record, MaskSettings(missing="whole")) is None
    assert torch.equal(latent_mask(None, view(record, (32, 16)), (2, 4), 0.0), torch.ones(1, 2, 4))


def test_mask_of_another_size_is_refused(record: CaptionedImage) -> None:
    path = save_mask(record, np.zeros((16, 31), dtype=np.uint8))
    with pytest.raises(DataError, match=r"0000\.mask\.png: 31x16 pixels; its image has 32x16 as seen"):
        latent_mask(path, view(record, (32, 16)), (2, 4), 0.0)


def test_mask_that_leaves_nothing_is_refused(record: CaptionedImage) -> None:
    path = save_mask(record, np.where(np.arange(32) > 27, 255, 0).astype(np.uint8)[None].repeat(16, 0))
    assert latent_mask(path, view(record, (32, 16)), (2, 4), 0.0).max() == 0.5
    with pytest.raises(DataError, match="black all over the part that is trained on"):
        latent_mask(path, view(record, (16, 16)), (2, 2), 0.0)
    assert torch.equal(latent_mask(path, view(record, (16, 16)), (2, 2), 0.25), torch.full((1, 2, 2), 0.25))


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_mask_with_transparency_is_refused_as_it_could_mean_two_things(record: CaptionedImage, mode: str) -> None:
    path = save_mask(record)
    mask = Image.new(mode, (32, 16), "white")
    mask.putalpha(Image.fromarray(COLUMNS))
    mask.save(path)
    with pytest.raises(DataError, match=r"0000\.mask\.png: has transparency.*Flatten it over black"):
        latent_mask(path, view(record, (32, 16)), (2, 4), 0.0)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "I;16"])
def test_mask_is_grey_of_any_mode(record: CaptionedImage, mode: str) -> None:
    path = save_mask(record)
    is_deep = mode == "I;16"
    mask = Image.fromarray(COLUMNS.astype(np.uint16) * 257) if is_deep else Image.fromarray(COLUMNS).convert(mode)
    mask.save(path)
    assert latent_mask(path, view(record, (32, 16)), (2, 4), 0.0)[0].tolist() == [[1, 0.5, 0, 0]] * 2


def test_mask_with_a_transparent_colour_is_refused(record: CaptionedImage) -> None:
    path = save_mask(record)
    Image.fromarray(COLUMNS).save(path, transparency=0)
    with pytest.raises(DataError, match="has transparency"):
        latent_mask(path, view(record, (32, 16)), (2, 4), 0.0)
