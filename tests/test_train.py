"""Train: the outputs of the stage, and that they are reproducible."""

import json
import re
import shutil

import keras
import numpy as np
import pytest

from pipeline import train
from pipeline.config.schema import Model
from pipeline.data import calibration
from pipeline.data.calibration import Calibration
from pipeline.data.preprocessor import Preprocessor
from pipeline.ingest import parquet
from pipeline.ingest.parquet import Example
from pipeline.runtime import backend
from pipeline.training import building, temperature
from tests.conftest import arguments, png, task, write_arrays


def test_the_summary_contains_the_final_and_the_best_epoch():
    history = [
        {"epoch": 1, "loss": 3.0, "accuracy": 0.1, "val_loss": 3.0, "val_accuracy": 0.1},
        {"epoch": 2, "loss": 2.0, "accuracy": 0.2, "val_loss": 1.0, "val_accuracy": 0.4},
        {"epoch": 3, "loss": 1.0, "accuracy": 0.3, "val_loss": 2.0, "val_accuracy": 0.4},
    ]
    assert train.summarize(history, early_stopping=False) == {
        "epochs": 3,
        "best_epoch": 2,  # the first on a tie
        "kept": "final",
        "final": {"loss": 1.0, "accuracy": 0.3, "val_loss": 2.0, "val_accuracy": 0.4},
        "best": {"loss": 2.0, "accuracy": 0.2, "val_loss": 1.0, "val_accuracy": 0.4},
    }
    assert train.summarize(history, early_stopping=True)["kept"] == "best"
    # fine-tuning started after the second epoch
    assert train.summarize(history, early_stopping=True, first_phase=2)["best_epoch"] == 3
    # without validation images, the last epoch counts as the best
    unvalidated = [{key: row[key] for key in ("epoch", "loss", "accuracy")} for row in history]
    last = {"loss": 1.0, "accuracy": 0.3}
    assert train.summarize(unvalidated, early_stopping=False) == {
        "epochs": 3, "best_epoch": 3, "kept": "final", "final": last, "best": last,
    }  # fmt: skip


def test_a_model_that_starts_from_another_does_not_inherit_its_temperature(tmp_path):
    source = tmp_path / "source.keras"
    baseline = building.build(Model(architecture="baseline"), (8, 8, 1), 2, seed=0)
    backend.save(baseline, source)
    calibration.store(source, Calibration(temperature=50.0))
    config = Model(architecture="transfer", from_model=str(source))
    backend.save(building.build(config, (8, 8, 1), 3, seed=0), tmp_path / "mine.keras")
    assert calibration.read(source).temperature == 50
    assert calibration.read(tmp_path / "mine.keras").temperature == 1


@pytest.mark.slow
def test_training_with_batch_normalization_repeats_to_the_bit(prepared, stage):
    for out in ("one", "two"):
        done = stage("pipeline.train", *arguments("batchnorm", out))
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
        if out == "one":  # the second training cannot write its live curves
            assert len((prepared / "plots/live/loss.csv").read_text().splitlines()) == 1 + 2 * 2
            shutil.rmtree(prepared / "plots/live")
            (prepared / "plots/live").touch()
    assert "train: batchnorm-0: the live curves are not written: " in done.stdout
    for name in ("model.keras", "history.csv", "train.json"):
        assert (prepared / "one" / name).read_bytes() == (prepared / "two" / name).read_bytes()
    metrics = json.loads((prepared / "one/train.json").read_text())
    assert metrics["parameters"] - metrics["trainable_parameters"] == 1_792
    assert metrics["epochs"] == 2
    images, labels = task()
    logits = keras.saving.load_model(prepared / "one/model.keras").predict(images[48:], verbose=0)
    calibrated = calibration.read(prepared / "one/model.keras")
    assert calibrated.temperature == metrics["temperature"]
    assert calibrated.temperature == pytest.approx(temperature.fit(logits, labels[48:]), rel=0.01)
    correct = (logits.argmax(axis=1) == labels[48:]).sum()
    assert (calibrated.thresholds[-1].images, calibrated.thresholds[-1].correct) == (16, correct)
    run = json.loads((prepared / "one/run.json").read_text())
    assert run["train_seconds"] > 0
    assert run["images_per_second"] == pytest.approx(2 * 48 / run["train_seconds"], rel=0.05)


