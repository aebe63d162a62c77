"""Checkpoints: a killed training resumes, and ends as if it had never been interrupted."""

import hashlib
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from pipeline.config.schema import Model
from pipeline.core.errors import INTERRUPTED
from pipeline.runtime.input_pipeline import Subset
from pipeline.training import building, loop
from pipeline.training.callbacks import Diverged
from pipeline.training.checkpoints import FOLDER, Checkpoints, State
from tests.conftest import PLAIN, REPOSITORY, arguments, settings, task


@pytest.fixture
def checkpoints(tmp_path, monkeypatch) -> Checkpoints:
    monkeypatch.chdir(tmp_path)
    return Checkpoints("small-0", {"seed": 0})


def state(epoch: int) -> State:
    return State({"weight": np.full((2, 3), epoch, np.float32)}, {"rows": [0.1] * epoch})


def latest_state(checkpoints: Checkpoints) -> State:
    epoch = checkpoints.latest_epoch()
    assert epoch is not None
    return checkpoints.read(epoch)


def test_the_latest_checkpoint_is_read_and_the_last_two_are_kept(checkpoints):
    assert checkpoints.latest_epoch() is None
    for epoch in (1, 2, 3):
        checkpoints.save(epoch, state(epoch))
    assert sorted(path.name for path in checkpoints.folder.iterdir()) == [
        "000002.npz",
        "000003.npz",
    ]
    latest = latest_state(checkpoints)
    assert latest.metadata == {"rows": [0.1, 0.1, 0.1]}
    assert np.array_equal(latest.arrays["weight"], np.full((2, 3), 3, np.float32))


def test_training_with_other_inputs_or_another_name_does_not_resume(checkpoints):
    checkpoints.save(1, state(1))
    assert Checkpoints("small-0", {"seed": 0}).latest_epoch()
    assert Checkpoints("small-0", {"seed": 1}).latest_epoch() is None
    assert Checkpoints("small-1", {"seed": 0}).latest_epoch() is None


def test_a_damaged_checkpoint_is_reported_and_the_previous_one_is_used(checkpoints, capsys):
    for epoch in (1, 2):
        checkpoints.save(epoch, state(epoch))
    path = checkpoints.folder / "000002.npz"
    intact = path.read_bytes()
    rng = np.random.default_rng(0)
    with_flipped_bit = []
    for position in rng.integers(0, len(intact), 60):
        with_flipped_bit.append(bytearray(intact))
        with_flipped_bit[-1][position] ^= 1 << int(rng.integers(8))
    reported = 0
    for damaged in (intact[:-100], b"", b"weights", *with_flipped_bit):
        path.write_bytes(damaged)
        latest = latest_state(checkpoints)
        if f"{path} is damaged, so the previous one is used" in capsys.readouterr().out:
            reported += 1
            assert latest.arrays["weight"].max() == 1
        else:  # the bit has no meaning, such as one of a date
            assert np.array_equal(latest.arrays["weight"], state(2).arrays["weight"])
            assert latest.metadata == state(2).metadata
    assert reported > 40


def test_recorded_and_week_old_checkpoints_are_removed_and_no_others(checkpoints, monkeypatch):
    model = Path("small.keras")
    model.write_bytes(b"weights")
    monkeypatch.setenv("DVC_STAGE", "train@small-0")
    finished, current, other = (Checkpoints("small-0", {"seed": seed}) for seed in (1, 2, 3))
    trainings = (checkpoints, finished, current, other)
    for training in trainings:
        training.save(1, state(1))
    finished.finish(model)
    with current.locked():
        assert [training.latest_epoch() for training in trainings] == [1, 1, 1, 1]
    eight_days_ago = time.time() - 8 * 24 * 3600
    os.utime(checkpoints.folder, (eight_days_ago, eight_days_ago))
    with current.locked():
        assert [training.latest_epoch() for training in trainings] == [None, 1, 1, 1]
    md5 = hashlib.md5(b"weights").hexdigest()
    Path("dvc.lock").write_text(f"md5: {md5}\n")
    with current.locked():
        assert [training.latest_epoch() for training in trainings] == [None, None, 1, 1]
    current.finish(model)
    monkeypatch.delenv("DVC_STAGE")
    other.finish(model)  # run without DVC, so it is removed at once
    with Checkpoints("large-0", {}).locked():  # any other training cleans up too
        pass
    assert [path.name for path in FOLDER.rglob("*") if path.is_file()] == ["lock"] * 2


