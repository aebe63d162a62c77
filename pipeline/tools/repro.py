"""Repro: run the stages that changed, and print the verdict.

    python -m pipeline repro      as `make repro`: as many at once as GPUs, or as cores have threads
    python -m pipeline repro 2    as `make repro JOBS=2`
    python -m pipeline repro 1    as `make repro JOBS=1`: one by one, with `dvc repro`

Not a stage. One process checks params.yaml, repairs what a killed DVC left, runs the stages and
prints the summary: several processes would each import the same packages.
"""

import argparse
import signal
import subprocess
import sys

from pipeline.config.params import check_folder, load
from pipeline.core.errors import run
from pipeline.tools import doctor, parallel, summary


def run_one_by_one() -> None:
    """Run `dvc repro`; if it fails, exit with its status."""
    sys.stdout.flush()  # what repair printed comes first in a pipe, too
    # Ctrl-C reaches DVC too, which then ends by itself. Not SIG_IGN, which DVC would inherit.
    signal.signal(signal.SIGINT, lambda *_: None)
    process = subprocess.Popen(["dvc", "repro"])
    signal.signal(signal.SIGTERM, lambda *_: process.terminate())  # reaches this process only
    if status := process.wait():
        sys.exit(status)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "jobs", type=int, nargs="?",
        help="stages to run at once; default: as many as GPUs, or as cores have threads for",
    )  # fmt: skip
    jobs = parser.parse_args(argv).jobs
    params = load()
    check_folder(params.folder)
    doctor.repair(params)
    if jobs == 1:
        run_one_by_one()
    else:
        parallel.run_stale(params, jobs)
    summary.main([])


if __name__ == "__main__":
    run(main)
