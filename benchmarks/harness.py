"""Harness: ways to do the same thing, measured in turn, only one of them working at a time."""

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
"""Numbers by their unit, as in {"s": 7.2, "MiB": 465}"""


class Plan(NamedTuple):
    """How to measure."""

    runs: int
    """Of each way, odd"""
    quick: bool
    """Whether fewer images will do"""
    folder: Path
    """Of this run alone, shared by its benchmarks"""


def alternate(ways: Mapping[str, Callable[[], Sample]], runs: int) -> dict[str, list[Sample]]:
    """Measure each way once a run, there and back: A B C, C B A, …

    A machine that slows down steadily so slows down all of them alike.
    """
    samples: dict[str, list[Sample]] = {way: [] for way in ways}
    for run in range(runs):
        for way in list(ways)[:: -1 if run % 2 else 1]:
            sample = ways[way]()
            samples[way].append(sample)
            numbers = "  ".join(f"{value:,.4g} {unit}" for unit, value in sample.items())
            print(f"  run {run + 1}/{runs}  {way}: {numbers}", flush=True)
    return samples


def summarize(
    title: str,
    unit: str,
    samples: dict[str, list[Sample]],
    about: dict[str, dict[str, str]] | None = None,
) -> dict[str, Any]:
    """Set the first way against the others.

    Args:
        title: What is done.
        unit: Which number of the samples.
        samples: Of `alternate`.
        about: What else to know of a way.

    Returns:
        title, unit and n; ways: median, min, max, all samples, and about; against: how many
        times as good the first way is as another: of the medians, and min and max run by run.
    """
    series = {way: [sample[unit] for sample in taken] for way, taken in samples.items()}
    ours, *others = series
    power = 1 if unit in MORE_IS_BETTER else -1
    against = {}
    for other in others:
        each = [(a / b) ** power for a, b in zip(series[ours], series[other], strict=True)]
        medians = statistics.median(series[ours]) / statistics.median(series[other])
        against[other] = {"ratio": medians**power, "min": min(each), "max": max(each)}
    ways = {
        way: {
            "median": statistics.median(values),
            "min": min(values),
            "max": max(values),
            "samples": samples[way],
            **(about or {}).get(way, {}),
        }
        for way, values in series.items()
    }
    n = len(series[ours])
    return {"title": title, "unit": unit, "n": n, "ways": ways, "against": against}


class Worker:
    """A way in a process of its own, which stays alive and waits for its turns.

    Global options of TensorFlow so stay within a way, and what is built once is not timed.
    """

    def __init__(self, work: Callable[..., None], *args: Any):
        """Start the process.

        Args:
            work: Of a module; called with a `Connection` and `args`. For the first message it
                warms up and sends what is to know about it, for each later one a `Sample`.
        """
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=work, args=(theirs, *args), daemon=True)
        self._process.start()
        theirs.close()

    def turn(self) -> Any:
        try:
            self._pipe.send(None)
            return self._pipe.recv()
        except (EOFError, OSError):
            raise PipelineError("a way ended before its turn, with the error above") from None

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.join()


def take_turns(
    title: str, unit: str, works: Mapping[str, Callable[..., None]], args: tuple, runs: int
) -> dict[str, Any]:
    """Alternate workers, once all are warm, and summarize them."""
    with ExitStack() as stack:
        workers = {way: stack.enter_context(Worker(work, *args)) for way, work in works.items()}
        about = {way: worker.turn() for way, worker in workers.items()}
        samples = alternate({way: worker.turn for way, worker in workers.items()}, runs)
    return summarize(title, unit, samples, about)


def serve(
    pipe: Connection, warm_up: Callable[[], dict[str, str]], way: Callable[[], Sample]
) -> None:
    """Be a worker."""
    pipe.recv()
    pipe.send(warm_up())
    while True:
        pipe.recv()
        pipe.send(way())


def process(argv: list[str], folder: Path) -> Sample:
    """Return seconds and peak memory, in MiB, of a process and its children together.

    The memory is what is resident, sampled every 20 ms.

    Raises:
        PipelineError: The process fails.
    """
    env = {**os.environ, "PYTHONPATH": str(REPOSITORY), "TF_CPP_MIN_LOG_LEVEL": "3"}
    log = folder / "log.txt"
    peak = 0
    with log.open("w") as output:
        start = time.perf_counter()
        running = psutil.Popen(argv, cwd=folder, env=env, stdout=output, stderr=output)
        while running.poll() is None:
            peak = max(peak, _resident(running))
            time.sleep(0.02)
        seconds = time.perf_counter() - start
    if running.returncode:
        tail = log.read_text(errors="replace")[-2000:]
        raise PipelineError(f"status {running.returncode} of {' '.join(argv)[:200]}: {tail}")
    return {"s": seconds, "MiB": peak / 2**20}


def _resident(running: psutil.Process) -> int:
    total = 0
    try:
        for each in [running, *running.children(recursive=True)]:
            total += each.memory_info().rss
    except psutil.NoSuchProcess:  # it has just ended
        pass
    return total


def python(*argv: str) -> list[str]:
    return [sys.executable, *argv]
