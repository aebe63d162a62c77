"""Fixtures and functions shared by tests: a working directory, small arrays, a browser."""

import importlib
import io
import os
import re
import shutil
import signal
import subprocess
import sys
import unittest.mock
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from PIL import Image
from playwright.sync_api import Browser, sync_playwright

from pipeline.config.schema import Train
from pipeline.core import errors
from pipeline.core.progress import Estimate
from pipeline.data import arrays, predictions, rows
from pipeline.data.predictions import Predictions
from pipeline.ingest.parquet import Example

REPOSITORY = Path(__file__).parents[1]
ROOT = hasattr(os, "geteuid") and os.geteuid() == 0
os.environ["MPLBACKEND"] = "agg"  # a notebook sets one that is not installed here
for variable in ("MAKEFLAGS", "MAKELEVEL"):  # of `make test`, for the make that a test runs
    os.environ.pop(variable, None)
# importing JAX would set it to 1, and processes that tests start would print log lines
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")  # as the stages do, before Keras is imported
if "TFDS_DATA_DIR" in os.environ:  # stages run in folders of their own
    os.environ["TFDS_DATA_DIR"] = str(Path(os.environ["TFDS_DATA_DIR"]).resolve())

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "google-chrome"))), None)
in_browser = pytest.mark.skipif(not CHROMIUM, reason="neither chromium nor google-chrome")


# fixtures that need a browser, Git and DVC, or TensorFlow's converters
SLOW_FIXTURES = {
    "browser", "champion", "clone", "dvc_plots", "look_alikes", "mount", "repository", "server",
}  # fmt: skip


@pytest.hookimpl(tryfirst=True)  # before pytest selects tests by their marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests that use a slow fixture, and move the longest tests to the start.

    Otherwise one worker would still run them after all others have finished.
    """
    for item in items:
        if SLOW_FIXTURES & set(getattr(item, "fixturenames", ())):
            item.add_marker("slow")
    items.sort(key=lambda item: item.path.stem not in ("test_graph", "test_kill"))


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM,
            args=["--no-sandbox", "--disable-background-networking"],  # as root, in CI
        )
        yield browser
        browser.close()


@pytest.fixture(autouse=True)
def restored_state() -> Iterator[None]:
    """Restore the state of this process after each test that later tests would see.

    Stages and commands that run in this process set environment variables, such as KERAS_BACKEND,
    and the precision of TensorFlow on CPUs, which is one for all models.
    """
    with unittest.mock.patch.dict(os.environ):
        yield
    if tensorflow := sys.modules.get("tensorflow"):
        option = {"auto_mixed_precision_onednn_bfloat16": False}
        tensorflow.config.optimizer.set_experimental_options(option)


@pytest.fixture
def committed(tmp_path: Path) -> Callable[[str], Path]:
    """Extract a file or folder of the last commit.

    A run rewrites metrics/, studies/ and more in the working tree, with different numbers on
    another processor. README and docs describe the committed ones.
    """

    def extract(name: str) -> Path:
        if not (REPOSITORY / ".git").exists():
            pytest.skip("a copy without Git, for example from a ZIP file")
        command = ["git", "archive", "--format=zip", "HEAD", name]
        done = subprocess.run(command, cwd=REPOSITORY, capture_output=True)
        assert done.returncode == 0, done.stderr
        with zipfile.ZipFile(io.BytesIO(done.stdout)) as archive:
            archive.extractall(tmp_path / "committed")
        return tmp_path / "committed" / name

    return extract


def write_params(folder: Path) -> None:
    """Write the repository's params.yaml with one seed and the two default models."""
    text = (REPOSITORY / "params.yaml").read_text("utf-8")
    text = re.sub(r"^seeds: .*", "seeds: [0]", text, flags=re.M)
    text = re.sub(r"^compare: .*", "compare: [baseline, batchnorm]", text, flags=re.M)
    (folder / "params.yaml").write_text(text, "utf-8")


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory with the default params.yaml, but only one seed."""
    write_params(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def edit(project: Path) -> Callable[[str, str], None]:
    """Replace text in the settings of the working directory's params.yaml, but not in comments."""

    def replace(old: str, new: str) -> None:
        path = project / "params.yaml"
        text = path.read_text()
        start = text.find(old)
        while "#" in text[text.rfind("\n", 0, start) + 1 : start] and start >= 0:
            start = text.find(old, start + 1)
        assert start >= 0, f"params.yaml has no {old}"
        path.write_text(text[:start] + new + text[start + len(old) :])

    return replace


