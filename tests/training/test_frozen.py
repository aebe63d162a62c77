"""Frozen: where a network is split, and that training its head trains the network."""

from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

from pipeline.runtime import backend
from pipeline.runtime.input_pipeline import Subset
from pipeline.training import frozen, loop
from pipeline.training.checkpoints import Checkpoints
from tests.conftest import settings, task
from tests.training.test_checkpoints import InterruptIn

SHAPE = (8, 8, 1)


def network(*stack: layers.Layer) -> keras.Model:
    """Return a network of these layers, one after another, for two classes."""
    x = images = keras.Input(SHAPE)
    for layer in stack:
        x = layer(x)
    return keras.Model(images, layers.Dense(2, name="logits")(x), name="network")


def frozen_layer(kind: type[layers.Layer], *arguments: Any, **config: Any) -> layers.Layer:
    return kind(*arguments, **config, trainable=False)


def body_shape(model: keras.Model) -> tuple[int, ...] | None:
    """Return the shape of the features; check that both parts together compute the same."""
    parts = frozen.split(model)
    if parts is None:
        return None
    images = task(4)[0]
    assert np.allclose(parts.head(parts.body(images)), model(images), atol=1e-6)
    assert len(parts.head.trainable_weights) == len(model.trainable_weights)
    assert parts.body.trainable_weights == []
    return parts.body.output_shape[1:]


def convolution(trainable: bool = False) -> layers.Layer:
    return layers.Conv2D(6, 3, trainable=trainable)


@pytest.mark.parametrize(("stack", "features"), [
    # pooling has no weights, so it belongs to the body
    ([convolution(), layers.GlobalAveragePooling2D()], (6,)),
    ([convolution(), layers.Flatten(), layers.Dropout(0.5)], (6 * 6 * 6,)),
    ([convolution(), convolution(trainable=True), layers.Flatten()], (6, 6, 6)),
    # batch normalization computes statistics of the batch unless it is frozen
    ([convolution(), frozen_layer(layers.BatchNormalization), layers.Flatten()], (216,)),
    ([convolution(), layers.BatchNormalization(), layers.Flatten()], (6, 6, 6)),
    # a nested model that is frozen in part
    ([keras.Sequential([keras.Input(SHAPE), convolution(), convolution(trainable=True)]),
      layers.Flatten()], (6, 6, 6)),
    # nothing is frozen, or not from the start
    ([convolution(trainable=True), layers.Flatten()], None),
    ([convolution(trainable=True), convolution(), layers.Flatten()], None),
    ([layers.RandomFlip(), convolution(), layers.Flatten()], None),
    ([layers.GaussianNoise(0.1), convolution(), layers.Flatten()], None),
    # the features would be too large: 6 * 6 * 200 values
    ([layers.Conv2D(200, 3, trainable=False), layers.Flatten()], None),
])  # fmt: skip
def test_the_body_ends_before_the_first_layer_that_training_changes(stack, features):
    assert body_shape(network(*stack)) == features


def test_the_body_ends_where_a_single_tensor_is_passed_on():
    images = keras.Input(SHAPE)
    x = layers.MaxPooling2D()(frozen_layer(layers.Conv2D, 3, 3)(images))  # (3, 3, 3)
    frozen_branch = frozen_layer(layers.Conv2D, 5, 1)(x)
    trained_branch = layers.Conv2D(5, 1)(x)
    x = layers.GlobalAveragePooling2D()(frozen_branch + trained_branch)
    assert body_shape(keras.Model(images, layers.Dense(2)(x))) == (3, 3, 3)


def test_the_hash_of_a_body_depends_on_its_weights_and_not_on_the_head():
    model = network(convolution(), layers.GlobalAveragePooling2D())
    parts = frozen.split(model)
    assert parts
    before = frozen.weights_hash(parts.body)
    model.layers[-1].set_weights([np.ones((6, 2)), np.ones(2)])
    assert frozen.has_body(model, before)
    kernel, bias = model.layers[1].get_weights()
    kernel[0, 0, 0, 0] += 1e-6
    model.layers[1].set_weights([kernel, bias])
    assert not frozen.has_body(model, before)
    assert not frozen.has_body(network(layers.Flatten()), before)


def pretrained() -> keras.Model:
    """Return a network with a frozen base, and a head with batch normalization and dropout."""
    backend.make_deterministic(0)
    return network(
        convolution(), frozen_layer(layers.BatchNormalization), layers.ReLU(), layers.Flatten(),
        layers.Dense(16, activation="relu"), layers.BatchNormalization(momentum=0.9),
        layers.Dropout(0.3),
    )  # fmt: skip


def train(on_features: bool, **arguments: Any) -> tuple[list[dict], keras.Model]:
    """Train on images or on features; return the history and the whole network."""
    images, labels = task()
    features = None
    if on_features:
        parts = frozen.split(pretrained())
        assert parts
        features = parts.body.predict_on_batch(images)
    model, rows = pretrained(), np.arange(64)
    history = loop.fit(
        model, Subset(images, labels, rows[:48]), Subset(images, labels, rows[48:]),
        settings(early_stopping=3, ema_momentum=0.9, weight_decay=0.01), ["dark", "bright"],
        seed=0, verbose=False, features=features, **arguments,
    )  # fmt: skip
    return history.rows, model


def test_training_on_features_gives_the_network_that_training_on_images_gives():
    """Including dropout, whose masks depend on how the network is built."""
    rows, expected = train(on_features=False)
    feature_rows, model = train(on_features=True)
    for row, feature_row in zip(rows, feature_rows, strict=True):
        assert feature_row == pytest.approx(row, abs=1e-4)
    images = task(16)[0]
    logits = expected.predict_on_batch(images)
    assert np.ptp(logits) > 0.5
    assert np.allclose(model.predict_on_batch(images), logits, atol=1e-4)
    assert not np.allclose(pretrained().predict_on_batch(images), logits, atol=1e-2)


@pytest.mark.slow
def test_an_interrupted_training_on_features_ends_with_the_same_weights(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows, expected = train(on_features=True)
    checkpoints = Checkpoints("network-0", {})
    with pytest.raises(KeyboardInterrupt):
        train(on_features=True, checkpoints=checkpoints, watch=[InterruptIn(3)])
    assert checkpoints.latest_epoch() == 2
    resumed_rows, resumed = train(on_features=True, checkpoints=checkpoints)
    assert resumed_rows == rows
    for one, other in zip(expected.get_weights(), resumed.get_weights(), strict=True):
        assert np.array_equal(one, other)
