"""Training: images a second once all is compiled, without validation.

cnn-pipeline is the train stage's own `loop.fit` with the settings of params.yaml; plain Keras
is `fit` on arrays of the same network, in float32; PyTorch is the same network again, in float32
or bfloat16, whichever is the faster here.
"""

import importlib
import time
from importlib.util import find_spec
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks import data
from benchmarks.harness import OURS, Plan, Sample, serve, take_turns
from pipeline.config.params import load
from pipeline.core import native_log
from pipeline.core.files import read_json
from pipeline.data import arrays
from pipeline.runtime import select_backend


class Case(NamedTuple):
    model: str
    batch_size: int
    images: int
    """In an epoch: a few seconds on two cores, so that most turns miss what else a machine does"""


CASES = (Case("batchnorm", 128, 512), Case("baseline", 128, 10_240), Case("baseline", 32, 5_120))
QUICK_CASES = Case("batchnorm", 128, 256), Case("baseline", 128, 2_560)
VALIDATION = 128  # as few as a fit takes: not timed
EPOCHS = 10**6  # until the measuring ends


def measure(plan: Plan) -> list[dict]:
    images = data.prepare(plan.folder, plan.quick)
    ways = {OURS: ours, "plain Keras": plain}
    if find_spec("torch"):
        ways["PyTorch"] = pytorch
    else:
        print("  PyTorch is left out: `uv sync --inexact --group torch` installs it")
    cases = QUICK_CASES if plan.quick else CASES
    return [_measure(case, ways, plan, images) for case in cases]


def _measure(case: Case, ways: dict, plan: Plan, images: str) -> dict:
    title = f"train {case.model}, batch {case.batch_size}"
    print(f"  {title}: {case.images:,} images an epoch, {images}", flush=True)
    return take_turns(title, "images/s", ways, (plan.folder / "data/arrays", case), plan.runs)


def draw(case: Case) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows to train with, and to validate with."""
    rows = np.random.default_rng(0).permutation(data.PARTS["train"])
    return rows[: case.images], rows[-VALIDATION:]


def turns(pipe: Connection, images: int, about: dict[str, str]) -> Any:
    """Return a callback that makes two epochs of a fit a turn, and times the second.

    The first brings back what memory has lost of a process that waited. The very first two are
    to warm up.
    """
    import keras

    class Turns(keras.callbacks.Callback):
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

    return Turns()


def ours(
    pipe: Connection, folder: Path, case: Case, backend: str = "", precision: str = ""
) -> None:
    """Args: backend, precision: in place of those of params.yaml."""
    params = load()
    select_backend.use(backend or params.backend)
    with native_log.silenced():
        from pipeline.runtime import acceleration
        from pipeline.runtime.input_pipeline import Subset
        from pipeline.training import building, loop

    info = read_json(folder / "info.json")
    shape, classes = info["image_shape"], info["classes"]
    images, labels = arrays.load(folder / "train")
    rows, held_out = draw(case)
    own: dict[str, Any] = {
        "batch_size": case.batch_size,
        "epochs": EPOCHS,
        "early_stopping": None,
    }
    if precision:
        own["precision"] = precision
    settings = params.train_of(case.model).model_copy(update=own)
    model = building.build(params.all_models[case.model], shape, len(classes), params.seed)
    about = _about(acceleration.resolve_precision(settings.precision), model.count_params())
    parts = Subset(images, labels, rows), Subset(images, labels, held_out)
    watch = [turns(pipe, case.images, about)]
    loop.fit(model, *parts, settings, classes, params.seed, verbose=False, watch=watch)


def plain(pipe: Connection, folder: Path, case: Case) -> None:
    with native_log.silenced():
        import keras

    images, labels = arrays.load(folder / "train")
    rows, held_out = draw(case)
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
        callbacks=[turns(pipe, case.images, _about("float32", model.count_params()))],
        verbose=0,
    )


def pytorch(pipe: Connection, folder: Path, case: Case) -> None:
    from benchmarks.pytorch import Training

    images, labels = arrays.load(folder / "train")
    rows, _ = draw(case)
    training = Training(case.model, images[rows], labels[rows], case.batch_size)

    def epoch(precision: str, count: int) -> Sample:
        start = time.perf_counter()
        loss = training.epoch(precision, count)
        return {"images/s": count / (time.perf_counter() - start), "loss": loss}

    fastest = ""

    def warm_up() -> dict[str, str]:
        nonlocal fastest
        tried = {}
        for precision in ("float32", "bfloat16"):
            few = case.images // 16  # emulated, bfloat16 takes 27 times as long as float32 (Zen 3)
            epoch(precision, few)
            tried[precision] = epoch(precision, few)["images/s"]
        fastest = max(tried, key=lambda precision: tried[precision])
        return _about(fastest, training.parameters)

    def turn() -> Sample:
        epoch(fastest, case.images)
        return epoch(fastest, case.images)

    serve(pipe, warm_up, turn)


def _about(precision: str, parameters: int) -> dict[str, str]:
    return {"precision": precision, "parameters": f"{parameters:,}"}
