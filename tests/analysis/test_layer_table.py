"""Layer table: its numbers, worked out by hand or published."""

import keras
import numpy as np
import pytest
from keras import layers as L

from pipeline.analysis import layer_table
from pipeline.analysis.network import unnested
from pipeline.architectures import baseline, batchnorm, tutorial


def network(shape, *layers):
    return keras.Sequential([keras.Input(shape), *layers])


def table(model):
    return layer_table.table(unnested(model))


def total_parameters(shape, *layers):
    return layer_table.total(table(network(shape, *layers)))["parameters"]


def test_the_first_layer_of_alexnet_has_the_published_numbers():
    # Krizhevsky 2012: (227 - 11) / 4 + 1 = 55
    row = table(network((227, 227, 3), L.Conv2D(96, 11, strides=4)))[1]
    assert row.output_shape == (55, 55, 96)
    assert row.parameters == 11 * 11 * 3 * 96 + 96 == 34_944
    assert row.macs == 55 * 55 * 96 * 11 * 11 * 3 == 105_415_200
    assert (row.receptive_field, row.stride) == ("11×11", "4×4")
    assert row.activation_bytes == 4 * 55 * 55 * 96


@pytest.mark.parametrize(("padding", "expected"), [("valid", 473_890), ("same", 559_906)])
def test_padding_decides_the_parameters_of_the_last_layer(padding, expected):
    layers = [L.Dense(16)]
    for filters, side in ((32, 3), (64, 5), (128, 7)):
        layers.append(L.Conv2D(filters, side, padding=padding))
    assert total_parameters((20, 20, 3), *layers, L.Flatten(), L.Dense(2)) == expected


def test_pooling_reduces_the_parameters_of_the_last_layer():
    # 3·16 + 16; 3·3·16·32 + 32; 5·5·32·64 + 64; for 10×10 positions 10·10·64·2 + 2
    layers = [L.Dense(16), L.Conv2D(32, 3, padding="same"), L.Conv2D(64, 5, padding="same")]
    layers += [L.MaxPooling2D(2), L.Flatten(), L.Dense(2)]
    assert total_parameters((20, 20, 3), *layers) == 64 + 4_640 + 51_264 + 12_802 == 68_770


def test_parameters_of_two_small_convolutions():
    # 3·3·3·2 + 2, 3·3·2·3 + 3, 20·20·3·2 + 2
    layers = [L.Conv2D(2, 3, padding="same"), L.Conv2D(3, 3, padding="same")]
    assert (
        total_parameters((20, 20, 3), *layers, L.Flatten(), L.Dense(2)) == 56 + 57 + 2_402 == 2_515
    )


@pytest.mark.parametrize(
    ("architecture", "expected"),
    [(baseline, 156_074), (batchnorm, 1_517_450), (tutorial, 122_570)],
)
def test_architectures_have_the_published_parameter_counts(architecture, expected):
    rows = table(architecture.build((32, 32, 3), 10))
    assert layer_table.total(rows)["parameters"] == expected


def test_the_receptive_field_grows_with_strides_and_dilation():
    # 3; + 1·1, stride 2; + 2·2; dilated by 2: + 4·2; then the whole image
    layers = [L.Conv2D(1, 3), L.MaxPooling2D(2), L.Conv2D(1, 3), L.Conv2D(1, 3, dilation_rate=2)]
    rows = table(network((32, 32, 1), *layers, L.GlobalAveragePooling2D()))
    assert [row.receptive_field for row in rows] == ["1×1", "3×3", "4×4", "8×8", "16×16", "32×32"]
    assert [row.stride for row in rows] == ["1×1", "1×1", "2×2", "2×2", "2×2", ""]


def test_a_globally_pooled_map_has_no_stride_even_with_keepdims():
    layers = [L.Conv2D(1, 3), L.GlobalMaxPooling2D(keepdims=True), L.Conv2D(4, 1)]
    rows = table(network((8, 8, 1), *layers))
    assert [row.receptive_field for row in rows[1:]] == ["3×3", "8×8", "8×8"]
    assert [row.stride for row in rows[1:]] == ["1×1", "", ""]


def test_a_sum_has_the_receptive_field_of_its_widest_branch():
    images = keras.Input((8, 8, 1))
    narrow, wide = L.Conv2D(1, 1)(images), L.Conv2D(1, 5, padding="same")(images)
    rows = table(keras.Model(images, L.Add()([narrow, wide])))
    assert rows[-1].receptive_field == "5×5"


@pytest.mark.parametrize(
    ("layer", "parameters", "macs"),
    [
        (L.Conv2D(6, 3, groups=2), 3 * 3 * 2 * 6 + 6, 2 * 2 * 6 * 3 * 3 * 2),
        (L.DepthwiseConv2D(3, depth_multiplier=2), 3 * 3 * 8 + 8, 2 * 2 * 8 * 3 * 3),
        (
            L.SeparableConv2D(5, 3, use_bias=False),
            3 * 3 * 4 + 4 * 5,
            2 * 2 * (3 * 3 * 4 + 4 * 5),
        ),
        (L.BatchNormalization(scale=False), 3 * 4, 0),
        (L.Dense(7), 4 * 7 + 7, 4 * 4 * 7 * 4),
    ],
)
def test_parameters_and_multiply_accumulates_of_a_layer(layer, parameters, macs):
    row = table(network((4, 4, 4), layer))[1]
    assert (row.parameters, row.macs) == (parameters, macs)


def test_frozen_weights_and_moving_averages_are_not_trainable():
    frozen = L.Conv2D(2, 1, trainable=False)
    rows = table(network((4, 4, 1), frozen, L.BatchNormalization()))
    assert [(row.parameters, row.trainable) for row in rows] == [(0, 0), (4, 0), (8, 4)]


def test_nested_models_are_expanded_into_their_layers():
    layers = [keras.Input((8, 8, 1)), L.Dense(2, name="dense"), L.ReLU(name="relu")]
    body = keras.Sequential(layers, name="body")
    images = keras.Input((8, 8, 1), name="images")
    features = L.Flatten(name="flatten")(body(images))
    model = keras.Model(images, L.Dense(3, name="dense")(features))
    flat = unnested(model)
    names = [row.name for row in layer_table.table(flat)]
    assert names[1:] == ["body.dense", "body.relu", "flatten", "dense"]
    assert [row.name for row in layer_table.table(unnested(model))][1:] == names[1:]
    values = np.random.default_rng(0).random((2, 8, 8, 1), np.float32)
    assert np.array_equal(flat(values), model(values))


def test_a_layer_called_twice_counts_its_parameters_once():
    images = keras.Input((4, 4, 1))
    shared = L.Conv2D(1, 3, padding="same")
    rows = table(keras.Model(images, shared(shared(images))))
    assert [row.parameters for row in rows] == [0, 10, 0]
    assert [row.receptive_field for row in rows] == ["1×1", "3×3", "5×5"]
