"""Benchmarks: measure the figures of docs/benchmarks.md.

python -m benchmarks [names]            the default benchmarks, or these: 7 runs of each variant
python -m benchmarks [names] --quick    train, or these: 3 runs with fewer, random images; written
                                        to results/quick
python -m benchmarks --report           measure nothing; write table, picture and page again

Run by name only: jobs and determinism (minutes) and gpu. Three more are modules of their own, such
as `python -m benchmarks.trainings`: trainings, false_alarms and coverage.

Each benchmark is a file of this package that defines `measure(plan) -> list[dict]`, a list of
results of `harness.summarize`.

Writes  benchmarks/results/NAME.json           every sample, machine and versions
        benchmarks/results/benchmarks.png      all results in one picture
        docs/benchmarks.md                     the table between its markers
"""

import argparse
import importlib
import json
import os
import subprocess
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import psutil

from benchmarks import report
from benchmarks.harness import REPOSITORY, Plan, python
from pipeline.core import cpu
from pipeline.core.errors import PipelineError, run
from pipeline.core.files import write_json
from pipeline.reporting.drawing import save

DEFAULT = ("train", "predict", "startup", "preprocess", "repro")
BENCHMARKS = (*DEFAULT, "jobs", "determinism", "gpu")
QUICK = ("train",)
RESULTS = Path(__file__).parent / "results"
PAGE = REPOSITORY / "docs/benchmarks.md"
DESCRIBE = """
import json
from pipeline.config.params import load
from pipeline.runtime import select_backend

select_backend.use(load().backend)
from pipeline.runtime import backend

print(json.dumps(backend.describe()))
"""


@cache
def describe() -> dict[str, dict]:
    """Return machine and versions, found in a separate process because it imports Keras."""
    done = subprocess.run(
        python("-c", DESCRIBE), cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    versions = json.loads(done.stdout)
    if find_spec("torch"):
        versions["torch"] = version("torch")
    machine = {
        "device": versions.pop("device"),
        "cores": len(cpu.available_cores()),
        "memory_gib": round(psutil.virtual_memory().total / 2**30),
    }
    return {"machine": machine, "versions": versions}


def measure(names: Sequence[str], quick: bool, results: Path) -> None:
    """Run benchmarks one after another and write the results of each.

    Args:
        names: Of the benchmarks.
        quick: Whether to measure fewer runs and images.
        results: The folder to write to.

    Raises:
        PipelineError: A benchmark does not exist.
    """
    for name in names:
        if name not in BENCHMARKS:
            raise PipelineError(f"names must be of {', '.join(BENCHMARKS)}. Got {name}")
    with tempfile.TemporaryDirectory() as folder:
        plan = Plan(3 if quick else 7, quick, Path(folder))
        for name in names:
            print(f"{name}:", flush=True)
            header = {
                "benchmark": name,
                "date": f"{datetime.now(UTC):%Y-%m-%d %H:%M}",
                "quick": quick,
                "load_at_start": os.getloadavg()[0],
            }
            if comparisons := importlib.import_module(f"benchmarks.{name}").measure(plan):
                value = {**header, **describe(), "comparisons": comparisons}
                write_json(results / f"{name}.json", value)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="benchmarks", description=__doc__ and __doc__.splitlines()[0]
    )
    parser.add_argument(
        "names", nargs="*", help=f"of {', '.join(BENCHMARKS)}; default: the first {len(DEFAULT)}"
    )
    parser.add_argument("--quick", action="store_true", help="measure fewer runs with fewer images")
    parser.add_argument(
        "--report", action="store_true", help="write the report again without measuring"
    )
    args = parser.parse_args(argv)
    if "TFDS_DATA_DIR" in os.environ:  # stages run in other folders
        os.environ["TFDS_DATA_DIR"] = str(Path(os.environ["TFDS_DATA_DIR"]).resolve())
    results = RESULTS / "quick" if args.quick else RESULTS
    if not args.report:
        measure(args.names or (QUICK if args.quick else DEFAULT), args.quick, results)
    stored = report.read(results)
    report.show(stored)
    save(report.draw(stored), results / "benchmarks.png")
    if not args.quick:
        report.write_page(PAGE, stored)


if __name__ == "__main__":
    run(main)
