"""Parallel: stages that run at once give the results of stages that run one after another."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import yaml

from pipeline.core.errors import INTERRUPTED, PipelineError
from pipeline.tools import parallel
from tests.conftest import REPOSITORY, write_params
from tests.test_graph import Clone

GRAPH = {
    "split": set(),
    "train@a": {"split"},
    "train@b": {"split"},
    "evaluate@a": {"train@a"},
    "evaluate@b": {"train@b"},
    "compare": {"evaluate@a", "evaluate@b"},
}
PARALLEL = """if True:
    from pipeline.config.params import load
    from pipeline.core.errors import run
    from pipeline.tools import parallel
    run(lambda: parallel.run_stale(load(), 2))
"""
TINY = """
stages:
  split:
    cmd: cat seed.txt > split.txt
    deps: [seed.txt]
    outs: [split.txt]
  train:
    foreach: [a, b, c, d]
    do:
      cmd: "test ${item} != $(cat fails.txt) && cat split.txt > models/${item}.txt"
      deps: [split.txt]
      outs: ["models/${item}.txt"]
  compare:
    cmd: cat models/*.txt > compare.txt
    deps: [models]
    outs: [compare.txt]
"""


@pytest.mark.parametrize(
    ("requested", "cores", "threads", "gpus", "jobs"),
    [
        (None, 8, 1, 0, 8),
        (None, 8, 3, 0, 2),
        (None, 1, 2, 0, 1),
        (None, 8, 1, 2, 2),  # a GPU for each
        (3, 2, 1, 0, 3),
        (1, 8, 1, 2, 1),
    ],
)
def test_as_many_stages_run_at_once_as_asked_for_or_as_the_machine_allows(
    requested, cores, threads, gpus, jobs
):
    assert parallel.number_of_jobs(requested, cores, threads, gpus) == jobs


@pytest.mark.parametrize(
    ("requested", "gpus", "message"),
    [
        (0, 0, "JOBS must be at least 1. Got 0"),
        (3, 2, r"JOBS must be in \[1, 2\], the number of GPUs. Got 3"),
    ],
)
def test_no_jobs_and_more_jobs_than_gpus_are_refused(requested, gpus, message):
    with pytest.raises(PipelineError, match=message):
        parallel.number_of_jobs(requested, 8, 1, gpus)


def test_only_stale_stages_and_those_that_depend_on_them_run():
    assert parallel.stale_graph(GRAPH, {"train@b"}) == {
        "train@b": set(),
        "evaluate@b": {"train@b"},
        "compare": {"evaluate@b"},
    }


def test_stages_before_the_first_two_that_can_run_at_once_are_leading():
    assert parallel.leading_stages(GRAPH) == ["split"]
    assert parallel.leading_stages({"a": set(), "b": {"a"}, "c": {"a", "b"}}) == ["a", "b", "c"]
    assert parallel.leading_stages({"a": set(), "b": set(), "c": {"a", "b"}}) == []


def test_models_run_at_once_and_after_their_dependencies():
    barrier = threading.Barrier(2, timeout=10)  # fails unless both models run at once
    order = []

    def run_stage(stage):
        if stage.startswith("train"):
            barrier.wait()
        order.append(stage)
        return True

    assert parallel.run_all(GRAPH, 2, run_stage) == []
    assert order[0] == "split"
    assert order[-1] == "compare"
    assert order.index("train@a") < order.index("evaluate@a")


def test_only_the_stages_that_depend_on_a_failed_stage_do_not_run():
    ran = []

    def run_stage(stage):
        ran.append(stage)
        return stage != "train@a"

    assert parallel.run_all(GRAPH, 2, run_stage) == ["train@a", "evaluate@a", "compare"]
    assert set(ran) == {"split", "train@a", "train@b", "evaluate@b"}


@pytest.mark.slow
def test_dvc_records_all_stages_that_run_at_once(tmp_path):
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    env = {**os.environ, "PATH": path, "PYTHONPATH": str(REPOSITORY), "CUDA_VISIBLE_DEVICES": ""}

    def run(*command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)

    run("git", "init", "-q")
    run("dvc", "init", "-q")
    write_params(tmp_path)
    (tmp_path / "models").mkdir()
    (tmp_path / "dvc.yaml").write_text(TINY)
    (tmp_path / "seed.txt").write_text("1\n")
    (tmp_path / "fails.txt").write_text("c\n")
    command = sys.executable, "-c", PARALLEL

    done = run(*command)
    assert done.returncode == 1
    assert done.stderr == "error: not finished: train@c, compare. The lines above say why\n"
    assert "split | Running stage 'split':\n" in done.stdout
    assert "> cat seed.txt" not in done.stdout  # commands take several lines of a terminal
    assert "train@c | ERROR: failed to reproduce 'train@c'" in done.stdout
    locked = yaml.safe_load((tmp_path / "dvc.lock").read_text())["stages"]
    assert set(locked) == {"split", "train@a", "train@b", "train@d"}

    (tmp_path / "fails.txt").write_text("none\n")
    assert run(*command).returncode == 0
    assert (tmp_path / "compare.txt").read_text() == "1\n1\n1\n1\n"
    assert json.loads(run("dvc", "status", "--json").stdout) == {}
    assert run(*command).stdout == "Data and pipelines are up to date.\n"


SLOW = """
stages:
  train:
    foreach: [a, b, c]
    do: {cmd: "touch started_${item}; exec sleep 300", outs: ["${item}.txt"]}
"""


@pytest.mark.slow
def test_sigterm_stops_the_running_stages_and_starts_no_other(tmp_path):
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    env = {**os.environ, "PATH": path, "PYTHONPATH": str(REPOSITORY), "CUDA_VISIBLE_DEVICES": ""}
    for command in ("git init -q", "dvc init -q"):
        subprocess.run(command.split(), cwd=tmp_path, env=env, check=True)
    write_params(tmp_path)
    (tmp_path / "dvc.yaml").write_text(SLOW)
    process = subprocess.Popen(
        [sys.executable, "-c", PARALLEL],
        cwd=tmp_path, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    while len(list(tmp_path.glob("started_*"))) < 2:
        assert process.poll() is None
        time.sleep(0.1)
    process.terminate()
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert stderr == INTERRUPTED + "\n"
    assert len(list(tmp_path.glob("started_*"))) == 2


ON_ONE_CORE = "import os; os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])\n"


def clone_until_evaluate(folder: Path) -> Clone:
    """Return a clone whose graph ends with evaluate, and has two trainings of baseline."""
    folder.mkdir()
    clone = Clone(folder, alone=True, epochs=3)
    clone.edit("params.yaml", "seeds: [0]", "seeds: [0, 1]")
    graph = yaml.safe_load((folder / "dvc.yaml").read_text())["stages"]
    names = ("inputs", "download", "preprocess", "split", "features", "train", "evaluate")
    (folder / "dvc.yaml").write_text(yaml.safe_dump({"stages": {n: graph[n] for n in names}}))
    return clone


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="cores are chosen on Linux only")
def test_results_depend_neither_on_jobs_nor_on_cores_nor_on_a_kill(tmp_path):
    single, killed = (clone_until_evaluate(tmp_path / name) for name in ("single", "killed"))
    single.repro()

    # two at once on one core until the kill, and then on all cores
    env = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    training = {"train@baseline-0", "train@baseline-1"}
    lines = []
    with subprocess.Popen(
        [sys.executable, "-c", ON_ONE_CORE + PARALLEL], cwd=killed.folder, env=env,
        start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    ) as process:  # fmt: skip
        for line in process.stdout or ():
            lines.append(line)
            if " | epoch 1/3" in line:
                training -= {line.split(" | ")[0]}
            if not training:
                os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL, "".join(lines[-30:])
    killed.run(sys.executable, "-m", "pipeline.tools.doctor", "--repair")
    killed.run(sys.executable, "-c", PARALLEL)
    assert killed.repro() == set()

    # without plots/live, where trainings that run at once add their rows in any order
    outputs = (
        "models/*/*.keras", "metrics/t*/**/*.json",
        "plots/history/**/*.csv", "plots/predictions/*.csv",
    )  # fmt: skip
    expected = single.read(*outputs)
    assert len(expected) == 8  # model, history and metrics of 2 trainings; 2 of evaluate
    assert killed.read(*outputs) == expected

    # two threads, on all cores and on one
    for clone in (single, killed):
        clone.edit("params.yaml", "threads: 1", "threads: 2")
        clone.edit("params.yaml", "compare: [baseline]", "compare: [batchnorm]")
        clone.edit("params.yaml", "seeds: [0, 1]", "seeds: [0]")
    single.repro("train@batchnorm-0")
    command = "os.execlp('dvc', 'dvc', 'repro', 'train@batchnorm-0')"
    killed.run(sys.executable, "-c", ON_ONE_CORE + command)
    expected = single.read(*outputs)
    assert len(expected) == 3
    assert killed.read(*outputs) == expected
