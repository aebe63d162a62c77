"""Backend: the same numbers and bytes twice, in models that plain Keras loads."""

import subprocess
import sys

import keras
import numpy as np
import pytest
from keras import layers
from tensorflow.python.framework import config

from pipeline import backend, speed
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


def test_repeatable_kernels_are_asked_for():
    backend.make_repeatable(0)
    assert config.is_op_determinism_enabled()


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
    trained = speed.faster(model, "float32")
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
