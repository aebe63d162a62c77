"""Harness: measure variants of the same task alternately, one at a time."""

import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import psutil

from pipeline.core.errors import PipelineError

REPOSITORY = Path(__file__).parents[1]
OURS = "cnn-pipeline"
NOT_BUSY = ("idle", "iowait", "guest", "guest_nice")  # guest is part of user

Sample = dict[str, float]
"""Measurements by unit, such as {"images/s": 4200, "loss": 1.2}"""


class Plan(NamedTuple):
    """How to measure."""

    quick: bool
    """Whether to use fewer images"""
    folder: Path
    """A temporary folder that all cases share"""
    precision: str
    """That `precision: auto` selects on this machine"""


class Variant(Protocol):
    """One way to do the task of a case."""

    def __enter__(self) -> Any: ...

    def __exit__(self, *_: object) -> None: ...

    def warm_up(self) -> dict[str, str]:
        """Do the task once, untimed, and return facts, such as the precision."""

    def sample(self) -> Sample:
        """Do the task once and measure it."""


class Command:
    """A variant that consists of whole processes, which run one after another."""

    def __init__(
        self, folder: Path, *commands: list[str], before: Callable[[], None] = lambda: None
    ):
        """Args:
        folder: Where to run the commands.
        commands: Command lines.
        before: Called before each sample, untimed.
        """
        self.folder, self.commands, self.before = folder, commands, before

    def __enter__(self) -> "Command":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def warm_up(self) -> dict[str, str]:
        self.sample()  # writes bytecode and fills the file cache
        return {}

    def sample(self) -> Sample:
        self.before()
        return {"s": sum(process(argv, self.folder) for argv in self.commands)}


class Worker:
    """A variant in a process of its own, which waits until it is asked for the next sample.

    Each variant can set global options of TensorFlow, and its setup is not timed.
    """

    def __init__(self, work: Callable[..., None], *args: Any, copies: int = 1, **options: Any):
        """Args:
        work: A module-level function, called with a `Connection` and the other arguments. On the
            first message it warms up and sends facts about itself, on each later one a `Sample`.
        args: Its other arguments.
        copies: Number of processes that do the task at the same time.
        options: Its keyword arguments.
        """
        self.work, self.args, self.copies, self.options = work, args, copies, options

    def __enter__(self) -> "Worker":
        context = multiprocessing.get_context("spawn")
        self._processes, self._pipes = [], []
        for _ in range(self.copies):
            pipe, child_pipe = context.Pipe()
            child = context.Process(
                target=_work, args=(self.work, child_pipe, *self.args), kwargs=self.options
            )
            child.start()
            child_pipe.close()
            self._processes.append(child)
            self._pipes.append(pipe)
        return self

    def __exit__(self, *_: object) -> None:
        for pipe in self._pipes:
            pipe.close()
        for child in self._processes:
            child.join()

    def warm_up(self) -> dict[str, str]:
        return self._request()[0]

    def sample(self) -> Sample:
        samples = self._request()
        if self.copies == 1:
            return samples[0]
        # each does the same work, and all of it is done when the slowest has finished
        return {"images/s": self.copies * min(sample["images/s"] for sample in samples)}

    def _request(self) -> list[Any]:
        """Return the next message of each process.

        Raises:
            PipelineError: A process has ended.
        """
        try:
            for pipe in self._pipes:
                pipe.send(None)
            return [pipe.recv() for pipe in self._pipes]
        except (EOFError, OSError):
            raise PipelineError("a variant ended early. The error is above") from None


def _work(work: Callable[..., None], *args: Any, **options: Any) -> None:
    """Call the function of a `Worker` in its process, until the other end of its pipe is closed."""
    with suppress(EOFError):
        work(*args, **options)


def serve(
    pipe: Connection, warm_up: Callable[[], dict[str, str]], measure: Callable[[], Sample]
) -> None:
    """Respond to the requests of a `Worker`, in its process."""
    pipe.recv()
    pipe.send(warm_up())
    while True:
        pipe.recv()
        pipe.send(measure())


def compare(variants: Mapping[str, Variant], runs: int) -> dict[str, Any]:
    """Warm up variants, and measure them alternately.

    Returns:
        facts, and samples with the load during each, both by variant.
    """
    with ExitStack() as stack:
        for variant in variants.values():
            stack.enter_context(variant)
        facts = {name: variant.warm_up() for name, variant in variants.items()}
        samples = alternate({name: variant.sample for name, variant in variants.items()}, runs)
    return {"facts": facts, "samples": samples}


def alternate(variants: Mapping[str, Callable[[], Sample]], runs: int) -> dict[str, list[Sample]]:
    """Measure each variant once per run, reversing the order after each run: A B C, C B A, …

    If the machine slows down steadily, all variants are affected equally.
    """
    samples: dict[str, list[Sample]] = {name: [] for name in variants}
    for run in range(runs):
        for name in list(variants)[:: -1 if run % 2 else 1]:
            sample = with_load(variants[name])
            samples[name].append(sample)
            numbers = "  ".join(f"{value:,.4g} {unit}" for unit, value in sample.items())
            print(f"  run {run + 1}/{runs}  {name}: {numbers}", flush=True)
    return samples


def with_load(measure: Callable[[], Sample]) -> Sample:
    """Return a sample with the load: the number of cores that other processes used meanwhile."""
    busy, start = busy_elsewhere(), time.perf_counter()
    sample = measure()
    load = (busy_elsewhere() - busy) / (time.perf_counter() - start)
    return sample | {"load": round(max(0.0, load), 2)}


def busy_elsewhere() -> float:
    """Return the processor seconds of all processes except this one and its children, since boot.

    They include the time that a virtual machine's host spent on others.
    """
    total = sum(
        seconds for name, seconds in psutil.cpu_times()._asdict().items() if name not in NOT_BUSY
    )
    own = psutil.Process()
    for running in [own, *own.children(recursive=True)]:
        with suppress(psutil.NoSuchProcess):
            times = running.cpu_times()  # with those of children that have ended
            total -= times.user + times.system + times.children_user + times.children_system
    return total


def process(argv: list[str], folder: Path) -> float:
    """Run a process and return its duration in seconds.

    Raises:
        PipelineError: The process fails.
    """
    path = os.pathsep.join(filter(None, (str(REPOSITORY), os.environ.get("PYTHONPATH"))))
    env = {**os.environ, "PYTHONPATH": path, "TF_CPP_MIN_LOG_LEVEL": "3"}
    start = time.perf_counter()
    done = subprocess.run(
        argv, cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    seconds = time.perf_counter() - start
    if done.returncode:
        tail = done.stdout.decode(errors="replace")[-2000:]
        raise PipelineError(
            f"{' '.join(argv)[:200]}: must succeed. Got exit status {done.returncode}: {tail}"
        )
    return seconds


def python(*argv: str) -> list[str]:
    """Return a command line of this Python interpreter."""
    return [sys.executable, *argv]
