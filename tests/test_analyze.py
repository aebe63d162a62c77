"""Inspect: gradients, responses and pictures of one trained network."""

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
from pipeline.analysis import activation_maximization, figures, gradient_flow, layer_table
from pipeline.analysis.grad_cam import grad_cam, last_map
from pipeline.analysis.network import unnested
from pipeline.config.schema import Model
from pipeline.data import preprocessor
from pipeline.data.preprocessor import Preprocessor
from pipeline.runtime import backend
from pipeline.training import building
from tests.conftest import write_arrays

UNIT = Preprocessor(["dark", "bright"], [8, 8, 1], "unit", [0.5], [0.5])


def edges() -> keras.Model:
    """Two filters, which respond to brightness on the left and on the right half."""
    images = keras.Input((8, 8, 1))
    convolution = L.Conv2D(2, (8, 4), strides=(8, 4), use_bias=False)
    x = convolution(images)  # (n, 1, 2, 2)
    x = L.Flatten()(x)
    model = keras.Model(images, L.Dense(2, use_bias=False)(x))
    kernel = np.zeros((8, 4, 1, 2), np.float32)
    kernel[..., 0] = 1
    convolution.set_weights([kernel])
    # class 0: brightness on the left; class 1: on the right
    model.layers[-1].set_weights([np.array([[1, 0], [0, 0], [0, 1], [0, 0]], np.float32)])
    return model


def heat_of(model: keras.Model, images: np.ndarray, classes: list[int]) -> np.ndarray:
    heat = grad_cam(model, images, np.array(classes))
    assert heat is not None
    return heat


def map_of(model: keras.Model) -> tuple:
    found = last_map(unnested(model))
    assert found is not None
    return found.shape


def test_grad_cam_finds_the_half_that_speaks_for_a_class():
    model = edges()
    images = np.ones((2, 8, 8, 1), np.float32)
    heat = heat_of(model, images, [0, 1])
    assert heat.shape == (2, 8, 8)
    # the map is 1×2, and the gradient's mean over it says only which filter: both halves are
    # bright for a bright image
    assert heat.max() == 1
    half = np.ones((1, 8, 8, 1), np.float32)
    half[:, :, 4:] = 0
    left = heat_of(model, half, [0])[0]
    assert left[:, 0] == pytest.approx(np.ones(8))
    assert left[:, -1] == pytest.approx(np.zeros(8))


def test_grad_cam_of_what_speaks_against_a_class_is_empty():
    model = edges()
    model.layers[-1].set_weights([-model.layers[-1].get_weights()[0]])
    heat = heat_of(model, np.ones((1, 8, 8, 1), np.float32), [0])
    assert heat.max() == 0


def test_grad_cam_takes_the_last_map_that_no_branch_goes_round():
    images = keras.Input((8, 8, 1))
    whole = L.MaxPooling2D(2)(images)  # (n, 4, 4, 1)
    inside = L.Conv2D(1, 3, strides=3)(L.ZeroPadding2D(1)(whole))  # by way of 6×6 to 2×2
    joined = L.Add()([L.MaxPooling2D(1, strides=2)(whole), inside])
    head = L.Conv2D(1, 2)(joined)  # one place
    model = keras.Model(images, L.Dense(2)(L.Flatten()(head)))
    assert map_of(model) == (None, 2, 2, 1)  # joined
    assert heat_of(model, np.ones((1, 8, 8, 1), np.float32), [0]).shape == (1, 8, 8)
    branch = L.Conv2D(1, 3)(L.ZeroPadding2D(1)(L.MaxPooling2D(4)(whole)))  # by way of 3×3
    model = keras.Model(
        images, L.Dense(2)(L.Flatten()(L.Add()([L.MaxPooling2D(4)(whole), branch])))
    )
    assert map_of(model) == (None, 4, 4, 1)  # whole
    assert heat_of(model, np.ones((1, 8, 8, 1), np.float32), [0]).shape == (1, 8, 8)


def test_grad_cam_needs_a_feature_map():
    model = keras.Sequential([keras.Input((8, 8, 1)), L.Flatten(), L.Dense(2)])
    assert grad_cam(model, np.ones((1, 8, 8, 1), np.float32), np.array([0])) is None


