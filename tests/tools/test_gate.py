"""Gate: a real Git repository and real DVC say what may be merged; nothing is in DVC's cache."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import yaml

from pipeline.core.errors import PipelineError
from pipeline.stats.correctness import pack
from pipeline.tools import gate
from tests.conftest import REPOSITORY, write_params

GRAPH = """
stages:
  train:
    cmd: cp seed.txt model.txt
    deps: [seed.txt]
    outs: [model.txt]
  compare:
    cmd: cp model.txt table.txt
    deps: [model.txt, source.py]
    outs:
      - table.txt: {cache: false}
  plot:
    cmd: cp model.txt plot.txt
    deps: [model.txt, source.py]
    outs: [plot.txt]
"""


def run(*argv: str) -> str:
    """Run a program in the working directory, as somebody with a name."""
    name = {f"GIT_{who}_{what}": "test" for who in ("AUTHOR", "COMMITTER")
            for what in ("NAME", "EMAIL")}  # fmt: skip
    done = subprocess.run(argv, capture_output=True, text=True, env={**os.environ, **name})
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def commit() -> None:
    run("git", "add", "-A")
    run("git", "commit", "-qm", "a change")


def dvc_repro() -> None:
    run(sys.executable, "-m", "dvc", "repro", "-q")


@pytest.fixture(autouse=True)
def _no_settings_of_a_hook(monkeypatch):
    for name in [name for name in os.environ if name.startswith(("GIT_", "DVC_"))]:
        monkeypatch.delenv(name)


@pytest.fixture(scope="module")
def origin(tmp_path_factory):
    """A repository with a graph that has run, and no metrics yet."""
    folder = tmp_path_factory.mktemp("origin")
    (folder / ".dvc").mkdir()
    shutil.copy(REPOSITORY / ".dvc/config", folder / ".dvc")
    write_params(folder)
    (folder / ".gitignore").write_text(
        "model.txt\nplot.txt\n.dvc/cache\n.dvc/tmp\n.dvc/.gitignore\n"
    )
    (folder / "dvc.yaml").write_text(GRAPH)
    (folder / "seed.txt").write_text("1\n")
    (folder / "source.py").write_text("")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run("git", "init", "-q", "-b", "main")
        dvc_repro()
        commit()
    return folder


@pytest.fixture
def clone(origin, tmp_path, monkeypatch):
    """A clone of it, which is the working directory: no cache, and no model.txt."""
    folder = tmp_path / "clone"
    run("git", "clone", "-q", str(origin), str(folder))
    monkeypatch.chdir(folder)
    assert not Path("model.txt").exists()
    assert not Path(".dvc/cache").exists()
    return folder


def answers(wrong: int, count: int = 100, actual: str = "a") -> dict:
    """Those of a model that got the first `wrong` of `count` images wrong."""
    return pack(np.arange(count) >= wrong, np.full(count, actual))


def champion(model: str, wrong: int, count: int = 100, actual: str = "a") -> gate.Champion:
    return gate.Champion(model, (count - wrong) / count, answers(wrong, count, actual))


def measure(model: str, wrong: int, count: int = 100, actual: str = "a") -> None:
    """Write the metrics of a champion."""
    Path("metrics/test").mkdir(parents=True, exist_ok=True)
    accuracy = (count - wrong) / count
    Path("metrics/champion.json").write_text(json.dumps({"model": model, "accuracy": accuracy}))
    metrics = {"accuracy": accuracy, "answers": [answers(wrong, count, actual)]}
    Path(f"metrics/test/{model}.json").write_text(json.dumps(metrics))


def lines(capsys, argv: Sequence[str] = ("--against", "main")) -> list[str]:
    gate.main(list(argv))
    return capsys.readouterr().out.splitlines()


def test_what_has_not_changed_passes(clone, capsys):
    measure("baseline", 3)
    commit()
    assert lines(capsys) == [
        "gate: dvc.lock: current",
        "gate: floor: 97.0 % of the test images, at least 95 % asked",
        "gate: against main: baseline 97.0 %, main's baseline 97.0 %: +0.0 points [-2.9, +2.9], "
        "p 1: not worse beyond noise",
    ]


def test_ten_to_none_for_main_fails_and_says_by_how_much(clone):
    measure("baseline", 0, 200)
    commit()
    # another champion; main's file of that name plays no part
    measure("batchnorm", 10, 200)
    done = subprocess.run(
        [sys.executable, "-m", "pipeline.tools.gate", "--against", "main"],
        capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stdout == (
        "gate: dvc.lock: current\ngate: floor: 95.0 % of the test images, at least 95 % asked\n"
    )
    # McNemar: two sides of one in 2**10; with the two pseudo-images 11 losses and 1
    # gain of 202: mean -5.0 points, 1.96 * sqrt((12 / 202 - 0.05**2) / 202) = 3.3 to each side,
    # in steps of 1 / 202
    assert re.fullmatch(
        r"error: gate: against main: the champion must not be worse beyond noise\. "
        r"Got batchnorm 95\.0 %, main's baseline 100\.0 %: -5\.0 points "
        r"\[-(7\.9|8\.4|8\.9), -(1\.5|2\.0|2\.5)\], p 0\.002\. "
        r"`git diff main` and `dvc params diff main` say what changed\n",
        done.stderr,
    )


def test_none_to_ten_is_better():
    said = gate.check_against("main", champion("new", 0), champion("old", 10), seed=0)
    assert said.startswith("new 100.0 %, main's old 90.0 %: +10.0 points [")
    assert said.endswith("p 0.002: better")


def test_five_to_none_may_be_luck():
    said = gate.check_against("main", champion("new", 5), champion("old", 0), seed=0)
    # two sides of one in 2**5
    assert said.startswith("new 95.0 %, main's old 100.0 %: -5.0 points [")
    assert said.endswith("p 0.062: not worse beyond noise")


def test_other_test_images_are_not_compared_and_no_failure():
    said = gate.check_against("main", champion("new", 40), champion("old", 0, 1200), seed=0)
    assert said == "not compared: other test images (100 here, 1,200 there)"
    said = gate.check_against("main", champion("new", 40, actual="b"), champion("old", 0), seed=0)
    assert said == "not compared: other test images (100 here, 100 there)"


def test_at_the_floor_is_not_below_it():
    # 0.55 * 100 is more than 55 in binary
    said = gate.check_floor(champion("baseline", 45), 0.55)
    assert said == "55.0 % of the test images, at least 55 % asked"


def test_below_the_floor_fails_and_says_by_how_much():
    expected = (
        r"gate: floor: baseline must get 95 % of the test images right\. Got 95\.0 % "
        r"\(9,499 of 10,000\), 0\.0 points too few\. Improve the model, or lower gate\.floor in"
    )
    with pytest.raises(PipelineError, match=expected):
        gate.check_floor(champion("baseline", 501, 10_000), 0.95)
    with pytest.raises(PipelineError, match=r"Got 80\.0 % \(80 of 100\), 15\.0 points too few"):
        gate.check_floor(champion("baseline", 20), 0.95)


def test_no_floor_is_none(clone, capsys):
    text = Path("params.yaml").read_text()
    Path("params.yaml").write_text(text.replace("floor: 0.95", "floor: null"))
    measure("baseline", 80)
    assert lines(capsys)[1] == "gate: floor: 20.0 % of the test images, none asked"


def test_nothing_is_compared_with_a_revision_without_metrics_or_without_answers(clone, capsys):
    measure("baseline", 3)
    nothing = "gate: against main: not compared: no metrics with its champion's answers there yet"
    assert lines(capsys)[2] == nothing

    path = Path("metrics/test/baseline.json")
    path.write_text('{"accuracy": 1.0}')
    commit()
    measure("baseline", 3)
    assert lines(capsys)[2] == nothing


def test_metrics_are_found_from_a_project_that_is_not_the_top_of_its_repository(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    run("git", "init", "-q", "-b", "main")
    Path("project").mkdir()
    monkeypatch.chdir("project")
    measure("größer", 3)
    commit()
    shutil.rmtree("metrics")
    sha = gate.commit_of("main")
    assert gate.json_at(sha, gate.CHAMPION) == {"model": "größer", "accuracy": 0.97}
    assert gate.json_at(sha, gate.TEST / "größer.json")["accuracy"] == 0.97
    assert gate.json_at(sha, gate.TEST / "other.json") is None


@pytest.mark.parametrize("revision", ["nonsense", "main:params.yaml", "--all"])
def test_an_unknown_revision_is_one_line(clone, revision):
    expected = rf"--against: {revision} must be a branch, tag or commit.*`git fetch.* Got: fatal"
    with pytest.raises(PipelineError, match=expected):
        gate.main([f"--against={revision}"])


def test_no_git_repository_is_one_line(project, monkeypatch):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(project.parent))
    expected = r"--against: must be run in a clone of the repository\. Got: fatal: not a git repo"
    with pytest.raises(PipelineError, match=expected):
        gate.main(["--against", "main"])


def test_missing_metrics_are_one_line(clone):
    expected = r"metrics/champion\.json: no such file\. Run `dvc repro`"
    with pytest.raises(PipelineError, match=expected):
        gate.main(["--against", "main"])
    measure("baseline", 3)
    Path("metrics/test/baseline.json").write_text('{"accuracy": 0.97}')
    with pytest.raises(PipelineError, match=r"metrics/test: must hold the answers of the champion"):
        gate.main(["--against", "main"])


def stale() -> str:
    with pytest.raises(PipelineError, match=r"gate: dvc\.lock: must be current\.") as caught:
        gate.check_lock()
    found = re.search(r"Got stages that would run: ([\w, @]+)\. Run `dvc repro`", str(caught.value))
    assert found
    return found[1]


def test_a_lock_that_is_not_current_fails_in_a_clone_without_cache(clone):
    gate.check_lock()
    Path("seed.txt").write_text("2\n")
    assert stale() == "train"
    dvc_repro()
    gate.check_lock()
    # what Git keeps of the outputs is held against dvc.lock too
    Path("table.txt").write_text("edited by hand\n")
    assert stale() == "compare"


def test_a_stage_that_never_ran_or_whose_code_changed_is_not_current(clone):
    # the other input of these is not in this clone
    Path("source.py").write_text("# a comment\n")
    assert stale() == "compare, plot"
    run("git", "checkout", "-q", "source.py")
    Path("dvc.yaml").write_text(GRAPH.replace("model.txt plot.txt", "source.py plot.txt"))
    assert stale() == "plot"
    Path("dvc.yaml").write_text(f"{GRAPH}  report:\n    cmd: cp table.txt report.txt\n"
                                "    deps: [table.txt]\n    outs: [report.txt]\n")  # fmt: skip
    assert stale() == "report"
    run("git", "checkout", "-q", ".")
    Path("dvc.lock").unlink()
    assert stale() == "train, compare, plot"


def test_what_read_a_former_output_is_not_current(clone):
    # trained anew without the rest, and committed: a clone has not the file, but both its hashes
    Path("seed.txt").write_text("2\n")
    run(sys.executable, "-m", "dvc", "repro", "-q", "train")
    Path("model.txt").unlink()
    assert stale() == "compare, plot"


def test_a_graph_that_dvc_cannot_read_is_no_current_one(clone):
    Path("dvc.yaml").write_text("stages: 3\n")
    with pytest.raises(PipelineError, match=r"must find nothing to do\. Got: .*dvc\.yaml"):
        gate.check_lock()


def test_studies_are_none_of_its_business(clone):
    Path("studies").mkdir()
    Path("studies/dvc.yaml").write_text(GRAPH)
    gate.check_lock()


def test_its_metrics_are_outputs_of_the_graph():
    stages = yaml.safe_load((REPOSITORY / "dvc.yaml").read_text())["stages"]
    kept = [*stages["compare"]["metrics"], *stages["evaluate"]["do"]["metrics"]]
    assert kept == [
        {gate.CHAMPION.as_posix(): {"cache": False}},
        {f"{gate.TEST.as_posix()}/${{key}}.json": {"cache": False}},
    ]
