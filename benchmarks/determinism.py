"""Determinism: what it costs that a training repeats to the bit.

The train stage's own `loop.fit` with TensorFlow's op determinism, which it asks for, against the
same without. The other half of repeatability, fused batch normalization, is a gain (`train`).
"""

from multiprocessing.connection import Connection
from pathlib import Path

from benchmarks import data
from benchmarks.harness import OURS, Plan, take_turns
from benchmarks.train import CASES, Case, ours
from pipeline.config.params import load
from pipeline.runtime import select_backend


def measure(plan: Plan) -> list[dict]:
    images = data.prepare(plan.folder, plan.quick)
    ways = {OURS: ours, "without op determinism": without}
    found = []
    for case in CASES:
        title = f"repeat to the bit, {case.model}, batch {case.batch_size}"
        print(f"  {title}: {case.images:,} images an epoch, {images}", flush=True)
        args = (plan.folder / "data/arrays", case)
        found.append(take_turns(title, "images/s", ways, args, plan.runs))
    return found


def without(pipe: Connection, folder: Path, case: Case) -> None:
    select_backend.use(load().backend)
    from pipeline.runtime import backend

    backend._enable_determinism = lambda: None
    ours(pipe, folder, case)
