"""Training loop: what fit returns, which weights it keeps, and the effect of every setting."""

import contextlib
import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from functools import partial
from itertools import pairwise
from operator import itemgetter
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from pipeline.config.schema import Model
from pipeline.core import live_curves, progress
from pipeline.core.errors import PipelineError
from pipeline.data.preprocessor import Preprocessor
from pipeline.runtime import acceleration
from pipeline.runtime.input_pipeline import Batches, Subset
from pipeline.tools import run_progress
from pipeline.training import building, loop, whitening
from pipeline.training.augmentation import OnPixels
from tests.conftest import PLAIN, REPOSITORY, settings

CLASSES = ["dark", "bright"]


def task(count: int = 64) -> Subset:
    """Return dark images of class 0 and bright images of class 1."""
    labels = np.arange(count) % 2
    noise = np.random.default_rng(0).random((count, 8, 8, 1), dtype=np.float32)
    images = noise * 0.2 + labels[:, None, None, None].astype(np.float32) * 0.8
    return Subset(images, labels, np.arange(count))


def build(architecture: str = "baseline", **arguments: Any) -> keras.Model:
    return building.build(Model(architecture=architecture, build=arguments), (8, 8, 1), 2, seed=0)


def fit(model: keras.Model, validation: Subset | None = None, **overrides: Any) -> list[dict]:
    return loop.fit(
        model, task(), validation or task(16), settings(**overrides), CLASSES, seed=0, verbose=False
    ).rows


def test_training_learns_an_easy_task_and_returns_a_row_per_epoch():
    history = fit(build())
    assert list(history[0]) == [
        "epoch", "loss", "accuracy", "val_loss", "val_accuracy", "learning_rate",
    ]  # fmt: skip
    assert [epoch["epoch"] for epoch in history] == [1, 2, 3]
    assert history[-1]["val_accuracy"] == 1.0


def test_each_epoch_prints_one_line_without_a_terminal(capsys):
    loop.fit(build(), task(), task(16), settings(), CLASSES, seed=0)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == ["epoch 1/3", "epoch 2/3", "epoch 3/3"]


def test_a_long_training_prints_once_how_long_it_will_take(capsys, monkeypatch):
    monkeypatch.setattr(progress, "MIN_MEASURED", 0)  # seconds
    monkeypatch.setattr(progress, "MIN_LEFT", 0)
    loop.fit(build(), task(), task(16), settings(), CLASSES, seed=0)
    first, estimate, *others = capsys.readouterr().out.splitlines()
    assert estimate == "train: about 5 s left"
    assert [line.split(":")[0] for line in others] == ["epoch 2/3", "epoch 3/3"]
    assert all(run_progress.EPOCH.match(line) for line in (first, estimate, *others))


