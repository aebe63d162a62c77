"""Gate: checked with a real Git repository and real DVC, without DVC's cache."""

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
    """Run a program in the working directory, with a name and address for Git."""
    identity = {f"GIT_{role}_{key}": "test" for role in ("AUTHOR", "COMMITTER")
                for key in ("NAME", "EMAIL")}  # fmt: skip
    done = subprocess.run(argv, capture_output=True, text=True, env={**os.environ, **identity})
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def commit() -> None:
    run("git", "add", "-A")
    run("git", "commit", "-qm", "a change")


def dvc_repro() -> None:
    run(sys.executable, "-m", "dvc", "repro", "-q")


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch):
    for name in [name for name in os.environ if name.startswith(("GIT_", "DVC_"))]:
        monkeypatch.delenv(name)


@pytest.fixture(scope="module")
def origin(tmp_path_factory):
    """A repository with a graph that has run, without metrics."""
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
    """A fresh clone as the working directory: no cache, and no model.txt."""
    folder = tmp_path / "clone"
    run("git", "clone", "-q", str(origin), str(folder))
    monkeypatch.chdir(folder)
    assert not Path("model.txt").exists()
    assert not Path(".dvc/cache").exists()
    return folder


def seeds(*wrong: int, count: int = 100, actual: str = "a") -> list[dict]:
    """Return metrics of trainings that misclassified the first `wrong` of `count` images."""
    return [
        {"seed": seed, "correct": pack(np.arange(count) >= number, np.full(count, actual))}
        for seed, number in enumerate(wrong)
    ]


def mean_accuracy(wrong: Sequence[int], count: int) -> float:
    return 1 - sum(wrong) / len(wrong) / count


def champion(model: str, *wrong: int, count: int = 100, actual: str = "a") -> gate.Champion:
    trainings = seeds(*wrong, count=count, actual=actual)
    return gate.Champion(model, mean_accuracy(wrong, count), trainings)


def write_metrics(model: str, *wrong: int, count: int = 100) -> None:
    """Write the metrics of a champion."""
    Path("metrics/test").mkdir(parents=True, exist_ok=True)
    accuracy = mean_accuracy(wrong, count)
    Path("metrics/champion.json").write_text(json.dumps({"model": model, "accuracy": accuracy}))
    metrics = {"accuracy": accuracy, "seeds": seeds(*wrong, count=count)}
    Path(f"metrics/test/{model}.json").write_text(json.dumps(metrics))


def lines(capsys, argv: Sequence[str] = ("--against", "main")) -> list[str]:
    gate.main(list(argv))
    return capsys.readouterr().out.splitlines()


def test_an_unchanged_champion_passes(clone, capsys):
    write_metrics("baseline", 3, 3, 3)
    commit()
    # Two pseudo-images in 102: 1.96 * sqrt(2 / 101 / 102) is 2.7 points. The quantiles of 95 and
    # 90 %, 1.645 + 1.282, and a variance of 0.0194 need 1,663 images for one point.
    assert lines(capsys) == [
        "gate: dvc.lock: up to date",
        "gate: floor: 97.0 % test accuracy, at least 95 % required",
        "gate: against main: baseline 97.0 %, main's baseline 97.0 %, p 1: cannot tell: between "
        "−2.7 and +2.7 points; about 1,600 more test images would be enough to detect a difference "
        "of 1 point; no practical number of trainings would, because there are too few test images",
    ]