@pytest.fixture
def stage(project: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a stage as a separate process in the working directory."""

    def run(*argv: str, **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", *argv],
            capture_output=True,
            text=True,
            timeout=120,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY), **env},
        )

    return run


@pytest.fixture
def quick_stage(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a stage as `stage` does, but in this process: its imports take seconds."""

    def run(module: str, *argv: str) -> subprocess.CompletedProcess[str]:
        handler = signal.getsignal(signal.SIGTERM)
        status, message = 0, ""
        try:
            errors.run(lambda: importlib.import_module(module).main([*argv]))
        except SystemExit as stop:
            if isinstance(stop.code, str):
                status, message = 1, f"{stop.code}\n"
            else:
                status = stop.code or 0
        finally:
            signal.signal(signal.SIGTERM, handler)
        out, err = capsys.readouterr()
        return subprocess.CompletedProcess([module, *argv], status, out, err + message)

    return run


@pytest.fixture
def estimates(monkeypatch) -> list[tuple[str, float, float]]:
    """Title, total and number done of each call that estimates the time left."""
    calls: list[tuple[str, float, float]] = []
    monkeypatch.setattr(
        Estimate, "update", lambda self, done: calls.append((self.title, self.total, done))
    )
    return calls


@pytest.fixture
def pretend_gpus(monkeypatch) -> Callable[[list], None]:
    """Let TensorFlow report GPUs of these compute capabilities; it still computes on the CPU."""
    import tensorflow as tf  # takes seconds, and most tests do not need it

    def pretend(capabilities: list) -> None:
        def details(gpu):
            capability = capabilities[int(gpu.name)]
            return {"device_name": "Tesla T4"} | (
                {"compute_capability": capability} if capability else {}
            )

        gpus = [SimpleNamespace(name=str(number)) for number in range(len(capabilities))]
        devices = tf.config.list_physical_devices
        monkeypatch.setattr(
            tf.config, "list_physical_devices",
            lambda kind=None: gpus if kind == "GPU" else devices(kind),
        )  # fmt: skip
        monkeypatch.setattr(tf.config.experimental, "get_device_details", details)

    return pretend


@pytest.fixture
def hostile(tmp_path_factory) -> dict[str, str]:
    """Environment variables, and settings in a home folder, that must not change any result."""
    home = tmp_path_factory.mktemp("hostile")
    (home / ".keras").mkdir()
    (home / ".keras/keras.json").write_text(
        '{"floatx": "float64", "epsilon": 1e-3, "image_data_format": "channels_first", '
        '"backend": "torch", "nnx_enabled": true}'
    )
    (home / ".config/matplotlib").mkdir(parents=True)
    (home / ".config/matplotlib/matplotlibrc").write_text(
        "font.size: 20\ntext.usetex: True\nfigure.dpi: 33\nsavefig.facecolor: red\n"
        "savefig.transparent: True\nimage.cmap: hot\nlines.linewidth: 7\naxes.grid: True\n"
    )
    return {
        "HOME": str(home),
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",
        "FREETYPE_PROPERTIES": "truetype:interpreter-version=35",
        "KERAS_MAX_EPOCHS": "1",
        "KERAS_MAX_STEPS_PER_EPOCH": "1",
        "PYTHONHASHSEED": "1",
        "PYTHONOPTIMIZE": "2",
        "LC_ALL": "POSIX",
        "TZ": "Asia/Kathmandu",
    }


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mount a small file system in memory as `disk` in the working directory."""
    disk = tmp_path / "disk"

    def mount(options: str) -> Path:
        disk.mkdir(exist_ok=True)
        tools = ROOT and shutil.which("mount")
        if not tools or subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "tmpfs", disk], capture_output=True
        ).returncode:  # fmt: skip
            pytest.skip("only root may mount, and not in every container")
        return disk

    yield mount
    if disk.is_mount():
        subprocess.run(["umount", disk], check=True)


def task(count: int = 64) -> tuple[np.ndarray, np.ndarray]:
    """Return dark images of class 0 and bright images of class 1, with their labels."""
    labels = np.arange(count) % 2
    noise = np.random.default_rng(0).random((count, 8, 8, 1), dtype=np.float32)
    return noise * 0.2 + labels[:, None, None, None].astype(np.float32) * 0.8, labels


def write_arrays(folder: Path, images: np.ndarray, labels: np.ndarray) -> None:
    """Write arrays as preprocess does."""
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / "images.npy", images)
    np.save(folder / "labels.npy", labels)
    arrays.seal(folder)
    ids = [f"{folder.name}/{row}.png" for row in range(len(labels))]
    rows.write(folder.parent, folder.name, pa.table({"id": ids}))


def write_predictions(folder: Path, table: pd.DataFrame, classes: list[str]) -> None:
    """Write the predictions of a model for test images, as evaluate does.

    Args:
        folder: data/predictions/MODEL.
        table: seed, actual, predicted, confidence and, optionally, id; the images of each seed in
            order.
        classes: k names.
    """
    k = len(classes)
    for seed, part in table.groupby("seed"):
        confidence = part["confidence"].clip(1 / k + 0.01, 1 - 1e-6).to_numpy()
        probabilities = np.repeat((1 - confidence)[:, None] / (k - 1), k, axis=1)
        predicted = [classes.index(name) for name in part["predicted"]]
        probabilities[np.arange(len(part)), predicted] = confidence
        test = Predictions(
            classes=classes,
            splits=np.full(len(part), "test"),
            ids=np.array(
                part["id"] if "id" in part else [f"{row}.png" for row in range(len(part))]
            ),
            labels=np.array([classes.index(name) for name in part["actual"]]),
            logits=np.log(probabilities).astype(np.float32),
        )
        predictions.write(folder / f"{seed}.parquet", test)


@pytest.fixture
def prepared(project, edit):
    """Arrays and a split of 64 small images, with settings for a short training."""
    images, labels = task()
    write_arrays(project / "arrays/train", images, labels)
    (project / "arrays/info.json").write_text(
        '{"classes": ["dark", "bright"], "image_shape": [8, 8, 1], "normalize": "unit", '
        '"mean": [0.5], "std": [0.5]}'
    )
    (project / "splits").mkdir()
    for name in ("split.npz", "splits/0.npz"):  # of train, and of evaluate
        np.savez(project / name, train=np.arange(48), validation=np.arange(48, 64))
    edit("epochs: 20", "epochs: 2")
    return project


def arguments(model: str, out: str, seed: int = 0) -> list[str]:
    """Return the command line arguments of the train stage."""
    return [
        model, str(seed), "--arrays", "arrays", "--split", "split.npz",
        "--out", f"{out}/model.keras", "--history", f"{out}/history.csv",
        "--metrics", f"{out}/train.json", "--run", f"{out}/run.json",
    ]  # fmt: skip


# command line arguments of the export stage
EXPORT = "--model champion.keras --arrays arrays --out export --metrics export.json".split()


def png(pixels: np.ndarray) -> bytes:
    """Encode `(h, w)` grey or `(h, w, 3)` colour, uint8, as PNG."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def grey(value: int, label: int = 0, id: str = "image", size: tuple[int, int] = (2, 3)) -> Example:
    """Return an image of a single grey value."""
    return Example(png(np.full(size, value, np.uint8)), label, id)


PLAIN = {
    "flip": None,
    "shift": 0.0,
    "crop": 0,
    "crop_fill": "zeros",
    "resized_crop": None,
    "rotation": 0.0,
    "brightness": 0.0,
    "contrast": 0.0,
    "saturation": 0.0,
    "hue": 0.0,
    "rand_augment": 0.0,
    "cutout": 0.0,
}


def settings(**changes: Any) -> Train:
    """Return training settings: simple ones with these changes."""
    defaults = {
        "train_size": None, "epochs": 3, "batch_size": 8, "optimizer": "adam",
        "learning_rate": 0.01, "momentum": 0.0,
        "nesterov": False, "ema_momentum": None, "whiten": False,
        "whiten_bias_epochs": 0, "lookahead": None, "muon_learning_rate": None,
        "batch_norm_beta_learning_rate": 1.0,
        "weight_decay_exclude": ["bias", "beta", "gamma"],
        "weight_decay": None, "schedule": "constant", "warmup_epochs": 0, "gradient_clip": None,
        "gradient_clip_at": 1.0, "loss": "cross_entropy", "label_smoothing": 0.0,
        "class_weights": None, "precision": "float32", "early_stopping": None, "fine_tune": None,
        "augment": PLAIN,
    }  # fmt: skip
    return Train.model_validate({**defaults, **changes})
