"""Kill: `dvc repro` is killed in every stage, and ends as if it had never been."""

import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.test_graph import Clone

KEPT = ("data/**/*.*", "models/*.keras", "metrics/*.json", "metrics/t*/*.json", "plots/**/*.*")
RUNNING = re.compile(r"Running stage '([\w@]+)'")


class Repro:
    """A `dvc repro` in a process group of its own."""

    def __init__(self, folder: Path, *stages: str):
        bin = Path(sys.executable).parent
        env = {k: v for k, v in os.environ.items() if not k.startswith(("GIT_", "DVC_"))}
        env |= {"PATH": f"{bin}{os.pathsep}{env['PATH']}", "PYTHONUNBUFFERED": "1"}
        # as `make repro` does: DVC stops at a lock file that it was killed in the middle of
        repair = [sys.executable, "-m", "pipeline.tools.doctor", "--repair"]
        subprocess.run(repair, cwd=folder, env=env, check=True)
        self.process = subprocess.Popen(
            ["dvc", "repro", *stages], cwd=folder, env=env, start_new_session=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip

    def lines(self) -> Iterator[str]:
        assert self.process.stdout
        # not `yield from`, which would close it where somebody leaves
        for line in self.process.stdout:  # noqa: UP028
            yield line
        self.process.stdout.close()

    def kill(self, only_dvc: bool = False) -> None:
        if only_dvc:
            self.process.kill()
        else:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def kill_in(self, stages: set[str], delay: float) -> bool:
        """Kill so many seconds after the first of these stages begins; False: none of them ran."""
        lines = []
        for line in self.lines():
            lines.append(line)
            if (found := RUNNING.search(line)) and found[1] in stages:
                time.sleep(delay)
                self.kill()
                list(self.lines())
                return True
        assert self.process.wait() == 0, "".join(lines[-30:])
        return False


def prepare(folder: Path, alone: bool = False) -> Clone:
    folder.mkdir()
    return Clone(folder, alone, epochs=4)


@pytest.mark.long
def test_killed_in_every_stage_the_results_are_the_same_to_the_bit(tmp_path):
    whole, killed = (prepare(tmp_path / name, alone=True) for name in ("whole", "killed"))
    began: dict[str, float] = {}
    for line in (run := Repro(whole.folder)).lines():
        if found := RUNNING.search(line):
            began[found[1]] = time.perf_counter()
    assert run.process.wait() == 0
    ends = [*list(began.values())[1:], time.perf_counter()]
    order = list(began)

    rng = random.Random(0)
    kills = 0
    for number, (stage, end) in enumerate(zip(order, ends, strict=True)):
        # twice where it takes seconds
        for _ in range(2 if "train" in stage else 1):
            delay = rng.uniform(0, end - began[stage])
            kills += Repro(killed.folder).kill_in(set(order[number:]), delay)
    assert kills >= 10
    last = Repro(killed.folder)
    lines = list(last.lines())
    assert last.process.wait() == 0, "".join(lines[-30:])
    assert killed.repro() == set()
    compare(whole, killed)


@pytest.mark.slow
def test_an_epoch_that_is_done_is_not_trained_again(tmp_path):
    whole, killed = prepare(tmp_path / "whole"), prepare(tmp_path / "killed")
    whole.repro("train@batchnorm")
    run = Repro(killed.folder, "train@batchnorm")
    for line in run.lines():
        if line.startswith("epoch 3/") and run.process.poll() is None:
            run.kill()  # the second is kept, the third perhaps
    # now DVC alone: the training goes on without it, and the next one waits for its end
    run = Repro(killed.folder, "train@batchnorm")
    lines = []
    for line in run.lines():
        lines.append(line)
        if "resuming after epoch" in line:
            left = psutil.Process(run.process.pid).children(recursive=True)
            for process in left:
                process.suspend()  # until the next one is there
            run.kill(only_dvc=True)
            break
    assert re.search("batchnorm: resuming after epoch [23] of 4", lines[-1])
    out = []
    following = Repro(killed.folder, "train@batchnorm")
    for line in following.lines():
        out.append(line)
        if "batchnorm: waiting for another process that trains it" in line:
            for process in left:
                process.resume()
    assert following.process.wait() == 0
    assert "waiting for another" in "".join(out)
    assert "batchnorm: resuming after epoch 4 of 4" in "".join(out)
    assert list(run.lines())[-1].startswith("train: batchnorm: 4 epochs")  # of the first
    compare(whole, killed, "models/batchnorm.keras", "plots/history/batchnorm.csv")


def compare(whole: Clone, killed: Clone, *names: str) -> None:
    expected, found = (clone.read(*(names or KEPT)) for clone in (whole, killed))
    assert len(expected) > 20 or names
    assert [name for name in expected if expected[name] != found.get(name)] == []
    left = [path for path in killed.folder.rglob("*.part.*") if ".dvc" not in path.parts]
    assert left == []
    if not names:
        # but of the last training, which DVC had not recorded yet when it ended
        assert len(list(killed.folder.glob(".checkpoints/*/*/*.npz"))) <= 1
