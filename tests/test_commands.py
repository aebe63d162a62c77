"""Commands: `python -m pipeline` lists them and runs one; a stage's file can be run by itself."""

import re
import subprocess
import sys

import pytest

from pipeline.__main__ import commands
from tests.conftest import REPOSITORY


def run(*argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *argv], cwd=REPOSITORY, capture_output=True, text=True)


def test_commands_are_listed_with_a_line_each():
    done = run("-m", "pipeline")
    assert (done.returncode, done.stderr) == (0, "")
    listed = dict(re.findall(r"^  (\w+) +(\S.*)$", done.stdout.split("commands:")[1], re.MULTILINE))
    assert {"demo", "doctor", "gate", "params", "predict"} <= set(listed)
    assert all(len(f"  {name:<10}{text}") <= 80 for name, text in listed.items())


@pytest.mark.parametrize("command", commands())
def test_a_command_names_itself_as_it_was_called(command):
    done = run("-m", "pipeline", command, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"usage: python -m pipeline {command}")


def test_an_unknown_command_names_those_that_there_are():
    done = run("-m", "pipeline", "predikt")
    assert done.returncode == 2
    assert re.search(r"invalid choice: 'predikt' \(choose from .*predict", done.stderr)


@pytest.mark.slow
@pytest.mark.parametrize(
    "file", sorted(path.name for path in (REPOSITORY / "pipeline").glob("[!_]*.py"))
)
def test_a_stage_can_be_run_as_a_file(file):
    done = run(f"pipeline/{file}", "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"usage: {file} ")
