"""Architectures: what every file of pipeline/architectures/ must keep to."""

import importlib

import keras
import numpy as np
import pytest

from pipeline import backend
from pipeline.params import ARCHITECTURES, settings

NAMES = sorted(path.stem for path in ARCHITECTURES.glob("*.py"))
SHAPE = (32, 32, 3)


def build(name: str, shape=SHAPE, classes=10, **own) -> keras.Model:
    module = importlib.import_module(f"pipeline.architectures.{name}")
    return module.build(shape, classes, **own)


@pytest.mark.parametrize("name", NAMES)
def test_maps_images_to_logits_uncompiled(name):
    model = build(name, classes=7)
    assert model.input_shape == (None, *SHAPE)
    assert model.output_shape == (None, 7)
    assert not model.compiled
    # one decision for all: logits, so the loss stays exact on every backend
    assert model.layers[-1].activation is keras.activations.linear


@pytest.mark.parametrize("name", NAMES)
def test_every_weight_is_reached_by_the_loss(name):
    keras.utils.set_random_seed(0)
    model = build(name)
    before = [weight.numpy() for weight in model.trainable_weights]
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("sgd", loss)
    images = np.random.default_rng(0).random((8, *SHAPE), dtype=np.float32)
    model.train_on_batch(images, np.arange(8))
    for old, weight in zip(before, model.trainable_weights, strict=True):
        assert np.isfinite(weight.numpy()).all()
        # a bias that batch normalization takes out again has no gradient to speak of
        if "bias" not in weight.path:
            assert not np.array_equal(old, weight.numpy()), weight.path


@pytest.mark.parametrize("name", NAMES)
def test_is_the_same_after_saving(name, tmp_path):
    model = build(name)
    images = np.random.default_rng(0).random((2, *SHAPE), dtype=np.float32)
    backend.save(model, tmp_path / "model.keras")
    again = backend.load(tmp_path / "model.keras")
    assert np.array_equal(model(images), again(images))


@pytest.mark.parametrize("name", NAMES)
def test_settings_are_known_without_importing_keras(name):
    """settings() reads the signature only; its defaults must be those of build."""
    known = settings(name)()
    assert build(name, **known.model_dump()).count_params() == build(name).count_params()


@pytest.mark.parametrize("name", NAMES)
def test_takes_greyscale_images(name):
    assert build(name, (8, 8, 1), 2).output_shape == (None, 2)


def test_baseline_has_the_parameters_of_the_reference():
    # 3*3*3*16+16 = 448; 3*3*16*32+32 = 4,640; 3*3*32*64+64 = 18,496;
    # 4*4*64*128+128 = 131,200; 128*10+10 = 1,290
    assert build("baseline").count_params() == 448 + 4_640 + 18_496 + 131_200 + 1_290 == 156_074


def test_dropout_of_baseline_stands_before_flatten_and_adds_nothing():
    layers = build("baseline", dropout=0.2).layers
    names = [type(layer).__name__ for layer in layers]
    assert names[names.index("Dropout") + 1] == "Flatten"
    assert build("baseline", dropout=0.2).count_params() == 156_074
    assert "Dropout" not in [type(layer).__name__ for layer in build("baseline").layers]


def test_batchnorm_has_the_parameters_of_the_reference():
    model = build("batchnorm")
    trainable = sum(int(np.prod(w.shape)) for w in model.trainable_weights)
    assert model.count_params() == 1_517_450
    # two moving statistics for each of 2*64 + 4*128 + 256 features
    assert (trainable, model.count_params() - trainable) == (1_515_658, 2 * (128 + 512 + 256))


def test_dropout_of_batchnorm_is_set_block_by_block():
    model = build("batchnorm", dropout=[0.1, 0.3, 0.4], dense_dropout=0.6)
    rates = [layer.rate for layer in model.layers if isinstance(layer, keras.layers.Dropout)]
    assert rates == [0.1, 0.3, 0.4, 0.6]
