"""Commands: `python -m pipeline` lists and runs them; a stage can also be run as a file."""

import re
import subprocess
import sys

import pytest

from pipeline.__main__ import commands
from tests.conftest import REPOSITORY


def run(*argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *argv], cwd=REPOSITORY, capture_output=True, text=True)


def test_each_command_is_listed_on_one_line():
    done = run("-m", "pipeline")
    assert (done.returncode, done.stderr) == (0, "")
    listing = dict(
        re.findall(r"^  (\w+) +(\S.*)$", done.stdout.split("commands:")[1], re.MULTILINE)
    )
    assert {"demo", "doctor", "experiments", "gate", "params", "predict"} <= set(listing)
    assert all(len(f"  {name:<13}{text}") <= 80 for name, text in listing.items())


def test_every_command_in_documentation_makefile_and_ci_exists():
    files = [
        *(REPOSITORY / name for name in ("README.md", "CONTRIBUTING.md", "Makefile")),
        *(REPOSITORY / "docs").glob("*.md"), *(REPOSITORY / ".github/workflows").glob("*.yml"),
    ]  # fmt: skip
    text = "".join(path.read_text("utf-8") for path in files)
    named = set(re.findall(r"python -m pipeline ([a-z_]+)", text))
    assert {"predict", "pull_request", "repro"} <= named <= set(commands())


def test_make_help_fits_in_a_terminal():
    done = subprocess.run(["make", "help"], cwd=REPOSITORY, capture_output=True, text=True)
    lines = done.stdout.splitlines()
    assert len(lines) > 10
    assert [line for line in lines if len(line) > 80] == []


@pytest.mark.parametrize("command", commands())
def test_the_help_of_a_command_shows_how_to_call_it(command):
    done = run("-m", "pipeline", command, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"usage: python -m pipeline {command}")


def test_an_unknown_command_is_refused_with_a_list_of_commands():
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
