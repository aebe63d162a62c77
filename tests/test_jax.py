"""JAX: the stages on this backend, and training on several devices or processes."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
import pandas as pd
import pytest

from pipeline.data import calibration, predictions
from tests.conftest import REPOSITORY, arguments, task, write_arrays

pytestmark = pytest.mark.slow  # each starts processes that import JAX

Stage = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def small(prepared, edit):
    """Add a small model with batch normalization; 43 rows give a last batch of 11, not 16."""
    np.savez(prepared / "split.npz", train=np.arange(43), validation=np.arange(43, 64))
    edit("backend: tensorflow", "backend: jax")
    edit("precision: auto", "precision: float32")
    edit("batch_size: 32", "batch_size: 16")
    edit("models:\n", "models:\n  small: {architecture: logistic_bn}\n")
    return prepared


def weights(path: Path) -> list[np.ndarray]:
    return keras.saving.load_model(path).get_weights()


def test_tensorflow_loads_a_model_trained_with_jax(small, stage, edit):
    # Keras's layers for this look for TensorFlow
    edit("shift: 0.0", "shift: 0.1")
    edit("resized_crop:", "resized_crop: 0.5")
    edit("brightness: 0.0", "brightness: 0.1")
    images, labels = task(20)
    write_arrays(small / "arrays/test", images, labels)
    done = stage("pipeline.train", *arguments("baseline", "out"))
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads((small / "out/run.json").read_text())["backend"].startswith("jax 0.")
    (small / "out/model.keras").rename(small / "out/0.keras")
    argv = (
        "baseline --models out --arrays arrays --split splits --metrics test.json "
        "--predictions predictions --confusion confusion.csv"
    ).split()
    done = stage("pipeline.evaluate", *argv)
    assert (done.returncode, done.stderr) == (0, "")

    assert keras.backend.backend() == "tensorflow"
    logits = keras.saving.load_model(small / "out/0.keras").predict(images, verbose=0)
    test = predictions.read(small / "predictions/0.parquet").of("test")
    assert np.allclose(test.logits, logits, atol=1e-5)
    (computed,) = json.loads((small / "test.json").read_text())["computed"]
    assert computed["precision"] == "float32"


def test_images_on_the_device_and_on_disk_train_alike_and_bfloat16_nearly_so(small, stage):
    (small / "program.py").write_text("""if True:
        from pathlib import Path
        from pipeline import train
        from pipeline.runtime import select_backend
        train.main(ARGUMENTS("on_device"))
        train.main(ARGUMENTS("repeated"))
        from pipeline.runtime import acceleration
        acceleration.MAX_MEMORY_SHARE = 0.0  # as if memory were short
        train.main(ARGUMENTS("from_disk"))
        params = Path("params.yaml")
        params.write_text(params.read_text().replace("precision: float32", "precision: bfloat16"))
        train.main(ARGUMENTS("bfloat16"))
    """.replace("ARGUMENTS", f"(lambda out: [a.replace('OUT', out) for a in "
                             f"{arguments('small', 'OUT')}])"))  # fmt: skip
    done = stage("program")
    assert (done.returncode, done.stderr) == (0, "")
    trained = {
        out: (weights(small / out / "model.keras"), pd.read_csv(small / out / "history.csv"))
        for out in ("on_device", "repeated", "from_disk", "bfloat16")
    }
    weights_float32, history = trained["on_device"]
    for out in ("repeated", "from_disk"):
        assert all(
            np.array_equal(*pair) for pair in zip(weights_float32, trained[out][0], strict=True)
        )
        pd.testing.assert_frame_equal(trained[out][1], history, check_exact=True)
    weights_bfloat16, other_history = trained["bfloat16"]
    assert {array.dtype for array in weights_bfloat16} == {np.dtype("float32")}
    assert not all(
        np.array_equal(*pair) for pair in zip(weights_float32, weights_bfloat16, strict=True)
    )
    assert np.allclose(history["loss"], other_history["loss"], rtol=0.05)


def start(folder: Path, count: int, module: str, *argv: str) -> list[subprocess.Popen[str]]:
    """Start several processes on this machine that connect to each other."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]  # free once the server is closed
    common = {
        "PYTHONPATH": str(REPOSITORY),
        "KERAS_DISTRIBUTION_JOB_ADDRESSES": f"127.0.0.1:{port}",
        "KERAS_DISTRIBUTION_NUM_PROCESSES": str(count),
    }  # fmt: skip
    return [
        subprocess.Popen(
            [sys.executable, "-m", module, *argv, "--distributed"],
            cwd=folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env={**os.environ, **common, "KERAS_DISTRIBUTION_PROCESS_ID": str(number)},
        )
        for number in range(count)
    ]  # fmt: skip


