"""Benchmarks: measure the figures of docs/benchmarks.md.

python -m benchmarks [names]            the default cases, or these: 5 or 7 runs of each variant
python -m benchmarks [names] --quick    two trainings, or these: 3 runs with fewer, random images;
                                        written to results/quick
python -m benchmarks --report           measure nothing; write the page again

Run by name only: jobs and determinism (minutes) and gpu. Three more are modules of their own, such
as `python -m benchmarks.trainings`: trainings, false_alarms and coverage.

Other programs make a measurement worthless: a warning says if they used more than a tenth of a
core, and every sample is stored with the number of cores that they used.

Writes  benchmarks/results/speed/MACHINE.jsonl    a line for each case: every sample, machine and
                                                  versions; other lines stay as they are
        docs/benchmarks.md                        the tables between its markers
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import psutil

from benchmarks import report
from benchmarks.cases import CASES
from benchmarks.harness import REPOSITORY, Plan, Sample, compare, python, with_load
from pipeline.core import cpu
from pipeline.core.errors import PipelineError, run
from pipeline.core.files import atomic_path

RESULTS = Path(__file__).parent / "results"
PAGE = REPOSITORY / "docs/benchmarks.md"
DESCRIBE = """
import json
from pipeline.config.params import load
from pipeline.runtime import select_backend

select_backend.use(load().backend)
from pipeline.runtime import acceleration, backend

print(json.dumps(backend.describe() | {"precision": acceleration.resolve_precision("auto")}))
"""


@cache
def describe() -> dict[str, dict]:
    """Return machine and versions, found in a separate process because it imports Keras.

    The precision of the machine is the one that `precision: auto` selects: bfloat16 only if the
    processor or GPU has instructions for it.
    """
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
        "precision": versions.pop("precision"),
    }
    return {"machine": machine, "versions": versions}


def measure(names: Sequence[str], quick: bool, folder: Path) -> None:
    """Run cases one after another, and store the result of each.

    Args:
        names: Of the cases.
        quick: Whether to measure fewer runs and images.
        folder: The folder to write to.

    Raises:
        PipelineError: A case does not exist.
    """
    for name in names:
        if name not in CASES:
            raise PipelineError(f"names must be of {', '.join(CASES)}. Got {name}")
    if warning := report.warn("before the first case", [with_load(wait)]):
        print(warning, file=sys.stderr)
    machine = describe()["machine"]
    with tempfile.TemporaryDirectory() as temporary:
        plan = Plan(quick, Path(temporary), machine["precision"])
        for name in names:
            case = CASES[name]
            print(f"{name}:", flush=True)
            if not (variants := case.variants(plan)):
                continue
            result = {
                "case": name,
                "title": case.title,
                "unit": case.unit,
                "date": f"{datetime.now(UTC):%Y-%m-%d %H:%M}",
                **describe(),
                **compare(variants, 3 if quick else case.runs),
            }
            samples = [sample for runs in result["samples"].values() for sample in runs]
            if warning := report.warn(name, samples):
                print(warning, file=sys.stderr)
            store(folder / f"{slug(machine)}.jsonl", result)


def wait() -> Sample:
    """Do nothing for two seconds, so that the load is that of other programs."""
    time.sleep(2)
    return {}


def slug(machine: dict) -> str:
    """Return the file name of a machine, such as amd-epyc-2-cores-bfloat16."""
    text = "{device} {cores} cores {precision}".format_map(machine)
    return re.sub("[^a-z0-9]+", "-", text.lower()).strip("-")


def store(path: Path, result: dict) -> None:
    """Write a result to the file of its machine, in place of an older one of the same case."""
    others = report.read(path) if path.exists() else []
    results = [other for other in others if other["case"] != result["case"]] + [result]
    order = list(CASES)
    results.sort(key=lambda line: order.index(line["case"]))
    with atomic_path(path) as temporary:
        temporary.write_text("".join(f"{json.dumps(line)}\n" for line in results), "utf-8")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="benchmarks", description=__doc__ and __doc__.splitlines()[0]
    )
    default = [name for name, case in CASES.items() if case.default]
    parser.add_argument(
        "names", nargs="*", help=f"of {', '.join(CASES)}; default: the first {len(default)}"
    )
    parser.add_argument("--quick", action="store_true", help="measure fewer runs with fewer images")
    parser.add_argument(
        "--report", action="store_true", help="write the page again without measuring"
    )
    args = parser.parse_args(argv)
    if "TFDS_DATA_DIR" in os.environ:  # stages run in other folders
        os.environ["TFDS_DATA_DIR"] = str(Path(os.environ["TFDS_DATA_DIR"]).resolve())
    folder = RESULTS / ("quick" if args.quick else "speed")
    if not args.report:
        quick = [name for name, case in CASES.items() if case.quick]
        measure(args.names or (quick if args.quick else default), args.quick, folder)
    stored = report.read_all(folder)
    report.show(stored)
    if not args.quick:
        report.write_page(PAGE, stored)


if __name__ == "__main__":
    run(main)