def test_each_epoch_is_shown_before_the_next_one_trains(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    epochs = []

    class Read(keras.callbacks.Callback):
        def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
            path = Path("plots/live/accuracy.csv")
            lines = path.read_text().splitlines() if path.exists() else []
            epochs.append([line for line in lines if "small,7,validation" in line])

    show = partial(live_curves.show, "small", 7)
    rows = loop.fit(
        build(), task(), task(16), settings(), CLASSES, 0, verbose=False, watch=[Read()], show=show
    ).rows
    lines = [f"small,7,validation,{row['epoch']},{row['val_accuracy']}" for row in rows]
    assert epochs == [lines[:0], lines[:1], lines[:2]]


ON_A_TERMINAL = """
import sys
from pipeline.core.errors import run
from tests.training.test_loop import CLASSES, build, loop, settings, task

overrides = {"optimizer": "sgd", "learning_rate": float(sys.argv[1]), "batch_size": 2}
run(lambda: loop.fit(build(), task(71), task(16), settings(**overrides), CLASSES, seed=0))
"""


def frames(learning_rate: float) -> list[str]:
    """Train in a terminal of 80 columns, and return every state of its lines."""
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    argv = [sys.executable, "-c", ON_A_TERMINAL, str(learning_rate)]
    env = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    with subprocess.Popen(argv, stdout=follower, stderr=follower, env=env):
        os.close(follower)
        output = b""
        with contextlib.suppress(OSError):  # raised on Linux when the other end is closed
            while chunk := os.read(leader, 4096):
                output += chunk
    os.close(leader)
    return [frame for frame in re.split(r"[\r\n]+", output.decode()) if frame.strip()]


@pytest.mark.slow
def test_the_progress_bar_of_a_terminal_counts_exactly_the_steps_of_an_epoch():
    # 71 images at 2 per step are 36 steps, in executions of 32 and 4 steps
    shown = frames(0.01)
    counts = re.findall(r"epoch (\d)/3: .* (\d+)/36 \[", "\n".join(shown))
    assert {int(count) for _, count in counts} <= {0, 32, 36}
    assert {epoch for epoch, count in counts if count == "36"} == {"1", "2", "3"}
    assert not [frame for frame in shown if frame.startswith("epoch") and len(frame) > 80]
    assert not [frame for frame in shown if re.search(r"<-|-\d+s", frame)]
    finished = [frame for frame in shown if re.match(r"epoch \d/3: loss", frame)]
    assert [frame.split(":")[0] for frame in finished] == ["epoch 1/3", "epoch 2/3", "epoch 3/3"]


@pytest.mark.slow
def test_an_error_starts_on_its_own_line_in_a_terminal():
    shown = frames(1e30)
    assert [frame for frame in shown if frame.startswith("error: baseline: epoch 1, batch ")]


def test_early_stopping_restores_the_weights_of_the_best_epoch():
    # the validation labels are wrong, so validation gets worse as training proceeds
    images, labels, rows = task(16)
    mislabeled = Subset(images, 1 - labels, rows)
    model = build()
    history = fit(model, mislabeled, epochs=20, early_stopping=2)
    assert len(history) < 20
    best = max(history, key=itemgetter("val_accuracy"))
    assert len(history) == best["epoch"] + 2
    correct = model.predict(images, verbose=0).argmax(axis=1) == mislabeled.labels
    assert correct.mean() == pytest.approx(best["val_accuracy"])


def test_a_loss_that_is_not_finite_stops_and_names_the_batch():
    # the first step gives weights of about 1e30, so the logits of the second are not finite
    with pytest.raises(
        PipelineError,
        match=r"baseline: epoch 1, batch 2 of 8: loss must be finite\. Got nan at learning rate 1e",
    ):
        fit(build(), optimizer="sgd", learning_rate=1e30)


def test_batches_contain_every_image_once_in_another_order_each_epoch():
    images, labels, _ = task(10)
    subset = Subset(images, labels, np.array([1, 2, 3, 5, 7, 8]))
    batches = Batches(subset, 2, batch_size=4, shuffle=0)
    orders = []
    for _ in range(2):
        epoch = [batches[i] for i in range(len(batches))]
        assert [len(x) for x, _ in epoch] == [4, 2]
        pixels = np.concatenate([x for x, _ in epoch])
        rows = [int((images == image).all(axis=(1, 2, 3)).argmax()) for image in pixels]
        assert sorted(rows) == [1, 2, 3, 5, 7, 8]
        one_hot = np.concatenate([y for _, y in epoch])
        assert one_hot.argmax(axis=1).tolist() == labels[rows].tolist()
        assert one_hot.sum(axis=1).tolist() == [1.0] * 6
        orders.append(rows)
        batches.on_epoch_end()
    assert orders[0] != orders[1]
    same_seed = Batches(subset, 2, batch_size=6, shuffle=0)
    assert np.array_equal(same_seed[0][0], images[orders[0]])
    assert np.array_equal(Batches(subset, 2, batch_size=6)[0][0], images[subset.rows])


def test_alternating_flips_mark_each_image_in_every_other_epoch():
    images, labels, _ = task(64)
    subset = Subset(images, labels, np.arange(0, 64, 2))
    batches = Batches(subset, 2, batch_size=5, shuffle=0, mirror=True)
    unmarked = Batches(subset, 2, batch_size=5)
    epochs = []
    for _ in range(3):
        mirrored = np.concatenate([batches[i][0][1] for i in range(len(batches))])
        pixels = np.concatenate([batches[i][0][0] for i in range(len(batches))])
        rows = [int((images == image).all(axis=(1, 2, 3)).argmax()) for image in pixels]
        epochs.append(dict(zip(rows, mirrored.tolist(), strict=True)))
        batches.on_epoch_end()
    assert epochs[0] == epochs[2] == {row: not mirrored for row, mirrored in epochs[1].items()}
    assert 8 < sum(epochs[0].values()) < 24  # of 32
    assert np.array_equal(unmarked[0][0], images[[0, 2, 4, 6, 8]])
    assert not Batches(subset, 2, batch_size=32, mirror=True)[0][0][1].any()


def test_alternating_flips_apply_to_training_and_not_to_validation():
    # the bright half is the class, so every mirrored image has the wrong label
    images = np.zeros((64, 8, 8, 1), np.float32)
    labels = np.arange(64) % 2
    images[labels == 0, :, :4] = images[labels == 1, :, 4:] = 1.0
    subset = Subset(images, labels, np.arange(64))
    overridden = settings(epochs=4, augment={**PLAIN, "flip": "alternating"})
    model = build()
    history = loop.fit(model, subset, subset, overridden, CLASSES, seed=0, verbose=False).rows
    assert history[-1]["accuracy"] < 0.8
    correct = model.predict(images, verbose=0).argmax(axis=1) == labels
    assert correct.mean() == history[-1]["val_accuracy"]


class WeightAverage(keras.callbacks.Callback):
    """Compute the moving average of the weights after each step, with momentum 0.75."""

    def on_train_begin(self, logs: dict | None = None) -> None:
        self.average = [w.numpy() for w in self.model.trainable_variables]
        self.steps = 0

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        momentum = 0.75 if self.steps else 0.0  # the first average is the weights themselves
        self.average = [
            momentum * old + (1 - momentum) * w.numpy()
            for old, w in zip(self.average, self.model.trainable_variables, strict=True)
        ]
        self.steps += 1


def test_the_moving_average_of_the_weights_is_validated_and_saved(monkeypatch):
    monkeypatch.setattr(acceleration, "STEPS_PER_EXECUTION", 1)  # WeightAverage runs at each step
    watch, model = WeightAverage(), build()
    history = loop.fit(
        model,
        task(),
        task(16),
        settings(ema_momentum=0.75),
        CLASSES,
        seed=0,
        verbose=False,
        watch=[watch],
    ).rows
    assert watch.steps == 24
    # validation between the epochs does not change training
    for saved, average in zip(model.get_weights(), watch.average, strict=True):
        assert np.allclose(saved, average, rtol=1e-4, atol=1e-6)
    model.compile(loss=keras.losses.CategoricalCrossentropy(from_logits=True))
    images, labels, _ = task(16)
    loss = model.evaluate(images, np.eye(2)[labels], verbose=0)
    assert loss == pytest.approx(history[-1]["val_loss"], rel=1e-5)


def test_early_stopping_restores_the_best_moving_average():
    images, labels, rows = task(16)
    mislabeled = Subset(images, 1 - labels, rows)
    model = build()
    history = fit(model, mislabeled, epochs=20, early_stopping=2, ema_momentum=0.5)
    assert len(history) < 20
    correct = model.predict(images, verbose=0).argmax(axis=1) == mislabeled.labels
    assert correct.mean() == pytest.approx(max(epoch["val_accuracy"] for epoch in history))


def test_training_does_not_change_a_whitened_layer():
    noise = np.random.default_rng(0).random((16, 8, 8, 1), dtype=np.float32)
    subset = Subset(noise, np.arange(16) % 2, np.arange(16))
    model = build("airnet", widths=[4])
    loop.fit(model, subset, subset, settings(whiten=True), CLASSES, seed=0, verbose=False)
    kernel, _ = model.layers[1].get_weights()
    untrained = build("airnet", widths=[4])
    whitening.whiten(untrained, subset)
    assert np.array_equal(kernel, untrained.layers[1].get_weights()[0])
    assert not model.layers[1].trainable


def test_biases_of_a_whitened_layer_can_be_trained_in_the_first_epochs():
    noise = np.random.default_rng(0).random((16, 8, 8, 1), dtype=np.float32)
    subset = Subset(noise, np.arange(16) % 2, np.arange(16))
    model, kernels, biases = build("airnet", widths=[4]), [], []

    class Record(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs):
            network = next(x for x in self.model.layers if isinstance(x, keras.Model))
            kernel, bias = network.layers[1].get_weights()
            kernels.append(kernel)
            biases.append(bias)

    overridden = settings(whiten=True, whiten_bias_epochs=2, epochs=4)
    loop.fit(model, subset, subset, overridden, CLASSES, seed=0, verbose=False, watch=[Record()])
    assert all(np.array_equal(kernel, kernels[0]) for kernel in kernels)
    assert [np.array_equal(*pair) for pair in pairwise(biases)] == [False, True, True]
    assert not model.layers[1].trainable


def test_the_history_records_the_learning_rate_of_the_schedule():
    # decays to 0 over 3 epochs of 8 steps
    history = fit(build(), schedule="cosine", learning_rate=0.01)
    rates = [epoch["learning_rate"] for epoch in history]
    assert rates == sorted(rates, reverse=True)
    assert history[-1]["learning_rate"] < 0.0005


def test_a_class_of_almost_no_weight_is_not_learned():
    history = fit(build(), class_weights={"dark": 1.0, "bright": 1e-6}, epochs=5)
    assert history[-1]["val_accuracy"] == 0.5


@pytest.mark.slow
def test_augmentation_changes_training_images_only_and_is_not_saved():
    # the bright half is the class, so nothing can be learned from randomly mirrored images
    images = np.zeros((64, 8, 8, 1), np.float32)
    labels = np.arange(64) % 2
    images[labels == 0, :, :4] = images[labels == 1, :, 4:] = 1.0
    subset = Subset(images, labels, np.arange(64))
    accuracies = {}
    for flip in (None, "horizontal"):
        model = build()
        overridden = settings(epochs=5, augment={**PLAIN, "flip": flip})
        history = loop.fit(model, subset, subset, overridden, CLASSES, seed=0, verbose=False).rows
        correct = model.predict(images, verbose=0).argmax(axis=1) == labels
        assert correct.mean() == history[-1]["val_accuracy"]
        accuracies[flip] = history[-1]["accuracy"]
        assert "RandomFlip" not in [type(layer).__name__ for layer in model.layers]
    assert accuracies[None] == 1.0
    assert accuracies["horizontal"] < 0.8


@pytest.mark.slow
@pytest.mark.parametrize(("architecture", "arguments", "overrides"), [
    ("plain", {"depth": 2, "filters": 8, "dropout": 0.3, "batch_norm": True},
     {"augment": {**PLAIN, "flip": "both", "shift": 0.1, "crop": 1, "rotation": 10.0,
                  "cutout": 0.1}}),
    pytest.param(
        "plain", {"depth": 1, "filters": 8},
        {"augment": {**PLAIN, "resized_crop": 0.5, "brightness": 0.1, "contrast": 0.1,
                     "rand_augment": 0.3}},
        marks=pytest.mark.slow,
    ),
    pytest.param(
        "airnet", {"widths": [8, 8]},
        {"augment": {**PLAIN, "flip": "alternating", "crop": 1, "crop_fill": "reflect"},
         "whiten": True, "whiten_bias_epochs": 1, "ema_momentum": 0.9, "lookahead": 2,
         "batch_norm_beta_learning_rate": 4.0, "muon_learning_rate": 0.1,
         "schedule": "triangular", "optimizer": "sgd", "momentum": 0.9, "nesterov": True},
        marks=pytest.mark.slow,
    ),
])  # fmt: skip
def test_augmented_training_repeats_to_the_bit(architecture, arguments, overrides):
    runs = []
    for _ in range(2):
        model = build(architecture, **arguments)
        runs.append((fit(model, epochs=2, **overrides), model.get_weights()))
    (history, weights), (repeated_history, repeated_weights) = runs
    assert history == repeated_history
    assert all(np.array_equal(a, b) for a, b in zip(weights, repeated_weights, strict=True))


def test_augmentation_undoes_the_normalization_of_the_images():
    preprocessor = Preprocessor(CLASSES, [8, 8, 1], "standardize", [0.4], [0.2])
    recorder = TrainingLayers()
    overridden = settings(epochs=1, augment={**PLAIN, "brightness": 0.1})
    loop.fit(
        build(), task(), task(16), overridden, CLASSES, seed=0, verbose=False, watch=[recorder],
        preprocessor=preprocessor,
    )  # fmt: skip
    (layer,) = [layer for layer in recorder.layers if isinstance(layer, OnPixels)]
    assert (layer.shift.tolist(), layer.scale.tolist()) == (
        pytest.approx([0.4]), pytest.approx([0.2]))  # fmt: skip


class TrainingLayers(keras.callbacks.Callback):
    """Record the layers of the training model."""

    def on_train_end(self, logs: dict | None = None) -> None:
        self.layers = self.model.layers


class CompileArguments(keras.callbacks.Callback):
    """Record the optimizer and the loss of the training model."""

    def on_train_end(self, logs: dict | None = None) -> None:
        self.optimizer, self.loss = self.model.optimizer, self.model.loss


def compile_arguments(**overrides: Any) -> CompileArguments:
    recorder = CompileArguments()
    subset = task(16)
    loop.fit(
        build(), subset, subset, settings(**{"epochs": 1, **overrides}), CLASSES, 0, verbose=False,
        watch=[recorder],
    )  # fmt: skip
    return recorder


def test_training_uses_every_setting_of_the_optimizer_and_the_loss():
    compiled = compile_arguments(
        optimizer="rmsprop", learning_rate=0.002, momentum=0.5, weight_decay=0.1,
        gradient_clip="global_norm", gradient_clip_at=2.0, loss="focal", label_smoothing=0.1,
    )  # fmt: skip
    assert isinstance(compiled.optimizer, keras.optimizers.RMSprop)
    config = compiled.optimizer.get_config()
    assert config["learning_rate"] == pytest.approx(0.002)
    expected = {"momentum": 0.5, "weight_decay": 0.1, "global_clipnorm": 2.0}
    assert {key: config[key] for key in expected} == expected
    assert isinstance(compiled.loss, keras.losses.CategoricalFocalCrossentropy)
    assert compiled.loss.get_config()["label_smoothing"] == 0.1
    # 3 epochs of 16 images, 8 per step
    assert int(compile_arguments(batch_size=8, epochs=3).optimizer.iterations) == 6
    assert isinstance(compile_arguments(optimizer="sgd").optimizer, keras.optimizers.SGD)


def test_the_trained_model_stays_uncompiled():
    model = build()
    fit(model, epochs=1)
    assert not model.compiled


@pytest.mark.slow
def test_training_adds_the_regularization_penalty_to_the_loss():
    with_penalty = fit(build(kernel_regularizer="l2"), epochs=1)
    without = fit(build(), epochs=1)
    assert with_penalty[0]["val_loss"] > without[0]["val_loss"] + 0.5


ON_JAX = """
import numpy as np
from pipeline.training import building, loop
from pipeline.runtime.input_pipeline import Subset
from pipeline.config.schema import Model
from tests.conftest import PLAIN, settings

images = np.random.default_rng(0).random((16, 9, 9, 3), dtype=np.float32)
subset = Subset(images, np.arange(16) % 2, np.arange(16))
model = building.build(Model(architecture="airnet", build={"widths": [4, 4]}), (9, 9, 3), 2, 0)
overridden = settings(
    whiten=True, whiten_bias_epochs=1, ema_momentum=0.9, schedule="triangular", lookahead=2,
    batch_norm_beta_learning_rate=4.0, optimizer="sgd", momentum=0.9, muon_learning_rate=0.1,
    augment={**PLAIN, "flip": "alternating", "crop": 1, "crop_fill": "reflect"},
)
history = loop.fit(model, subset, subset, overridden, ["a", "b"], seed=0, verbose=False).rows
print(len(history), all(np.isfinite(list(epoch.values())).all() for epoch in history))
"""


@pytest.mark.slow
def test_every_setting_of_the_fastest_trainings_works_with_jax():
    done = subprocess.run(
        [sys.executable, "-c", ON_JAX],
        cwd=REPOSITORY, env={**os.environ, "KERAS_BACKEND": "jax"},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split() == ["3", "True"]
