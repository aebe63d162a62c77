"""Slices: planted differences are found, and shuffled images give few false alarms."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import hypergeom

from pipeline.stats import slices
from pipeline.stats.crossed import mean_interval


def scores(rng: np.random.Generator, accuracy: np.ndarray, trainings: int = 3) -> np.ndarray:
    """Return `(k, n)` correct predictions; about half of the spread is that of the images."""
    image = rng.random(len(accuracy))
    one = rng.random((trainings, len(accuracy)))
    return np.where(rng.random(one.shape) < 0.5, image, one) < accuracy


def test_a_slice_that_is_20_points_worse_is_found():
    rng = np.random.default_rng(0)
    camera = rng.choice(["A", "B", ""], 600)
    metadata = pd.DataFrame(
        {"camera": camera, "name": np.arange(600).astype(str), "same": "x", "age": camera}
    )
    correct = scores(rng, np.where(camera == "B", 0.7, 0.9))
    rows = slices.compare_slices(correct, metadata)
    # names have too many values, and `same` only one
    assert [(row["column"], row["value"]) for row in rows] == [
        (column, value) for column in ("camera", "age") for value in ("", "A", "B")
    ]
    row = rows[2]
    inside = camera == "B"
    mean = mean_interval(correct[:, inside])
    assert row["images"] == inside.sum()
    assert (row["accuracy"], row["accuracy_low"], row["accuracy_high"]) == mean[:3]
    assert row["difference"] == pytest.approx(
        correct[:, inside].mean() - correct[:, ~inside].mean()
    )
    assert row["difference_low"] < -0.2 < row["difference_high"] < 0
    assert row["p_holm"] < 0.001


def test_p_of_one_training_is_that_of_the_hypergeometric_distribution():
    # 100 images, 10 of them wrong; of a slice of 12 images 3 are wrong
    correct = np.ones((1, 100), int)
    correct[0, [*range(3), *range(20, 27)]] = 0
    metadata = pd.DataFrame({"place": ["near"] * 12 + ["far"] * 88})
    # 1.2 are expected: 3 or more are at least as far away, and no smaller number is
    expected = hypergeom.sf(2, 100, 10, 12)
    for row in slices.compare_slices(correct, metadata):
        assert row["p_holm"] == pytest.approx(2 * expected, rel=0.07)  # of two slices


def test_images_that_are_all_correct_have_no_slice_that_differs():
    metadata = pd.DataFrame({"place": ["near", "far", "far"]})
    rows = slices.compare_slices(np.ones((2, 3)), metadata)
    assert [(row["difference"], row["p_holm"]) for row in rows] == [(0, 1), (0, 1)]
    assert rows[0]["difference_low"] < -0.5
    assert rows[0]["difference_high"] > 0.5


def test_a_difference_that_one_of_three_trainings_has_is_less_certain():
    correct = np.ones((3, 400), int)
    metadata = pd.DataFrame({"place": ["near"] * 100 + ["far"] * 300})
    correct[0, :90] = 0
    (far, _) = slices.compare_slices(correct, metadata)
    assert far["p_holm"] > 0.1
    correct[:, :30] = 0  # as many mistakes, in all trainings
    correct[0, 30:90] = 1
    (far, _) = slices.compare_slices(correct, metadata)
    assert far["p_holm"] < 0.001


@pytest.mark.long
@pytest.mark.parametrize(("accuracy", "trainings"), [(0.97, 3), (0.8, 3), (0.9, 1)])
def test_shuffled_images_give_false_alarms_in_at_most_about_5_percent(
    accuracy, trainings, monkeypatch
):
    monkeypatch.setattr(slices, "SAMPLES", 2000)
    rng = np.random.default_rng(0)
    runs, n, alarms, covered = 400, 360, 0, 0
    metadata = pd.DataFrame({
        f"of {values}": (np.arange(n) % values).astype(str) for values in (2, 5, 20)
    })  # fmt: skip
    for _ in range(runs):
        correct = scores(rng, np.full(n, accuracy), trainings)
        rows = slices.compare_slices(correct, metadata)
        alarms += min(row["p_holm"] for row in rows) <= 0.05
        covered += sum(row["difference_low"] <= 0 <= row["difference_high"] for row in rows)
    # 3 standard errors of 400 runs around 5 %; the 27 intervals of a run are correlated
    assert alarms / runs <= 0.083
    assert covered / runs / len(rows) >= 0.93
