"""Repro: what `make repro` does around the stages, with a stand-in for DVC."""

import os
import signal
import subprocess
import sys
import time

import pytest

from tests.conftest import REPOSITORY


@pytest.fixture
def start(project):
    """Start the command in a process group of its own, with a shell script as `dvc`."""

    def start(script: str) -> subprocess.Popen[str]:
        (project / "data/folder").mkdir(parents=True, exist_ok=True)
        dvc = project / "bin/dvc"
        dvc.parent.mkdir(exist_ok=True)
        dvc.write_text(f"#!/bin/sh\n{script}\n")
        dvc.chmod(0o755)
        path = f"{dvc.parent}{os.pathsep}{os.environ['PATH']}"
        return subprocess.Popen(
            [sys.executable, "-m", "pipeline", "repro", "1"], start_new_session=True,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY), "PATH": path},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    return start


def test_a_mistake_in_params_is_reported_before_dvc_runs(start, edit, project):
    edit("seeds: [0]", "seeds: []")
    process = start("touch called")
    _, stderr = process.communicate()
    assert process.returncode == 1
    assert stderr.startswith("error: params.yaml: seeds ")
    assert not (project / "called").exists()


def test_if_dvc_fails_its_status_is_returned_without_a_summary(start):
    process = start("echo stage failed; exit 3")
    assert process.communicate() == ("stage failed\n", "")
    assert process.returncode == 3


def test_after_ctrl_c_it_waits_until_dvc_has_ended(start, project):
    process = start(
        "trap 'kill $!; sleep 0.6; touch ended; exit 4' INT; touch started; sleep 30 & wait"
    )
    while not (project / "started").exists():
        assert process.poll() is None
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)
    _, stderr = process.communicate()
    assert (process.returncode, stderr) == (4, "")
    assert (project / "ended").exists()
