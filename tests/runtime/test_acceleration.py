"""Acceleration: training and prediction give the same models as plain Keras."""

import sys
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
from pipeline.runtime import acceleration, gpu
from pipeline.runtime.input_pipeline import Batches, Subset
from pipeline.training import building, loop
from tests.conftest import PLAIN, settings

IMAGES = np.random.default_rng(0).normal(3, 2, (16, 4, 4, 3)).astype(np.float32)
LABELS = np.arange(16) % 2


def small_model() -> keras.Model:
    """Return a model with batch normalization after a convolution and after a dense layer."""
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
    model = small_model()
    accelerated = acceleration.accelerate(model, "float32")
    assert accelerated is not model
    for fused, stock in zip(train(accelerated), train(model), strict=True):
        assert np.allclose(fused, stock, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(4, 4, 3), (3,)])
def test_training_uses_the_deterministic_kernel(shape):
    accelerated = acceleration.accelerate(
        keras.Sequential([keras.Input(shape), layers.BatchNormalization()]), "float32"
    )
    step = tf.function(lambda x: accelerated(x, training=True))
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
    accelerated = acceleration.accelerate(model, "float32")
    layer_types = {type(layer).__name__ for layer in accelerated._flatten_layers()}
    assert "FusedBatchNormalization" in layer_types
    assert "BatchNormalization" not in layer_types
    assert np.allclose(accelerated(IMAGES), model(IMAGES), atol=1e-6)


def test_moving_statistics_equal_those_of_keras():
    norm = layers.BatchNormalization(momentum=0.0)
    accelerated = acceleration.accelerate(
        keras.Sequential([keras.Input((4, 4, 3)), norm]), "float32"
    )
    accelerated(IMAGES, training=True)
    moving_mean, moving_variance = (
        accelerated.layers[-1].moving_mean,
        accelerated.layers[-1].moving_variance,
    )
    assert np.allclose(moving_mean, IMAGES.mean((0, 1, 2)), rtol=1e-5)
    assert np.allclose(moving_variance, IMAGES.var((0, 1, 2)), rtol=1e-4)  # biased: divided by n


def test_inference_and_frozen_layers_use_the_moving_statistics():
    model = small_model()
    accelerated = acceleration.accelerate(model, "float32")
    assert np.allclose(accelerated(IMAGES), model(IMAGES), atol=1e-6)
    for layer in accelerated.layers:
        layer.trainable = False
    assert np.allclose(accelerated(IMAGES, training=True), model(IMAGES), atol=1e-6)


def test_a_model_without_batch_normalization_is_returned_unchanged():
    model = keras.Sequential([keras.Input((2,)), layers.Dense(1)])
    assert acceleration.accelerate(model, "float32") is model


HAS_BFLOAT16 = not {"avx512_bf16", "amx_bf16"}.isdisjoint(
    Path("/proc/cpuinfo").read_text().split() if Path("/proc/cpuinfo").exists() else []
)


def test_float32_is_available_on_every_processor():
    assert acceleration.resolve_precision("float32") == "float32"


@pytest.mark.skipif(not HAS_BFLOAT16, reason="needs a processor with bfloat16")
def test_auto_is_bfloat16_on_processors_that_support_it():
    assert (
        acceleration.resolve_precision("auto")
        == acceleration.resolve_precision("bfloat16")
        == "bfloat16"
    )


@pytest.mark.skipif(HAS_BFLOAT16, reason="needs a processor without bfloat16")
def test_bfloat16_is_refused_on_processors_that_would_emulate_it():
    assert acceleration.resolve_precision("auto") == "float32"
    with pytest.raises(PipelineError, match=r"hardware: float32\. Got bfloat16\. Set it to auto"):
        acceleration.resolve_precision("bfloat16")


# The capabilities of V100 and T4, A100, H100, and of GTX 10, which has no fast float16.
@pytest.mark.parametrize(
    ("capabilities", "supported"),
    [
        ([(7, 0)], ["float16", "float32"]),
        ([(7, 5)], ["float16", "float32"]),
        ([(8, 0)], ["bfloat16", "float16", "float32"]),
        ([(9, 0), (7, 5)], ["float16", "float32"]),  # several GPUs: what all of them support
        ([(6, 1)], ["float32"]),
        ([None], ["float32"]),
    ],
)
def test_the_precisions_of_a_gpu_follow_from_its_compute_capability(
    capabilities, supported, pretend_gpus
):
    pretend_gpus(capabilities)
    assert acceleration.resolve_precision("auto") == supported[0]
    for precision in ("bfloat16", "float16", "float32"):
        if precision in supported:
            assert acceleration.resolve_precision(precision) == precision
        else:
            message = rf"one that Tesla T4.* computes in hardware: .*\. Got {precision}\. Set it"
            with pytest.raises(PipelineError, match=message):
                acceleration.resolve_precision(precision)


