"""Frozen: where a network is split, and that training its head trains the network."""

from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

from pipeline.core.errors import PipelineError
from pipeline.runtime import acceleration, backend
from pipeline.runtime.input_pipeline import Subset
from pipeline.training import frozen, loop
from pipeline.training.checkpoints import Checkpoints
from tests.conftest import settings, task

SHAPE = (8, 8, 1)


class InterruptAfter(keras.callbacks.Callback):
    """Interrupt training in the epoch after a number of them, of both phases together."""

    def __init__(self, epochs: int):
        super().__init__()
        self.remaining = epochs

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        self.remaining -= 1

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        if not self.remaining:
            raise KeyboardInterrupt


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
        frozen_layer(layers.Conv2D, 6, 3, name="block_1_conv"),
        frozen_layer(layers.BatchNormalization, name="block_1_norm"),
        layers.ReLU(),
        frozen_layer(layers.Conv2D, 4, 3, name="block_2_conv"),
        frozen_layer(layers.BatchNormalization, name="block_2_norm"),
        layers.Flatten(),
        layers.Dense(16, activation="relu", name="hidden"),
        layers.BatchNormalization(momentum=0.9, name="norm"),
        layers.Dropout(0.3),
    )


def parts_of(model: keras.Model) -> frozen.Split:
    parts = frozen.split(model)
    assert parts
    return parts


def features_of(model: keras.Model) -> np.ndarray:
    """Return the features of the images of `task`, in float32 as in the stage `features`.

    On CPUs, the precision of the model that was accelerated last applies to all models.
    """
    body = acceleration.accelerate(parts_of(model).body, "float32")
    return body.predict_on_batch(task()[0])


def train(
    on_features: bool, overrides: dict[str, Any], **arguments: Any
) -> tuple[list[dict], keras.Model]:
    """Train on images or on features; return the history and the whole network."""
    images, labels = task()
    features = None
    if on_features:
        features = features_of(pretrained())
    model, rows = pretrained(), np.arange(64)
    history = loop.fit(
        model, Subset(images, labels, rows[:48]), Subset(images, labels, rows[48:]),
        settings(**overrides), ["dark", "bright"], seed=0, verbose=False, features=features,
        **arguments,
    )  # fmt: skip
    return history.rows, model


OVERRIDES = {"early_stopping": 3, "ema_momentum": 0.9, "weight_decay": 0.01}
FINE_TUNE = {"freeze": "block_1", "epochs": 2, "learning_rate": 0.001}


@pytest.mark.slow
def test_training_on_features_gives_the_network_that_training_on_images_gives():
    """Including dropout, whose masks depend on how the network is built."""
    rows, expected = train(False, OVERRIDES)
    feature_rows, model = train(True, OVERRIDES)
    for row, feature_row in zip(rows, feature_rows, strict=True):
        assert feature_row == pytest.approx(row, abs=1e-4)
    images = task(16)[0]
    logits = expected.predict_on_batch(images)
    assert np.ptp(logits) > 0.5
    first = Subset(*task(), np.arange(16))
    for features in (None, features_of(model)):
        predicted = loop.predict(model, first, settings(**OVERRIDES), features)
        assert np.allclose(predicted, logits, atol=1e-4)
    assert np.allclose(model.predict_on_batch(images), logits, atol=1e-4)
    assert not np.allclose(pretrained().predict_on_batch(images), logits, atol=1e-2)


@pytest.mark.slow
def test_fine_tuning_trains_the_layers_after_a_block_but_not_their_batch_normalization():
    rows, model = train(True, {"epochs": 1, "fine_tune": FINE_TUNE})
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    assert [row["learning_rate"] for row in rows] == pytest.approx([0.01, 0.001, 0.001])
    pairs = zip(pretrained().layers, model.layers, strict=True)
    changed = {
        layer.name
        for initial, layer in pairs
        for old, new in zip(initial.get_weights(), layer.get_weights(), strict=True)
        if not np.array_equal(old, new)
    }
    assert changed == {"block_2_conv", "hidden", "norm", "logits"}


@pytest.mark.parametrize("last", ["block_3", "block", "block_2_conv", "logits"])
def test_a_layer_that_leaves_nothing_to_fine_tune_is_refused(last):
    message = (
        r"network: train\.fine_tune\.freeze must be none, or a frozen layer with others to train "
        rf"after it\. Got {last}\. Frozen layers: block_1_conv, .*, block_2_norm$"
    )
    with pytest.raises(PipelineError, match=message):
        frozen.layers_to_unfreeze(pretrained(), last)


@pytest.mark.parametrize(("last", "names"), [
    ("none", ["block_1_conv", "block_2_conv"]),
    ("block_1", ["block_2_conv"]),
    ("block_1_conv", ["block_2_conv"]),
])  # fmt: skip
def test_the_layers_to_fine_tune_follow_a_layer_or_block_in_nested_models_too(last, names):
    images = keras.Input(SHAPE)
    nested = keras.Model(images, pretrained()(images))
    assert [layer.name for layer in frozen.layers_to_unfreeze(nested, last)] == names


@pytest.mark.slow
@pytest.mark.parametrize("epoch", [3, 5])  # in the first phase and in the second
def test_an_interrupted_training_on_features_ends_with_the_same_weights(
    epoch, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    overrides = OVERRIDES | {"fine_tune": FINE_TUNE}
    shown: list[list[int]] = []

    def show(rows: list) -> None:
        shown.append([row["epoch"] for row in rows])

    rows, expected = train(True, overrides, show=show)
    assert len(rows) == 5
    # the second phase starts after the third epoch
    assert [len(epochs) for epochs in shown] == [0, 1, 2, 3, 3, 4, 5]
    assert shown[-1] == [1, 2, 3, 4, 5]
    checkpoints = Checkpoints("network-0", {})
    with pytest.raises(KeyboardInterrupt):
        train(True, overrides, checkpoints=checkpoints, watch=[InterruptAfter(epoch - 1)])
    assert checkpoints.latest_epoch() == min(epoch - 1, 3)
    assert checkpoints.second_phase().latest_epoch() == (1 if epoch == 5 else None)
    resumed_rows, resumed = train(True, overrides, checkpoints=checkpoints)
    assert resumed_rows == rows
    for one, other in zip(expected.get_weights(), resumed.get_weights(), strict=True):
        assert np.array_equal(one, other)
