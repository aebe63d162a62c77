"""Train: measure the throughput of training, with the validation after each epoch.

cnn-pipeline is the train stage's `loop.fit` with the settings of params.yaml. Plain Keras is `fit`
on arrays, as in its tutorials, also in mixed precision. PyTorch is a usual loop in the same
precision as cnn-pipeline (see `pytorch`). A sample is one epoch after a first one, from its
beginning to the end of its validation, on all cores, whatever `threads` is.
"""

import importlib
import subprocess
import time
from importlib.util import find_spec
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks import data
from benchmarks.harness import OURS, Plan, Sample, Variant, Worker, python, serve
from pipeline.config.params import load
from pipeline.core import cpu, native_log
from pipeline.core.files import read_json
from pipeline.data import arrays
from pipeline.runtime import select_backend

EPOCHS = 10**6  # more than are measured
QUICK_DIVISOR = 10  # --quick trains on a tenth of the images


class Setting(NamedTuple):
    """What to train."""

    model: str
    batch_size: int
    images: int
    """In an epoch; a quarter as many are validated, as with `split.validation: 0.2`"""

    def of(self, plan: Plan) -> "Setting":
        """Return the setting with fewer images if the plan is quick."""
        return self._replace(images=self.images // (QUICK_DIVISOR if plan.quick else 1))

    def rows(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the row numbers of the training and of the validation images.

        Large epochs contain images several times, as if the data set were larger.
        """
        rows = np.random.default_rng(0).permutation(data.SPLITS["train"])
        held_out = len(rows) // 5
        return (
            np.resize(rows[held_out:], self.images),
            np.resize(rows[:held_out], self.images // 4),
        )


def against_others(setting: Setting, plan: Plan) -> dict[str, Variant]:
    """Return each framework that is installed."""
    data.prepare(plan.folder, plan.quick)
    args = plan.folder / "data/arrays", setting.of(plan)
    variants: dict[str, Variant] = {
        OURS: Worker(ours, *args),
        "plain Keras": Worker(plain, *args, "float32"),
    }
    if plan.precision != "float32":
        variants["plain Keras, mixed precision"] = Worker(plain, *args, f"mixed_{plan.precision}")
    if find_spec("torch"):
        variants["PyTorch"] = Worker(pytorch, *args, plan.precision)
    else:
        print("  PyTorch skipped: `uv sync --inexact --group torch` installs it")
    return variants


def side_by_side(setting: Setting, plan: Plan) -> dict[str, Variant]:
    """Return two trainings at once, each on half of the cores, and one on all cores."""
    data.prepare(plan.folder, plan.quick)
    args = plan.folder / "data/arrays", setting.of(plan)
    half = max(1, len(cpu.available_cores()) // 2)
    return {
        OURS: Worker(ours, *args, copies=2, threads=half),
        "one after the other, on all cores": Worker(ours, *args),
    }


def determinism(setting: Setting, plan: Plan) -> dict[str, Variant]:
    """Return training with TensorFlow's op determinism and without.

    Both use fused batch normalization, which repeatable training needs too.
    """
    data.prepare(plan.folder, plan.quick)
    args = plan.folder / "data/arrays", setting.of(plan)
    return {
        OURS: Worker(ours, *args),
        "without op determinism": Worker(ours, *args, deterministic=False),
    }


def gpu(setting: Setting, plan: Plan) -> dict[str, Variant]:
    """Return training with JAX on a GPU, if there is one, and with PyTorch, if it is installed."""
    find = python("-c", "import jax; print(jax.default_backend())")
    done = find_spec("jax") and subprocess.run(find, capture_output=True, text=True)
    if not done or done.stdout.strip() != "gpu":
        print("  skipped: JAX finds no GPU. `uv sync --inexact --group jax-cuda` installs support")
        return {}
    data.prepare(plan.folder)
    args = plan.folder / "data/arrays", setting.of(plan)
    variants: dict[str, Variant] = {OURS: Worker(ours, *args, backend_name="jax")}
    if find_spec("torch"):
        variants["PyTorch"] = Worker(pytorch, *args, plan.precision)
    return variants


def respond(pipe: Connection, images: int, facts: dict[str, str]) -> Any:
    """Return a callback that responds to the requests of a `harness.Worker` during `fit`.

    Each request is an epoch; the first is the warm-up.
    """
    import keras

    class Respond(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
            pipe.recv()
            self.start = time.perf_counter()

        def on_epoch_end(self, epoch: int, logs: dict[str, float]) -> None:
            seconds = time.perf_counter() - self.start
            pipe.send(throughput(images, seconds, logs) if epoch else facts)

    return Respond()


def throughput(images: int, seconds: float, logs: dict[str, float]) -> Sample:
    """Return the training images per second, and both losses, as a check of the training."""
    return {"images/s": images / seconds, "loss": logs["loss"], "val_loss": logs["val_loss"]}


def ours(
    pipe: Connection,
    folder: Path,
    setting: Setting,
    *,
    threads: int | None = None,
    deterministic: bool = True,
    backend_name: str | None = None,
) -> None:
    """Train as the train stage does.

    Args:
        pipe: To the `harness.Worker`.
        folder: The arrays.
        setting: What to train.
        threads: As in params.yaml; None: one for each core.
        deterministic: Whether to use op determinism, as the stage does.
        backend_name: Instead of `backend` of params.yaml.
    """
    params = load()
    select_backend.use(backend_name or params.backend, threads)
    with native_log.silenced():
        from pipeline.runtime import acceleration, backend
        from pipeline.runtime.input_pipeline import Subset
        from pipeline.training import building, loop

    if not deterministic:
        backend._enable_determinism = lambda: None
    info = read_json(folder / "info.json")
    shape, classes = info["image_shape"], info["classes"]
    images, labels = arrays.load(folder / "train")
    settings = params.train_of(setting.model)
    settings = settings.model_copy(
        update={
            "batch_size": setting.batch_size,
            "epochs": EPOCHS,
            "early_stopping": None,
            "fine_tune": None,
        }
    )
    seed = params.seeds[0]
    model = building.build(params.models[setting.model], shape, len(classes), seed)
    facts = describe(acceleration.resolve_precision(settings.precision), model.count_params())
    train, validation = (Subset(images, labels, rows) for rows in setting.rows())
    watch = [respond(pipe, setting.images, facts)]
    loop.fit(model, train, validation, settings, classes, seed, verbose=False, watch=watch)


def plain(pipe: Connection, folder: Path, setting: Setting, policy: str) -> None:
    """Train with plain Keras in a dtype policy."""
    with native_log.silenced():
        import keras

    keras.config.set_dtype_policy(policy)
    images, labels = arrays.load(folder / "train")
    rows, held_out = setting.rows()
    architecture = importlib.import_module(f"pipeline.architectures.{setting.model}")
    keras.utils.set_random_seed(0)
    model = architecture.build(images.shape[1:], data.CLASSES)
    model.compile(
        "adam",
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    precision = policy.removeprefix("mixed_")
    model.fit(
        images[rows],
        labels[rows],
        batch_size=setting.batch_size,
        epochs=EPOCHS,
        validation_data=(images[held_out], labels[held_out]),
        callbacks=[respond(pipe, setting.images, describe(precision, model.count_params()))],
        verbose=0,
    )


def pytorch(pipe: Connection, folder: Path, setting: Setting, precision: str) -> None:
    """Train with PyTorch, compiled if that is faster."""
    from benchmarks.pytorch import Training

    images, labels = arrays.load(folder / "train")
    train, validation = ((images[rows], labels[rows]) for rows in setting.rows())
    training = Training(setting.model, train, validation, setting.batch_size, precision)

    def warm_up() -> dict[str, str]:
        modes = training.select_mode()
        training.epoch()
        return {**describe(precision, training.parameters), **modes}

    def measure() -> Sample:
        start = time.perf_counter()
        logs = training.epoch()
        return throughput(setting.images, time.perf_counter() - start, logs)

    serve(pipe, warm_up, measure)


def describe(precision: str, parameters: int) -> dict[str, str]:
    """Return the facts about a variant that trains a network."""
    return {"precision": precision, "parameters": f"{parameters:,}"}
