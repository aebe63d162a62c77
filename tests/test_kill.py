"""Kill: a `dvc repro` that was killed in every stage ends with the same results."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import psutil
import pytest

from tests.test_graph import Clone

OUTPUTS = (
    "data/**/*.*", "models/**/*.keras", "metrics/*.json", "metrics/t*/**/*.json", "plots/**/*.*",
)  # fmt: skip
RUNNING = re.compile(r"Running stage '([\w@-]+)'")


class Repro:
    """A `dvc repro` in a process group of its own."""

    def __init__(self, folder: Path, *stages: str):
        bin = Path(sys.executable).parent
        env = {k: v for k, v in os.environ.items() if not k.startswith(("GIT_", "DVC_"))}
        env |= {"PATH": f"{bin}{os.pathsep}{env['PATH']}", "PYTHONUNBUFFERED": "1"}
        # as `make repro` does: DVC refuses a lock file that it was killed while writing
        repair = [sys.executable, "-m", "pipeline.tools.doctor", "--repair"]
        subprocess.run(repair, cwd=folder, env=env, check=True)
        self.process = subprocess.Popen(
            ["dvc", "repro", *stages], cwd=folder, env=env, start_new_session=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip

    def lines(self) -> Iterator[str]:
        assert self.process.stdout
        # `yield from` would close the pipe when a caller stops reading
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
        """Kill `delay` seconds after the first of these stages starts; return whether one ran."""
        lines = []
        for line in self.lines():
            lines.append(line)
            if (match := RUNNING.search(line)) and match[1] in stages:
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
def test_after_a_kill_in_every_stage_the_results_are_the_same_bytes(tmp_path):
    whole, killed = (prepare(tmp_path / name, alone=True) for name in ("whole", "killed"))
    starts: dict[str, float] = {}
    for line in (run := Repro(whole.folder)).lines():
        if match := RUNNING.search(line):
            starts[match[1]] = time.perf_counter()
    assert run.process.wait() == 0
    ends = [*list(starts.values())[1:], time.perf_counter()]
    order = list(starts)

    rng = random.Random(0)
    kills = 0
    for number, (stage, end) in enumerate(zip(order, ends, strict=True)):
        # twice in training, which takes seconds
        for _ in range(2 if "train" in stage else 1):
            delay = rng.uniform(0, end - starts[stage])
            kills += Repro(killed.folder).kill_in(set(order[number:]), delay)
    assert kills >= 10
    last = Repro(killed.folder)
    lines = list(last.lines())
    assert last.process.wait() == 0, "".join(lines[-30:])
    assert killed.repro() == set()
    expected, actual = whole.read(*OUTPUTS), killed.read(*OUTPUTS)
    assert len(expected) > 20
    assert [name for name in expected if expected[name] != actual.get(name)] == []
    assert temporary_files(killed) == []
    # at most that of the last training, which DVC had not recorded when it ended
    assert len(list(killed.folder.glob(".checkpoints/*/*/*.npz"))) <= 1


@pytest.mark.slow
def test_a_finished_epoch_is_not_trained_again(tmp_path):
    killed = prepare(tmp_path / "killed")
    killed.commit("start")
    run = Repro(killed.folder, "train@batchnorm-0")
    for line in run.lines():
        if line.startswith("epoch 3/") and run.process.poll() is None:
            run.kill()  # epoch 2 has a checkpoint, epoch 3 perhaps
    # now kill DVC only: the training continues without it, and the next one waits for it
    run = Repro(killed.folder, "train@batchnorm-0")
    lines = []
    for line in run.lines():
        lines.append(line)
        if "resuming after epoch" in line:
            children = psutil.Process(run.process.pid).children(recursive=True)
            for process in children:
                process.suspend()  # until the next one waits
            drawn = live_points(killed)
            run.kill(only_dvc=True)
            break
    assert re.search("batchnorm-0: resuming after epoch [23] of 4", lines[-1])
    assert list(drawn["epoch"]) in ([1, 2], [1, 2, 3])
    output = []
    following = Repro(killed.folder, "train@batchnorm-0")
    for line in following.lines():
        output.append(line)
        if "batchnorm-0: waiting for another process that trains it" in line:
            for process in children:
                process.resume()
    assert following.process.wait() == 0
    assert "waiting for another" in "".join(output)
    assert "batchnorm-0: resuming after epoch 4 of 4" in "".join(output)
    *_, last = run.lines()  # of the first training
    assert last.startswith("train: batchnorm, seed 0: 4 epochs")
    assert temporary_files(killed) == []
    outputs = "models/batchnorm/0.keras", "plots/history/batchnorm/0.csv"
    results = killed.read(*outputs)
    history = pd.read_csv(killed.folder / outputs[1])
    # without a gap or a double point, and the same points as before
    assert list(live_points(killed)["accuracy"]) == list(history["val_accuracy"])
    assert list(drawn["accuracy"]) == list(history["val_accuracy"])[: len(drawn)]
    assert "resuming" not in killed.run("dvc", "repro", "-f", "-s", "train@batchnorm-0")
    assert killed.read(*outputs) == results


def live_points(clone: Clone) -> pd.DataFrame:
    """Return the validation accuracy that the extension of VS Code draws, from its command."""
    out = clone.run("dvc", "plots", "diff", "-o", ".dvc/tmp/plots", "--split", "--json")
    (chart,) = json.loads(out)["data"]["plots/live/accuracy.csv"]
    points = pd.DataFrame(chart["anchor_definitions"]["<DVC_METRIC_DATA>"])
    # the files that it watches
    assert set(points["filename"]) == {"plots/live/accuracy.csv"}
    points = points[points["split"] == "validation"]
    return points.astype({"epoch": int, "accuracy": float})


def temporary_files(clone: Clone) -> list[Path]:
    return [path for path in clone.folder.rglob("*.part.*") if ".dvc" not in path.parts]
