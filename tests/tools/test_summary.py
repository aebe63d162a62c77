"""Summary: the last lines of `make repro`, with real make, Git and DVC."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from pipeline.tools import summary
from tests.conftest import REPOSITORY

# replaces compare and report
GRAPH = """
stages:
  compare:
    cmd: mkdir -p metrics && cp comparison.json champion.json metrics
    deps: [comparison.json, champion.json]
    outs:
      - metrics/comparison.json: {cache: false}
      - metrics/champion.json: {cache: false}
  report:
    cmd: mkdir -p plots && cp comparison.json plots/report.html
    deps: [comparison.json]
    outs: [plots/report.html]
"""
VERDICT = "b is better than a by 20.0 points."
EXPECTED = (
    "This is expected: each run is recorded there, and results differ slightly between types of "
    "processor. Commit the changes to keep them, or undo them with `git restore dvc.lock metrics "
    "data/inputs`."
)


def run(folder: Path, *argv: str) -> str:
    env = {k: v for k, v in os.environ.items() if not k.startswith(("GIT_", "DVC_", "MAKE"))}
    env |= {"PYTHONPATH": str(REPOSITORY), "BROWSER": "true"}  # a browser that shows nothing
    env["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{env['PATH']}"
    done = subprocess.run(argv, cwd=folder, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def write_result(folder: Path, difference: float) -> None:
    sentence = f"better than a by {100 * difference:.1f} points"
    row = {"parameters": 7, "trainings": 1, "val_accuracy": 0.8, "accuracy": 0.7}
    row |= {"accuracy_low": 0.6, "accuracy_high": 0.8}
    against: dict[str, object] = {
        "difference": difference,
        "difference_low": 0.05,
        "difference_high": 0.4,
    }
    against |= {"p_holm": 0.01, "verdict": "better", "sentence": sentence}
    models = [{"model": "a", **row}, {"model": "b", **row, "val_accuracy": 0.9, **against}]
    comparison = {"reference": "a", "level": 0.95, "models": models}
    (folder / "comparison.json").write_text(json.dumps(comparison))
    (folder / "champion.json").write_text('{"model": "b"}')


@pytest.fixture
def repository(project: Path) -> Path:
    """A project that has run once and is committed."""
    write_result(project, 0.1)
    (project / "dvc.yaml").write_text(GRAPH)
    (project / ".gitignore").write_text("plots/\n.dvc/\n")
    (project / "data/folder").mkdir(parents=True)
    (project / "data/folder/README.md").touch()
    for command in ("git init -q", "dvc init -q", "dvc repro -q", "git add -A"):
        run(project, *command.split())
    identity = ("-c", "user.name=test", "-c", "user.email=test@example.org")
    run(project, "git", *identity, "commit", "-qm", "first")
    return project


@pytest.mark.parametrize("jobs", [1, pytest.param(2, marks=pytest.mark.skipif(
    (os.cpu_count() or 1) < 2, reason="one core"))])  # fmt: skip
def test_make_repro_ends_with_verdict_report_and_changed_files(repository, jobs):
    make = "make", "-f", str(REPOSITORY / "Makefile"), "-o", ".venv/ready", "repro", f"JOBS={jobs}"
    report = f"Report: {repository / 'plots/report.html'}"
    output = run(repository, *make).splitlines()
    assert "Data and pipelines are up to date." in output
    # the whole table once, although there is no terminal
    assert [line.split()[1] for line in output if line.startswith("│")] == ["a", "b"]
    assert output[-2:] == [VERDICT.replace("20.0", "10.0"), report]

    write_result(repository, 0.2)
    (repository / "data/inputs/models").mkdir(parents=True)
    (repository / "data/inputs/models/new.json").touch()  # not tracked yet
    output = run(repository, *make).splitlines()
    changed = f"Changed since the last commit: dvc.lock, metrics, data/inputs. {EXPECTED}"
    assert output[-3:] == [VERDICT, report, changed]
    if jobs > 1:  # the advice that DVC prints after every stage is left out
        assert not [line for line in output if "git add" in line or "dvc push" in line]
    # also if no stage had to run
    assert run(repository, *make).splitlines()[-3:] == [VERDICT, report, changed]


def test_make_report_prints_the_path_whether_or_not_a_browser_opens(repository):
    output = run(repository, "make", "-f", str(REPOSITORY / "Makefile"), "report")
    assert output == f"{repository / 'plots/report.html'}\n"


def test_without_git_no_changed_files_are_listed(project, stage):
    write_result(project, 0.2)
    (project / "metrics").mkdir()
    for name in ("comparison.json", "champion.json"):
        (project / name).rename(project / "metrics" / name)
    done = stage("pipeline.tools.summary", GIT_CEILING_DIRECTORIES=str(project.parent))
    assert done.stdout.endswith(f"\n{VERDICT}\nReport: {project / 'plots/report.html'}\n")


def test_the_files_it_reads_are_outputs_of_the_graph():
    stages = yaml.safe_load((REPOSITORY / "dvc.yaml").read_text())["stages"]
    outputs = [*stages["compare"]["outs"], *stages["compare"]["metrics"], *stages["report"]["outs"]]
    names = {name for out in outputs for name in ([out] if isinstance(out, str) else out)}
    assert {path.as_posix() for path in (summary.COMPARISON, summary.CHAMPION, summary.REPORT)} <= (
        names
    )
