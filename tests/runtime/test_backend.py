"""Backend: model files are reproducible, load in plain Keras, and run no code when loaded."""

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
from tests.runtime.test_acceleration import IMAGES, small_model, train


def test_deterministic_kernels_are_enabled():
    backend.make_deterministic(0)
    assert config.is_op_determinism_enabled()


def test_equal_weights_give_equal_bytes(tmp_path):
    weights = small_model().get_weights()
    for name in ("one", "two"):
        keras.backend.clear_session()
        model = small_model()
        model.set_weights(weights)
        backend.save(model, tmp_path / f"{name}.keras")
    assert (tmp_path / "one.keras").read_bytes() == (tmp_path / "two.keras").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.keras", "two.keras"]


@pytest.mark.slow
def test_a_trained_model_loads_in_plain_keras(tmp_path):
    model = small_model()
    accelerated = acceleration.accelerate(model, "float32")
    model.set_weights(train(accelerated))
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


def test_a_model_with_a_lambda_layer_is_refused(tmp_path):
    keras.Sequential([keras.Input((2,)), layers.Lambda(lambda x: x)]).save(tmp_path / "m.keras")
    with pytest.raises(PipelineError, match=r"m\.keras: cannot be loaded: .*[Ll]ambda"):
        backend.load(tmp_path / "m.keras")


def test_a_truncated_model_is_refused(tmp_path):
    backend.save(small_model(), tmp_path / "m.keras")
    intact = (tmp_path / "m.keras").read_bytes()
    (tmp_path / "m.keras").write_bytes(intact[: len(intact) // 2])
    with pytest.raises(PipelineError, match=r"m\.keras: cannot be loaded"):
        backend.load(tmp_path / "m.keras")


class Custom(layers.Layer):
    """A layer that is not of Keras; a model file contains only its name."""

    def call(self, x):
        return x


def test_a_model_with_a_custom_layer_is_refused(tmp_path):
    keras.Sequential([keras.Input((2,)), Custom()]).save(tmp_path / "m.keras")
    # this module could be imported, but a model file must not cause an import
    with pytest.raises(PipelineError, match=r"m\.keras: cannot be loaded: .*Custom"):
        backend.load(tmp_path / "m.keras")


def test_a_model_with_any_damaged_byte_is_refused_or_loads_unchanged(tmp_path):
    backend.save(small_model(), tmp_path / "m.keras")
    intact = (tmp_path / "m.keras").read_bytes()
    expected = backend.load(tmp_path / "m.keras").get_weights()
    rng = np.random.default_rng(0)
    refused = 0
    for position in rng.choice(len(intact), 40, replace=False):
        damaged = bytearray(intact)
        damaged[position] ^= 255
        (tmp_path / "m.keras").write_bytes(damaged)
        try:
            weights = backend.load(tmp_path / "m.keras").get_weights()
        except PipelineError:
            refused += 1
        else:  # the byte has no meaning, such as one of a date
            assert all(np.array_equal(a, b) for a, b in zip(weights, expected, strict=True))
    assert refused > 20


def test_a_model_file_writes_no_files_outside_of_its_folder(tmp_path):
    (tmp_path / "inside").mkdir()
    path = tmp_path / "inside/m.keras"
    backend.save(small_model(), path)
    with zipfile.ZipFile(path, "a") as archive:
        for name in ("../evil", str(tmp_path / "evil"), "assets/../../evil"):
            archive.writestr(name, "evil")
    before = sorted(tmp_path.rglob("*"))
    with pytest.warns(UserWarning, match="Skipping invalid path during archive extraction"):
        backend.load(path)
    assert sorted(tmp_path.rglob("*")) == before


def test_description_contains_versions_and_device():
    description = backend.describe()
    assert description["keras"] == keras.__version__
    assert description["backend"].startswith(keras.backend.backend())
    assert description["device"]