def test_two_devices_and_two_processes_train_the_same_weights_as_one(small, stage):
    done = stage("pipeline.train", *arguments("small", "one"))
    assert done.returncode == 0, done.stderr
    two_devices = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    done = stage("pipeline.train", *arguments("small", "devices"), **two_devices)
    assert (done.returncode, done.stderr) == (0, "")
    processes = start(small, 2, "pipeline.train", *arguments("small", "processes"))
    outputs = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert [stderr for _, stderr in outputs] == ["", ""]
    assert ["epoch 2/2" in stdout for stdout, _ in outputs] == [True, False]
    temperatures = [
        calibration.read(small / out / "model.keras").temperature
        for out in ("one", "devices", "processes")
    ]
    assert temperatures == pytest.approx([temperatures[0]] * 3, rel=1e-3)
    one, history = weights(small / "one/model.keras"), pd.read_csv(small / "one/history.csv")
    for out in ("devices", "processes"):
        for a, b in zip(one, weights(small / out / "model.keras"), strict=True):
            assert np.allclose(a, b, rtol=1e-5, atol=1e-6)
        other = pd.read_csv(small / out / "history.csv")
        pd.testing.assert_frame_equal(other, history, rtol=1e-5)


@pytest.mark.long
def test_a_process_that_dies_fails_the_others_and_the_next_run_resumes(small):
    (small / "program.py").write_text("""if True:
        import os, signal
        from pipeline.core.errors import run
        from pipeline.runtime import select_backend
        from pipeline.train import main
        select = select_backend.use
        def use(backend, threads):
            select(backend, threads)
            from pipeline.training import loop
            class Die(loop.LearningRateLogger):
                def on_epoch_end(self, epoch, logs):
                    super().on_epoch_end(epoch, logs)
                    if os.environ["KERAS_DISTRIBUTION_PROCESS_ID"] == "1":
                        os.kill(os.getpid(), signal.SIGKILL)
            loop.LearningRateLogger = Die
        select_backend.use = use
        run(main)
    """)
    first, second = start(small, 2, "program", *arguments("small", "out"))
    _, stderr = first.communicate(timeout=100)
    second.communicate(timeout=10)
    assert (first.returncode, second.returncode) == (1, -signal.SIGKILL)
    assert stderr.startswith("error: another process has died: ")
    assert stderr.count("\n") == 1
    assert not (small / "out").exists()
    resumed = start(small, 2, "pipeline.train", *arguments("small", "out"))
    outputs = [process.communicate(timeout=100) for process in resumed]
    assert [stderr for _, stderr in outputs] == ["", ""]
    assert "small-0: resuming after epoch 1 of 2" in outputs[0][0]
    uninterrupted = start(small, 2, "pipeline.train", *arguments("small", "uninterrupted"))
    assert [process.communicate(timeout=100)[1] for process in uninterrupted] == ["", ""]
    for name in ("model.keras", "history.csv", "train.json"):
        expected = (small / "uninterrupted" / name).read_bytes()
        assert (small / "out" / name).read_bytes() == expected


def test_batches_and_backends_that_cannot_be_distributed_are_refused(small, stage, edit):
    three = {"XLA_FLAGS": "--xla_force_host_platform_device_count=3"}
    done = stage("pipeline.train", *arguments("small", "out"), **three)
    expected = "params.yaml: batch_size must be a multiple of the 3 devices. Got 16"
    assert (done.returncode, done.stderr) == (1, f"error: {expected}\n")
    done = stage("pipeline.train", *arguments("small", "out"), KERAS_BACKEND="tensorflow")
    assert done.stderr.startswith("error: KERAS_BACKEND must be jax, as in params.yaml. Got t")
    done = stage("pipeline.train", *arguments("small", "out"), LAUNCHER="no-such-launcher -n 2")
    assert done.stderr == "error: LAUNCHER: no-such-launcher: No such file or directory\n"
    edit("backend: jax", "backend: tensorflow")
    done = stage("pipeline.train", *arguments("small", "out"), "--distributed")
    assert done.stderr == "error: params.yaml: backend must be jax for several processes\n"
