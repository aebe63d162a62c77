"""Near-duplicates: planted copies are found, and images that are merely alike are not."""

import io
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageEnhance
from sklearn.datasets import load_digits

from pipeline.data import near_duplicates

PHOTOS = Path(os.environ.get("CATS_VS_DOGS_DIR", "none"))
needs_photos = pytest.mark.skipif(not PHOTOS.is_dir(), reason="CATS_VS_DOGS_DIR is not set")
SIZE = (96, 96)
NUM_COPIES = 40


def pairs(images: np.ndarray, labels: np.ndarray | None = None) -> list[list[int]]:
    """Return the pairs of near-duplicates of images `(n, h, w, c)`."""
    labels = np.zeros(len(images), int) if labels is None else labels
    return near_duplicates.find(near_duplicates.spectra(images), labels).pairs.tolist()


def pixels(photos: list[Image.Image]) -> np.ndarray:
    resized = [photo.resize(SIZE, Image.Resampling.BILINEAR) for photo in photos]
    return np.stack([np.asarray(photo, np.float32) / 255 for photo in resized])


def jpeg(photo: Image.Image) -> Image.Image:
    buffer = io.BytesIO()
    photo.save(buffer, "JPEG", quality=30)
    return Image.open(buffer)


def cropped(photo: Image.Image) -> Image.Image:
    """Cut 3 % off the left and 2 % off the bottom, or so."""
    width, height = photo.size
    return photo.crop((width // 32, 0, width, height - height // 50))


@pytest.fixture(scope="module")
def photos() -> list[Image.Image]:
    paths = sorted(PHOTOS.glob("train/*/*"))[:: max(1, len(list(PHOTOS.glob("train/*/*"))) // 120)]
    return [Image.open(path).convert("RGB") for path in paths]


@needs_photos
def test_different_photographs_are_no_near_duplicates(photos):
    assert pairs(pixels(photos)) == []


@needs_photos
@pytest.mark.parametrize(("change", "share"), [
    (jpeg, 0.95),
    (lambda photo: photo.resize((photo.width // 2, photo.height // 2)), 0.95),
    (lambda photo: photo.resize((2 * photo.width, 2 * photo.height)), 0.95),
    (lambda photo: photo.transpose(Image.Transpose.FLIP_LEFT_RIGHT), 0.95),
    (lambda photo: ImageEnhance.Brightness(photo).enhance(1.3), 0.95),
    (lambda photo: photo.convert("L").convert("RGB"), 0.9),
    (cropped, 0.8),
], ids=["JPEG", "smaller", "larger", "mirrored", "brighter", "gray", "cropped"])  # fmt: skip
def test_changed_copies_of_photographs_are_found(
    photos, change: Callable[[Image.Image], Image.Image], share: float
):
    count = len(photos)
    copies = [change(photo) for photo in photos[:NUM_COPIES]]
    found = pairs(pixels([*photos, *copies]))
    planted = [[number, count + number] for number in range(NUM_COPIES)]
    assert sum(pair in found for pair in planted) >= share * NUM_COPIES
    assert [pair for pair in found if pair not in planted] == []


def test_digits_are_alike_but_no_near_duplicates():
    digits = load_digits()
    images = digits.images[..., None].astype(np.float32) / 16
    assert pairs(images, digits.target) == []
    copy = images[100:101] * 0.9
    with_copy = np.concatenate([images, copy])
    assert pairs(with_copy, np.append(digits.target, digits.target[100])) == [[100, 1797]]


def test_images_without_contrast_are_not_compared():
    noise = np.random.default_rng(0).random((30, 16, 16, 1))
    images = np.concatenate([noise, np.full((5, 16, 16, 1), 0.5)]).astype(np.float32)
    images[30:] += 1e-4 * noise[0]
    assert pairs(images) == []
    assert pairs(images[30:31]) == []


def test_a_data_set_full_of_copies_is_no_reason_to_find_none():
    """The threshold follows how alike images are, but not how many copies there are."""
    noise = np.random.default_rng(0).random((50, 12, 20, 3)).astype(np.float32)
    copies = np.concatenate([noise, 0.5 * noise, noise[:, :, ::-1]])
    found = pairs(copies)
    assert [number for number in range(50) if [number, 50 + number] in found] == [*range(50)]
    assert [number for number in range(50) if [number, 100 + number] in found] == [*range(50)]
    assert all(a % 50 == b % 50 for a, b in found)
