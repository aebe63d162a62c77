"""Parallel: run the graph with several models at once (make repro JOBS=2).

    python -m pipeline parallel 2        as `make repro JOBS=2`

Not a stage. DVC allows several `dvc repro` in one folder, and releases its lock while a command
runs, but two of them fail if they check the same stage (DVC issues 5795, 11054). Here each runs a
single stage (`--single-item`) after all its dependencies, and waits for the lock.
"""

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from graphlib import TopologicalSorter
from queue import SimpleQueue
from typing import NamedTuple

import psutil

from pipeline.core import cpu
from pipeline.core.errors import PipelineError, first_few, run

DVC = ("dvc", "--wait-for-lock")
# DVC's advice after every command; `make repro` prints its own once, at the end (summary.py).
ADVICE = re.compile(
    r"To track the changes with git|\tgit add |To enable auto staging|\tdvc config core\.autostage"
    r"|Use `dvc push` to send"
)


class Resources(NamedTuple):
    """The CPU cores and the GPU that one job may use."""

    cores: tuple[int, ...]
    gpu: str | None


def divide_resources(cores: Collection[int], gpus: list[str], jobs: int) -> list[Resources]:
    """Give each job the same number of cores, and one GPU if there are any.

    Raises:
        PipelineError: There are more jobs than cores or GPUs.
    """
    limit = min(len(cores), len(gpus) or len(cores))
    if not 1 <= jobs <= limit:
        kind = "GPUs" if limit == len(gpus) else "cores"
        raise PipelineError(f"JOBS must be in [1, {limit}], the number of {kind}. Got {jobs}")
    ordered, count = sorted(cores), len(cores) // jobs
    return [
        Resources(tuple(ordered[n * count : (n + 1) * count]), gpus[n] if gpus else None)
        for n in range(jobs)
    ]


def stale_graph(graph: Mapping[str, set[str]], stale: Collection[str]) -> dict[str, set[str]]:
    """Return the subgraph of the stale stages and all stages that depend on them.

    Args:
        graph: The dependencies of each stage.
        stale: The stages that `dvc status` reports.
    """
    subgraph: dict[str, set[str]] = {}
    for name in TopologicalSorter(graph).static_order():
        dependencies = graph[name] & subgraph.keys()
        if name in stale or dependencies:
            subgraph[name] = dependencies
    return subgraph


def run_all(
    graph: Mapping[str, set[str]], jobs: int, run_stage: Callable[[str], bool]
) -> list[str]:
    """Run each stage after its dependencies, several at once; return those that did not succeed.

    If a stage fails, the stages that depend on it do not run; all others do.

    Args:
        graph: The dependencies of each stage.
        jobs: How many stages run at once.
        run_stage: Runs a stage and returns whether it succeeded.
    """
    unfinished = list(graph)
    sorter = TopologicalSorter(graph)
    sorter.prepare()
    running: dict[Future[bool], str] = {}
    pool = ThreadPoolExecutor(jobs)
    try:
        while True:
            running |= {pool.submit(run_stage, name): name for name in sorter.get_ready()}
            if not running:
                return unfinished
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                name = running.pop(future)
                if future.result():
                    sorter.done(name)
                    unfinished.remove(name)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)  # after Ctrl-C no further stage starts


def reproduce(stage: str, resources: Resources | None) -> bool:
    """Run one stage with `dvc repro` and return whether it succeeded.

    Its output is printed as it comes, prefixed with the stage name.

    Args:
        stage: Its name in dvc.yaml.
        resources: To restrict it to; None restricts it to nothing.
    """
    env = dict(os.environ)
    if resources and resources.gpu is not None:
        env["CUDA_VISIBLE_DEVICES"] = resources.gpu
    with subprocess.Popen(
        [*DVC, "repro", "--single-item", stage],
        env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    ) as process:  # fmt: skip
        if resources and hasattr(os, "sched_setaffinity"):  # Linux; TensorFlow: a thread per core
            os.sched_setaffinity(process.pid, resources.cores)
        for line in process.stdout or ():
            if line.strip() and not ADVICE.match(line):
                print(f"{stage} | {line}", end="", flush=True)
    return process.returncode == 0


def dvc(*command: str) -> str:
    """Run a DVC command and return its output; if it fails, exit with its status."""
    done = subprocess.run([*DVC, *command], stdout=subprocess.PIPE, text=True)
    if done.returncode:  # DVC has printed the reason
        sys.exit(done.returncode)
    return done.stdout


def read_graph() -> dict[str, set[str]]:
    """Return the dependencies of each stage of dvc.yaml, without the stages of studies/."""
    dot = dvc("dag", "--dot")
    graph: dict[str, set[str]] = {name: set() for name in re.findall(r'^"([^":]+)";', dot, re.M)}
    for before, after in re.findall(r'^"([^":]+)" -> "([^":]+)";', dot, re.M):
        graph[after].add(before)
    return graph


def usable_gpus() -> list[str]:
    """Return the indices or UUIDs of the NVIDIA GPUs that this process may use."""
    if (visible := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [gpu for gpu in visible.split(",") if gpu and gpu != "-1"]
    if not shutil.which("nvidia-smi"):
        return []
    query = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
    done = subprocess.run(query, capture_output=True, text=True)
    return done.stdout.split() if done.returncode == 0 else []


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("jobs", type=int, help="number of models to run at once")
    jobs = parser.parse_args(argv).jobs
    free: SimpleQueue[Resources] = SimpleQueue()
    for resources in divide_resources(cpu.available_cores(), usable_gpus(), jobs):
        free.put(resources)

    def run_stage(stage: str) -> bool:
        if "@" not in stage:  # not a stage of a single model: it uses all cores
            return reproduce(stage, None)
        resources = free.get()
        try:
            return reproduce(stage, resources)
        finally:
            free.put(resources)

    stale = json.loads(dvc("status", "--json", "dvc.yaml"))
    if not stale:
        print("Data and pipelines are up to date.")
        return
    graph = stale_graph(read_graph(), stale)
    try:
        unfinished = run_all(graph, jobs, run_stage)
    except KeyboardInterrupt as stop:
        if stop.args:  # SIGTERM reaches this process only; Ctrl-C reaches its children too
            for child in psutil.Process().children(recursive=True):
                child.send_signal(signal.SIGINT)
        raise
    if unfinished:
        raise PipelineError(f"not finished: {first_few(unfinished)}. The lines above say why")


if __name__ == "__main__":
    run(main)
