"""Analyze: gradients, filters and pictures of one trained network."""

import json
import re

import keras
import numpy as np
import pandas as pd
import pytest
from keras import layers as L
from matplotlib import pyplot as plt
from PIL import Image

from pipeline import analyze
from pipeline.analysis import (
    activation_maximization,
    figures,
    gallery,
    gradient_flow,
    layer_table,
)
from pipeline.analysis.grad_cam import grad_cam, last_feature_map
from pipeline.analysis.network import unnested
from pipeline.config.schema import Model
from pipeline.data import preprocessor
from pipeline.data.preprocessor import Preprocessor
from pipeline.runtime import backend
from pipeline.training import building
from tests.conftest import write_arrays, write_predictions

UNIT = Preprocessor(["dark", "bright"], [8, 8, 1], "unit", [0.5], [0.5])


def edges() -> keras.Model:
    """Return a classifier of which half is bright: left for class 0, right for class 1."""
    images = keras.Input((8, 8, 1))
    convolution = L.Conv2D(2, (8, 4), strides=(8, 4), use_bias=False)
    x = convolution(images)  # (n, 1, 2, 2)
    x = L.Flatten()(x)
    model = keras.Model(images, L.Dense(2, use_bias=False)(x))
    kernel = np.zeros((8, 4, 1, 2), np.float32)
    kernel[..., 0] = 1
    convolution.set_weights([kernel])
    model.layers[-1].set_weights([np.array([[1, 0], [0, 0], [0, 1], [0, 0]], np.float32)])
    return model


def heat_maps(model: keras.Model, images: np.ndarray, classes: list[int]) -> np.ndarray:
    maps = grad_cam(model, images, np.array(classes))
    assert maps is not None
    return maps


def last_feature_map_shape(model: keras.Model) -> tuple:
    feature_map = last_feature_map(unnested(model))
    assert feature_map is not None
    return feature_map.shape


def test_grad_cam_finds_the_half_that_supports_a_class():
    model = edges()
    bright = np.ones((2, 8, 8, 1), np.float32)
    maps = heat_maps(model, bright, [0, 1])
    assert maps.shape == (2, 8, 8)
    assert maps.max() == 1
    left_bright = np.ones((1, 8, 8, 1), np.float32)
    left_bright[:, :, 4:] = 0
    (heat_map,) = heat_maps(model, left_bright, [0])
    assert heat_map[:, 0] == pytest.approx(np.ones(8))
    assert heat_map[:, -1] == pytest.approx(np.zeros(8))


def test_grad_cam_is_zero_if_nothing_supports_the_class():
    model = edges()
    model.layers[-1].set_weights([-model.layers[-1].get_weights()[0]])
    maps = heat_maps(model, np.ones((1, 8, 8, 1), np.float32), [0])
    assert maps.max() == 0


def test_grad_cam_uses_the_last_feature_map_outside_of_branches():
    images = keras.Input((8, 8, 1))
    pooled = L.MaxPooling2D(2)(images)  # (n, 4, 4, 1)
    branch = L.Conv2D(1, 3, strides=3)(L.ZeroPadding2D(1)(pooled))  # 6×6, then 2×2
    joined = L.Add()([L.MaxPooling2D(1, strides=2)(pooled), branch])
    head = L.Conv2D(1, 2)(joined)  # 1×1
    model = keras.Model(images, L.Dense(2)(L.Flatten()(head)))
    assert last_feature_map_shape(model) == (None, 2, 2, 1)  # joined
    assert heat_maps(model, np.ones((1, 8, 8, 1), np.float32), [0]).shape == (1, 8, 8)
    branch = L.Conv2D(1, 3)(L.ZeroPadding2D(1)(L.MaxPooling2D(4)(pooled)))  # 3×3, then 1×1
    joined = L.Add()([L.MaxPooling2D(4)(pooled), branch])  # 1×1
    model = keras.Model(images, L.Dense(2)(L.Flatten()(joined)))
    assert last_feature_map_shape(model) == (None, 4, 4, 1)  # pooled
    assert heat_maps(model, np.ones((1, 8, 8, 1), np.float32), [0]).shape == (1, 8, 8)


