"""Plot: the content of the pictures, and the stage that writes them."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt
from matplotlib.collections import LineCollection

from pipeline import plot
from pipeline.data.preprocessor import Preprocessor
from tests.conftest import png, write_arrays, write_predictions


def test_samples_alternate_between_classes():
    labels = np.array([0, 0, 0, 2, 1, 2])
    assert plot.alternate_classes(labels, 4).tolist() == [0, 4, 3, 1]


PREPROCESSOR = Preprocessor(["a", "b"], [4, 4, 1], "unit", [0.5], [0.5])


def test_samples_have_their_class_as_title():
    figure = plot.samples(np.zeros((3, 4, 4, 1)), np.array([1, 0, 1]), PREPROCESSOR)
    assert [axes.get_title() for axes in figure.axes if axes.get_title()] == ["a", "b", "b"]
    plt.close(figure)


def histories(
    losses: dict[str, list[list[float]]], accuracy: float = 0.5, factor: float = 1
) -> pd.DataFrame:
    """Return learning curves: of each model, a list of losses for each seed.

    Args:
        losses: By epoch.
        accuracy: Of all epochs.
        factor: Of the validation loss.
    """
    return pd.concat(
        pd.DataFrame({
            "model": model, "seed": seed, "split": split,
            "epoch": range(1, len(loss) + 1), "accuracy": accuracy, "loss": np.array(loss) * scale,
        })
        for model, trainings in losses.items()
        for seed, loss in enumerate(trainings)
        for split, scale in (("train", 1), ("validation", factor))
    )  # fmt: skip


def test_learning_curves_label_their_axes_with_plain_numbers():
    figure = plot.learning_curves(histories({"one": [[0.04, 1.8]]}))
    figure.canvas.draw()
    axis = figure.axes[1].yaxis
    labels = [
        tick.get_text() for tick in (*axis.get_majorticklabels(), *axis.get_minorticklabels())
    ]
    assert {"0.05", "0.1", "0.2", "0.5", "1"} <= set(labels)
    assert not [label for label in labels if "$" in label]
    plt.close(figure)


def test_learning_curves_show_mean_and_range_of_the_trainings_of_each_model():
    figure = plot.learning_curves(histories({"one": [[3, 2], [5, 2]]}, factor=2))
    drawn = {
        (axes.get_ylabel(), line.get_label()): np.asarray(line.get_ydata()).tolist()
        for axes in figure.axes
        for line in axes.lines
    }
    assert drawn == {
        ("accuracy", "one, train"): [0.5, 0.5],
        ("accuracy", "one, validation"): [0.5, 0.5],
        ("loss (nats), logarithmic", "one, train"): [4, 2],
        ("loss (nats), logarithmic", "one, validation"): [8, 4],
    }
    train, validation = figure.axes[1].collections  # the bands
    ranges = [band.get_datalim(figure.axes[1].transData).intervaly for band in (train, validation)]
    assert np.array(ranges).tolist() == [[2, 5], [4, 10]]
    plt.close(figure)


def test_histories_of_all_trainings_are_read_as_one_table(tmp_path):
    for seed in (0, 7):
        (tmp_path / "one").mkdir(exist_ok=True)
        (tmp_path / f"one/{seed}.csv").write_text(
            f"epoch,loss,accuracy,val_loss,val_accuracy\n1,0.{seed},0.2,0.3,0.4\n"
        )
    table = plot.read_histories(tmp_path, ["one"], [0, 7])
    assert table.to_dict("split")["data"] == [
        ["one", 0, "train", 1, 0.2, 0.0],
        ["one", 0, "validation", 1, 0.4, 0.3],
        ["one", 7, "train", 1, 0.2, 0.7],
        ["one", 7, "validation", 1, 0.4, 0.3],
    ]
    assert list(table) == ["model", "seed", "split", "epoch", "accuracy", "loss"]


def perfect_predictions(models: int, classes: list[str]) -> dict[str, pd.DataFrame]:
    table = pd.DataFrame({"actual": classes, "predicted": classes})
    return {f"model{number}": table for number in range(models)}


def test_each_model_has_the_same_unique_style_in_all_pictures():
    names = [f"model{number}" for number in range(12)]
    curves = plot.learning_curves(histories(dict.fromkeys(names, [[3, 2, 1]])))
    classes = plot.class_accuracy(perfect_predictions(12, ["a", "b"]), ["a", "b"])
    styles = [
        {
            str(line.get_label()).split(",")[0]: (line.get_color(), line.get_marker())
            for line in figure.axes[0].lines
        }
        for figure in (curves, classes)
    ]
    assert styles[0] == styles[1]
    assert len({colour for colour, _ in styles[0].values()}) == 12
    for figure in (curves, classes):
        figure.canvas.draw()
        (legend,) = figure.legends
        top = legend.get_window_extent().y1  # below the axes, so that it covers no data
        assert all(axes.get_window_extent().y0 > top for axes in figure.axes)
        plt.close(figure)


def test_epochs_are_whole_numbers_and_the_axis_label_says_that_losses_are_logarithmic():
    figure = plot.learning_curves(histories({"one": [[0.9, 0.8, 0.7]]}))
    figure.canvas.draw()
    left, right = figure.axes
    assert [tick.get_text() for tick in left.get_xticklabels()] == ["1", "2", "3"]
    assert right.get_ylabel() == "loss (nats), logarithmic"
    assert [tick.get_text() for tick in right.get_yticklabels()] == ["0.7", "0.8", "0.9"]
    plt.close(figure)


def test_only_the_20_lowest_of_1000_classes_are_drawn():
    classes = [f"{number:04}" for number in range(1000)]
    table = pd.DataFrame({"actual": classes, "predicted": [*classes[:-1], "0000"]})
    figure = plot.class_accuracy({"one": table}, classes)
    axes = figure.axes[0]
    assert axes.get_title() == "Test accuracy: the 20 lowest of 1,000 classes"
    labels = [tick.get_text() for tick in axes.get_yticklabels()]
    assert labels == ["0999", *classes[:19]]
    assert figure.get_size_inches().max() < 16
    plt.close(figure)


def test_the_confusion_matrix_sums_over_trainings_and_includes_classes_without_images():
    trainings = [["a", "b", "b"], ["a", "a", "b"]]
    predictions = pd.concat(
        pd.DataFrame({"seed": seed, "actual": ["a", "a", "b"], "predicted": predicted})
        for seed, predicted in enumerate(trainings)
    )
    figure = plot.confusion(predictions, ["a", "b", "c"], "model")
    axes = figure.axes[0]
    assert axes.get_title() == "model: confusion matrix on the test split, 2 trainings"
    assert {text.get_position(): text.get_text() for text in axes.texts} == {
        (0, 0): "3", (1, 0): "1", (1, 1): "2",
    }  # fmt: skip
    shares = [[0.75, 0.25, 0], [0, 1, 0], [0, 0, 0]]
    assert np.asarray(axes.images[0].get_array()).tolist() == shares
    plt.close(figure)


def test_misclassified_images_are_marked():
    ids = ["cat/1.png", f"cat/{'x' * 30}/2.png"]
    predictions = pd.DataFrame({"id": ids, "actual": ["a", "a"], "predicted": ["a", "b"]})
    figure = plot.examples(np.zeros((2, 4, 4, 1)), predictions, PREPROCESSOR, "model")
    titles = [axes.title for axes in figure.axes if axes.get_title()]
    assert [title.get_text() for title in titles] == [
        "true a\npredicted a",
        "true a\npredicted b ✗",
    ]
    assert [title.get_color() for title in titles] == ["black", plot.ERROR_COLOUR]
    assert [axes.get_xlabel() for axes in figure.axes[:2]] == [
        "cat/1.png", f"…{'x' * 25}/2.png"
    ]  # fmt: skip
    assert figure.get_suptitle() == "model: 2 test images, 1 misclassified (red)"
    plt.close(figure)
    correct = predictions.assign(predicted="a")
    figure = plot.examples(np.zeros((2, 4, 4, 1)), correct, PREPROCESSOR, "model")
    assert figure.get_suptitle() == "model: 2 test images, none misclassified"
    plt.close(figure)


def test_class_accuracy_is_drawn_for_each_model():
    one = pd.DataFrame({"actual": ["a", "a", "b"], "predicted": ["a", "b", "b"]})
    two = pd.DataFrame({"actual": ["a", "a", "b"], "predicted": ["a", "a", "a"]})
    figure = plot.class_accuracy({"one": one, "two": two}, ["a", "b"])
    shares = [np.asarray(line.get_xdata()).tolist() for line in figure.axes[0].lines]
    assert shares == [[0.5, 1.0], [1.0, 0.0]]
    plt.close(figure)


def test_the_accuracy_of_each_training_is_drawn_with_mean_and_interval():
    metrics = {"accuracy": 0.75, "accuracy_low": 0.5, "accuracy_high": 0.875}
    seeds = [{"seed": 3, "accuracy": 0.5}, {"seed": 5, "accuracy": 1.0}]
    figure = plot.test_accuracy({"one": {**metrics, "seeds": seeds}})
    (axes,) = figure.axes
    (dots,) = axes.lines
    assert np.asarray(dots.get_xdata()).tolist() == [0.5, 1.0]
    lines = [line for line in axes.collections if isinstance(line, LineCollection)]
    interval, mean = (line.get_segments()[0] for line in lines)
    assert (interval[:, 0].tolist(), mean[:, 0].tolist()) == ([0.5, 0.875], [0.75, 0.75])
    plt.close(figure)


ARGUMENTS = (
    "--arrays arrays --history history --predictions predictions --test test "
    "--samples o/samples.png --curves o/curves.csv --learning-curves o/curves.png "
    "--test-accuracy o/accuracy.png --class-accuracy o/classes.png --confusion o/confusion "
    "--examples o/examples"
).split()


def write_results(
    folder: Path, classes: list[str], actual: list[str], predicted: list[str]
) -> None:
    """Write histories, predictions and metrics of three trainings of two models."""
    (folder / "test").mkdir()
    for name in ("baseline", "batchnorm"):
        (folder / "history" / name).mkdir(parents=True)
        columns = ["loss", "accuracy", "val_loss", "val_accuracy"]
        history = pd.DataFrame({"epoch": [1, 2], **{column: [0.5, 0.6] for column in columns}})
        tables = []
        for seed in range(3):
            history.to_csv(folder / f"history/{name}/{seed}.csv", index=False)
            table = {"seed": seed, "actual": actual, "predicted": predicted, "confidence": 0.75}
            tables.append(pd.DataFrame(table))
        write_predictions(folder / "predictions" / name, pd.concat(tables), classes)
        metrics = {"accuracy": 0.5, "accuracy_low": 0.4, "accuracy_high": 0.6}
        seeds = [{"seed": seed, "accuracy": 0.5} for seed in range(3)]
        (folder / f"test/{name}.json").write_text(json.dumps({**metrics, "seeds": seeds}))


@pytest.mark.slow
def test_the_stage_writes_the_same_bytes_twice(project, stage):
    classes = ["a $b$ <i>", "NA"]  # not TeX, HTML or a missing value
    for split in ("train", "test"):
        black = np.zeros((3, 4, 4, 3), np.float32)
        write_arrays(project / "arrays" / split, black, np.array([0, 1, 1]))
    info = Preprocessor(classes, [4, 4, 3], "unit", [0] * 3, [1] * 3)
    (project / "arrays/info.json").write_text(json.dumps(vars(info)))
    write_results(project, classes, [classes[0], "NA", "NA"], ["NA"] * 3)
    pictures = []
    for _ in range(2):
        done = stage("pipeline.plot", *ARGUMENTS)
        assert (done.stdout, done.stderr) == ("plot: 8 pictures -> o\n", "")
        pictures.append({str(path): path.read_bytes() for path in (project / "o").rglob("*.png")})
    assert pictures[0] == pictures[1]
    assert len(pictures[0]) == 8
    assert all(content.startswith(b"\x89PNG") for content in pictures[0].values())

    (project / "history/batchnorm/0.csv").unlink()
    done = stage("pipeline.plot", *ARGUMENTS)
    assert done.stderr == "error: history/batchnorm/0.csv: no such file. Run `dvc repro`\n"


@pytest.mark.slow
def test_class_names_may_contain_spaces_and_letters_of_any_script(project, edit, stage):
    classes = ["chien à poil", "Ελλάδα", 'Котики, "дома"']
    for number, name in enumerate(sorted(classes)):
        (project / "mes photos" / name).mkdir(parents=True)
        for i in range(10):
            image = png(np.full((4, 4), 80 * number + i, np.uint8))
            (project / "mes photos" / name / f"été {i}.png").write_bytes(image)
    edit("dataset: digits", "dataset: folder")
    edit("folder: data/folder", "folder: mes photos")
    for argv in (
        "download --raw raw",
        "preprocess --raw raw --arrays arrays",
        "split --arrays arrays --split split --metrics split.json",
    ):
        done = stage(*f"pipeline.{argv}".split())
        assert done.returncode == 0, done.stderr
    table = json.loads((project / "split.json").read_text("utf-8"))["classes"]
    # 2 of 10 images per class are for testing; validation takes a fifth of the other 8, 1.6
    assert {row["class"] for row in table} == set(classes)
    assert {(row["train"] + row["validation"], row["test"]) for row in table} == {(8, 2)}

    write_results(project, classes, sorted(classes) * 2, classes * 2)
    done = stage("pipeline.plot", *ARGUMENTS)
    assert (done.stdout, done.stderr) == ("plot: 8 pictures -> o\n", "")
