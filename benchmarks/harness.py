"""Harness: measure variants of the same task alternately, one at a time."""

import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from pipeline.core.errors import PipelineError

REPOSITORY = Path(__file__).parents[1]
OURS = "cnn-pipeline"
MORE_IS_BETTER = {"images/s"}

Sample = dict[str, float]
"""Measurements by unit, such as {"s": 7.2, "MiB": 465}"""


class Plan(NamedTuple):
    """How to measure."""

    runs: int
    """Samples of each variant, an odd number"""
    quick: bool
    """Whether to use fewer images"""
    folder: Path
    """A temporary folder that all benchmarks of a run share"""


def alternate(variants: Mapping[str, Callable[[], Sample]], runs: int) -> dict[str, list[Sample]]:
    """Measure each variant once per run, reversing the order after each run: A B C, C B A, …

    If the machine slows down steadily, all variants are affected equally.
    """
    samples: dict[str, list[Sample]] = {name: [] for name in variants}
    for run in range(runs):
        for name in list(variants)[:: -1 if run % 2 else 1]:
            sample = variants[name]()
            samples[name].append(sample)
            numbers = "  ".join(f"{value:,.4g} {unit}" for unit, value in sample.items())
            print(f"  run {run + 1}/{runs}  {name}: {numbers}", flush=True)
    return samples


def summarize(
    title: str,
    unit: str,
    samples: dict[str, list[Sample]],
    about: dict[str, dict[str, str]] | None = None,
) -> dict[str, Any]:
    """Compare the first variant with the others.

    Args:
        title: The task.
        unit: The measurement to compare, a key of the samples.
        samples: As `alternate` returns them.
        about: Further facts about variants, such as the precision.

    Returns:
        title, unit and n, the number of runs; ways: for each variant the median, min, max, samples
        and facts; against: for each other variant, how many times better the first one is: the
        ratio of the medians, and min and max of the ratios of single runs.
    """
    values = {name: [sample[unit] for sample in runs] for name, runs in samples.items()}
    ours, *others = values
    power = 1 if unit in MORE_IS_BETTER else -1
    against = {}
    for other in others:
        ratios = [(a / b) ** power for a, b in zip(values[ours], values[other], strict=True)]
        ratio = (statistics.median(values[ours]) / statistics.median(values[other])) ** power
        against[other] = {"ratio": ratio, "min": min(ratios), "max": max(ratios)}
    ways = {
        name: {
            "median": statistics.median(numbers),
            "min": min(numbers),
            "max": max(numbers),
            "samples": samples[name],
            **(about or {}).get(name, {}),
        }
        for name, numbers in values.items()
    }
    n = len(values[ours])
    return {"title": title, "unit": unit, "n": n, "ways": ways, "against": against}


class Worker:
    """A variant in a separate process, which waits until it is asked for the next sample.

    Each variant can set global options of TensorFlow, and its setup is not timed.
    """

    def __init__(self, work: Callable[..., None], *args: Any):
        """Start the process.

        Args:
            work: A module-level function, called with a `Connection` and `args`. On the first
                message it warms up and sends facts about itself, on each later one a `Sample`.
            args: Its other arguments.
        """
        context = multiprocessing.get_context("spawn")
        self._pipe, child_pipe = context.Pipe()
        self._process = context.Process(target=work, args=(child_pipe, *args), daemon=True)
        self._process.start()
        child_pipe.close()

    def request(self) -> Any:
        """Return the next message of the process: first its facts, then samples.

        Raises:
            PipelineError: The process has ended.
        """
        try:
            self._pipe.send(None)
            return self._pipe.recv()
        except (EOFError, OSError):
            raise PipelineError("a variant ended early. The error is above") from None

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.join()


def compare(
    title: str, unit: str, variants: Mapping[str, Callable[..., None]], args: tuple, runs: int
) -> dict[str, Any]:
    """Measure variants alternately in separate processes, after a warm-up, and summarize them."""
    with ExitStack() as stack:
        workers = {
            name: stack.enter_context(Worker(work, *args)) for name, work in variants.items()
        }
        about = {name: worker.request() for name, worker in workers.items()}
        samples = alternate({name: worker.request for name, worker in workers.items()}, runs)
    return summarize(title, unit, samples, about)


def serve(
    pipe: Connection, warm_up: Callable[[], dict[str, str]], measure: Callable[[], Sample]
) -> None:
    """Answer the requests of a `Worker`, in its process."""
    pipe.recv()
    pipe.send(warm_up())
    while True:
        pipe.recv()
        pipe.send(measure())


def process(argv: list[str], folder: Path) -> Sample:
    """Run a process; return its duration, in s, and its peak memory with all children, in MiB.

    The memory is the resident set size, sampled every 20 ms.

    Raises:
        PipelineError: The process fails.
    """
    env = {**os.environ, "PYTHONPATH": str(REPOSITORY), "TF_CPP_MIN_LOG_LEVEL": "3"}
    log = folder / "log.txt"
    peak = 0
    with log.open("w") as output:
        start = time.perf_counter()
        running = psutil.Popen(argv, cwd=folder, env=env, stdout=output, stderr=output)
        try:
            while running.poll() is None:
                peak = max(peak, _resident(running))
                time.sleep(0.02)
        finally:  # interrupted
            if running.poll() is None:
                running.terminate()
                running.wait()
        seconds = time.perf_counter() - start
    if running.returncode:
        tail = log.read_text(errors="replace")[-2000:]
        raise PipelineError(
            f"{' '.join(argv)[:200]}: must succeed. Got exit status {running.returncode}: {tail}"
        )
    return {"s": seconds, "MiB": peak / 2**20}


def _resident(running: psutil.Process) -> int:
    total = 0
    try:
        for process in [running, *running.children(recursive=True)]:
            total += process.memory_info().rss
    except psutil.NoSuchProcess:  # one has just ended
        pass
    return total


def python(*argv: str) -> list[str]:
    """Return a command line of this Python interpreter."""
    return [sys.executable, *argv]
