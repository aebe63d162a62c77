"""Determinism: measure the cost of TensorFlow's op determinism.

Compares the train stage's `loop.fit`, which enables it, with the same without. Repeatable training
also needs fused batch normalization, which makes it faster (see `train`).
"""

from multiprocessing.connection import Connection
from pathlib import Path

from benchmarks import data
from benchmarks.harness import OURS, Plan, compare
from benchmarks.train import Case, cases, ours
from pipeline.config.params import load
from pipeline.runtime import select_backend


def measure(plan: Plan) -> list[dict]:
    """Measure each case of `train` with and without op determinism."""
    images = data.prepare(plan.folder, plan.quick)
    variants = {OURS: ours, "without op determinism": without_determinism}
    comparisons = []
    for case in cases(plan):
        title = f"repeat to the bit, {case.model}, batch {case.batch_size}"
        print(f"  {title}: {case.images:,} images per epoch, {images}", flush=True)
        args = (plan.folder / "data/arrays", case)
        comparisons.append(compare(title, "images/s", variants, args, plan.runs))
    return comparisons


def without_determinism(pipe: Connection, folder: Path, case: Case) -> None:
    """Train as `train.ours` does, but without op determinism."""
    select_backend.use(load().backend)
    from pipeline.runtime import backend

    backend._enable_determinism = lambda: None
    ours(pipe, folder, case)
