"""Layer overrides: each has its documented effect on any architecture, or is refused."""

from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

from pipeline.config.schema import LayerOverrides, Model
from pipeline.core.errors import PipelineError
from pipeline.runtime import backend
from pipeline.training import building

SHAPE = (32, 32, 3)
# every architecture without a pretrained base, with its smallest image size
SCRATCH = {
    "baseline": 8, "batchnorm": 8, "tutorial": 18, "vgg16": 32, "plain": 8,
    "wide_bn": 17, "deep_bn": 128, "logistic_bn": 8, "airnet": 9,
}  # fmt: skip


def make(name: str = "baseline", size: int = 32, **build: Any) -> keras.Model:
    model = Model(architecture=name, build=build)
    return building.build(model, (size, size, 3), 10, seed=0)


def layers_of(model: keras.Model, *kinds: type) -> list[keras.Layer]:
    return [layer for layer in model.layers if isinstance(layer, kinds)]


def kernels(model: keras.Model) -> list[np.ndarray]:
    return [w.numpy() for w in model.weights if w.path.endswith("kernel")]


def test_padding_changes_the_convolutions():
    # valid: sides of 30, 15, 13, 6, 4 and 2, so 2 * 2 * 64 features instead of 4 * 4 * 64
    (flatten,) = layers_of(make(padding="valid"), layers.Flatten)
    assert flatten.output.shape == (None, 256)
    (flatten,) = layers_of(make("tutorial", padding="same"), layers.Flatten)
    assert flatten.output.shape == (None, 8 * 8 * 64)


def test_pooling_changes_the_kind_and_keeps_the_pool_size():
    assert len(layers_of(make(), layers.MaxPooling2D)) == 3
    average = make(pooling="average")
    assert len(layers_of(average, layers.AveragePooling2D)) == 3
    assert not layers_of(average, layers.MaxPooling2D)
    assert layers_of(make("wide_bn", pooling="average"), layers.AveragePooling2D)[0].pool_size == (
        16,
        16,
    )


def test_activation_changes_hidden_layers_but_not_the_logits():
    *hidden, logits = layers_of(make(activation="tanh"), layers.Conv2D, layers.Dense)
    assert [layer.activation for layer in hidden] == [keras.activations.tanh] * 4
    assert logits.activation is keras.activations.linear


@pytest.mark.parametrize(("name", "std"), [
    # for the hidden dense layer of 1,024 inputs and 128 outputs
    ("glorot_uniform", np.sqrt(2 / (1024 + 128))), ("glorot_normal", np.sqrt(2 / (1024 + 128))),
    ("he_normal", np.sqrt(2 / 1024)), ("he_uniform", np.sqrt(2 / 1024)),
    ("lecun_normal", np.sqrt(1 / 1024)), ("lecun_uniform", np.sqrt(1 / 1024)),
    ("random_normal", 0.05), ("random_uniform", 0.1 / np.sqrt(12)),
    ("orthogonal", np.sqrt(1 / 1024)), ("zeros", 0.0), ("ones", 0.0),
])  # fmt: skip
def test_kernel_initializer_gives_weights_of_its_standard_deviation(name, std):
    kernel = kernels(make(kernel_initializer=name))[3]
    assert kernel.shape == (1024, 128)
    assert kernel.std() == pytest.approx(std, rel=0.02)
    assert kernel.mean() == pytest.approx(float(name == "ones"), abs=0.001)


def test_dirac_convolutions_copy_channels():
    default, dirac = make("airnet"), make("airnet", kernel_initializer="dirac")
    patches, first, second, *_, logits = kernels(dirac)
    image = np.random.default_rng(0).random((1, 9, 9, 24), np.float32)
    output = keras.ops.convert_to_numpy(keras.ops.conv(image, first, padding="same"))
    assert np.array_equal(output[..., :24], image)
    # of 64 filters on 24 channels the other 40 keep their initial values, as dense layers do
    assert np.array_equal(first[..., 24:], kernels(default)[1][..., 24:])
    assert np.array_equal(logits, kernels(default)[-1])
    # in 2 × 2 pixels the first counts as the center
    assert patches[0, 0, :, :3].tolist() == np.eye(3).tolist()
    assert np.abs(patches[..., :3]).sum() == 3
    assert np.array_equal(second.sum((0, 1)), np.eye(64))


def test_a_dirac_model_loads_in_stock_keras_and_dirac_needs_a_convolution(tmp_path):
    backend.save(make(kernel_initializer="dirac"), tmp_path / "model.keras")
    first = kernels(keras.saving.load_model(tmp_path / "model.keras"))[0]
    assert np.array_equal(first, kernels(make(kernel_initializer="dirac"))[0])
    with pytest.raises(PipelineError, match="kernel_initializer matches nothing"):
        make("logistic_bn", kernel_initializer="dirac")


