"""Whitening: filters computed by hand, uncorrelated features, models that are refused."""

import keras
import numpy as np
import pytest

from pipeline.config.schema import Model
from pipeline.core.errors import PipelineError
from pipeline.runtime.input_pipeline import Subset
from pipeline.training import building, whitening


def photographs(count: int = 50, shape: tuple[int, int, int] = (12, 10, 3)) -> Subset:
    """Return images whose neighboring pixels and colors are correlated, with a mean far from 0."""
    random = np.random.default_rng(0)
    images = random.random((count, *shape), np.float32).cumsum(axis=1).cumsum(axis=2)
    images += images[..., :1]
    return Subset(images, np.zeros(count, int), np.arange(count))


def features(model: keras.Model, subset: Subset) -> np.ndarray:
    """Return the outputs of the first layer, `(patches, filters)`."""
    first = model.layers[1]
    return np.asarray(first(subset.images[subset.rows])).reshape(-1, first.filters)


def build(name: str = "airnet", shape: tuple[int, ...] = (12, 10, 3), **settings) -> keras.Model:
    return building.build(Model(architecture=name, build=settings), shape, 2, seed=0)


def test_filters_of_two_pixels_match_those_computed_by_hand():
    # patches of 1 × 2: (3, 1), (1, 3), (-3, -1), (-1, -3): mean 0, variances
    # (9 + 1 + 9 + 1) / 4 = 5, covariance (3 + 3 + 3 + 3) / 4 = 3. Along (1, -1) / sqrt(2) the
    # variance is 5 - 3 = 2, along (1, 1) / sqrt(2) 8. Epsilon is 5e-4 * 5
    rows = [(3, 1), (1, 3), (-3, -1), (-1, -3)]
    images = [np.array(row, np.float32).reshape(1, 2, 1) for row in rows]
    mean, filters = whitening.whitening_filters(iter(images), (1, 2))
    assert mean.tolist() == [0, 0]
    expected = np.array([[1, 1], [-1, 1]]) / np.sqrt([2 * 2.0025, 2 * 8.0025])
    # a direction may have either sign
    assert np.abs(filters * np.sign(filters[0])) == pytest.approx(np.abs(expected))
    assert np.sign(filters[0] * filters[1]).tolist() == [-1, 1]


def test_outputs_of_the_first_layer_are_centered_and_uncorrelated():
    model, train = build(), photographs()
    whitening.whiten(model, train)
    outputs = features(model, train)
    assert outputs.shape[1] == 24
    assert np.allclose(outputs[:, :12], -outputs[:, 12:], atol=1e-4)
    covariance = np.cov(outputs[:, :12], rowvar=False)
    assert np.allclose(outputs.mean(axis=0), 0, atol=1e-3)
    assert np.allclose(covariance, np.diag(covariance.diagonal()), atol=1e-3)
    # epsilon keeps the variance of weak directions below 1
    assert covariance.diagonal().max() == pytest.approx(1, abs=0.01)


def test_filters_are_computed_from_an_evenly_spaced_sample_of_the_training_images(monkeypatch):
    subset = photographs(40)
    subset.images[30:] = 1e6  # not among the training images
    monkeypatch.setattr(whitening, "SAMPLE_SIZE", 10)
    from_all, from_every_third = build(), build()
    whitening.whiten(from_all, subset._replace(rows=np.arange(30)))
    whitening.whiten(from_every_third, subset._replace(rows=np.arange(0, 30, 3)))
    pairs = zip(
        from_all.layers[1].get_weights(), from_every_third.layers[1].get_weights(), strict=True
    )
    assert all(np.array_equal(*pair) for pair in pairs)


def test_further_filters_keep_their_initial_values():
    model = build("vgg16", (32, 32, 1))
    initial_kernel, _ = model.layers[1].get_weights()
    whitening.whiten(model, photographs(5, (32, 32, 1)))
    kernel, bias = model.layers[1].get_weights()
    # 2 * 3 * 3 * 1 = 18 of 64 filters are whitening filters
    assert np.array_equal(kernel[..., 18:], initial_kernel[..., 18:])
    assert (bias[18:] == 0).all()
    assert not (kernel[..., :18] == initial_kernel[..., :18]).any()
    assert not model.layers[1].trainable


@pytest.mark.parametrize(("name", "message"), [
    ("logistic_bn", r"needs a convolution as first layer\. Got BatchNormalization\. Set whiten: f"),
    ("baseline", r"baseline: train\.whiten needs 54 filters .* of 3 × 3 × 3 numbers\. Got 16\. S"),
])  # fmt: skip
def test_a_model_that_cannot_be_whitened_is_refused(name, message):
    with pytest.raises(PipelineError, match=message):
        whitening.whiten(build(name), photographs())
