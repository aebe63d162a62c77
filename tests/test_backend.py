"""Backend: the same numbers and bytes twice, in models that plain Keras loads."""

import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from tensorflow.python.framework import config

from pipeline import backend
from pipeline.errors import PipelineError

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
    twin = backend.repeatable(model)
    assert twin is not model
    for fused, stock in zip(train(twin), train(model), strict=True):
        assert np.allclose(fused, stock, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(4, 4, 3), (3,)])
def test_training_uses_the_kernel_that_repeats(shape):
    twin = backend.repeatable(keras.Sequential([keras.Input(shape), layers.BatchNormalization()]))
    step = tf.function(lambda x: twin(x, training=True))
    graph = step.get_concrete_function(tf.TensorSpec((8, *shape), tf.float32)).graph
    operations = {operation.type for operation in graph.get_operations()}
    assert "FusedBatchNormV3" in operations
    assert "Mean" not in operations


def test_repeatable_kernels_are_asked_for():
    backend.make_repeatable(0)
    assert config.is_op_determinism_enabled()


def test_batch_normalization_inside_a_nested_model_is_fused_too():
    inner = keras.Sequential(
        [keras.Input((4, 4, 3)), layers.Conv2D(2, 1), layers.BatchNormalization()]
    )
    inputs = keras.Input((4, 4, 3))
    model = keras.Model(inputs, layers.Flatten()(inner(inputs)))
    twin = backend.repeatable(model)
    kinds = {type(layer).__name__ for layer in twin._flatten_layers()}
    assert "FusedBatchNormalization" in kinds
    assert "BatchNormalization" not in kinds
    assert np.allclose(twin(IMAGES), model(IMAGES), atol=1e-6)


def test_moving_statistics_are_those_of_keras():
    twin = backend.repeatable(
        keras.Sequential([keras.Input((4, 4, 3)), layers.BatchNormalization(momentum=0.0)])
    )
    twin(IMAGES, training=True)
    moving_mean, moving_variance = twin.layers[-1].moving_mean, twin.layers[-1].moving_variance
    assert np.allclose(moving_mean, IMAGES.mean((0, 1, 2)), rtol=1e-5)
    assert np.allclose(moving_variance, IMAGES.var((0, 1, 2)), rtol=1e-4)  # biased: divided by n


def test_inference_and_frozen_layers_use_the_moving_statistics():
    model = small()
    twin = backend.repeatable(model)
    assert np.allclose(twin(IMAGES), model(IMAGES), atol=1e-6)
    for layer in twin.layers:
        layer.trainable = False
    assert np.allclose(twin(IMAGES, training=True), model(IMAGES), atol=1e-6)


def test_a_model_without_batch_normalization_is_left_alone():
    model = keras.Sequential([keras.Input((2,)), layers.Dense(1)])
    assert backend.repeatable(model) is model


def test_equal_weights_give_equal_bytes(tmp_path):
    weights = small().get_weights()
    for name in ("one", "two"):
        keras.backend.clear_session()
        model = small()
        model.set_weights(weights)
        backend.save(model, tmp_path / f"{name}.keras")
    assert (tmp_path / "one.keras").read_bytes() == (tmp_path / "two.keras").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.keras", "two.keras"]


def test_a_trained_model_loads_in_plain_keras(tmp_path):
    model = small()
    trained = backend.repeatable(model)
    model.set_weights(train(trained))
    backend.save(model, tmp_path / "model.keras")
    np.save(tmp_path / "images.npy", IMAGES)
    code = """if True:
        import keras, numpy as np, sys
        model = keras.saving.load_model("model.keras")
        np.save("logits.npy", model.predict(np.load("images.npy"), verbose=0))
        assert not any(name.startswith("pipeline") for name in sys.modules)
    """
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, capture_output=True)
    assert np.allclose(np.load(tmp_path / "logits.npy"), model(IMAGES), atol=1e-5)


def test_a_model_with_code_in_it_is_refused(tmp_path):
    keras.Sequential([keras.Input((2,)), layers.Lambda(lambda x: x)]).save(tmp_path / "m.keras")
    with pytest.raises(PipelineError, match=r"m\.keras: cannot be loaded: .*[Ll]ambda"):
        backend.load(tmp_path / "m.keras")


def test_a_damaged_model_is_refused(tmp_path):
    backend.save(small(), tmp_path / "m.keras")
    whole = (tmp_path / "m.keras").read_bytes()
    (tmp_path / "m.keras").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(PipelineError, match=r"m\.keras: cannot be loaded"):
        backend.load(tmp_path / "m.keras")


def test_description_names_versions_and_device():
    described = backend.describe()
    assert described["keras"] == keras.__version__
    assert described["backend"].startswith(keras.backend.backend())
    assert described["device"]
