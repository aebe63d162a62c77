"""Paired comparison: the difference, its interval, p and the verdict."""

import numpy as np
import pytest

from pipeline.stats.paired import paired


def correct_images(
    both: int, only_model: int, only_reference: int, neither: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Return which images model and reference classify correctly, from four counts of images."""
    model = [True] * (both + only_model) + [False] * (only_reference + neither)
    reference = [True] * both + [False] * only_model + [True] * only_reference + [False] * neither
    return np.array(model), np.array(reference)


def test_ten_images_gained_and_none_lost_is_better():
    result = paired(*correct_images(90, 10, 0), seed=0)
    assert result["difference"] == pytest.approx(0.1)
    assert result["mcnemar_p"] == pytest.approx(2 / 2**10)  # two-sided
    # with the two pseudo-images, 11 gains and 1 loss in 102 images: mean 0.098, variance
    # 12 / 102 - 0.098**2 = 0.108, so the interval is 0.098 ± 1.96 * sqrt(0.108 / 102), ± 0.064
    assert result["difference_low"] == pytest.approx(0.034, abs=0.015)
    assert result["difference_high"] == pytest.approx(0.162, abs=0.015)
    assert result["verdict"] == "better"


def test_ten_images_lost_and_none_gained_is_worse():
    result = paired(*correct_images(90, 0, 10), seed=0)
    assert (result["verdict"], result["difference"]) == ("worse", pytest.approx(-0.1))


def test_five_images_gained_and_none_lost_is_not_distinguishable():
    result = paired(*correct_images(95, 5, 0), seed=0)
    assert result["mcnemar_p"] == pytest.approx(2 / 2**5)
    assert result["verdict"] == "not distinguishable"


def test_models_that_agree_on_all_images_are_not_distinguishable():
    result = paired(*correct_images(50, 0, 0, 50), seed=0)
    assert (result["mcnemar_p"], result["verdict"]) == (1.0, "not distinguishable")


@pytest.mark.parametrize(("images", "half"), [(4, 3 / 6), (360, 3 / 362)])
def test_the_interval_is_wide_for_few_images_even_if_models_agree_on_all(images, half):
    # A resample of n + 2 images contains each pseudo-image once on average (for many images, a
    # Poisson number). The difference of the two numbers is 3 or more in 3.6 % (4 images) or 3.7 %
    # (360 images) of the resamples, and 4 or more in 0.6 or 0.8 %. So the end of the interval, the
    # 97.5 % quantile, is 3. The rule of three gives 0.83 points for 360 images.
    result = paired(*correct_images(images, 0, 0), seed=0)
    assert result["difference"] == 0
    assert result["difference_low"] == pytest.approx(-half)
    assert result["difference_high"] == pytest.approx(half)


@pytest.mark.parametrize("images", [1, 4, 100])
def test_the_interval_has_a_width_if_the_model_gains_all_images(images):
    result = paired(*correct_images(0, images, 0), seed=0)
    assert result["difference"] == 1
    assert result["difference_low"] < result["difference_high"] <= 1
    # p is 2 / 2**images, at least 0.125 for one or four images
    assert result["verdict"] == ("better" if images == 100 else "not distinguishable")


def test_the_interval_is_paired():
    # unpaired, the difference of two models with 50 % of 100 images is 0 ± 0.14. These agree on 98
    # images. With the pseudo-images, 2 are gained and 2 lost in 102: ± 1.96 * sqrt(4) / 102 = 0.038
    result = paired(*correct_images(49, 1, 1, 49), seed=0)
    assert result["difference_high"] - result["difference_low"] == pytest.approx(0.077, abs=0.02)