@pytest.mark.parametrize(("model", "rows", "message"), [
    ("vgg", 48, "error: train: vgg must be one of baseline, .* in params.yaml"),
    ("baseline", 47, "error: split.npz: must list each of 64 rows once. Run `dvc repro -f split`"),
])  # fmt: skip
def test_wrong_input_is_refused_before_training(prepared, quick_stage, model, rows, message):
    np.savez(prepared / "split.npz", train=np.arange(rows), validation=np.arange(48, 64))
    done = quick_stage("pipeline.train", *arguments(model, "out"))
    assert done.returncode == 1
    assert re.fullmatch(message + "\n", done.stderr)
    assert not (prepared / "out").exists()


def test_a_sample_larger_than_the_training_images_is_refused_before_training(
    prepared, quick_stage, edit
):
    edit("architecture: baseline\n", "architecture: baseline\n    train: {train_size: 49}\n")
    done = quick_stage("pipeline.train", *arguments("baseline", "out"))
    assert done.returncode == 1
    assert done.stderr.startswith("error: params.yaml: train.train_size must be at most all 48 ")


@pytest.mark.slow
def test_the_seed_on_the_command_line_determines_the_model(prepared, stage, edit):
    edit("epochs: 2", "epochs: 1")
    models = {}
    for out, seed in (("three", 3), ("four", 4)):
        done = stage("pipeline.train", *arguments("baseline", out, seed))
        assert done.returncode == 0, done.stderr
        assert f"train: baseline, seed {seed}: 1 epoch in " in done.stdout
        models[out] = (prepared / out / "model.keras").read_bytes()
    assert models["three"] != models["four"]


@pytest.mark.slow
def test_training_from_uint8_gives_the_same_bytes_as_from_float32(
    prepared, stage, quick_stage, edit
):
    pixels = np.random.default_rng(0).integers(0, 256, (64, 8, 8), np.uint8)
    examples = [Example(png(image), i % 2, str(i)) for i, image in enumerate(pixels)]
    splits = {"train": examples, "test": examples[:2]}
    sizes = {split: len(images) for split, images in splits.items()}
    parquet.write(prepared / "raw", parquet.Dataset(["even", "odd"], "a test", sizes, splits))
    edit("normalize: unit", "normalize: standardize")
    for dtype in ("float32", "uint8"):
        edit("dtype: float32", f"dtype: {dtype}")
        done = quick_stage("pipeline.preprocess", "--raw", "raw", "--arrays", "arrays")
        assert done.returncode == 0, done.stderr
        done = stage("pipeline.train", *arguments("baseline", dtype))
        assert done.returncode == 0, done.stderr
        assert np.load(prepared / "arrays/train/images.npy", mmap_mode="r").dtype == dtype
    for name in ("model.keras", "history.csv"):
        assert (prepared / "float32" / name).read_bytes() == (
            prepared / "uint8" / name
        ).read_bytes()


@pytest.mark.long
def test_ten_times_as_many_images_read_from_disk_need_no_more_memory(prepared, stage, edit):
    edit("epochs: 2", "epochs: 1")
    program = """if True:
        import resource, sys
        from pipeline import train
from pipeline.config.schema import Model
        from pipeline.runtime import acceleration
        acceleration.MAX_MEMORY_SHARE = 0.0  # as if memory were short
        train.main(sys.argv[1:])
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
    """
    (prepared / "program.py").write_text(program)
    peaks = []
    for count in (500, 5000):  # 23 and 234 MiB: an image takes 48 KiB
        black = np.zeros((count, 64, 64, 3), np.float32)
        write_arrays(prepared / "arrays/train", black, np.arange(count) % 2)
        info = vars(Preprocessor(["dark", "bright"], [64, 64, 3], "unit", [0.5] * 3, [0.5] * 3))
        (prepared / "arrays/info.json").write_text(json.dumps(info))
        np.savez(
            prepared / "split.npz",
            train=np.arange(count - 100),
            validation=np.arange(count - 100, count),
        )
        done = stage("program", *arguments("baseline", "out"))
        assert done.returncode == 0, done.stderr
        peaks.append(int(done.stdout.splitlines()[-1]))
    assert peaks[1] < peaks[0] + 60, peaks
