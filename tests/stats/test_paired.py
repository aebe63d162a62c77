"""Paired: differences on the same test images, and whether they are luck."""

import numpy as np
import pytest

from pipeline.stats.paired import paired


def answers(
    both: int, only_model: int, only_reference: int, neither: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    model = [True] * (both + only_model) + [False] * (only_reference + neither)
    reference = [True] * both + [False] * only_model + [True] * only_reference + [False] * neither
    return np.array(model), np.array(reference)


def test_ten_to_none_is_better():
    found = paired(*answers(90, 10, 0), seed=0)
    assert found["difference"] == pytest.approx(0.1)
    assert found["mcnemar_p"] == pytest.approx(2 / 2**10)  # two sides of one in 2**10
    # with the two pseudo-images 11 gains and 1 loss of 102: mean 0.098, variance
    # 12 / 102 - 0.098**2 = 0.108, so 1.96 * sqrt(0.108 / 102) = 0.064 to each side
    assert found["difference_low"] == pytest.approx(0.034, abs=0.015)
    assert found["difference_high"] == pytest.approx(0.162, abs=0.015)
    assert found["verdict"] == "better"


def test_none_to_ten_is_worse():
    found = paired(*answers(90, 0, 10), seed=0)
    assert (found["verdict"], found["difference"]) == ("worse", pytest.approx(-0.1))


def test_five_to_none_may_be_luck():
    found = paired(*answers(95, 5, 0), seed=0)
    assert found["mcnemar_p"] == pytest.approx(2 / 2**5)
    assert found["verdict"] == "not distinguishable"


def test_agreement_on_every_image_is_no_difference():
    found = paired(*answers(50, 0, 0, 50), seed=0)
    assert (found["mcnemar_p"], found["verdict"]) == (1.0, "not distinguishable")


@pytest.mark.parametrize(("images", "half"), [(4, 3 / 6), (360, 3 / 362)])
def test_agreement_on_every_image_says_little_where_images_are_few(images, half):
    # The two pseudo-images make up one of n + 2 images each, so a resample holds about one of
    # each (for many images, Poisson with mean 1). Their numbers differ by 3 or more, in favour of
    # one of them, in 3.6 % (4 images) and 3.7 % of the resamples, by 4 or more in 0.6 and 0.8 %:
    # 3 is the first that leaves less than 2.5 % beyond it. Rule of three for 360: 0.83 points.
    found = paired(*answers(images, 0, 0), seed=0)
    assert found["difference"] == 0
    assert found["difference_low"] == pytest.approx(-half)
    assert found["difference_high"] == pytest.approx(half)


@pytest.mark.parametrize("images", [1, 4, 100])
def test_only_one_is_ever_right_and_the_interval_still_has_a_width(images):
    found = paired(*answers(0, images, 0), seed=0)
    assert found["difference"] == 1
    assert found["difference_low"] < found["difference_high"] <= 1
    # two sides of one in 2**images: of one image or four nothing can be told
    assert found["verdict"] == ("better" if images == 100 else "not distinguishable")


def test_the_interval_is_paired():
    # unpaired, two models at 50 % of 100 images differ by 0 ± 0.14; these agree on 98, and with
    # the two pseudo-images gain 2 and lose 2 of 102: 1.96 * sqrt(4 / 102 / 102) = 0.038
    found = paired(*answers(49, 1, 1, 49), seed=0)
    assert found["difference_high"] - found["difference_low"] == pytest.approx(0.077, abs=0.02)
