"""Temperature: fitted on validation images."""

import numpy as np
import pytest

from pipeline.training import temperature


def sample(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return logits of 5 classes, and labels that occur with exactly their probabilities."""
    random = np.random.default_rng(0)
    logits = 3 * random.standard_normal((count, 5))
    gumbel = random.gumbel(size=logits.shape)  # the largest sum is a sample of the softmax
    return logits.astype(np.float32), (logits + gumbel).argmax(axis=1)


@pytest.mark.parametrize("factor", [0.4, 1.0, 2.5])
def test_the_temperature_of_overconfident_and_underconfident_logits_is_recovered(factor):
    logits, labels = sample(20_000)
    assert temperature.fit(factor * logits, labels) == pytest.approx(factor, rel=0.03)


def test_images_that_cannot_determine_the_temperature_leave_it_near_1():
    logits, labels = np.array([[5.0, 0.0], [0.0, 5.0]] * 5), np.array([0, 1] * 5)
    # all ten are correct. At b = 1 / T the slope is -10 * 5 / (1 + e^(5 b)) + 1 - 1 / b, which is
    # -0.028 at 1.15 and 0.043 at 1.2
    assert 1 / 1.2 < temperature.fit(logits, labels) < 1 / 1.15
    # all images wrong, or no signal at all: large, but finite
    assert 1 < temperature.fit(logits, 1 - labels) < 1000
    assert temperature.fit(np.zeros((4, 3)), np.array([0, 1, 2, 0])) == 1
    assert temperature.fit(np.array([[5.0, 0.0]]), np.array([0])) == pytest.approx(1, abs=0.05)


def test_the_thresholds_are_of_the_calibrated_probabilities():
    # nine of ten are correct: b = 1 / T solves 9 - 10 / (1 + e^(-4 b)) = 0 but for the prior, and
    # the confidence of all images is then about 0.9
    logits = np.array([[4.0, 0.0]] * 1000, np.float32)
    labels = (np.arange(1000) < 100).astype(int)
    calibrated = temperature.calibrate(logits, labels)
    assert calibrated.images == 1000
    assert calibrated.temperature == pytest.approx(4 / np.log(9), abs=0.01)
    for row in calibrated.thresholds:
        assert (row.images, row.correct) == (1000, 900)
        assert row.confidence == pytest.approx(0.9, abs=0.001)