def test_grad_cam_of_a_model_without_feature_maps_is_none():
    model = keras.Sequential([keras.Input((8, 8, 1)), L.Flatten(), L.Dense(2)])
    assert grad_cam(model, np.ones((1, 8, 8, 1), np.float32), np.array([0])) is None


def test_grad_cam_does_not_change_the_model():
    model = keras.Sequential(
        [keras.Input((8, 8, 1)), L.Conv2D(2, 3), L.Flatten(), L.BatchNormalization(), L.Dense(2)]
    )
    before = model.get_weights()
    grad_cam(model, np.ones((3, 8, 8, 1), np.float32), np.array([0, 1, 1]))
    assert all(np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True))
    assert not model.compiled
    assert len(model.trainable_weights) == 6  # nothing is frozen


def test_pictures_make_their_filters_respond(estimates):
    backend.make_deterministic(0)
    model = edges()
    images = np.random.default_rng(0).random((16, 8, 8, 1), np.float32)
    convolutions = activation_maximization.select_convolutions(model, images)
    assert [convolution.name for convolution in convolutions] == [model.layers[1].name]
    assert convolutions[0].strongest.tolist() == [0, 1]  # all weights of filter 1 are 0
    (pictures,) = activation_maximization.maximize(model, convolutions, UNIT, seed=0)
    assert pictures.shape == (2, 8, 8, 1)
    assert pictures[0].mean() > 0.9  # filter 0 responds to white
    assert pictures[1] == pytest.approx(0.5, abs=0.1)  # filter 1 to nothing: still grey
    assert estimates == [("filters", 48, step) for step in range(1, 49)]


def picture_shapes(model: keras.Model) -> list[tuple]:
    shape = model.input_shape[1:]
    unit = Preprocessor(["dark", "bright"], list(shape), "unit", [0.5], [0.5])
    images = np.random.default_rng(0).random((2, *shape), np.float32)
    convolutions = activation_maximization.select_convolutions(model, images)
    pictures = activation_maximization.maximize(model, convolutions, unit, seed=0)
    return [picture.shape for picture in pictures]


def test_pictures_are_small_even_if_images_are_large(monkeypatch):
    monkeypatch.setattr(activation_maximization, "STEPS", 4)
    images = keras.Input((224, 80, 1))
    x = L.Conv2D(2, 3, padding="same")(images)
    flat = L.Flatten()(L.Conv2D(3, 3)(L.MaxPooling2D(2)(x)))
    model = keras.Model(images, L.Dense(2)(flat))
    assert picture_shapes(model) == [(2, 32, 32, 1), (3, 32, 32, 1)]


def test_pictures_are_as_large_as_the_network_needs(monkeypatch):
    monkeypatch.setattr(activation_maximization, "STEPS", 4)
    images = keras.Input((100, 40, 1))
    # an unpadded kernel of 33 pixels needs 33; 64 is the next size
    unpadded = keras.Model(images, L.Flatten()(L.Conv2D(2, 33)(images)))
    assert picture_shapes(unpadded) == [(2, 64, 40, 1)]
    # Reshape accepts one size only
    reshaped = L.Conv2D(2, 3)(L.Reshape((50, 80, 1))(images))
    assert picture_shapes(keras.Model(images, L.Flatten()(reshaped))) == [(2, 100, 40, 1)]


def test_each_layer_processes_only_the_pictures_that_need_it():
    backend.make_deterministic(0)
    images = keras.Input((8, 8, 1))
    first = L.Conv2D(2, 3, padding="same")(images)
    left = L.Conv2D(2, 3, padding="same")(first)
    joined = L.Dropout(0.5)(L.Add()([first, left]))
    model = keras.Model(images, [first, left, L.Conv2D(2, 3)(joined)])
    pictures = np.random.default_rng(0).random((6, 8, 8, 1), np.float32)
    rows = [(0, 1), (1, 3), (3, 6)]
    prefixes = activation_maximization.Prefixes(model, model.outputs, rows)
    assert prefixes.needed[id(first)] == (0, 6)
    assert prefixes.needed[id(left)] == (1, 6)
    assert prefixes.needed[id(joined)] == (3, 6)
    outputs = model(pictures, training=False)
    for (start, stop), values, output in zip(rows, prefixes(pictures), outputs, strict=True):
        expected = keras.ops.convert_to_numpy(output)[start:stop]
        assert keras.ops.convert_to_numpy(values) == pytest.approx(expected, abs=1e-6)


