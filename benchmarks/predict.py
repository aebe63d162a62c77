"""Prediction: images a second of a loaded model, over the test images.

cnn-pipeline is what the evaluate stage does; plain Keras is `predict` on an array, in float32.
"""

import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from benchmarks import data
from benchmarks.harness import OURS, Plan, Sample, process, python, serve, take_turns
from pipeline.config.params import load
from pipeline.core import native_log
from pipeline.core.batching import batch_size
from pipeline.data import arrays
from pipeline.runtime import select_backend

IMAGES = {"batchnorm": 1_000, "baseline": 10_000}
QUICK = 2  # times fewer images
BUILD = """
from pathlib import Path
from pipeline.runtime import backend; from pipeline.training import building
from pipeline.config.schema import Model
for name in ("batchnorm", "baseline"):
    model = building.build(Model(architecture=name), (32, 32, 3), 10, seed=0)
    backend.save(model, Path(name).with_suffix(".keras"))
"""


def measure(plan: Plan) -> list[dict]:
    images = data.prepare(plan.folder, plan.quick)
    process(python("-c", BUILD), plan.folder)
    return [_measure(name, plan, images) for name in IMAGES]


def _measure(name: str, plan: Plan, images: str) -> dict:
    count = IMAGES[name] // (QUICK if plan.quick else 1)
    print(f"  predict {name}: {count:,} images, {images}", flush=True)
    works = {OURS: ours, "plain Keras": plain}
    return take_turns(f"predict {name}", "images/s", works, (plan.folder, name, count), plan.runs)


def ours(pipe: Connection, folder: Path, name: str, count: int) -> None:
    params = load()
    select_backend.use(params.backend)
    from pipeline.runtime import acceleration, backend
    from pipeline.runtime.input_pipeline import Batches, Subset

    images, labels = arrays.load(folder / "data/arrays/test")
    part = Subset(images, labels, np.arange(count))
    precision = acceleration.resolve_precision(params.evaluate.precision)
    model = acceleration.accelerate(backend.load(folder / f"{name}.keras"), precision)

    def predict() -> Sample:
        start = time.perf_counter()
        batches = Batches(part, data.CLASSES, batch_size(part.images.shape[1:]))
        model.predict(acceleration.as_dataset(batches), verbose=0)
        return {"images/s": count / (time.perf_counter() - start)}

    serve(pipe, lambda: warm(predict, precision), lambda: twice(predict))


def plain(pipe: Connection, folder: Path, name: str, count: int) -> None:
    with native_log.silenced():
        import keras

    images = arrays.load(folder / "data/arrays/test")[0][:count]
    model = keras.saving.load_model(folder / f"{name}.keras")

    def predict() -> Sample:
        start = time.perf_counter()
        model.predict(images, verbose=0)
        return {"images/s": count / (time.perf_counter() - start)}

    serve(pipe, lambda: warm(predict, "float32"), lambda: twice(predict))


def warm(predict: Callable[[], Sample], precision: str) -> dict[str, str]:
    predict()
    return {"precision": precision}


def twice(predict: Callable[[], Sample]) -> Sample:
    """Time the second: the first brings back what memory has lost of a process that waited."""
    predict()
    return predict()
