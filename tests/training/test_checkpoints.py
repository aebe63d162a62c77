"""Checkpoints: a training that was killed goes on, and ends as if nothing had happened."""

import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from pipeline.config.schema import Model
from pipeline.core.errors import INTERRUPTED
from pipeline.runtime.input_pipeline import Subset
from pipeline.training import building, checkpoints, loop
from pipeline.training.callbacks import Diverged
from pipeline.training.checkpoints import Checkpoints, State
from tests.conftest import PLAIN, REPOSITORY, arguments, settings, task


@pytest.fixture
def kept(tmp_path, monkeypatch) -> Checkpoints:
    monkeypatch.chdir(tmp_path)
    return Checkpoints("small", {"seed": 0})


def state(epoch: int) -> State:
    return State({"weight": np.full((2, 3), epoch, np.float32)}, {"rows": [0.1] * epoch})


def newest(kept: Checkpoints) -> State | None:
    epoch = kept.latest_epoch()
    return None if epoch is None else kept.read(epoch)


def test_the_newest_of_two_is_read(kept):
    assert kept.latest_epoch() is None
    for epoch in (1, 2, 3):
        kept.save(epoch, state(epoch))
    assert sorted(path.name for path in kept.folder.iterdir()) == ["000002.npz", "000003.npz"]
    found = newest(kept)
    assert found
    assert found.facts == {"rows": [0.1, 0.1, 0.1]}
    assert np.array_equal(found.arrays["weight"], np.full((2, 3), 3, np.float32))


def test_inputs_that_differ_in_anything_are_another_training(kept):
    kept.save(1, state(1))
    assert Checkpoints("small", {"seed": 0}).latest_epoch()
    assert Checkpoints("small", {"seed": 1}).latest_epoch() is None
    assert Checkpoints("other", {"seed": 0}).latest_epoch() is None


def test_a_damaged_one_is_told_and_passed_over(kept, capsys):
    for epoch in (1, 2):
        kept.save(epoch, state(epoch))
    path = kept.folder / "000002.npz"
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    flipped = []
    for place in rng.integers(0, len(whole), 60):
        flipped.append(bytearray(whole))
        flipped[-1][place] ^= 1 << int(rng.integers(8))
    told = 0
    for damaged in (whole[:-100], b"", b"weights", *flipped):
        path.write_bytes(damaged)
        found = newest(kept)
        assert found
        said = capsys.readouterr().out
        if f"{path} is damaged, so the previous one is used" in said:
            told += 1
            assert found.arrays["weight"].max() == 1
        else:  # what was changed says nothing, as a date
            assert np.array_equal(found.arrays["weight"], state(2).arrays["weight"])
            assert found.facts == state(2).facts
    assert told > 40


def test_finished_ones_are_removed_once_recorded_and_others_after_days(kept, monkeypatch):
    model = Path("small.keras")
    model.write_bytes(b"weights")
    monkeypatch.setenv("DVC_STAGE", "train@small")
    ended, current, other = (Checkpoints("small", {"seed": seed}) for seed in (1, 2, 3))
    for each in (kept, ended, current, other):
        each.save(1, state(1))
    ended.finish(model)
    with current.locked():
        assert all(each.latest_epoch() for each in (kept, ended, current, other))
    long_ago = time.time() - 8 * 24 * 3600
    os.utime(kept.folder, (long_ago, long_ago))
    with current.locked():
        assert [bool(e.latest_epoch()) for e in (kept, ended, current, other)] == [False] + [
            True
        ] * 3
    md5 = hashlib.md5(b"weights").hexdigest()
    Path("dvc.lock").write_text(f"md5: {md5}\n")
    with current.locked():
        assert [bool(each.latest_epoch()) for each in (ended, current, other)] == [
            False,
            True,
            True,
        ]
    current.finish(model)
    monkeypatch.delenv("DVC_STAGE")
    other.finish(model)  # run by hand: nobody records it
    with Checkpoints("large", {}).locked():  # whichever model is trained next
        pass
    assert [path.name for path in checkpoints.FOLDER.rglob("*") if path.is_file()] == ["lock"] * 2


def test_what_dvc_has_recorded_is_trained_anew_and_what_it_has_not_is_kept(kept, monkeypatch):
    monkeypatch.setenv("DVC_STAGE", "train@small")
    Path("small.keras").write_bytes(b"weights")
    kept.save(1, state(1))
    kept.finish(Path("small.keras"))
    Path("dvc.lock").write_text("md5: 202cb962ac59075b964b07152d234b70\n")
    with kept.locked():  # DVC was killed, or its cache was full
        assert newest(kept)
    md5 = hashlib.md5(b"weights").hexdigest()
    Path("dvc.lock").write_text(f"md5: {md5}\n")
    with kept.locked():  # dvc repro -f
        assert kept.latest_epoch() is None


