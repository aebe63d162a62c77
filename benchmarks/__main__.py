"""Benchmarks: what docs/benchmarks.md says, measured; one file a benchmark.

python -m benchmarks [names]            all, or these: 7 runs of each way
python -m benchmarks [names] --quick    train, or these: fewer and random images, 3 runs; apart,
                                        in results/quick
python -m benchmarks --report           nothing is measured: table, picture and page again

By name only: jobs and determinism (minutes), accuracy (an hour and more) and gpu.

A benchmark is a file here with `measure(plan) -> list[dict]`, of `harness.summarize`.

Writes  benchmarks/results/NAME.json           every sample, machine and versions; of accuracy,
                                               NAME_MODEL.json
        benchmarks/results/benchmarks.png      all of them in one picture
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
EVERY = (*DEFAULT, "jobs", "determinism", "accuracy", "gpu")
QUICK = ("train",)
RESULTS = Path(__file__).parent / "results"
PAGE = REPOSITORY / "docs/benchmarks.md"
DESCRIBE = (
    "import json; from pipeline.runtime import backend; print(json.dumps(backend.describe()))"
)


@cache
def describe() -> dict[str, dict]:
    """Return machine and versions; in a process of its own, since it imports Keras."""
    said = subprocess.run(python("-c", DESCRIBE), capture_output=True, text=True, check=True)
    versions = json.loads(said.stdout)
    if find_spec("torch"):
        versions["torch"] = version("torch")
    machine = {
        "device": versions.pop("device"),
        "cores": len(cpu.available_cores()),
        "memory_gib": round(psutil.virtual_memory().total / 2**30),
    }
    return {"machine": machine, "versions": versions}


def measure(names: Sequence[str], quick: bool, results: Path) -> None:
    """Run benchmarks one after the other and write what each has measured."""
    for name in names:
        if find_spec(f"benchmarks.{name}") is None:
            raise PipelineError(f"no file benchmarks/{name}.py. There are {', '.join(EVERY)}")
    with tempfile.TemporaryDirectory() as folder:
        plan = Plan(3 if quick else 7, quick, Path(folder))
        for name in names:
            print(f"{name}:", flush=True)
            start = {
                "benchmark": name,
                "date": f"{datetime.now(UTC):%Y-%m-%d %H:%M}",
                "quick": quick,
                "load_at_start": os.getloadavg()[0],
            }
            files: dict[str, list[dict]] = {}
            for done in importlib.import_module(f"benchmarks.{name}").measure(plan):
                # one by one, where they take hours
                file = f"{name}_{done['model']}" if "model" in done else name
                files.setdefault(file, []).append(done)
            for file, comparisons in files.items():
                value = {**start, **describe(), "comparisons": comparisons}
                write_json(results / f"{file}.json", value)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="benchmarks", description=__doc__ and __doc__.splitlines()[0]
    )
    parser.add_argument(
        "names", nargs="*", help=f"of {', '.join(EVERY)}; none: the first {len(DEFAULT)}"
    )
    parser.add_argument("--quick", action="store_true", help="fewer of all")
    parser.add_argument("--report", action="store_true", help="measure nothing")
    args = parser.parse_args(argv)
    if "TFDS_DATA_DIR" in os.environ:  # stages run in folders of their own
        os.environ["TFDS_DATA_DIR"] = str(Path(os.environ["TFDS_DATA_DIR"]).resolve())
    results = RESULTS / "quick" if args.quick else RESULTS
    if not args.report:
        measure(args.names or (QUICK if args.quick else DEFAULT), args.quick, results)
    found = report.read(results)
    report.show(found)
    save(report.draw(found), results / "benchmarks.png")
    if not args.quick:
        report.write_page(PAGE, found)


if __name__ == "__main__":
    run(main)
