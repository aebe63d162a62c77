"""Resizing: exported models resize images as Pillow resizes them for training."""

import numpy as np
import pytest
from PIL import Image

from pipeline.data.preprocessor import to_pixels
from pipeline.serving.resizing import Resize

MODES = ["stretch", "crop", "pad"]


def by_pillow(image: np.ndarray, size: tuple[int, int], resize: str) -> np.ndarray:
    channels = image.shape[-1]
    picture = Image.fromarray(image[..., 0] if channels == 1 else image)
    return to_pixels(picture, (*size, channels), resize)


@pytest.mark.parametrize("resize", MODES)
def test_every_pixel_is_that_of_pillow_or_the_next_level(resize):
    random = np.random.default_rng(0)
    sizes = [*random.integers(1, 300, (20, 4)), (1000, 1, 9, 8), (1, 1000, 8, 9), (1, 1, 5, 7)]
    shares = []
    for number, (height, width, *size) in enumerate(sizes):
        # noise, whose sums are as often near a rounding limit as any
        image = random.integers(0, 256, (height, width, 1 + 2 * (number % 2))).astype(np.uint8)
        target = (int(size[0] // 4 + 1), int(size[1] // 4 + 1))
        resized = Resize(target, resize)(image[None]).numpy()[0]
        difference = np.abs(resized - by_pillow(image, target, resize))
        assert difference.max() <= 1, (image.shape, target)
        shares.append(difference.mean())
    assert np.mean(shares) < 0.01  # 0.004 for crop, and less for the others


@pytest.mark.parametrize("resize", MODES)
def test_images_of_the_right_size_are_unchanged(resize):
    images = np.random.default_rng(0).integers(0, 256, (2, 61, 97, 3)).astype(np.uint8)
    assert np.array_equal(Resize((61, 97), resize)(images).numpy(), images)


@pytest.mark.parametrize("resize", MODES)
@pytest.mark.parametrize("size", [(8, 8), (7, 9)])
def test_images_of_twice_the_size_are_resized_exactly(size, resize):
    images = np.random.default_rng(0).integers(0, 256, (32, *size, 3)).astype(np.uint8)
    enlarged = images.repeat(2, axis=1).repeat(2, axis=2)
    expected = [by_pillow(image, size, resize) for image in enlarged]
    assert np.array_equal(Resize(size, resize)(enlarged).numpy(), expected)
