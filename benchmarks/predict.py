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
from benchmarks.harness import OURS, Plan, Sample, compare, process, python, serve
from pipeline.config.params import load
from pipeline.core import native_log
from pipeline.core.batching import batch_size
from pipeline.data import arrays
from pipeline.runtime import select_backend

IMAGES = {"batchnorm": 1_000, "baseline": 10_000}
QUICK_DIVISOR = 2  # --quick measures half the images
BUILD = """
from pathlib import Path
from pipeline.runtime import backend; from pipeline.training import building
from pipeline.config.schema import Model
for name in ("batchnorm", "baseline"):
    model = building.build(Model(architecture=name), (32, 32, 3), 10, seed=0)
    backend.save(model, Path(name).with_suffix(".keras"))
"""


def measure(plan: Plan) -> list[dict]:
    """Measure each model of `IMAGES`."""
    images = data.prepare(plan.folder, plan.quick)
    process(python("-c", BUILD), plan.folder)
    return [_measure(name, plan, images) for name in IMAGES]


def _measure(name: str, plan: Plan, images: str) -> dict:
    count = IMAGES[name] // (QUICK_DIVISOR if plan.quick else 1)
    print(f"  predict {name}: {count:,} images, {images}", flush=True)
    variants = {OURS: ours, "plain Keras": plain}
    args = (plan.folder, name, count)
    return compare(f"predict {name}", "images/s", variants, args, plan.runs)


def ours(pipe: Connection, folder: Path, name: str, count: int) -> None:
    """Predict as the evaluate stage does."""
    params = load()
    select_backend.use(params.backend)
    from pipeline.runtime import acceleration, backend
    from pipeline.runtime.input_pipeline import Batches, Subset

    images, labels = arrays.load(folder / "data/arrays/test")
    subset = Subset(images, labels, np.arange(count))
    precision = acceleration.resolve_precision(params.evaluate.precision)
    model = acceleration.accelerate(backend.load(folder / f"{name}.keras"), precision)

    def predict() -> Sample:
        start = time.perf_counter()
        batches = Batches(subset, data.CLASSES, batch_size(images.shape[1:]))
        model.predict(acceleration.as_dataset(batches), verbose=0)
        return {"images/s": count / (time.perf_counter() - start)}

    serve(pipe, lambda: warm_up(predict, precision), lambda: second_of_two(predict))


def plain(pipe: Connection, folder: Path, name: str, count: int) -> None:
    """Predict with plain Keras."""
    with native_log.silenced():
        import keras

    images = arrays.load(folder / "data/arrays/test")[0][:count]
    model = keras.saving.load_model(folder / f"{name}.keras")

    def predict() -> Sample:
        start = time.perf_counter()
        model.predict(images, verbose=0)
        return {"images/s": count / (time.perf_counter() - start)}

    serve(pipe, lambda: warm_up(predict, "float32"), lambda: second_of_two(predict))


def warm_up(predict: Callable[[], Sample], precision: str) -> dict[str, str]:
    """Predict once and return the description of the variant."""
    predict()
    return {"precision": precision}


def second_of_two(predict: Callable[[], Sample]) -> Sample:
    """Return the second of two samples: the first refills the caches of a process that waited."""
    predict()
    return predict()
