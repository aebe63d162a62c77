"""Speed: faster than plain Keras, and the same model."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from pipeline.config.schema import Model
from pipeline.core.errors import PipelineError
from pipeline.runtime import acceleration
from pipeline.runtime.input_pipeline import Batches, Subset
from pipeline.training import building, loop
from tests.conftest import PLAIN, settings

IMAGES = np.random.default_rng(0).normal(3, 2, (16, 4, 4, 3)).astype(np.float32)
LABELS = np.arange(16) % 2


def small() -> keras.Model:
    """Batch normalization after a convolution and after a dense layer."""
    inputs = keras.Input((4, 4, 3))
    x = layers.BatchNormalization(momentum=0.9)(layers.Conv2D(4, 3, activation="relu")(inputs))
    x = layers.BatchNormalization()(layers.Dense(5)(layers.Flatten()(x)))
    return keras.Model(inputs, layers.Dense(2)(x))


def train(model: keras.Model, steps: int = 3) -> list[np.ndarray]:
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    for _ in range(steps):
        model.train_on_batch(IMAGES, LABELS)
    return model.get_weights()


def test_fused_batch_normalization_trains_to_the_same_weights():
    keras.utils.set_random_seed(1)
    model = small()
    twin = acceleration.accelerate(model, "float32")
    assert twin is not model
    for fused, stock in zip(train(twin), train(model), strict=True):
        assert np.allclose(fused, stock, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(4, 4, 3), (3,)])
def test_training_uses_the_kernel_that_repeats(shape):
    twin = acceleration.accelerate(
        keras.Sequential([keras.Input(shape), layers.BatchNormalization()]), "float32"
    )
    step = tf.function(lambda x: twin(x, training=True))
    graph = step.get_concrete_function(tf.TensorSpec((8, *shape), tf.float32)).graph
    operations = {operation.type for operation in graph.get_operations()}
    assert "FusedBatchNormV3" in operations
    assert "Mean" not in operations


def test_batch_normalization_inside_a_nested_model_is_fused_too():
    inner = keras.Sequential(
        [keras.Input((4, 4, 3)), layers.Conv2D(2, 1), layers.BatchNormalization()]
    )
    inputs = keras.Input((4, 4, 3))
    model = keras.Model(inputs, layers.Flatten()(inner(inputs)))
    twin = acceleration.accelerate(model, "float32")
    kinds = {type(layer).__name__ for layer in twin._flatten_layers()}
    assert "FusedBatchNormalization" in kinds
    assert "BatchNormalization" not in kinds
    assert np.allclose(twin(IMAGES), model(IMAGES), atol=1e-6)


def test_moving_statistics_are_those_of_keras():
    norm = layers.BatchNormalization(momentum=0.0)
    twin = acceleration.accelerate(keras.Sequential([keras.Input((4, 4, 3)), norm]), "float32")
    twin(IMAGES, training=True)
    moving_mean, moving_variance = twin.layers[-1].moving_mean, twin.layers[-1].moving_variance
    assert np.allclose(moving_mean, IMAGES.mean((0, 1, 2)), rtol=1e-5)
    assert np.allclose(moving_variance, IMAGES.var((0, 1, 2)), rtol=1e-4)  # biased: divided by n


def test_inference_and_frozen_layers_use_the_moving_statistics():
    model = small()
    twin = acceleration.accelerate(model, "float32")
    assert np.allclose(twin(IMAGES), model(IMAGES), atol=1e-6)
    for layer in twin.layers:
        layer.trainable = False
    assert np.allclose(twin(IMAGES, training=True), model(IMAGES), atol=1e-6)


def test_a_model_without_batch_normalization_is_left_alone():
    model = keras.Sequential([keras.Input((2,)), layers.Dense(1)])
    assert acceleration.accelerate(model, "float32") is model


HAS_BFLOAT16 = not {"avx512_bf16", "amx_bf16"}.isdisjoint(
    Path("/proc/cpuinfo").read_text().split() if Path("/proc/cpuinfo").exists() else []
)


def test_float32_is_float32_everywhere():
    assert acceleration.resolve_precision("float32") == "float32"


@pytest.mark.skipif(not HAS_BFLOAT16, reason="needs a processor with bfloat16")
def test_auto_is_bfloat16_where_the_processor_has_it():
    assert (
        acceleration.resolve_precision("auto")
        == acceleration.resolve_precision("bfloat16")
        == "bfloat16"
    )


@pytest.mark.skipif(HAS_BFLOAT16, reason="needs a processor without bfloat16")
def test_bfloat16_is_refused_where_it_would_be_emulated():
    assert acceleration.resolve_precision("auto") == "float32"
    with pytest.raises(PipelineError, match=r"precision: bfloat16 needs .* Got neither"):
        acceleration.resolve_precision("bfloat16")


def learn(precision: str, **own: Any) -> tuple[keras.Model, list[dict]]:
    """Train batchnorm on bright and dark images, 64 of 8 × 8 pixels."""
    labels = np.arange(80) % 2
    noise = np.random.default_rng(0).random((80, 8, 8, 1), dtype=np.float32)
    images = noise * 0.8 + labels[:, None, None, None].astype(np.float32) * 0.2
    train, validation = (
        Subset(images, labels, np.arange(64)),
        Subset(images, labels, np.arange(64, 80)),
    )
    model = building.build(Model(architecture="batchnorm"), (8, 8, 1), 2, seed=0)
    given = settings(precision=precision, **{"batch_size": 16} | own)
    names = ["dark", "bright"]
    return model, loop.fit(model, train, validation, given, names, seed=0, verbose=False).rows


@pytest.mark.slow
@pytest.mark.skipif(not HAS_BFLOAT16, reason="needs a processor with bfloat16")
def test_bfloat16_is_used_and_repeats_to_the_bit():
    step = {"optimizer": "sgd", "epochs": 1, "batch_size": 64}
    (one, first), (two, second) = learn("bfloat16", **step), learn("bfloat16", **step)
    exact, other = learn("float32", **step)
    assert first == second
    for a, b in zip(one.get_weights(), two.get_weights(), strict=True):
        assert np.array_equal(a, b)
    assert not np.array_equal(one.get_weights()[0], exact.get_weights()[0])
    assert first[0]["loss"] == pytest.approx(other[0]["loss"], rel=0.02)
    assert {weight.dtype for weight in one.weights} == {"float32"}


@pytest.mark.slow
def test_images_looked_up_and_images_read_train_the_same_model(monkeypatch):
    looked_up, first = learn("float32", augment=PLAIN | {"flip": "horizontal"})
    monkeypatch.setattr(acceleration, "MAX_MEMORY_SHARE", 0.0)
    read, second = learn("float32", augment=PLAIN | {"flip": "horizontal"})
    assert first == second
    for a, b in zip(looked_up.get_weights(), read.get_weights(), strict=True):
        assert np.array_equal(a, b)


def test_lookup_gives_the_images_of_the_rows():
    rows = np.array([3, 0, 3], np.int32)
    assert np.array_equal(acceleration.Lookup(IMAGES)(rows), IMAGES[[3, 0, 3]])


def test_fed_batches_are_the_same_epoch_after_epoch_and_nothing_tunes_them():
    part = Subset(IMAGES, LABELS, np.arange(16))

    def batches() -> Batches:
        return Batches(part, 2, batch_size=5, shuffle=7, mirror=True)

    fed, read = acceleration.as_dataset(batches()), batches()
    for _ in range(3):
        found = list(fed.as_numpy_iterator())
        assert len(found) == int(fed.cardinality()) == 4  # 5 + 5 + 5 + 1 images
        for index, ((images, mirrored), labels) in enumerate(found):
            (own, chosen), wanted = read[index]
            assert np.array_equal(images, own)
            assert np.array_equal(mirrored, chosen)
            assert np.array_equal(labels, wanted)
        read.on_epoch_end()
    assert fed.options().autotune.enabled is False


def test_images_that_take_more_than_their_share_of_memory_are_read_from_disk(monkeypatch):
    free = 4 * IMAGES.size / acceleration.MAX_MEMORY_SHARE
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=free))
    assert acceleration.fits_in_memory(IMAGES)
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=free - 1))
    assert not acceleration.fits_in_memory(IMAGES)
