"""Whitening: filters worked out by hand, features without correlation, models it does not fit."""

import keras
import numpy as np
import pytest

from pipeline.config.schema import Model
from pipeline.core.errors import PipelineError
from pipeline.runtime.input_pipeline import Subset
from pipeline.training import building, whitening


def photographs(count: int = 50, shape: tuple[int, int, int] = (12, 10, 3)) -> Subset:
    """Images whose neighbouring pixels and colours go together, far from zero."""
    random = np.random.default_rng(0)
    images = random.random((count, *shape), np.float32).cumsum(axis=1).cumsum(axis=2)
    images += images[..., :1]
    return Subset(images, np.zeros(count, int), np.arange(count))


def features(model: keras.Model, part: Subset) -> np.ndarray:
    """What leaves the first layer, `(patches, filters)`."""
    first = model.layers[1]
    return np.asarray(first(part.images[part.rows])).reshape(-1, first.filters)


def build(name: str = "airnet", shape: tuple[int, ...] = (12, 10, 3), **own) -> keras.Model:
    return building.build(Model(architecture=name, build=own), shape, 2, seed=0)


def test_filters_of_two_pixels_by_hand():
    # patches of 1 × 2: (3, 1), (1, 3), (-3, -1), (-1, -3): mean 0, variances
    # (9 + 1 + 9 + 1) / 4 = 5, covariance (3 + 3 + 3 + 3) / 4 = 3. Along (1, -1) / sqrt(2) the
    # variance is 5 - 3 = 2, along (1, 1) / sqrt(2) 8. Epsilon is 5e-4 * 5
    rows = [(3, 1), (1, 3), (-3, -1), (-1, -3)]
    images = [np.array(row, np.float32).reshape(1, 2, 1) for row in rows]
    mean, filters = whitening.whitening_filters(iter(images), (1, 2))
    assert mean.tolist() == [0, 0]
    expected = np.array([[1, 1], [-1, 1]]) / np.sqrt([2 * 2.0025, 2 * 8.0025])
    # the sign of a direction is free, and both are used
    assert np.abs(filters * np.sign(filters[0])) == pytest.approx(np.abs(expected))
    assert np.sign(filters[0] * filters[1]).tolist() == [-1, 1]


def test_what_leaves_the_first_layer_is_centred_and_uncorrelated():
    model, part = build(), photographs()
    whitening.whiten(model, part)
    found = features(model, part)
    assert found.shape[1] == 24
    assert np.allclose(found[:, :12], -found[:, 12:], atol=1e-4)
    covariance = np.cov(found[:, :12], rowvar=False)
    assert np.allclose(found.mean(axis=0), 0, atol=1e-3)
    # no more than 1: epsilon keeps weak directions below
    assert np.allclose(covariance, np.diag(covariance.diagonal()), atol=1e-3)
    assert covariance.diagonal().max() == pytest.approx(1, abs=0.01)


def test_only_training_images_count_and_no_more_than_a_sample(monkeypatch):
    part = photographs(40)
    part.images[30:] = 1e6
    monkeypatch.setattr(whitening, "SAMPLE", 10)
    one, other = build(), build()
    whitening.whiten(one, part._replace(rows=np.arange(30)))
    # every third of 30
    whitening.whiten(other, part._replace(rows=np.arange(0, 30, 3)))
    for a, b in zip(one.layers[1].get_weights(), other.layers[1].get_weights(), strict=True):
        assert np.array_equal(a, b)


def test_filters_beyond_those_of_whitening_stay_as_they_are():
    model = build("vgg16", (32, 32, 1))
    before = model.layers[1].get_weights()
    whitening.whiten(model, photographs(5, (32, 32, 1)))
    kernel, bias = model.layers[1].get_weights()
    # 3 * 3 * 1 numbers: 18 of 64 filters
    assert np.array_equal(kernel[..., 18:], before[0][..., 18:])
    assert (bias[18:] == 0).all()
    assert not (kernel[..., :18] == before[0][..., :18]).any()
    assert not model.layers[1].trainable


@pytest.mark.parametrize(("name", "message"), [
    ("logistic_bn", r"needs a convolution as first layer\. Got BatchNormalization\. Set whiten: f"),
    ("baseline", r"baseline: train\.whiten needs 54 filters .* of 3 × 3 × 3 numbers\. Got 16\. S"),
])  # fmt: skip
def test_a_model_that_cannot_be_whitened_is_refused(name, message):
    with pytest.raises(PipelineError, match=message):
        whitening.whiten(build(name), photographs())
