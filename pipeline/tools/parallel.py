"""Run the stages that changed, several at once.

DVC allows several `dvc repro` in one folder, and releases its lock while a command
runs, but two of them fail if they check the same stage (DVC issues 5795, 11054). Here each runs a
single stage (`--single-item`) after all its dependencies, and waits for the lock.

Each training uses the number of threads in params.yaml, however many run at once, so results do not
depend on it.
"""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from graphlib import TopologicalSorter
from queue import SimpleQueue

import psutil

from pipeline.config.schema import Params
from pipeline.core import cpu
from pipeline.core.errors import PipelineError, first_few
from pipeline.runtime.gpu import explain_missing_group, supports_gpu, usable_gpus
from pipeline.tools.run_progress import RunProgress

DVC = ("dvc", "--wait-for-lock")
# the first line that DVC prints about a stage
STAGE_LINE = re.compile(r"(?:Running stage|Stage) '(.+?)'")
# The command of a stage, which takes several lines of a terminal, and DVC's advice after every
# command; `make repro` prints its own once, at the end (summary.py).
NOT_PRINTED = re.compile(
    r"> |To track the changes with git|\tgit add |To enable auto staging"
    r"|\tdvc config core\.autostage|Use `dvc push` to send"
)


def number_of_jobs(requested: int | None, cores: int, threads: int, gpus: int) -> int:
    """Return how many stages to run at once.

    Args:
        requested: JOBS; None for as many as there are GPUs, or as the cores have threads for.
        cores: Available CPU cores.
        threads: CPU threads of each training.
        gpus: GPUs that the backend can use. If there are any, each job needs one for itself.

    Raises:
        PipelineError: JOBS is less than 1, or more than the GPUs.
    """
    if requested is None:
        return gpus or max(1, cores // threads)
    if requested < 1:
        raise PipelineError(f"JOBS must be at least 1. Got {requested}")
    if 0 < gpus < requested:
        raise PipelineError(f"JOBS must be in [1, {gpus}], the number of GPUs. Got {requested}")
    return requested


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


def leading_stages(graph: Mapping[str, set[str]]) -> list[str]:
    """Return the stages that have to run one after another, before two can run at once."""
    sorter = TopologicalSorter(graph)
    sorter.prepare()
    stages: list[str] = []
    while len(ready := sorter.get_ready()) == 1:
        stages += ready
        sorter.done(*ready)
    return stages


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


def reproduce(stages: Collection[str], gpu: str | None, progress: RunProgress) -> bool:
    """Run stages one after another with `dvc repro` and return whether they succeeded.

    Output is printed as it comes, prefixed with the stage name.

    Args:
        stages: Their names in dvc.yaml, in order.
        gpu: The only GPU that they may use; None: no restriction.
        progress: Prints the output.
    """
    env = dict(os.environ)
    if gpu is not None:
        env["CUDA_VISIBLE_DEVICES"] = gpu
    stage = next(iter(stages))
    progress.start(stage)
    with subprocess.Popen(
        [*DVC, "repro", "--single-item", *stages],
        env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    ) as process:  # fmt: skip
        for line in process.stdout or ():
            if (match := STAGE_LINE.match(line)) and match[1] != stage:
                progress.finish(stage)
                progress.start(stage := match[1])
            if line.strip() and not NOT_PRINTED.match(line):
                progress.show(stage, line)
    progress.finish(stage)
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


def stale_stages() -> list[str]:
    """Return the stages that `dvc status` reports."""
    return list(json.loads(dvc("status", "--json", "dvc.yaml")))


def run_stale(params: Params, requested: int | None) -> None:
    """Run the stages that changed and those that depend on them.

    Args:
        params: params.yaml, as it was read.
        requested: How many at once, as for `number_of_jobs`.

    Raises:
        PipelineError: Some stages did not finish.
    """
    gpus = usable_gpus()
    if gpus and not supports_gpu(params.backend):
        print(explain_missing_group(params.backend))
        gpus = []
    jobs = number_of_jobs(requested, len(cpu.available_cores()), params.threads, len(gpus))
    progress = RunProgress(jobs)
    free: SimpleQueue[str | None] = SimpleQueue()
    for job in range(jobs):
        free.put(gpus[job] if gpus else None)

    def run_stages(*stages: str) -> bool:
        gpu = free.get()
        try:
            return reproduce(stages, gpu, progress)
        finally:
            free.put(gpu)

    if not (changed := stale_stages()):  # asked first: each call of DVC takes a second
        print("Data and pipelines are up to date.")
        return
    graph = read_graph()
    stale = stale_graph(graph, changed)
    try:
        with progress:
            succeeded = True
            progress.plan(stale)
            if leading := leading_stages(stale):
                # One process takes less time than one a stage, and afterwards it is known which of
                # the other stages they affect.
                succeeded = run_stages(*leading)
                stale = stale_graph(graph, stale_stages())
                progress.plan(stale)
            unfinished = run_all(stale, jobs, run_stages) if succeeded else list(stale)
    except KeyboardInterrupt as stop:
        if stop.args:  # SIGTERM reaches this process only; Ctrl-C reaches its children too
            for child in psutil.Process().children(recursive=True):
                child.send_signal(signal.SIGINT)
        raise
    if unfinished:
        raise PipelineError(f"not finished: {first_few(unfinished)}. The lines above say why")
