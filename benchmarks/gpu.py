"""Benchmark: seconds an epoch of batchnorm on CIFAR-10's shape, on JAX, on one GPU.

    python benchmarks/gpu.py [images] [batch size]

Images stay on the device, steps are compiled by XLA; float32 and bfloat16. The images are
noise, which costs as much as any. No figures of a GPU exist yet: it has run on processors only.
"""

import statistics
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from pipeline import engine, params

EPOCHS = 6  # the first of which compiles


def seconds_an_epoch(precision: str, images: int, batch_size: int) -> float:
    """Return the median of all epochs but the first, validation on 256 images included."""
    import keras

    from pipeline import building, fitting
    from pipeline.batches import Part

    class Clock(keras.callbacks.Callback):
        def __init__(self):
            super().__init__()
            self.ends: list[float] = []

        def on_epoch_end(self, epoch: int, logs: dict[str, float]) -> None:
            self.ends.append(time.perf_counter())

    random = np.random.default_rng(0)
    pixels = random.random((images + 256, 32, 32, 3), dtype=np.float32)
    labels = random.integers(0, 10, len(pixels))
    rows = np.arange(len(pixels))
    parts = Part(pixels, labels, rows[:images]), Part(pixels, labels, rows[images:])
    common = params.load()
    own = {"epochs": EPOCHS, "batch_size": batch_size, "precision": precision}
    settings = common.train_of("batchnorm").model_copy(update=own)
    model = building.build(common.models["batchnorm"], pixels.shape[1:], 10, seed=0)
    clock, classes = Clock(), [str(label) for label in range(10)]
    fitting.fit(model, *parts, settings, classes, seed=0, verbose=False, watch=[clock])
    return statistics.median(np.diff(clock.ends))


def main() -> None:
    given = [int(argument) for argument in sys.argv[1:]]
    images, batch_size = given + [50_000, 512][len(given) :]
    engine.use("jax")
    from pipeline import backend

    print(backend.describe())
    for precision in ("float32", "bfloat16"):
        seconds = seconds_an_epoch(precision, images, batch_size)
        print(f"{precision}: {seconds:.2f} s an epoch, {images / seconds:,.0f} images/s")


if __name__ == "__main__":
    main()