@pytest.mark.parametrize(
    ("capabilities", "precision"),
    [(["8.9"], "bfloat16"), (["10.0", "7.5"], "float16"), (["6.1"], "float32"),
     (["gfx90a"], "float32")],  # the last: of another maker
)  # fmt: skip
def test_the_precision_follows_from_the_compute_capability_with_jax_too(
    capabilities, precision, monkeypatch
):
    devices = [SimpleNamespace(compute_capability=text) for text in capabilities]
    jax = SimpleNamespace(default_backend=lambda: "gpu", devices=lambda: devices)
    monkeypatch.setitem(sys.modules, "jax", jax)
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    assert acceleration.resolve_precision("auto") == precision


def test_float16_is_refused_on_processors():
    with pytest.raises(PipelineError, match=r"hardware: .*float32\. Got float16\. Set it to auto"):
        acceleration.resolve_precision("float16")


def train_batchnorm(precision: str, **overrides: Any) -> tuple[keras.Model, list[dict]]:
    """Train batchnorm on 64 dark and bright images of 8×8 pixels; return model and history."""
    labels = np.arange(80) % 2
    noise = np.random.default_rng(0).random((80, 8, 8, 1), dtype=np.float32)
    images = noise * 0.8 + labels[:, None, None, None].astype(np.float32) * 0.2
    train, validation = (
        Subset(images, labels, np.arange(64)),
        Subset(images, labels, np.arange(64, 80)),
    )
    model = building.build(Model(architecture="batchnorm"), (8, 8, 1), 2, seed=0)
    overridden = settings(precision=precision, **{"batch_size": 16} | overrides)
    history = loop.fit(
        model, train, validation, overridden, ["dark", "bright"], seed=0, verbose=False
    )
    return model, history.rows


@pytest.mark.slow
@pytest.mark.skipif(not HAS_BFLOAT16, reason="needs a processor with bfloat16")
def test_bfloat16_is_used_and_repeats_to_the_bit():
    one_step = {"optimizer": "sgd", "epochs": 1, "batch_size": 64}
    (one, first), (two, second) = (
        train_batchnorm("bfloat16", **one_step),
        train_batchnorm("bfloat16", **one_step),
    )
    exact, other = train_batchnorm("float32", **one_step)
    assert first == second
    for a, b in zip(one.get_weights(), two.get_weights(), strict=True):
        assert np.array_equal(a, b)
    assert not np.array_equal(one.get_weights()[0], exact.get_weights()[0])
    assert first[0]["loss"] == pytest.approx(other[0]["loss"], rel=0.02)
    assert {weight.dtype for weight in one.weights} == {"float32"}


@pytest.mark.slow
def test_images_in_memory_and_images_read_from_disk_train_the_same_model(monkeypatch):
    in_memory, first = train_batchnorm("float32", augment=PLAIN | {"flip": "horizontal"})
    monkeypatch.setattr(acceleration, "MAX_MEMORY_SHARE", 0.0)
    from_disk, second = train_batchnorm("float32", augment=PLAIN | {"flip": "horizontal"})
    assert first == second
    for a, b in zip(in_memory.get_weights(), from_disk.get_weights(), strict=True):
        assert np.array_equal(a, b)


def test_lookup_returns_the_images_of_the_rows():
    rows = np.array([3, 0, 3], np.int32)
    assert np.array_equal(acceleration.Lookup(IMAGES)(rows), IMAGES[[3, 0, 3]])


# a batch of 5 images of 48 values takes 1,005 bytes: all batches at once, two, and one
@pytest.mark.parametrize("transfer_bytes", [2**16, 2500, 1])
def test_the_dataset_yields_the_batches_of_every_epoch_without_autotuning(
    transfer_bytes, monkeypatch
):
    subset = Subset(IMAGES, LABELS, np.arange(16))
    monkeypatch.setattr(acceleration, "TRANSFER_BYTES", transfer_bytes)

    def batches() -> Batches:
        return Batches(subset, 2, batch_size=5, shuffle=7, mirror=True)

    dataset, expected = acceleration.as_dataset(batches()), batches()
    for _ in range(3):
        epoch = list(dataset.as_numpy_iterator())
        assert len(epoch) == int(dataset.cardinality()) == 4  # 5 + 5 + 5 + 1 images
        for index, ((images, mirrored), labels) in enumerate(epoch):
            (expected_images, expected_mirrored), expected_labels = expected[index]
            assert np.array_equal(images, expected_images)
            assert np.array_equal(mirrored, expected_mirrored)
            assert np.array_equal(labels, expected_labels)
        expected.on_epoch_end()
    assert dataset.options().autotune.enabled is False


def test_images_fit_in_memory_up_to_their_share_of_the_free_memory(monkeypatch):
    free = 4 * IMAGES.size / acceleration.MAX_MEMORY_SHARE
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=free))
    assert acceleration.fits_in_memory(IMAGES)
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=free - 1))
    assert not acceleration.fits_in_memory(IMAGES)


def test_images_fit_in_memory_up_to_their_share_of_the_gpu(monkeypatch, pretend_gpus):
    pretend_gpus([(7, 5)])
    share = 4 * IMAGES.size / acceleration.MAX_MEMORY_SHARE
    for memory, fits in ((None, True), (share, True), (share - 1, False)):
        monkeypatch.setattr(gpu, "smallest_memory", lambda memory=memory: memory)
        assert acceleration.fits_in_memory(IMAGES) == fits