def test_grad_cam_leaves_the_model_as_it_is():
    model = keras.Sequential(
        [keras.Input((8, 8, 1)), L.Conv2D(2, 3), L.Flatten(), L.BatchNormalization(), L.Dense(2)]
    )
    before = model.get_weights()
    grad_cam(model, np.ones((3, 8, 8, 1), np.float32), np.array([0, 1, 1]))
    assert all(np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True))
    assert not model.compiled
    assert len(model.trainable_weights) == 6  # none is frozen


def test_what_is_painted_makes_its_filter_respond():
    backend.make_deterministic(0)
    model = edges()
    images = np.random.default_rng(0).random((16, 8, 8, 1), np.float32)
    every = activation_maximization.convolutions(model, images)
    assert [convolution.name for convolution in every] == [model.layers[1].name]
    assert every[0].strongest.tolist() == [0, 1]  # the second has no weights
    (pictures,) = activation_maximization.paint(model, every, UNIT, seed=0)
    assert pictures.shape == (2, 8, 8, 1)
    assert pictures[0].mean() > 0.9  # it responds to white
    assert pictures[1] == pytest.approx(0.5, abs=0.1)  # to nothing: the grey of the start


def painted_sizes(model: keras.Model) -> list[tuple]:
    shape = model.input_shape[1:]
    unit = Preprocessor(["dark", "bright"], list(shape), "unit", [0.5], [0.5])
    images = np.random.default_rng(0).random((2, *shape), np.float32)
    pictures = activation_maximization.paint(
        model, activation_maximization.convolutions(model, images), unit, seed=0
    )
    return [picture.shape for picture in pictures]


def test_pictures_of_large_images_are_no_larger_than_a_filter_needs(monkeypatch):
    monkeypatch.setattr(activation_maximization, "STEPS", 4)
    images = keras.Input((224, 80, 1))
    x = L.Conv2D(2, 3, padding="same")(images)
    flat = L.Flatten()(L.Conv2D(3, 3)(L.MaxPooling2D(2)(x)))
    model = keras.Model(images, L.Dense(2)(flat))
    assert painted_sizes(model) == [(2, 32, 32, 1), (3, 32, 32, 1)]


def test_pictures_grow_where_a_network_makes_nothing_of_small_ones(monkeypatch):
    monkeypatch.setattr(activation_maximization, "STEPS", 4)
    images = keras.Input((100, 40, 1))
    # without padding 33 pixels are needed; 64 are the next larger size
    tall = keras.Model(images, L.Flatten()(L.Conv2D(2, 33)(images)))
    assert painted_sizes(tall) == [(2, 64, 40, 1)]
    # a layer that takes one size only
    whole = L.Conv2D(2, 3)(L.Reshape((50, 80, 1))(images))
    assert painted_sizes(keras.Model(images, L.Flatten()(whole))) == [(2, 100, 40, 1)]


def test_a_picture_goes_no_further_than_its_own_filter_and_round_every_branch():
    backend.make_deterministic(0)
    images = keras.Input((8, 8, 1))
    first = L.Conv2D(2, 3, padding="same")(images)
    left = L.Conv2D(2, 3, padding="same")(first)
    joined = L.Dropout(0.5)(L.Add()([first, left]))
    model = keras.Model(images, [first, left, L.Conv2D(2, 3)(joined)])
    pictures = np.random.default_rng(0).random((6, 8, 8, 1), np.float32)
    rows = [(0, 1), (1, 3), (3, 6)]
    prefixes = activation_maximization.Prefixes(model, model.outputs, rows)
    assert prefixes.wanted[id(first)] == (0, 6)
    assert prefixes.wanted[id(left)] == (1, 6)
    assert prefixes.wanted[id(joined)] == (3, 6)
    whole = model(pictures, training=False)
    for (start, stop), values, all_values in zip(rows, prefixes(pictures), whole, strict=True):
        expected = keras.ops.convert_to_numpy(all_values)[start:stop]
        assert keras.ops.convert_to_numpy(values) == pytest.approx(expected, abs=1e-6)


