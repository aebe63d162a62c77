"""Lazy modules: they load when they are first used, and not before."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.runtime import lean
from tests.conftest import REPOSITORY

STAGE = """
import sys
import numpy as np
from pipeline.runtime import backend
from pipeline.config import params
from pipeline.training import building, loop
from pipeline.runtime.input_pipeline import Batches, Subset
from pipeline.config.schema import Model

settings = params.load().train.model_copy(update={"epochs": 1})
model = building.build(Model(architecture="baseline"), (8, 8, 1), 2, 0)
images = np.random.default_rng(0).random((8, 8, 8, 1), np.float32)
part = Subset(images, np.arange(8) % 2, np.arange(8))
loop.fit(model, part, part, settings, ["a", "b"], 0, verbose=False)
model.predict(Batches(part, 2, 8), verbose=0)
put_off = {"jax", "matplotlib", "pandas", "sklearn", "tensorflow.lite.python.lite"}
print(*put_off & set(sys.modules))
"""
USER = """
import keras
import tensorflow as tf

assert keras.wrappers.SKLearnClassifier and keras.visualization.plot_image_gallery
assert callable(tf.feature_column.numeric_column)
with tf.compat.v1.Session(graph=tf.Graph()) as session:
    assert session.run(tf.compat.v1.constant(3, name="three")) == 3
assert tf.compat.as_str(b"text") == "text"
network = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
assert tf.lite.TFLiteConverter.from_keras_model(network)
import pandas as pd
from pandas.testing import assert_frame_equal
assert_frame_equal(pd.DataFrame({"a": [1]}), pd.DataFrame({"a": [1]}))
network(pd.DataFrame({"a": [1.0], "b": [2.0]}).to_numpy())
import jax
assert jax.numpy.ones(2).sum() == 2
"""


def run(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.strip()


@pytest.mark.slow
def test_training_and_predicting_load_no_lazy_module():
    assert run(STAGE) == ""


@pytest.mark.slow
def test_lazy_modules_can_be_used():
    run("from pipeline.runtime import backend" + USER)


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A lazy package, `put_off`, with a submodule; both print when they run."""
    (tmp_path / "put_off").mkdir()
    (tmp_path / "put_off/__init__.py").write_text("print('package')\nVALUE = 1\n")
    (tmp_path / "put_off/part.py").write_text("print('part')\nfrom put_off import VALUE\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(lean, "WHEN_USED", {"put_off", "there_is_no_such_module"})
    for name in ("put_off", "put_off.part"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return "put_off"


def test_a_lazy_module_runs_once_when_it_is_used(package, capsys):
    with lean.imports():
        module = importlib.import_module(package)
    assert module.__file__
    assert capsys.readouterr().out == ""
    assert (module.VALUE, module.VALUE) == (1, 1)
    assert capsys.readouterr().out == "package\n"
    with pytest.raises(AttributeError, match="no attribute 'missing'"):
        _ = module.missing


def test_a_lazy_package_runs_before_its_submodule(package, capsys):
    with lean.imports():
        importlib.import_module(package)
    importlib.import_module(f"{package}.part")
    assert capsys.readouterr().out == "package\npart\n"


def test_a_lazy_module_that_is_not_installed_fails_at_import(package):
    with lean.imports(), pytest.raises(ModuleNotFoundError, match="there_is_no_such_module"):
        importlib.import_module("there_is_no_such_module")


def test_the_import_hook_is_removed_after_the_block(package):
    before = list(sys.meta_path)
    with pytest.raises(ZeroDivisionError, match="division"), lean.imports():
        _ = 1 / 0
    assert sys.meta_path == before
