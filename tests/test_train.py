"""Train: what fit returns, which weights are kept, and that a run repeats."""

import json

import keras
import numpy as np
import pandas as pd
import pytest

from pipeline import backend, train
from pipeline.errors import PipelineError
from pipeline.params import Model, Train

SETTINGS = Train(epochs=3, batch_size=8, optimizer="adam", learning_rate=0.01, early_stopping=None)


def task(count: int = 64) -> tuple[np.ndarray, np.ndarray]:
    """Dark images of class 0 and bright ones of class 1."""
    labels = np.arange(count) % 2
    noise = np.random.default_rng(0).random((count, 8, 8, 1), dtype=np.float32)
    return noise * 0.2 + labels[:, None, None, None].astype(np.float32) * 0.8, labels


def build(name: str = "baseline") -> keras.Model:
    backend.make_repeatable(0)
    return train.build(Model(architecture=name), [8, 8, 1], 2)


def test_learns_what_can_be_learned():
    history = train.fit(build(), task(), task(16), SETTINGS)
    assert history.columns.tolist() == ["epoch", "loss", "accuracy", "val_loss", "val_accuracy"]
    assert history["epoch"].tolist() == [1, 2, 3]
    assert history["val_accuracy"].iloc[-1] == 1.0


def test_one_line_an_epoch_where_there_is_no_terminal(capsys):
    train.fit(build(), task(), task(16), SETTINGS)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == ["epoch 1/3", "epoch 2/3", "epoch 3/3"]


def test_the_optimizer_and_its_learning_rate_are_those_of_params():
    model = build()
    train.fit(
        model, task(), task(16), SETTINGS.model_copy(update={"optimizer": "sgd", "epochs": 1})
    )
    assert isinstance(model.optimizer, keras.optimizers.SGD)
    assert float(model.optimizer.learning_rate) == pytest.approx(0.01)


def test_early_stopping_keeps_the_best_epoch():
    images, labels = task()
    # validation labels are wrong, so that learning makes it worse from the first epoch on
    wrong = (images[:16], 1 - labels[:16])
    settings = SETTINGS.model_copy(update={"epochs": 20, "early_stopping": 2})
    model = build()
    history = train.fit(model, (images, labels), wrong, settings)
    assert len(history) < 20
    best = int(history["val_accuracy"].to_numpy().argmax())
    assert len(history) == best + 1 + 2
    _, accuracy = model.evaluate(*wrong, verbose=0)
    assert accuracy == pytest.approx(history["val_accuracy"][best])


def test_a_loss_that_is_not_finite_stops_and_names_the_epoch():
    settings = SETTINGS.model_copy(update={"optimizer": "sgd", "learning_rate": 1e30})
    with pytest.raises(
        PipelineError, match=r"epoch 1: loss must be finite\. Got nan, nan in validation\. Lower"
    ):
        train.fit(build(), task(), task(16), settings)


def test_images_too_small_for_the_architecture_are_refused():
    with pytest.raises(
        PipelineError,
        match=r"baseline: cannot be built for 4 × 4 × 1 images: Computed output size.*"
        r"Enlarge preprocess\.image_size",
    ) as refused:
        train.build(Model(architecture="baseline"), [4, 4, 1], 2)
    assert "\x1b" not in str(refused.value)
    assert "Arguments received" not in str(refused.value)


def test_summary_by_hand():
    history = pd.DataFrame(
        {"epoch": [1, 2, 3], "loss": [3.0, 2, 1], "accuracy": [0.1, 0.2, 0.3],
         "val_loss": [3.0, 1, 2], "val_accuracy": [0.1, 0.4, 0.4]}
    )  # fmt: skip
    assert train.summarize(history, early_stopping=False) == {
        "epochs": 3,
        "best_epoch": 2,  # the first of equals
        "kept": "final",
        "final": {"loss": 1.0, "accuracy": 0.3, "val_loss": 2.0, "val_accuracy": 0.4},
        "best": {"loss": 2.0, "accuracy": 0.2, "val_loss": 1.0, "val_accuracy": 0.4},
    }
    assert train.summarize(history, early_stopping=True)["kept"] == "best"