def test_costs_decide_how_many_layers_and_filters_are_painted(monkeypatch):
    monkeypatch.setattr(activation_maximization, "MACS", 100)
    assert activation_maximization.affordable([1, 2, 3]) == ([0, 1, 2], 16)  # 16 of each: 96
    assert activation_maximization.affordable([1, 4, 5]) == ([0, 1, 2], 10)
    assert activation_maximization.affordable([1] * 100)[0][::11] == [
        0,
        99,
    ]  # 12 layers, the last too
    # all three cost 150, the first and the last 95
    assert activation_maximization.affordable([15, 55, 80]) == ([0, 2], 1)
    assert activation_maximization.affordable([200]) == ([0], 1)  # one at least


def test_batches_are_smaller_where_images_are_large():
    rows = np.arange(1000)
    assert len(analyze.sample(rows, (8, 8, 1))) == 256
    # 2**20 values: 6 images of 150,528 each
    assert len(analyze.sample(rows, (224, 224, 3))) == 6


def test_white_pictures_have_a_frame():
    figure = figures.filters(np.ones((2, 4, 4, 1)), np.array([0, 1]), "x")
    (frames,) = figure.axes[0].collections
    # a gap of one pixel above; across four of the picture, a gap of one, four
    boxes = [path.get_extents().get_points().ravel().tolist() for path in frames.get_paths()]
    assert boxes == [[-0.5, 0.5, 3.5, 4.5], [4.5, 0.5, 8.5, 4.5]]
    edge = np.asarray(frames.get_edgecolor(), float)[0, :3]
    assert edge == pytest.approx([0x9A / 255] * 3)
    plt.close(figure)


def test_an_activation_does_not_hide_what_a_filter_responds_to():
    backend.make_deterministic(0)
    images = keras.Input((8, 8, 1))
    convolution = L.Conv2D(1, 8, activation="relu")
    model = keras.Model(images, L.Flatten()(convolution(images)))
    # dark at a grey image, as ReLUs may be: no gradient would lead out of there
    convolution.set_weights([np.ones((8, 8, 1, 1), np.float32), np.array([-60.0], np.float32)])
    white = np.linspace(0, 1, 4, dtype=np.float32)[:, None, None, None] * np.ones((8, 8, 1))
    (pictures,) = activation_maximization.paint(
        model, activation_maximization.convolutions(model, white), UNIT, seed=0
    )
    assert pictures[0].mean() > 0.9


def test_paintings_repeat_for_a_seed_and_differ_for_another():
    model = edges()
    images = np.random.default_rng(0).random((16, 8, 8, 1), np.float32)
    every = activation_maximization.convolutions(model, images)
    painted = [
        activation_maximization.paint(model, every, UNIT, seed)[0]
        for seed in (0, 0, 1)
    ]  # fmt: skip
    assert np.array_equal(painted[0], painted[1])
    assert not np.array_equal(painted[0], painted[2])


def test_norms_of_gradients_and_weights():
    model = keras.Sequential([keras.Input((2,)), L.Dense(2, use_bias=False)])
    model.set_weights([np.array([[3, 0], [0, 4]], np.float32)])
    loss = keras.losses.MeanSquaredError()
    (row,) = gradient_flow.norms(model, np.array([[1.0, 0]]), np.array([[0.0, 0]]), loss)
    # outputs 3 and 0; the loss is (9 + 0) / 2, its slope in the first weight 3
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


def test_units_that_no_image_makes_positive_are_silent():
    images = keras.Input((2,))
    dense = L.Dense(4, activation="relu", name="dense")
    model = keras.Model(images, L.LeakyReLU()(dense(images)))
    weights = np.array([[1, -1, 0, 0], [0, 0, 1, -1]], np.float32)
    dense.set_weights([weights, np.array([0, 0, 0, -1], np.float32)])
    seen = np.array([[1.0, 1], [1, -0.5]], np.float32)
    # of x, -x, y and -y - 1: the second, and the last at its best is -0.5
    assert gradient_flow.silent(model, seen) == {"dense": 0.5}


