"""Train: measure the throughput of training after compilation, without validation.

cnn-pipeline is the train stage's `loop.fit` with the settings of params.yaml; plain Keras is `fit`
of the same network on arrays, in float32; PyTorch is the same network in float32 or bfloat16,
whichever is faster on this machine. Each uses all cores, whatever `threads` is.
"""

import importlib
import time
from importlib.util import find_spec
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks import data
from benchmarks.harness import OURS, Plan, Sample, compare, serve
from pipeline.config.params import load
from pipeline.core import native_log
from pipeline.core.files import read_json
from pipeline.data import arrays
from pipeline.runtime import select_backend


class Case(NamedTuple):
    model: str
    batch_size: int
    images: int
    """In an epoch: a few seconds on two cores, short enough to miss most disturbances"""


CASES = (Case("batchnorm", 128, 512), Case("baseline", 128, 10_240), Case("baseline", 32, 5_120))
QUICK_CASES = Case("batchnorm", 128, 256), Case("baseline", 128, 2_560)
VALIDATION = 128  # a few images, since validation is not timed
EPOCHS = 10**6  # more than are measured


def measure(plan: Plan) -> list[dict]:
    """Measure each case with each framework that is installed."""
    images = data.prepare(plan.folder, plan.quick)
    variants = {OURS: ours, "plain Keras": plain}
    if find_spec("torch"):
        variants["PyTorch"] = pytorch
    else:
        print("  PyTorch skipped: `uv sync --inexact --group torch` installs it")
    return [_measure(case, variants, plan, images) for case in cases(plan)]


def cases(plan: Plan) -> tuple[Case, ...]:
    """Return what to train."""
    return QUICK_CASES if plan.quick else CASES


def _measure(case: Case, variants: dict, plan: Plan, images: str) -> dict:
    title = f"train {case.model}, batch {case.batch_size}"
    print(f"  {title}: {case.images:,} images per epoch, {images}", flush=True)
    return compare(title, "images/s", variants, (plan.folder / "data/arrays", case), plan.runs)


def sample_rows(case: Case) -> tuple[np.ndarray, np.ndarray]:
    """Return the row numbers of the training and of the validation images."""
    rows = np.random.default_rng(0).permutation(data.SPLITS["train"])
    return rows[: case.images], rows[-VALIDATION:]


def respond(pipe: Connection, images: int, about: dict[str, str]) -> Any:
    """Return a callback that responds to the requests of a `harness.Worker` during `fit`.

    It trains two epochs per request and times the second: the first refills the caches of a process
    that waited. The first request is the warm-up.
    """
    import keras

    class Respond(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
            if epoch % 2 == 0:
                pipe.recv()
            self.start = time.perf_counter()

        def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
            self.seconds = time.perf_counter() - self.start

        def on_epoch_end(self, epoch: int, logs: dict[str, float]) -> None:
            sample = {"images/s": images / self.seconds, "loss": logs["loss"]}
            if epoch % 2:
                pipe.send(sample if epoch > 1 else about)

    return Respond()


def ours(
    pipe: Connection, folder: Path, case: Case, backend: str = "", precision: str = ""
) -> None:
    """Train as the train stage does.

    Args:
        pipe: To the `harness.Worker`.
        folder: The arrays.
        case: What to train.
        backend: Instead of that of params.yaml, unless empty.
        precision: Instead of that of params.yaml, unless empty.
    """
    params = load()
    select_backend.use(backend or params.backend)
    with native_log.silenced():
        from pipeline.runtime import acceleration
        from pipeline.runtime.input_pipeline import Subset
        from pipeline.training import building, loop

    info = read_json(folder / "info.json")
    shape, classes = info["image_shape"], info["classes"]
    images, labels = arrays.load(folder / "train")
    rows, held_out = sample_rows(case)
    changes: dict[str, Any] = {
        "batch_size": case.batch_size,
        "epochs": EPOCHS,
        "early_stopping": None,
        "fine_tune": None,
    }
    if precision:
        changes["precision"] = precision
    settings = params.train_of(case.model).model_copy(update=changes)
    seed = params.seeds[0]
    model = building.build(params.models[case.model], shape, len(classes), seed)
    about = _about(acceleration.resolve_precision(settings.precision), model.count_params())
    subsets = Subset(images, labels, rows), Subset(images, labels, held_out)
    watch = [respond(pipe, case.images, about)]
    loop.fit(model, *subsets, settings, classes, seed, verbose=False, watch=watch)


def plain(pipe: Connection, folder: Path, case: Case) -> None:
    """Train with plain Keras."""
    with native_log.silenced():
        import keras

    images, labels = arrays.load(folder / "train")
    rows, held_out = sample_rows(case)
    architecture = importlib.import_module(f"pipeline.architectures.{case.model}")
    keras.utils.set_random_seed(0)
    model = architecture.build(images.shape[1:], data.CLASSES)
    model.compile(
        keras.optimizers.Adam(),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    model.fit(
        images[rows],
        labels[rows],
        batch_size=case.batch_size,
        epochs=EPOCHS,
        validation_data=(images[held_out], labels[held_out]),
        callbacks=[respond(pipe, case.images, _about("float32", model.count_params()))],
        verbose=0,
    )


def pytorch(pipe: Connection, folder: Path, case: Case) -> None:
    """Train with PyTorch in the faster precision."""
    from benchmarks.pytorch import Training

    images, labels = arrays.load(folder / "train")
    rows, _ = sample_rows(case)
    training = Training(case.model, images[rows], labels[rows], case.batch_size)

    def epoch(precision: str, count: int) -> Sample:
        start = time.perf_counter()
        loss = training.epoch(precision, count)
        return {"images/s": count / (time.perf_counter() - start), "loss": loss}

    fastest = ""

    def warm_up() -> dict[str, str]:
        nonlocal fastest
        throughput = {}
        for precision in ("float32", "bfloat16"):
            few = case.images // 16  # on Zen 3, emulated bfloat16 takes 27 times as long as float32
            epoch(precision, few)
            throughput[precision] = epoch(precision, few)["images/s"]
        fastest = max(throughput, key=lambda precision: throughput[precision])
        return _about(fastest, training.parameters)

    def measure() -> Sample:
        epoch(fastest, case.images)
        return epoch(fastest, case.images)

    serve(pipe, warm_up, measure)


def _about(precision: str, parameters: int) -> dict[str, str]:
    return {"precision": precision, "parameters": f"{parameters:,}"}