@pytest.fixture
def prepared(project, edit):
    """Arrays and split of 64 small images, and a short training."""
    images, labels = task()
    (project / "arrays/train").mkdir(parents=True)
    np.save(project / "arrays/train/images.npy", images)
    np.save(project / "arrays/train/labels.npy", labels)
    (project / "arrays/info.json").write_text(
        '{"classes": ["dark", "bright"], "image_shape": [8, 8, 1]}'
    )
    np.savez(project / "split.npz", train=np.arange(48), validation=np.arange(48, 64))
    edit("epochs: 20", "epochs: 2")
    return project


def arguments(model: str, out: str) -> list[str]:
    return [
        model, "--arrays", "arrays", "--split", "split.npz", "--out", f"{out}/model.keras",
        "--history", f"{out}/history.csv", "--metrics", f"{out}/train.json",
        "--run", f"{out}/run.json",
    ]  # fmt: skip


def test_a_run_repeats_to_the_bit_with_batch_normalization(prepared, stage):
    for out in ("one", "two"):
        done = stage("pipeline.train", *arguments("batchnorm", out))
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
    for name in ("model.keras", "history.csv", "train.json"):
        assert (prepared / "one" / name).read_bytes() == (prepared / "two" / name).read_bytes()
    metrics = json.loads((prepared / "one/train.json").read_text())
    assert metrics["parameters"] - metrics["trainable_parameters"] == 1_792
    assert metrics["epochs"] == 2
    run = json.loads((prepared / "one/run.json").read_text())
    assert run["train_seconds"] > 0
    assert run["images_per_second"] == pytest.approx(2 * 48 / run["train_seconds"], rel=0.05)


@pytest.mark.parametrize(("model", "rows", "message"), [
    ("vgg", 48, "error: train: vgg must be one of baseline, batchnorm in params.yaml"),
    ("baseline", 47, "error: split.npz: must name each of 64 rows once. Run `dvc repro -f split`"),
])  # fmt: skip
def test_wrong_input_is_refused_before_training(prepared, stage, model, rows, message):
    np.savez(prepared / "split.npz", train=np.arange(rows), validation=np.arange(48, 64))
    done = stage("pipeline.train", *arguments(model, "out"))
    assert (done.returncode, done.stderr) == (1, message + "\n")
    assert not (prepared / "out").exists()


def test_evaluate_measures_the_saved_model(prepared, stage):
    stage("pipeline.train", *arguments("baseline", "out"))
    images, labels = task(20)
    (prepared / "arrays/test").mkdir()
    np.save(prepared / "arrays/test/images.npy", images)
    np.save(prepared / "arrays/test/labels.npy", labels)
    argv = "--arrays arrays --metrics test.json --predictions predictions.csv --model".split()
    done = stage("pipeline.evaluate", *argv, "out/model.keras")
    assert done.returncode == 0, done.stderr
    model = keras.saving.load_model(prepared / "out/model.keras")
    right = model.predict(images, verbose=0).argmax(axis=1) == labels
    assert json.loads((prepared / "test.json").read_text())["accuracy"] == right.mean()
    table = pd.read_csv(prepared / "predictions.csv")
    assert ((table["actual"] == table["predicted"]) == right).all()

    done = stage("pipeline.evaluate", *argv, "none.keras")
    assert done.stderr == "error: none.keras: no such file. Run `dvc repro train`\n"
    np.save(prepared / "arrays/test/images.npy", np.zeros((20, 9, 9, 1), np.float32))
    done = stage("pipeline.evaluate", *argv, "out/model.keras")
    assert "must take (9, 9, 1) images of 2 classes. Got (8, 8, 1) and 2." in done.stderr