def test_moving_averages_against_the_batch():
    layer = L.BatchNormalization(epsilon=0.0)
    model = keras.Sequential([keras.Input((1,)), layer])
    layer.set_weights([np.ones(1), np.zeros(1), np.array([2.0]), np.array([16.0])])
    # mean 5, variance 4: the moving mean is 1.5 σ off, the moving variance 4 times as large
    rows = gradient_flow.moving_against_batch(unnested(model), np.array([[3.0], [7.0]], np.float32))
    assert rows == {
        layer.name: {"mean": pytest.approx(1.5), "variance": pytest.approx(4)}
    }  # fmt: skip


def test_the_surest_are_chosen_right_ones_first():
    table = pd.DataFrame(
        {
            "actual": ["a", "a", "b", "b", "a", "a", "a"],
            "predicted": ["a", "b", "b", "a", "a", "a", "a"],
            "confidence": [0.9, 0.6, 0.8, 0.7, 0.9, 0.3, 0.5],
        }
    )
    assert analyze.surest(table).tolist() == [0, 4, 2, 6, 3, 1]


@pytest.mark.parametrize(
    ("field", "seen"),
    [("22×22", "the whole image"), ("8×8", "the whole image"), ("8×7", "8×7 pixels of the image")],
)
def test_no_layer_sees_more_than_the_image(field, seen):
    rows = [
        layer_table.Row("input", "", (8, 8, 1), 0, 0, 0, "1×1", "1×1", 0),
        layer_table.Row("conv", "", (1, 1, 4), 0, 0, 0, field, "8×8", 0),
    ]
    figure = figures.layers(rows, "mine")
    assert figure.get_suptitle() == f"mine: layers of one image; conv sees {seen}"
    plt.close(figure)


def test_a_confidence_below_1_is_never_shown_as_100_percent():
    shown = figures.Shown(np.zeros((2, 2, 1)), "a", "a", 0.9997)
    assert shown.title == "true a\npredicted a, 99.9\N{NO-BREAK SPACE}%"


def test_pictures_are_stitched_with_room_between_them():
    sheet, corners = figures.stitched([np.zeros((4, 4, 1))] * 9)
    # eight of 4 pixels and a gap of 1 a line, two lines
    assert sheet.shape == (10, 40, 1)
    assert (sheet == 0).sum() == 9 * 16
    assert corners[8] == (-0.5, 5.5)


@pytest.mark.parametrize(("silent", "moving", "panels"), [(0.5, 1.0, 3), (np.nan, np.nan, 1)])
def test_only_what_a_network_has_is_drawn(silent, moving, panels):
    columns = [f"{kind}_{when}" for kind in ("gradient", "weights") for when in ("start", "end")]
    table = pd.DataFrame({column: [1.0, 2.0] for column in columns}, index=["a", "b"])
    figure = figures.flow(table.assign(silent=silent, mean=moving, variance=moving), "x")
    assert len(figure.axes) == panels
    assert [label.get_text() for label in figure.axes[-1].get_xticklabels()] == ["a", "b"]
    plt.close(figure)


EVERY = ["layers", "feature_maps", "grad_cam", "flow", "kernels", "filters"]
TOLD = "".join(f"analyze: baseline: {part.replace('_', ' ')} …\n" for part in EVERY)


@pytest.fixture
def trained(project, edit):
    """A small trained network, and what the stage reads beside it."""
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
    table.to_csv(project / "predictions.csv", index=False)
    (project / "pictures.json").write_text(json.dumps(EVERY))
    edit("  baseline:\n    architecture: baseline", "  baseline:\n    architecture: plain")
    edit("dropout: 0.0", "dropout: 0.5\n      depth: 2")
    edit("batch_norm:", "batch_norm: true")
    build = {"dropout": 0.5, "depth": 2, "batch_norm": True}
    network = building.build(Model(architecture="plain", build=build), (8, 8, 1), 2, seed=0)
    path = project / "models/baseline.keras"
    backend.save(network, path)
    preprocessor.store(path, UNIT)
    return project


ARGUMENTS = (
    "models/baseline.keras --arrays arrays --split split.npz "
    "--predictions predictions.csv --pictures pictures.json --out out/baseline"
).split()


