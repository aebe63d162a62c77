"""Predict: measure the throughput of a loaded model on the test images.

cnn-pipeline predicts as the evaluate stage does; plain Keras is `predict` on an array, in float32.
Both use all cores, whatever `threads` is.
"""

import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from benchmarks import data
from benchmarks.harness import OURS, Plan, Sample, Variant, Worker, process, python, serve
from pipeline.config.params import load
from pipeline.core import native_log
from pipeline.core.batching import batch_size
from pipeline.data import arrays
from pipeline.runtime import select_backend

QUICK_DIVISOR = 10  # --quick predicts a tenth of the images
BUILD = """
import sys
from pipeline.runtime import backend; from pipeline.training import building
from pipeline.config.schema import Model
from pathlib import Path
model = building.build(Model(architecture=sys.argv[1]), (32, 32, 3), 10, seed=0)
backend.save(model, Path(sys.argv[2]))
"""


def variants(architecture: str, count: int, plan: Plan) -> dict[str, Variant]:
    """Return both ways to predict `count` images, the test images repeated."""
    data.prepare(plan.folder, plan.quick)
    path = plan.folder / f"{architecture}.keras"
    process(python("-c", BUILD, architecture, str(path)), plan.folder)
    rows = np.resize(np.arange(data.SPLITS["test"]), count // (QUICK_DIVISOR if plan.quick else 1))
    args = plan.folder / "data/arrays/test", path, rows
    return {OURS: Worker(ours, *args), "plain Keras": Worker(plain, *args)}


def ours(pipe: Connection, folder: Path, path: Path, rows: np.ndarray) -> None:
    """Predict as the evaluate stage does."""
    params = load()
    select_backend.use(params.backend)
    from pipeline.runtime import acceleration, backend
    from pipeline.runtime.input_pipeline import Batches, Subset

    subset = Subset(*arrays.load(folder), rows)
    precision = acceleration.resolve_precision(params.evaluate.precision)
    model = acceleration.accelerate(backend.load(path), precision)

    def predict() -> None:
        batches = Batches(subset, data.CLASSES, batch_size(subset.images.shape[1:]))
        model.predict(acceleration.as_dataset(batches), verbose=0)

    serve_predictions(pipe, predict, len(rows), precision)


def plain(pipe: Connection, folder: Path, path: Path, rows: np.ndarray) -> None:
    """Predict with plain Keras."""
    with native_log.silenced():
        import keras

    images = arrays.load(folder)[0][rows]
    model = keras.saving.load_model(path)
    serve_predictions(pipe, lambda: model.predict(images, verbose=0), len(rows), "float32")


def serve_predictions(
    pipe: Connection, predict: Callable[[], object], count: int, precision: str
) -> None:
    """Respond to the requests of a `harness.Worker` by predicting all images."""

    def warm_up() -> dict[str, str]:
        predict()
        return {"precision": precision}

    def measure() -> Sample:
        start = time.perf_counter()
        predict()
        return {"images/s": count / (time.perf_counter() - start)}

    serve(pipe, warm_up, measure)