def test_kernel_stddev_sets_the_standard_deviation_of_the_weights():
    kernel = kernels(make(kernel_initializer="random_normal", kernel_stddev=1.0))[3]
    assert kernel.std() == pytest.approx(1.0, rel=0.02)


def test_bias_initializer_sets_every_bias():
    model = make(bias_initializer="ones")
    biases = [w.numpy() for w in model.weights if w.path.endswith("bias")]
    assert len(biases) == 5
    assert all((bias == 1).all() for bias in biases)


@pytest.mark.parametrize(("kind", "penalty"), [
    # all weights are 1, and there are 432 + 4,608 + 18,432 + 131,072 + 1,280 = 155,824
    ("l1", 0.5 * 155_824), ("l2", 0.5 * 155_824), ("l1_l2", 2 * 0.5 * 155_824),
])  # fmt: skip
def test_kernel_regularizer_adds_its_penalty_to_the_loss(kind, penalty):
    model = make(kernel_initializer="ones", kernel_regularizer=kind, kernel_regularizer_factor=0.5)
    assert float(sum(model.losses)) == pytest.approx(penalty)
    assert make().losses == []


@pytest.mark.parametrize(("kind", "factor"), [("l1", 0.01), ("l2", 0.01), ("l1_l2", 0.02)])
def test_kernel_regularizer_has_the_factor_of_keras_by_default(kind, factor):
    model = make(kernel_initializer="ones", kernel_regularizer=kind)
    assert float(sum(model.losses)) == pytest.approx(factor * 155_824, rel=1e-4)


def test_max_norm_limits_the_weights_of_each_filter_and_unit():
    model = make(size=8, max_norm=0.5)
    model.compile(keras.optimizers.SGD(1.0), "mse")
    model.train_on_batch(np.ones((4, 8, 8, 3), np.float32), np.ones((4, 10), np.float32))
    for kernel in kernels(model):
        norms = np.sqrt((kernel**2).sum(axis=tuple(range(kernel.ndim - 1))))
        assert norms.max() <= 0.5 + 1e-5


def test_batch_norm_is_added_before_each_hidden_activation():
    names = [type(layer).__name__ for layer in make(batch_norm=True).layers]
    assert names[1:5] == ["Conv2D", "BatchNormalization", "Activation", "MaxPooling2D"]
    assert names[-4:] == ["Dense", "BatchNormalization", "Activation", "Dense"]
    assert names.count("BatchNormalization") == 4


def test_batch_norm_can_be_added_after_each_hidden_activation():
    model = make(batch_norm=True, batch_norm_position="after")
    names = [type(layer).__name__ for layer in model.layers]
    assert names[1:4] == ["Conv2D", "BatchNormalization", "MaxPooling2D"]
    assert layers_of(model, layers.Conv2D)[0].activation is keras.activations.relu
    assert names.count("BatchNormalization") == 4


def test_batch_norm_false_removes_every_batch_normalization():
    assert len(layers_of(make("batchnorm"), layers.BatchNormalization)) == 7
    without = make("batchnorm", batch_norm=False)
    assert not layers_of(without, layers.BatchNormalization)
    # two trainable and two moving values for each of 2 * 64 + 4 * 128 + 256 = 896 features
    assert without.count_params() == 1_517_450 - 4 * 896
    assert make(batch_norm=False).count_params() == 156_074  # has none


def test_batch_norm_true_replaces_the_layers_of_the_architecture():
    model = make("batchnorm", batch_norm=True, batch_norm_position="before")
    names = [type(layer).__name__ for layer in model.layers]
    assert names[1:4] == ["Conv2D", "BatchNormalization", "Activation"]
    assert names.count("BatchNormalization") == 7


@pytest.mark.parametrize("build", [{"batch_norm": True}, {}])
def test_batch_norm_settings_apply_to_new_layers_and_to_those_of_the_architecture(build):
    model = make(
        "batchnorm",
        **build,
        batch_norm_momentum=0.9,
        batch_norm_epsilon=0.1,
        batch_norm_beta_initializer="ones",
        batch_norm_gamma_initializer="zeros",
    )
    normalizations = layers_of(model, layers.BatchNormalization)
    assert {(layer.momentum, layer.epsilon) for layer in normalizations} == {(0.9, 0.1)}
    assert all((layer.beta.numpy() == 1).all() for layer in normalizations)
    assert all((layer.gamma.numpy() == 0).all() for layer in normalizations)