# that it draws the same a second time: `dvc repro -f` in tests/test_graph.py
def test_stage_draws_and_lists_its_pictures(trained, stage):
    done = stage("pipeline.analyze", *ARGUMENTS)
    said = "analyze: baseline: 10 layers, 8 pictures -> out/baseline\n"
    assert (done.stdout, done.stderr) == (TOLD + said, "")
    found = json.loads((trained / "out/baseline/analysis.json").read_text())
    assert [picture["file"] for picture in found["pictures"]][:4] == [
        "layers.png", "feature_maps_right.png", "feature_maps_wrong.png", "grad_cam.png",
    ]  # fmt: skip
    for picture in found["pictures"]:
        assert picture["title"]
        assert picture["alt"]
        Image.open(trained / "out/baseline" / picture["file"]).verify()
    rows = pd.read_csv(trained / "out/baseline/layers.csv")
    assert rows["parameters"].sum() == found["total"]["parameters"]
    norms = pd.read_csv(trained / "out/baseline/flow.csv", index_col="layer")
    # nothing was trained: the weights are those of the start, and so are the gradients
    assert norms["weights_end"].equals(norms["weights_start"])
    start, end = (norms[f"gradient_{when}"].tolist() for when in ("start", "end"))
    assert end == pytest.approx(start, rel=0.5, nan_ok=True)


@pytest.mark.slow
def test_it_runs_on_jax(trained, edit, stage):
    edit("backend: tensorflow", "backend: jax")
    done = stage("pipeline.analyze", *ARGUMENTS)
    said = "analyze: baseline: 10 layers, 8 pictures -> out/baseline\n"
    assert (done.stdout, done.stderr) == (TOLD + said, "")


def test_only_the_pictures_that_are_asked_for_are_drawn(trained, stage):
    (trained / "pictures.json").write_text('["kernels"]')
    done = stage("pipeline.analyze", *ARGUMENTS)
    said = "analyze: baseline: 10 layers, 1 pictures -> out/baseline\n"
    assert (done.stdout, done.stderr) == ("analyze: baseline: kernels …\n" + said, "")
    files = {path.name for path in (trained / "out/baseline").iterdir()}
    assert files == {"analysis.json", "layers.csv", "kernels.png"}


def test_a_model_that_is_not_chosen_has_its_table_of_layers_alone(trained, stage):
    (trained / "pictures.json").write_text("[]")
    done = stage("pipeline.analyze", *ARGUMENTS)
    said = "analyze: baseline: 10 layers, 0 pictures -> out/baseline\n"
    assert (done.stdout, done.stderr) == (said, "")
    files = {path.name for path in (trained / "out/baseline").iterdir()}
    assert files == {"analysis.json", "layers.csv"}


def test_the_table_needs_the_model_alone(trained, stage):
    (trained / "params.yaml").unlink()
    done = stage("pipeline.analyze", "models/baseline.keras", "--table")
    assert done.stderr == ""
    line = next(line for line in done.stdout.splitlines() if "Conv2D" in line)
    assert re.split(r"\s*[│┃]\s*", line)[2:-1] == [
        "Conv2D", "8×8×16", "160", "160", "9,216", "3×3", "1×1", "4,096",
    ]  # fmt: skip
    assert "total" in done.stdout


def test_the_table_shows_names_and_does_not_obey_them(capsys):
    row = layer_table.Row("[/b]\x1b[2J", "[red]Dense", (2,), 6, 6, 4, "8×8", "", 8)
    analyze.show([row], "[/i]x")
    said = capsys.readouterr().out
    assert "[/i]x: one image" in said
    assert r"[/b]\x1b[2J" in said
    assert "[red]Dense" in said


def test_an_engine_that_is_not_installed_is_no_fault_of_params(trained, stage):
    done = stage("pipeline.analyze", "models/baseline.keras", "--table", KERAS_BACKEND="abacus")
    assert done.stderr.startswith("error: KERAS_BACKEND: must be tensorflow or another install")


def test_what_is_missing_is_said_in_a_line(trained, stage):
    done = stage("pipeline.analyze", "models/gone.keras", "--table")
    expected = "error: models/gone.keras: no such file. Models: models/baseline.keras\n"
    assert done.stderr == expected
    (trained / "predictions.csv").unlink()
    done = stage("pipeline.analyze", *ARGUMENTS)
    assert done.stderr == "error: predictions.csv: no such file. Run `dvc repro`\n"
    assert not (trained / "out").exists()