def test_a_finished_training_is_kept_until_dvc_has_recorded_it(checkpoints, monkeypatch):
    monkeypatch.setenv("DVC_STAGE", "train@small-0")
    Path("small.keras").write_bytes(b"weights")
    checkpoints.save(1, state(1))
    checkpoints.finish(Path("small.keras"))
    Path("dvc.lock").write_text("md5: 202cb962ac59075b964b07152d234b70\n")
    with checkpoints.locked():  # DVC was killed, or its cache was full
        assert checkpoints.latest_epoch() == 1
    md5 = hashlib.md5(b"weights").hexdigest()
    Path("dvc.lock").write_text(f"md5: {md5}\n")
    with checkpoints.locked():  # dvc repro -f trains from the start
        assert checkpoints.latest_epoch() is None


def test_a_second_process_waits_until_the_first_has_finished(checkpoints):
    code = (
        "from pipeline.training.checkpoints import Checkpoints\n"
        "with Checkpoints('small-0', {'seed': 0}).locked(): print('locked', flush=True)"
    )
    env = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    with checkpoints.locked():
        second = subprocess.Popen(
            [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=env
        )
        assert second.stdout
        assert "waiting for another process" in second.stdout.readline()
    assert second.communicate(timeout=30)[0] == "locked\n"


class InterruptIn(keras.callbacks.Callback):
    """Interrupt training in the middle of an epoch, as a signal would."""

    def __init__(self, epoch: int):
        super().__init__()
        self.epoch = epoch

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        self.current = epoch + 1

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        if self.current == self.epoch:
            raise KeyboardInterrupt


def train_model(
    architecture: str, build: dict, overrides: dict, validated: int = 32, **fit_arguments: Any
) -> tuple[list, list, float]:
    """Train on noisy images, and return rows of the history, weights and seconds.

    Args: `validated` is the number of validation images.
    """
    images, labels = task(80)
    noise = np.random.default_rng(1).random(images.shape, dtype=np.float32)
    # so noisy that validation accuracy goes up and down
    noisy = images * 0.3 + noise * 0.7
    rows = np.arange(80)
    train = Subset(noisy, labels, rows[:48])
    validation = Subset(noisy, labels, rows[48 : 48 + validated])
    model = building.build(Model(architecture=architecture, build=build), (8, 8, 1), 2, seed=0)
    history = loop.fit(
        model, train, validation, settings(**overrides), ["a", "b"], 0, verbose=False,
        **fit_arguments,
    )  # fmt: skip
    return history.rows, model.get_weights(), history.seconds


RANDOM_AUGMENTATION = {
    **PLAIN, "flip": "both", "shift": 0.1, "crop": 1, "rotation": 10.0, "cutout": 0.1,
    "resized_crop": 0.5, "brightness": 0.1, "rand_augment": 0.3,
}  # fmt: skip
SMALL = {"depth": 2, "filters": 8, "dropout": 0.3, "batch_norm": True}
TRAININGS = [  # together with all kinds of state
    # dropout, batch normalization's averages, Adam's moments, random augmentation
    ("plain", SMALL, {"epochs": 4, "augment": RANDOM_AUGMENTATION, "schedule": "one_cycle"}),
    # alternating flips, a whitened layer that is frozen later, slow weights
    pytest.param(
        "airnet", {"widths": [4, 4]},
        {"epochs": 4, "optimizer": "sgd", "momentum": 0.9, "schedule": "triangular", "whiten": True,
         "whiten_bias_epochs": 2, "lookahead": 3, "muon_learning_rate": 0.1,
         "augment": PLAIN | {"flip": "alternating"}},
        marks=pytest.mark.long,
    ),
    # early stopping: the best weights, and the epochs since then; averaged weights
    pytest.param(
        "baseline", {},
        {"epochs": 12, "early_stopping": 2, "learning_rate": 0.003, "ema_momentum": 0.5},
        marks=pytest.mark.long,
    ),
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("architecture", "build", "overrides"), TRAININGS)
def test_a_training_killed_in_any_epoch_ends_with_the_weights_of_an_uninterrupted_one(
    checkpoints, architecture, build, overrides
):
    training = (architecture, build, overrides)
    rows, weights, _ = train_model(*training)
    shown: list[int] = []

    def show(finished: list) -> None:
        assert finished == rows[: len(finished)]
        shown.append(len(finished))

    for epoch in (1, 3, len(rows)):
        with pytest.raises(KeyboardInterrupt):
            train_model(*training, checkpoints=checkpoints, watch=[InterruptIn(epoch)], show=show)
    assert shown == [0, 0, 1, 2, *range(2, len(rows))]  # at each start, then after each epoch
    latest = latest_state(checkpoints)
    assert len(latest.metadata["rows"]) == len(rows) - 1
    for _ in range(2):  # the second time, nothing is left to train
        resumed_rows, resumed_weights, seconds = train_model(*training, checkpoints=checkpoints)
        assert resumed_rows == rows
        assert all(np.array_equal(a, b) for a, b in zip(weights, resumed_weights, strict=True))
        assert seconds > latest.metadata["seconds"]
    if overrides.get("early_stopping"):
        assert len(rows) < overrides["epochs"]


@pytest.mark.slow
def test_training_without_validation_images_is_the_same_and_resumes_exactly(checkpoints):
    training: tuple[str, dict, dict] = ("baseline", {}, {"epochs": 3, "ema_momentum": 0.9})
    validated_rows, weights, _ = train_model(*training)
    with pytest.raises(KeyboardInterrupt):
        train_model(*training, validated=0, checkpoints=checkpoints, watch=[InterruptIn(3)])
    rows, resumed_weights, _ = train_model(*training, validated=0, checkpoints=checkpoints)
    assert all(np.array_equal(a, b) for a, b in zip(weights, resumed_weights, strict=True))
    columns = ("epoch", "loss", "accuracy", "learning_rate")
    assert rows == [{name: row[name] for name in columns} for row in validated_rows]


class RecordLossScale(keras.callbacks.Callback):
    """Record the loss scale and the number of steps since its last change, after each epoch."""

    def __init__(self):
        super().__init__()
        self.scales: list[tuple[float, int]] = []

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        optimizer = self.model.optimizer
        self.scales.append((float(optimizer.dynamic_scale), int(optimizer.step_counter)))


@pytest.mark.slow
def test_float16_trains_with_a_scaled_loss_and_resumes_exactly(
    checkpoints, pretend_gpus, monkeypatch
):
    pretend_gpus([(7, 5)])
    # at this scale the first gradients are infinite in float16, so it is halved until they are not
    scaled = partial(keras.optimizers.LossScaleOptimizer, initial_scale=2.0**24)
    monkeypatch.setattr(keras.optimizers, "LossScaleOptimizer", scaled)
    overrides = {"epochs": 4, "precision": "auto", "learning_rate": 0.03}
    record, resumed = RecordLossScale(), RecordLossScale()
    rows, weights, _ = train_model("logistic_bn", {}, overrides, watch=[record])
    assert rows[-1]["loss"] < 0.8 * rows[0]["loss"]
    assert record.scales[1][0] < 2**24
    assert {weight.dtype for weight in weights} == {np.dtype("float32")}
    with pytest.raises(KeyboardInterrupt):
        train_model("logistic_bn", {}, overrides, checkpoints=checkpoints, watch=[InterruptIn(3)])
    resumed_rows, resumed_weights, _ = train_model(
        "logistic_bn", {}, overrides, checkpoints=checkpoints, watch=[resumed]
    )
    assert resumed_rows == rows
    assert resumed.scales == record.scales[2:]
    assert all(np.array_equal(a, b) for a, b in zip(weights, resumed_weights, strict=True))


def test_a_loss_that_is_not_finite_names_the_batch_and_keeps_earlier_checkpoints(checkpoints):
    overrides = {"epochs": 3, "batch_size": 4, "optimizer": "sgd", "learning_rate": 1.0}

    class SetInfiniteWeight(keras.callbacks.Callback):
        """Set the last bias to infinity before the second epoch."""

        def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
            if epoch == 1:
                weight = self.model.trainable_variables[-1]
                weight.assign(keras.ops.full(weight.shape, np.inf))

    with pytest.raises(Diverged, match=r"epoch 2, batch 1 of 12: loss must be finite\. Got nan at "
                       r"learning rate 1\. Lower train\.learning_rate"):  # fmt: skip
        train_model("baseline", {}, overrides, checkpoints=checkpoints, watch=[SetInfiniteWeight()])
    latest = latest_state(checkpoints)
    assert len(latest.metadata["rows"]) == 1
    assert all(np.isfinite(array).all() for array in latest.arrays.values())


@pytest.mark.slow
def test_a_stage_that_is_interrupted_says_how_to_continue(prepared, stage, edit):
    edit("epochs: 2", "epochs: 60")
    stage("pipeline.train", *arguments("baseline", "uninterrupted"))
    argv = [sys.executable, "-m", "pipeline.train", *arguments("baseline", "out")]
    env = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    for signum, line in ((signal.SIGINT, "epoch 3/"), (signal.SIGTERM, "epoch ")):
        process = subprocess.Popen(
            argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env
        )
        assert process.stdout
        while not process.stdout.readline().startswith(line):
            assert process.poll() is None
        process.send_signal(signum)
        _, stderr = process.communicate(timeout=60)
        assert process.returncode == 128 + signum
        assert stderr == INTERRUPTED + "\n"
        assert not Path("out/model.keras").exists()

    done = stage("pipeline.train", *arguments("baseline", "out"))
    assert "train: baseline-0: resuming after epoch" in done.stdout
    for name in ("model.keras", "history.csv", "train.json"):
        assert Path("out", name).read_bytes() == Path("uninterrupted", name).read_bytes()
