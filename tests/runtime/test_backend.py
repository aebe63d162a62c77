"""Backend: the same numbers and bytes twice, in models that plain Keras loads."""

import subprocess
import sys
import zipfile

import keras
import numpy as np
import pytest
from keras import layers
from tensorflow.python.framework import config

from pipeline.core.errors import PipelineError
from pipeline.runtime import acceleration, backend

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
    backend.make_deterministic(0)
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


@pytest.mark.slow
def test_a_trained_model_loads_in_plain_keras(tmp_path):
    model = small()
    trained = acceleration.accelerate(model, "float32")
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


class Custom(layers.Layer):
    """Code of somebody else, which a file only names."""

    def call(self, x):
        return x


def test_a_model_with_a_custom_object_in_it_is_refused(tmp_path):
    keras.Sequential([keras.Input((2,)), Custom()]).save(tmp_path / "m.keras")
    # a module that may be imported here, and must not be for a file's sake
    with pytest.raises(PipelineError, match=r"m\.keras: cannot be loaded: .*Custom"):
        backend.load(tmp_path / "m.keras")


def test_a_model_that_is_damaged_anywhere_is_refused_or_what_it_was(tmp_path):
    backend.save(small(), tmp_path / "m.keras")
    whole = (tmp_path / "m.keras").read_bytes()
    expected = backend.load(tmp_path / "m.keras").get_weights()
    rng = np.random.default_rng(0)
    refused = 0
    for at in rng.choice(len(whole), 40, replace=False):
        (tmp_path / "m.keras").write_bytes(whole[:at] + bytes([whole[at] ^ 255]) + whole[at + 1 :])
        try:
            found = backend.load(tmp_path / "m.keras").get_weights()
        except PipelineError:
            refused += 1
        else:  # a byte that says nothing, as of a date
            assert all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))
    assert refused > 20


def test_a_model_with_files_in_it_that_lead_outside_writes_none(tmp_path):
    (tmp_path / "inside").mkdir()
    path = tmp_path / "inside/m.keras"
    backend.save(small(), path)
    with zipfile.ZipFile(path, "a") as archive:
        for name in ("../evil", str(tmp_path / "evil"), "assets/../../evil"):
            archive.writestr(name, "evil")
    before = sorted(tmp_path.rglob("*"))
    with pytest.warns(UserWarning, match="Skipping invalid path during archive extraction"):
        backend.load(path)
    assert sorted(tmp_path.rglob("*")) == before


def test_description_names_versions_and_device():
    described = backend.describe()
    assert described["keras"] == keras.__version__
    assert described["backend"].startswith(keras.backend.backend())
    assert described["device"]
