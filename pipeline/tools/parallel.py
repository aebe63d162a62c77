"""Parallel: run the graph with several models at once (make repro JOBS=2).

    python -m pipeline parallel 2        as `make repro JOBS=2`

Not a stage. DVC allows several `dvc repro` in one folder and lets go of its lock while a command
runs, but collides where two of them look at the same stage (DVC issues 5795, 11054). Here each
runs one stage only, `--single-item`, once all that it depends on is done, and waits for the lock.
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
# What DVC ends each command with. `make repro` says the like once, at the end (summary.py).
ADVICE = re.compile(
    r"To track the changes with git|\tgit add |To enable auto staging|\tdvc config core\.autostage"
    r"|Use `dvc push` to send"
)


class Share(NamedTuple):
    """What one of several models trains on."""

    cores: tuple[int, ...]
    gpu: str | None


def divide_resources(usable: Collection[int], gpus: list[str], jobs: int) -> list[Share]:
    """Divide cores and GPUs: as many cores to each, and one GPU where there are any.

    Raises:
        PipelineError: There are more jobs than cores or GPUs.
    """
    most = min(len(usable), len(gpus) or len(usable))
    if not 1 <= jobs <= most:
        kind = "GPUs" if most == len(gpus) else "cores"
        raise PipelineError(f"JOBS must be in [1, {most}], the number of {kind}. Got {jobs}")
    ordered, each = sorted(usable), len(usable) // jobs
    return [
        Share(tuple(ordered[n * each : (n + 1) * each]), gpus[n] if gpus else None)
        for n in range(jobs)
    ]


def stale_graph(graph: Mapping[str, set[str]], stale: Collection[str]) -> dict[str, set[str]]:
    """Return what is stale and all that follows from it, each with what it waits for.

    Args:
        graph: Each stage with those that it depends on.
        stale: The stages that DVC would run as things are.
    """
    found: dict[str, set[str]] = {}
    for name in TopologicalSorter(graph).static_order():
        waits_for = graph[name] & found.keys()
        if name in stale or waits_for:
            found[name] = waits_for
    return found


def run_all(graph: Mapping[str, set[str]], jobs: int, work: Callable[[str], bool]) -> list[str]:
    """Run `work` on each stage after those it waits for; return those that never succeeded.

    What waits for a stage that fails is left out; all others run.
    """
    left = list(graph)
    sorter = TopologicalSorter(graph)
    sorter.prepare()
    running: dict[Future[bool], str] = {}
    pool = ThreadPoolExecutor(jobs)
    try:
        while True:
            running |= {pool.submit(work, name): name for name in sorter.get_ready()}
            if not running:
                return left
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                name = running.pop(future)
                if future.result():
                    sorter.done(name)
                    left.remove(name)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)  # interrupted: what waits does not begin


def reproduce(stage: str, share: Share | None) -> bool:
    """Run one stage; its lines are printed as they come, behind its name."""
    env = dict(os.environ)
    if share and share.gpu is not None:
        env["CUDA_VISIBLE_DEVICES"] = share.gpu
    with subprocess.Popen(
        [*DVC, "repro", "--single-item", stage],
        env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    ) as process:  # fmt: skip
        if share and hasattr(os, "sched_setaffinity"):  # Linux; TensorFlow has a thread a core
            os.sched_setaffinity(process.pid, share.cores)
        for line in process.stdout or ():
            if line.strip() and not ADVICE.match(line):
                print(f"{stage} | {line}", end="", flush=True)
    return process.returncode == 0


def read(*command: str) -> str:
    done = subprocess.run([*DVC, *command], stdout=subprocess.PIPE, text=True)
    if done.returncode:  # DVC has said why
        sys.exit(done.returncode)
    return done.stdout


def read_graph() -> dict[str, set[str]]:
    """Return the stages of dvc.yaml, without those of studies/, each with what it depends on."""
    dot = read("dag", "--dot")
    graph: dict[str, set[str]] = {name: set() for name in re.findall(r'^"([^":]+)";', dot, re.M)}
    for before, after in re.findall(r'^"([^":]+)" -> "([^":]+)";', dot, re.M):
        graph[after].add(before)
    return graph


def usable_gpus() -> list[str]:
    if (named := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [gpu for gpu in named.split(",") if gpu and gpu != "-1"]
    if not shutil.which("nvidia-smi"):
        return []
    query = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
    done = subprocess.run(query, capture_output=True, text=True)
    return done.stdout.split() if done.returncode == 0 else []


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("jobs", type=int, help="models at once")
    jobs = parser.parse_args(argv).jobs
    free: SimpleQueue[Share] = SimpleQueue()
    for share in divide_resources(cpu.available_cores(), usable_gpus(), jobs):
        free.put(share)

    def work(stage: str) -> bool:
        if "@" not in stage:  # of no single model: all cores
            return reproduce(stage, None)
        share = free.get()
        try:
            return reproduce(stage, share)
        finally:
            free.put(share)

    stale = json.loads(read("status", "--json", "dvc.yaml"))
    if not stale:
        print("Data and pipelines are up to date.")
        return
    graph = stale_graph(read_graph(), stale)
    try:
        left = run_all(graph, jobs, work)
    except KeyboardInterrupt as stop:
        if stop.args:  # a signal to this process alone, unlike Ctrl-C
            for child in psutil.Process().children(recursive=True):
                child.send_signal(signal.SIGINT)
        raise
    if left:
        raise PipelineError(f"not done: {first_few(left)}. The lines above say why")


if __name__ == "__main__":
    run(main)
