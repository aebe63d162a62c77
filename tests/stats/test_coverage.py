"""Coverage: intervals hold the true value as often as they say, in simulation."""

import numpy as np
import pytest

from benchmarks.coverage import EQUAL, SEEDS, UNEQUAL, Cell, cells, simulate
from pipeline.stats.crossed import compare_networks

USUAL, HEAVY_TAILS, CORRELATED, *_ = SEEDS
# ± 1.4 points at 95 % of 4,000 simulations; wider where the images are few and nearly all correct
LOW, HIGH = 0.925, 0.985


@pytest.mark.slow
def test_intervals_cover_in_one_setting():
    coverage = simulate(Cell(0.97, 360, (3, 3), (0.004, 0.004)))
    assert LOW < coverage.difference < HIGH
    assert LOW < coverage.mean < HIGH


@pytest.mark.long
@pytest.mark.parametrize("seeds", [USUAL, HEAVY_TAILS])
@pytest.mark.parametrize("trainings", EQUAL)
def test_intervals_cover(seeds, trainings):
    for cell in cells(seeds, trainings):
        assert LOW < simulate(cell).difference < HIGH, cell


@pytest.mark.long
@pytest.mark.parametrize("trainings", EQUAL)
def test_seeds_that_act_alike_in_both_models_make_it_conservative(trainings):
    for cell in cells(CORRELATED, trainings):
        assert simulate(cell).difference > LOW, cell


@pytest.mark.long
@pytest.mark.parametrize("trainings", UNEQUAL)
def test_intervals_cover_with_different_numbers_of_trainings(trainings):
    for cell in cells(USUAL, trainings):
        assert simulate(cell).difference > 0.92, cell


@pytest.mark.parametrize("images", [360, 2000])
@pytest.mark.parametrize("differing", [0.005, 0.02, 0.1])
def test_intervals_of_two_trained_networks_cover(images, differing):
    rng = np.random.default_rng(0)
    # each is the only one right on half of the images on which they differ
    gain = rng.choice([-1, 0, 1], (4000, images), p=[differing / 2, 1 - differing, differing / 2])
    comparison = compare_networks(np.zeros_like(gain), gain)
    low, high = comparison.interval()
    assert ((low <= 0) & (high >= 0)).mean() > LOW
    assert (comparison.p <= 0.05).mean() < 0.05