def test_the_budget_limits_the_layers_and_filters(monkeypatch):
    monkeypatch.setattr(activation_maximization, "MACS", 100)
    select = activation_maximization.select_within_budget
    assert select([1, 2, 3]) == ([0, 1, 2], 16)  # 16 filters of each cost 96
    assert select([1, 4, 5]) == ([0, 1, 2], 10)
    assert select([1] * 100)[0][::11] == [0, 99]  # 12 layers, the last one included
    # all three layers cost 150, the first and the last 95
    assert select([15, 55, 80]) == ([0, 2], 1)
    assert select([200]) == ([0], 1)  # never fewer than one


def test_the_batch_is_smaller_if_images_are_large():
    rows = np.arange(1000)
    assert len(analyze.sample_rows(rows, (8, 8, 1))) == 256
    # 2**20 values are 6 images of 150,528
    assert len(analyze.sample_rows(rows, (224, 224, 3))) == 6


def test_pictures_are_larger_if_the_network_downscales_images():
    size = activation_maximization.picture_size
    for factor, expected in ((1, (32, 32)), (4, (128, 128))):
        images = keras.Input((224, 224, 1))
        pooled = L.AveragePooling2D(factor)(images) if factor > 1 else images
        response = L.Conv2D(2, 3)(pooled)
        assert size(keras.Model(images, response), [response]) == expected


def test_of_many_convolutions_some_have_feature_maps(tmp_path, monkeypatch):
    monkeypatch.setattr(gallery, "MAX_LAYERS", 3)
    images = x = keras.Input((8, 8, 1))
    for number in range(5):
        x = L.Conv2D(2, 3, padding="same", name=f"conv_{number}")(x)
    drawn = []
    monkeypatch.setattr(figures, "feature_maps", lambda example, maps: drawn.append(list(maps)))
    monkeypatch.setattr(gallery, "save", lambda *args, **options: None)
    pictures = gallery.Pictures(tmp_path, "x", UNIT)
    table = pd.DataFrame(
        {"id": ["1.png"], "actual": ["dark"], "predicted": ["dark"], "confidence": [1.0]}
    )
    pictures.feature_maps(keras.Model(images, x), np.zeros((1, 8, 8, 1), np.float32), table)
    assert drawn == [["conv_0", "conv_2", "conv_4"]]
    assert "eight feature maps of 3 of 5 convolutions" in pictures.contents[0]["alt"]


def test_each_picture_has_a_frame():
    figure = figures.filters(np.ones((2, 4, 4, 1)), np.array([0, 1]), "x")
    (frames,) = figure.axes[0].collections
    # a gap of one pixel above; horizontally 4 pixels, a gap of one, 4 pixels
    boxes = [path.get_extents().get_points().ravel().tolist() for path in frames.get_paths()]
    assert boxes == [[-0.5, 0.5, 3.5, 4.5], [4.5, 0.5, 8.5, 4.5]]
    edge = np.asarray(frames.get_edgecolor(), float)[0, :3]
    assert edge == pytest.approx([0x9A / 255] * 3)
    plt.close(figure)


def test_filters_are_maximized_before_their_activation():
    backend.make_deterministic(0)
    images = keras.Input((8, 8, 1))
    convolution = L.Conv2D(1, 8, activation="relu")
    model = keras.Model(images, L.Flatten()(convolution(images)))
    # after the ReLU, a grey image has response 0 and no gradient: 64 * 0.5 - 60 < 0
    convolution.set_weights([np.ones((8, 8, 1, 1), np.float32), np.array([-60.0], np.float32)])
    white = np.linspace(0, 1, 4, dtype=np.float32)[:, None, None, None] * np.ones((8, 8, 1))
    convolutions = activation_maximization.select_convolutions(model, white)
    (pictures,) = activation_maximization.maximize(model, convolutions, UNIT, seed=0)
    assert pictures[0].mean() > 0.9