@pytest.mark.parametrize("name", SCRATCH)
def test_every_architecture_takes_the_overrides(name, tmp_path):
    build: dict[str, Any] = {
        "kernel_initializer": "he_normal", "kernel_regularizer": "l2", "max_norm": 3.0,
        "bias_initializer": "ones",
    }  # fmt: skip
    if name != "logistic_bn":  # has no hidden layer
        build |= {"activation": "sigmoid", "batch_norm": True, "padding": "same"}
    model = make(name, SCRATCH[name], **build)
    last = model.layers[-1]
    assert isinstance(last.kernel_initializer, keras.initializers.HeNormal)
    assert (last.bias.numpy() == 1).all()
    assert len(model.losses) == len(layers_of(model, layers.Conv2D, layers.Dense))
    backend.save(model, tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras", compile=False)
    pixels = np.random.default_rng(0).random((2, *model.input_shape[1:]), dtype=np.float32)
    assert np.array_equal(model(pixels), loaded(pixels))


def test_an_override_keeps_the_other_initial_weights():
    default = make()
    overridden = make(kernel_initializer="glorot_uniform", pooling="average")
    for one, other in zip(kernels(default), kernels(overridden), strict=True):
        assert np.array_equal(one, other)


def test_overrides_change_the_head_and_not_the_pretrained_base():
    build: dict[str, Any] = {"base": "mobilenet_v2", "weights": None}
    default, overridden = make("pretrained", **build), make("pretrained", **build, max_norm=2.0)
    bases = [
        next(layer for layer in model.layers if isinstance(layer, keras.Model))
        for model in (default, overridden)
    ]
    for one, other in zip(bases[0].weights, bases[1].weights, strict=True):
        assert np.array_equal(one, other)
    assert overridden.layers[-1].kernel_constraint.max_value == 2.0


@pytest.mark.parametrize(("name", "build", "setting"), [
    ("logistic_bn", {"padding": "valid"}, "padding"),
    ("logistic_bn", {"activation": "tanh"}, "activation"),
    ("logistic_bn", {"batch_norm": True}, "batch_norm"),
    ("plain", {"pooling": "average"}, "pooling"),
    ("plain", {"batch_norm_momentum": 0.9}, "batch_norm_momentum"),
    ("pretrained", {"weights": None, "padding": "valid"}, "padding"),
])  # fmt: skip
def test_an_override_that_matches_nothing_is_refused(name, build, setting):
    with pytest.raises(PipelineError, match=rf"{name}: {setting} matches nothing in thi"):
        make(name, **build)


def test_a_sequential_model_takes_overrides_too():
    from pipeline.training.layer_overrides import apply_overrides

    model = keras.Sequential([keras.Input(SHAPE), layers.Conv2D(4, 3, activation="relu"),
                              layers.Flatten(), layers.Dense(2)])  # fmt: skip
    overridden = apply_overrides(
        model, LayerOverrides(batch_norm=True, batch_norm_position="after")
    )
    assert [type(layer).__name__ for layer in overridden.layers] == [
        "InputLayer", "Conv2D", "BatchNormalization", "Flatten", "Dense",
    ]  # fmt: skip


def test_downscale_averages_squares_of_pixels_before_the_same_network():
    small, large = make(size=8), make(size=35, downscale=4)
    images = np.random.default_rng(0).random((2, 35, 35, 3), np.float32)
    # the last three rows and columns fill no square
    squares = images[:, :32, :32].reshape(2, 8, 4, 8, 4, 3).mean(axis=(2, 4))
    np.testing.assert_allclose(large(images), small(squares), rtol=0, atol=1e-5)
    assert [w.shape for w in large.weights] == [w.shape for w in small.weights]


@pytest.mark.parametrize("name", SCRATCH)
def test_downscale_works_with_every_architecture(name, tmp_path):
    side = 2 * SCRATCH[name]
    model = make(name, size=side, downscale=2)
    assert [layer.name for layer in layers_of(model, layers.AveragePooling2D)][0] == "downscale"
    images = np.random.default_rng(0).random((2, side, side, 3), np.float32)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded(images), model(images))


def test_downscale_goes_together_with_other_overrides():
    model = make(size=32, downscale=2, pooling="max", kernel_initializer="zeros")
    assert [layer.pool_size for layer in layers_of(model, layers.AveragePooling2D)] == [(2, 2)]
    assert not any(kernel.any() for kernel in kernels(model))


def test_images_too_small_to_downscale_are_refused_with_the_smallest_size():
    with pytest.raises(PipelineError, match=r"The smallest that fits is .*image_size: \[32, 32\]"):
        make(size=16, downscale=4)
