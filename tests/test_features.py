"""Features: what the stage stores, and that training on it gives the same model."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
import pandas as pd
import pytest
from keras import layers

from pipeline import features, train
from pipeline.config.params import load
from pipeline.core.errors import PipelineError
from pipeline.core.files import sha256, write_json
from pipeline.inputs import feature_settings
from pipeline.runtime import backend
from tests.conftest import arguments, task


def source(path: Path) -> keras.Model:
    """Save a model to start from, and return it."""
    backend.make_deterministic(1)
    images = keras.Input((8, 8, 1), name="images")
    x = layers.Conv2D(6, 3)(images)
    x = layers.ReLU()(layers.BatchNormalization()(x))
    x = layers.GlobalAveragePooling2D()(x)
    model = keras.Model(images, layers.Dense(3)(x))
    path.parent.mkdir()
    backend.save(model, path)
    return model


@pytest.fixture
def compute(prepared: Path, edit) -> Callable[[str], list[str]]:
    """Return a function that adds a model, runs the stage for it, and returns the files."""

    def run(model: str) -> list[str]:
        edit("models:\n", f"models:\n  mine: {model}\n")
        params = load()
        settings = feature_settings(params.models["mine"], params.train_of("mine"))
        write_json(Path("inputs/mine.json"), settings)
        features.main("mine --inputs inputs/mine.json --arrays arrays --features mine".split())
        return sorted(path.name for path in Path("mine").iterdir())

    return run


TRANSFER = "{architecture: transfer, from_model: pretrained/mine.keras, build: {dropout: 0.2}}"


@pytest.mark.parametrize(("images", "size", "expected"), [
    (6, 2, [(0, 0), (2, 0), (4, 0)]),
    (7, 3, [(0, 0), (3, 0), (4, 2)]),
    (3, 3, [(0, 0)]),
])  # fmt: skip
def test_batches_of_equal_size_cover_all_images(images, size, expected):
    assert list(features.batches(images, size)) == expected


def test_the_output_of_the_frozen_layers_is_stored(compute, monkeypatch, capsys):
    monkeypatch.setattr(features, "batch_size", lambda shape: 24)
    model = source(Path("pretrained/mine.keras"))
    assert compute(TRANSFER) == ["SHA256SUMS", "features.json", "features.npy"]
    stored = np.load("mine/features.npy")
    assert (stored.dtype, stored.shape) == ("float32", (64, 6))
    pooled = keras.Model(model.inputs, model.layers[-1].input)
    expected = pooled.predict_on_batch(task()[0])
    assert np.allclose(stored, expected, atol=0.02)  # perhaps in bfloat16
    assert capsys.readouterr().out == "features: mine: 6 values of each of 64 images -> mine\n"


@pytest.mark.parametrize("model", [
    "{architecture: baseline}",
    "{architecture: transfer, from_model: pretrained/mine.keras, build: {freeze: none}}",
    "{architecture: transfer, from_model: pretrained/mine.keras, "
    "train: {augment: {flip: alternating}}}",
])  # fmt: skip
def test_a_model_without_frozen_layers_or_with_augmentation_has_no_features(compute, model, capsys):
    assert compute(model) == ["features.json"]
    assert Path("mine/features.json").read_text() == "null\n"
    assert capsys.readouterr().out == "features: mine: no frozen layers -> mine\n"


def test_a_model_whose_first_layer_is_trained_has_no_features(compute):
    source(Path("pretrained/mine.keras"))
    frozen_input = TRANSFER.replace("dropout: 0.2", "freeze: images")
    assert compute(frozen_input) == ["features.json"]


def train_on(out: str, *options: str) -> tuple[pd.DataFrame, np.ndarray]:
    """Train the model; return its history and its logits of all images."""
    train.main([*arguments("mine", out), *options])
    model = backend.load(Path(out, "model.keras"))
    return pd.read_csv(f"{out}/history.csv"), model.predict_on_batch(task()[0])


@pytest.mark.slow
def test_training_on_features_gives_the_model_that_training_on_images_gives(compute, edit):
    source(Path("pretrained/mine.keras"))
    edit("precision: auto", "precision: float32")
    edit("learning_rate: 0.001", "learning_rate: 0.05")
    compute(TRANSFER)
    history, logits = train_on("images")
    feature_history, feature_logits = train_on("features", "--features", "mine")
    assert np.allclose(feature_history, history, atol=1e-4)
    assert np.allclose(feature_logits, logits, atol=1e-4)
    # not the untrained head: training changes the loss
    assert history["loss"][0] - history["loss"][1] > 0.01


@pytest.mark.slow
def test_fine_tuning_follows_a_training_on_features(compute):
    source(Path("pretrained/mine.keras"))
    compute(
        "{architecture: transfer, from_model: pretrained/mine.keras, "
        "train: {fine_tune: {freeze: none, epochs: 1, learning_rate: 0.0001}}}"
    )
    history, _ = train_on("out", "--features", "mine")
    assert history["epoch"].tolist() == [1, 2, 3]
    metrics = json.loads(Path("out/train.json").read_text())
    assert metrics["epochs"] == metrics["best_epoch"] == 3
    # the convolution, 3 * 3 * 6 + 6, and the head, 6 * 2 + 2, without batch normalization
    assert metrics["trainable_parameters"] == 60 + 14
    assert not list(Path(".checkpoints").rglob("*.npz"))


def test_a_changed_file_of_features_is_refused(compute, prepared):
    source(Path("pretrained/mine.keras"))
    compute(TRANSFER)
    path = Path("mine/features.npy")
    path.write_bytes(path.read_bytes()[:-1] + b"\x7f")
    message = r"mine/features\.npy: must be the array that features@mine wrote, SHA-256 .* Run `dvc"
    with pytest.raises(PipelineError, match=message):
        train.main([*arguments("mine", "out"), "--features", "mine"])


@pytest.mark.slow
def test_random_frozen_weights_are_trained_on_images(compute, capsys):
    source(Path("pretrained/mine.keras"))
    compute(TRANSFER)
    # as if the frozen weights were those of another seed
    Path("mine/features.json").write_text(json.dumps({"weights": sha256(Path("params.yaml"))}))
    train_on("out", "--features", "mine")
    lines = capsys.readouterr().out.splitlines()
    assert "train: mine: trained on images, since its frozen weights are random" in lines
    assert re.match("train: mine, seed 0: 2 epochs", lines[-1])