def test_pictures_are_reproducible_and_depend_on_the_seed():
    model = edges()
    images = np.random.default_rng(0).random((16, 8, 8, 1), np.float32)
    convolutions = activation_maximization.select_convolutions(model, images)
    first, again, other = (
        activation_maximization.maximize(model, convolutions, UNIT, seed)[0] for seed in (0, 0, 1)
    )
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_norms_of_gradients_and_weights_are_exact():
    model = keras.Sequential([keras.Input((2,)), L.Dense(2, use_bias=False)])
    model.set_weights([np.array([[3, 0], [0, 4]], np.float32)])
    loss = keras.losses.MeanSquaredError()
    (row,) = gradient_flow.norms(model, np.array([[1.0, 0]]), np.array([[0.0, 0]]), loss)
    # outputs (3, 0); loss (3² + 0²) / 2; its derivative by the first weight is 3
    assert row == {"gradient": pytest.approx(3), "weights": pytest.approx(5)}


def test_a_frozen_layer_has_no_gradient():
    model = keras.Sequential(
        [keras.Input((2,)), L.Dense(2, trainable=False, use_bias=False), L.Dense(1)]
    )
    loss = keras.losses.MeanSquaredError()
    rows = gradient_flow.norms(model, np.array([[1.0, 2]]), np.array([[0.0]]), loss)
    assert rows[0]["gradient"] is None
    assert rows[0]["weights"] == pytest.approx(np.linalg.norm(model.layers[0].get_weights()[0]))
    assert rows[1]["gradient"]


def test_units_that_are_0_for_every_image_are_inactive():
    images = keras.Input((2,))
    dense = L.Dense(4, activation="relu", name="dense")
    model = keras.Model(images, L.LeakyReLU()(dense(images)))
    weights = np.array([[1, -1, 0, 0], [0, 0, 1, -1]], np.float32)
    dense.set_weights([weights, np.array([0, 0, 0, -1], np.float32)])
    inputs = np.array([[1.0, 1], [1, -0.5]], np.float32)
    # the units compute x, -x, y and -y - 1; -x is at most -1, and -y - 1 at most -0.5
    assert gradient_flow.inactive_relus(model, inputs) == {"dense": 0.5}


def test_moving_averages_are_compared_with_the_batch():
    layer = L.BatchNormalization(epsilon=0.0)
    model = keras.Sequential([keras.Input((1,)), layer])
    layer.set_weights([np.ones(1), np.zeros(1), np.array([2.0]), np.array([16.0])])
    # batch mean 5, variance 4: the moving mean is 1.5 σ away, the moving variance 4 times as large
    batch = np.array([[3.0], [7.0]], np.float32)
    rows = gradient_flow.compare_moving_averages(unnested(model), batch)
    assert rows == {layer.name: {"mean": pytest.approx(1.5), "variance": pytest.approx(4)}}


def test_examples_are_the_most_confident_correct_images_then_misclassified_ones():
    table = pd.DataFrame(
        {
            "actual": ["a", "a", "b", "b", "a", "a", "a"],
            "predicted": ["a", "b", "b", "a", "a", "a", "a"],
            "confidence": [0.9, 0.6, 0.8, 0.7, 0.9, 0.3, 0.5],
        }
    )
    assert analyze.most_confident(table).tolist() == [0, 4, 2, 6, 3, 1]


@pytest.mark.parametrize(
    ("field", "region"),
    [("22×22", "the whole image"), ("8×8", "the whole image"), ("8×7", "8×7 pixels of the image")],
)
def test_a_receptive_field_is_at_most_the_image(field, region):
    rows = [
        layer_table.Row("input", "", (8, 8, 1), 0, 0, 0, "1×1", "1×1", 0),
        layer_table.Row("conv", "", (1, 1, 4), 0, 0, 0, field, "8×8", 0),
    ]
    figure = figures.layers(rows, "mine")
    assert (
        figure.get_suptitle() == f"mine: layers, for one image; receptive field of conv: {region}"
    )
    plt.close(figure)