def test_a_second_process_waits_for_the_first(kept):
    code = (
        "from pipeline.training.checkpoints import Checkpoints\n"
        "with Checkpoints('small', {'seed': 0}).locked(): print('mine', flush=True)"
    )
    env = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    with kept.locked():
        second = subprocess.Popen(
            [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=env
        )
        assert second.stdout
        assert "waiting for another process" in second.stdout.readline()
    assert second.communicate(timeout=30)[0] == "mine\n"


class KilledIn(keras.callbacks.Callback):
    """End the process's training as a signal would, in the middle of an epoch."""

    def __init__(self, epoch: int):
        super().__init__()
        self.epoch = epoch

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        self.current = epoch + 1

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        if self.current == self.epoch:
            raise KeyboardInterrupt


def learn(architecture: str, build: dict, own: dict, **more: Any) -> tuple[list, list, float]:
    images, labels = task(80)
    noise = np.random.default_rng(1).random(images.shape, dtype=np.float32)
    # so noisy that validation accuracy goes up and down
    part = images * 0.3 + noise * 0.7
    rows = np.arange(80)
    train, validation = Subset(part, labels, rows[:48]), Subset(part, labels, rows[48:])
    model = building.build(Model(architecture=architecture, build=build), (8, 8, 1), 2, seed=0)
    history = loop.fit(
        model, train, validation, settings(**own), ["a", "b"], 0, verbose=False, **more
    )
    return history.rows, model.get_weights(), history.seconds


RANDOM = {"flip": "both", "shift": 0.1, "crop": 1, "crop_fill": "zeros", "rotation": 10.0,
          "cutout": 0.1}  # fmt: skip
SMALL = {"depth": 2, "filters": 8, "dropout": 0.3, "batch_norm": True}
EVERYTHING = [
    # dropout, batch normalization's averages, Adam's moments, random augmentation
    ("plain", SMALL, {"epochs": 4, "augment": RANDOM, "schedule": "one_cycle"}),
    # each image mirrored in every other epoch, a frozen whitened layer, averaged weights
    ("airnet", {"widths": [4, 4]},
     {"epochs": 4, "optimizer": "sgd", "momentum": 0.9, "schedule": "triangular", "whiten": True,
      "ema_momentum": 0.9, "augment": PLAIN | {"flip": "alternating"}}),
    # the best weights, and how long none were better
    ("baseline", {}, {"epochs": 12, "early_stopping": 2, "learning_rate": 0.003}),
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("architecture", "build", "own"), EVERYTHING)
def test_killed_in_any_epoch_it_ends_as_if_it_had_not_been(kept, architecture, build, own):
    rows, weights, _ = learn(architecture, build, own)
    for epoch in (1, 3, len(rows)):
        with pytest.raises(KeyboardInterrupt):
            learn(architecture, build, own, checkpoints=kept, watch=[KilledIn(epoch)])
    found = newest(kept)
    assert found
    assert len(found.facts["rows"]) == len(rows) - 1
    for _ in range(2):  # the second time, nothing is left to train
        again, other, seconds = learn(architecture, build, own, checkpoints=kept)
        assert again == rows
        assert all(np.array_equal(a, b) for a, b in zip(weights, other, strict=True))
        assert seconds > found.facts["seconds"]
    if own.get("early_stopping"):
        assert len(rows) < own["epochs"]


def test_a_loss_that_is_not_finite_names_the_batch_and_leaves_the_epochs_before(kept):
    own = {"epochs": 3, "batch_size": 4, "optimizer": "sgd", "learning_rate": 1.0}

    class Poison(keras.callbacks.Callback):
        """Make a weight infinite before the second epoch."""

        def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
            if epoch == 1:
                weight = self.model.trainable_variables[-1]
                weight.assign(keras.ops.full(weight.shape, np.inf))

    with pytest.raises(Diverged, match=r"epoch 2, batch 1 of 12: loss must be finite\. Got nan at "
                       r"learning rate 1\. Lower train\.learning_rate"):  # fmt: skip
        learn("baseline", {}, own, checkpoints=kept, watch=[Poison()])
    found = newest(kept)
    assert found
    assert len(found.facts["rows"]) == 1
    assert all(np.isfinite(array).all() for array in found.arrays.values())


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_told_to_stop_a_stage_says_how_to_go_on(prepared, stage, edit, signum):
    edit("epochs: 2", "epochs: 60")
    stage("pipeline.train", *arguments("baseline", "whole"))
    argv = [sys.executable, "-m", "pipeline.train", *arguments("baseline", "out")]
    env = {**os.environ, "PYTHONPATH": str(REPOSITORY), "TF_CPP_MIN_LOG_LEVEL": "3"}
    running = subprocess.Popen(
        argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env
    )
    assert running.stdout
    while not running.stdout.readline().startswith("epoch 3/"):
        assert running.poll() is None
    running.send_signal(signum)
    _, stderr = running.communicate(timeout=60)
    assert running.returncode == 128 + signum
    assert stderr == INTERRUPTED + "\n"
    assert not Path("out/model.keras").exists()

    done = stage("pipeline.train", *arguments("baseline", "out"))
    assert "train: baseline: resuming after epoch" in done.stdout
    for name in ("model.keras", "history.csv", "train.json"):
        assert Path("out", name).read_bytes() == Path("whole", name).read_bytes()