def test_a_champion_with_ten_more_mistakes_in_each_training_is_refused(clone):
    write_metrics("baseline", 0, 0, count=200)
    commit()
    # another model is champion here; main's metrics of that model do not matter
    write_metrics("batchnorm", 10, 10, 10, count=200)
    done = subprocess.run(
        [sys.executable, "-m", "pipeline.tools.gate", "--against", "main"],
        capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stdout == (
        "gate: dvc.lock: up to date\ngate: floor: 95.0 % test accuracy, at least 95 % required\n"
    )
    # no variance over seeds; over images 0.05 * 0.95 / 199: ± 1.96 * 1.545 points, z 3.24
    assert done.stderr == (
        "error: gate: against main: the champion must not be significantly worse. "
        "Got batchnorm 95.0 %, main's baseline 100.0 %, p 0.0012: worse than main's baseline by "
        "5.0 points [2.0, 8.0], 3 trainings against 2, assuming the same spread over seeds for "
        "both. `git diff main` and `dvc params diff main` show what changed\n"
    )


def check(here: gate.Champion, there: gate.Champion) -> str:
    return gate.check_against("main", here, there, margin=0.01)


def test_ten_fewer_mistakes_of_one_training_are_better():
    # McNemar's test: p = 2 / 2**10
    text = check(champion("new", 0), champion("old", 10))
    assert text.startswith(
        "new 100.0 %, main's old 90.0 %, p 0.002: better than main's old by 10.0 points ["
    )
    assert text.endswith("], one training each: about these two trained networks only")


def test_five_more_mistakes_of_one_training_may_be_chance():
    # p = 2 / 2**5
    text = check(champion("new", 5), champion("old", 0))
    assert text.startswith("new 95.0 %, main's old 100.0 %, p 0.062: cannot tell: between −")


def test_trainings_that_differ_much_may_be_chance():
    # means 5 and 0, but one training of three has all 15 mistakes: 5 ± 5 points over seeds
    text = check(champion("new", 0, 0, 15), champion("old", 0, 0, 0))
    assert text.startswith("new 95.0 %, main's old 100.0 %, p 0.")
    assert ": cannot tell: between −" in text


def test_results_on_other_test_images_are_not_compared():
    text = check(champion("new", 40), champion("old", 0, count=1200))
    assert text == "not compared: the test images differ (100 here, 1,200 at main)"
    text = check(champion("new", 40, actual="b"), champion("old", 0))
    assert text == "not compared: the test images differ (100 here, 100 at main)"


def test_an_accuracy_equal_to_the_floor_passes():
    # in floating point, 0.55 * 100 is more than 55
    text = gate.check_floor(champion("baseline", 45), 0.55)
    assert text == "55.0 % test accuracy, at least 55 % required"


def test_an_accuracy_below_the_floor_is_refused():
    expected = (
        r"gate: floor: test accuracy of baseline must be at least 95 %\. Got 95\.0 % of 10,000 "
        r"images, 0\.0 points too low\. Improve the model, or lower gate\.floor in"
    )
    with pytest.raises(PipelineError, match=expected):
        gate.check_floor(champion("baseline", 501, count=10_000), 0.95)
    # the mean of 70 and 90
    with pytest.raises(PipelineError, match=r"Got 80\.0 % of 100 images, 15\.0 points too low"):
        gate.check_floor(champion("baseline", 30, 10), 0.95)


def test_without_a_floor_any_accuracy_passes(clone, capsys):
    text = Path("params.yaml").read_text()
    Path("params.yaml").write_text(text.replace("floor: 0.95", "floor: null"))
    write_metrics("baseline", 80)
    assert lines(capsys)[1] == "gate: floor: 20.0 % test accuracy, no minimum set"


def test_a_revision_without_metrics_or_with_those_of_an_older_version_is_not_compared(
    clone, capsys
):
    write_metrics("baseline", 3)
    not_compared = (
        "gate: against main: not compared: main has no test results of each training of its "
        "champion"
    )
    assert lines(capsys)[2] == not_compared

    path = Path("metrics/test/baseline.json")
    path.write_text('{"accuracy": 1.0, "answers": [{"images": 100}]}')
    commit()
    write_metrics("baseline", 3)
    assert lines(capsys)[2] == not_compared


def test_metrics_are_found_in_a_project_below_the_top_of_its_repository(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run("git", "init", "-q", "-b", "main")
    Path("project").mkdir()
    monkeypatch.chdir("project")
    write_metrics("größer", 3)
    commit()
    shutil.rmtree("metrics")
    commit_hash = gate.resolve("main")
    assert gate.json_at(commit_hash, gate.CHAMPION) == {"model": "größer", "accuracy": 0.97}
    assert gate.json_at(commit_hash, gate.TEST / "größer.json")["accuracy"] == 0.97
    assert gate.json_at(commit_hash, gate.TEST / "other.json") is None


@pytest.mark.parametrize("revision", ["nonsense", "main:params.yaml", "--all"])
def test_an_unknown_revision_is_refused(clone, revision):
    expected = rf"--against: {revision} must be a branch, tag or commit.*`git fetch.* Got: fatal"
    with pytest.raises(PipelineError, match=expected):
        gate.main([f"--against={revision}"])


def test_a_folder_outside_git_is_refused(project, monkeypatch):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(project.parent))
    expected = r"--against: must be run in a clone of the repository\. Got: fatal: not a git repo"
    with pytest.raises(PipelineError, match=expected):
        gate.main(["--against", "main"])


def test_missing_metrics_are_refused(clone):
    expected = r"metrics/champion\.json: no such file\. Run `dvc repro`"
    with pytest.raises(PipelineError, match=expected):
        gate.main(["--against", "main"])
    write_metrics("baseline", 3)
    Path("metrics/test/baseline.json").write_text('{"accuracy": 0.97}')
    with pytest.raises(PipelineError, match=r"metrics/test: test results of each training of"):
        gate.main(["--against", "main"])


def stale() -> str:
    """Return the stages that the gate reports as stale."""
    with pytest.raises(PipelineError, match=r"gate: dvc\.lock: must be up to date\.") as caught:
        gate.check_lock()
    match = re.search(r"Got stages that would run: ([\w, @]+)\. Run `dvc repro`", str(caught.value))
    assert match
    return match[1]


def test_a_stale_lock_is_refused_in_a_clone_without_cache(clone):
    gate.check_lock()
    Path("seed.txt").write_text("2\n")
    assert stale() == "train"
    dvc_repro()
    gate.check_lock()
    # outputs that Git tracks are compared with dvc.lock too
    Path("table.txt").write_text("edited by hand\n")
    assert stale() == "compare"


def test_a_new_stage_and_a_stage_whose_code_changed_are_stale(clone):
    # the other dependency of these stages, model.txt, is not in this clone
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


def test_stages_that_used_an_earlier_output_are_stale(clone):
    # only train has run again: the file is missing here, but dvc.lock holds two hashes of it
    Path("seed.txt").write_text("2\n")
    run(sys.executable, "-m", "dvc", "repro", "-q", "train")
    Path("model.txt").unlink()
    assert stale() == "compare, plot"


def test_a_graph_that_dvc_cannot_read_is_refused(clone):
    Path("dvc.yaml").write_text("stages: 3\n")
    with pytest.raises(PipelineError, match=r"must find nothing to do\. Got: .*dvc\.yaml"):
        gate.check_lock()


def test_studies_are_not_checked(clone):
    Path("studies").mkdir()
    Path("studies/dvc.yaml").write_text(GRAPH)
    gate.check_lock()


def test_the_metrics_it_reads_are_outputs_of_the_graph():
    stages = yaml.safe_load((REPOSITORY / "dvc.yaml").read_text())["stages"]
    metrics = [*stages["compare"]["metrics"], *stages["evaluate"]["do"]["metrics"]]
    assert metrics == [
        {gate.CHAMPION.as_posix(): {"cache": False}},
        {f"{gate.TEST.as_posix()}/${{item}}.json": {"cache": False}},
    ]