def test_an_example_has_its_file_and_a_confidence_below_1_is_never_shown_as_100_percent():
    example = figures.Example(np.zeros((2, 2, 1)), f"test/{'a' * 40}/1\n2.png", "a", "a", 0.9997)
    percent = "99.9\N{NO-BREAK SPACE}%"
    assert example.title == f"true a\npredicted a, {percent}\n…{'a' * 13}/1 2.png"
    assert example.description == f"test/{'a' * 40}/1 2.png: true a, predicted a, {percent}"


def test_a_montage_has_gaps_between_its_pictures():
    montage, corners = figures.montage([np.zeros((4, 4, 1))] * 9)
    # two lines of eight pictures, each of 4 pixels and a gap of 1
    assert montage.shape == (10, 40, 1)
    assert (montage == 0).sum() == 9 * 16
    assert corners[8] == (-0.5, 5.5)


@pytest.mark.parametrize(("silent", "moving", "panels"), [(0.5, 1.0, 3), (np.nan, np.nan, 1)])
def test_gradient_flow_has_no_empty_panels(silent, moving, panels):
    columns = [f"{kind}_{when}" for kind in ("gradient", "weights") for when in ("start", "end")]
    table = pd.DataFrame({column: [1.0, 2.0] for column in columns}, index=["a", "b"])
    figure = figures.gradient_flow(table.assign(silent=silent, mean=moving, variance=moving), "x")
    assert len(figure.axes) == panels
    assert [label.get_text() for label in figure.axes[-1].get_xticklabels()] == ["a", "b"]
    plt.close(figure)


PICTURES = ["layers", "feature_maps", "grad_cam", "flow", "kernels", "filters"]
PROGRESS = "".join(f"analyze: baseline: {name.replace('_', ' ')} …\n" for name in PICTURES)


@pytest.fixture
def trained(project, edit):
    """Write a small model and the other inputs of the stage."""
    images = np.random.default_rng(0).random((40, 8, 8, 1), np.float32)
    labels = np.arange(40) % 2
    for part in ("train", "test"):
        write_arrays(project / "arrays" / part, images, labels)
    (project / "arrays/info.json").write_text(json.dumps(vars(UNIT)))
    np.savez(project / "split.npz", train=np.arange(30), validation=np.arange(30, 40))
    names = np.array(UNIT.classes)
    table = pd.DataFrame(
        {"actual": names[labels], "predicted": "dark", "confidence": np.linspace(0.5, 1, 40)}
    )
    write_predictions(project / "predictions", table.assign(seed=0), UNIT.classes)
    (project / "pictures.json").write_text(json.dumps(PICTURES))
    edit("  baseline:\n    architecture: baseline", "  baseline:\n    architecture: plain")
    edit("dropout: 0.0", "dropout: 0.5\n      depth: 2")
    edit("batch_norm:", "batch_norm: true")
    build = {"dropout": 0.5, "depth": 2, "batch_norm": True}
    network = building.build(Model(architecture="plain", build=build), (8, 8, 1), 2, seed=0)
    path = project / "models/baseline/0.keras"
    path.parent.mkdir(parents=True)
    backend.save(network, path)
    preprocessor.store(path, UNIT)
    return project


ARGUMENTS = (
    "models/baseline/0.keras --name baseline --arrays arrays --split split.npz "
    "--predictions predictions/0.parquet --pictures pictures.json --out out/baseline"
).split()


