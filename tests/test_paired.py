"""Paired: differences on the same test images, and whether they are luck."""

import numpy as np
import pytest

from pipeline.paired import paired


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
    # a binomial share of 0.1 of 100: 1.96 * sqrt(0.1 * 0.9 / 100) = 0.059 to each side
    assert found["difference_low"] == pytest.approx(0.041, abs=0.015)
    assert found["difference_high"] == pytest.approx(0.159, abs=0.015)
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
    assert found["difference_low"] == found["difference_high"] == 0


def test_the_interval_is_paired():
    # unpaired, two models at 50 % of 100 images differ by 0 ± 0.14; these agree on 98
    found = paired(*answers(49, 1, 1, 49), seed=0)
    assert found["difference_high"] - found["difference_low"] < 0.07