# tests/test_graph.py tests with `dvc repro -f` that the pictures are reproducible
def test_the_stage_draws_and_lists_its_pictures(trained, quick_stage):
    done = quick_stage("pipeline.analyze", *ARGUMENTS)
    last_line = "analyze: baseline: 10 layers, 8 pictures -> out/baseline\n"
    assert (done.stdout, done.stderr) == (PROGRESS + last_line, "")
    analysis = json.loads((trained / "out/baseline/analysis.json").read_text())
    assert [picture["file"] for picture in analysis["pictures"]][:4] == [
        "layers.png", "feature_maps_right.png", "feature_maps_wrong.png", "grad_cam.png",
    ]  # fmt: skip
    for picture in analysis["pictures"]:
        assert picture["title"]
        assert picture["alt"]
        Image.open(trained / "out/baseline" / picture["file"]).verify()
    rows = pd.read_csv(trained / "out/baseline/layers.csv")
    assert rows["parameters"].sum() == analysis["total"]["parameters"]
    norms = pd.read_csv(trained / "out/baseline/flow.csv", index_col="layer")
    # the model is untrained: weights and gradients are those before training
    assert norms["weights_end"].equals(norms["weights_start"])
    start, end = (norms[f"gradient_{when}"].tolist() for when in ("start", "end"))
    assert end == pytest.approx(start, rel=0.5, nan_ok=True)


@pytest.mark.slow
def test_the_stage_runs_on_jax(trained, edit, stage):
    edit("backend: tensorflow", "backend: jax")
    done = stage("pipeline.analyze", *ARGUMENTS)
    last_line = "analyze: baseline: 10 layers, 8 pictures -> out/baseline\n"
    assert (done.stdout, done.stderr) == (PROGRESS + last_line, "")


def test_only_the_chosen_pictures_are_drawn(trained, quick_stage):
    (trained / "pictures.json").write_text('["kernels"]')
    done = quick_stage("pipeline.analyze", *ARGUMENTS)
    last_line = "analyze: baseline: 10 layers, 1 picture -> out/baseline\n"
    assert (done.stdout, done.stderr) == ("analyze: baseline: kernels …\n" + last_line, "")
    files = {path.name for path in (trained / "out/baseline").iterdir()}
    assert files == {"analysis.json", "layers.csv", "kernels.png"}


def test_a_model_without_chosen_pictures_has_only_the_layer_table(trained, quick_stage):
    (trained / "pictures.json").write_text("[]")
    done = quick_stage("pipeline.analyze", *ARGUMENTS)
    last_line = "analyze: baseline: 10 layers, 0 pictures -> out/baseline\n"
    assert (done.stdout, done.stderr) == (last_line, "")
    files = {path.name for path in (trained / "out/baseline").iterdir()}
    assert files == {"analysis.json", "layers.csv"}


def test_the_table_needs_only_the_model(trained, quick_stage):
    (trained / "params.yaml").unlink()
    done = quick_stage("pipeline.analyze", "models/baseline/0.keras", "--table")
    assert done.stderr == ""
    line = next(line for line in done.stdout.splitlines() if "Conv2D" in line)
    assert re.split(r"\s*[│┃]\s*", line)[2:-1] == [
        "Conv2D", "8×8×16", "160", "160", "9,216", "3×3", "1×1", "4,096",
    ]  # fmt: skip
    assert "total" in done.stdout


def test_the_table_escapes_markup_and_control_characters_in_names(capsys):
    row = layer_table.Row("[/b]\x1b[2J", "[red]Dense", (2,), 6, 6, 4, "8×8", "", 8)
    analyze.print_layers([row], "[/i]x")
    output = capsys.readouterr().out
    assert "[/i]x: one image" in output
    assert r"[/b]\x1b[2J" in output
    assert "[red]Dense" in output


def test_a_keras_backend_that_is_not_installed_is_one_error_line(trained, stage):
    done = stage("pipeline.analyze", "models/baseline/0.keras", "--table", KERAS_BACKEND="abacus")
    assert done.stderr.startswith("error: KERAS_BACKEND: must be tensorflow or another install")


def test_a_missing_file_is_one_error_line(trained, quick_stage):
    done = quick_stage("pipeline.analyze", "models/baseline/7.keras", "--table")
    expected = "error: models/baseline/7.keras: no such file. Models: models/baseline/0.keras\n"
    assert done.stderr == expected
    (trained / "predictions/0.parquet").unlink()
    done = quick_stage("pipeline.analyze", *ARGUMENTS)
    assert done.stderr == "error: predictions/0.parquet: no such file. Run `dvc repro`\n"
    assert not (trained / "out").exists()
