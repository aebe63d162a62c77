"""Experiments: one table of a sweep, from the JSON of DVC and with real DVC and Git."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.core.errors import PipelineError
from pipeline.tools import experiments
from pipeline.tools.experiments import Row
from tests.conftest import REPOSITORY
from tests.core.test_console import cells, on_terminal

BASE = {"compare": ["a", "b"], "train": {"epochs": 3, "augment": {"flip": None}}}


def state(rev: str, params: dict | None = None, name: str | None = None, error: Any = None) -> dict:
    """Return a commit or experiment as in the JSON of `dvc exp show`."""
    data = None if params is None else {"params": {"params.yaml": {"data": params}}}
    return {"rev": rev, "name": name, "data": data, "error": error, "experiments": None}


def experiment(latest: dict, executor: str | None = None) -> dict:
    return {
        "revs": [latest, state("an earlier checkpoint")],
        "name": latest["name"],
        "executor": executor and {"state": executor},
    }


def commit(*children: dict, name: str | None = "main") -> dict:
    return {**state("0" * 40, BASE, name), "experiments": list(children) or None}


def model(name: str, val_accuracy: float, accuracy: float = 0.9) -> dict:
    return {
        "model": name, "val_accuracy": val_accuracy, "accuracy": accuracy,
        "accuracy_low": accuracy - 0.05, "accuracy_high": accuracy + 0.05,
    }  # fmt: skip


def rows(commits: list[dict], **comparisons: list[dict]) -> list[Row]:
    """Return the rows of commits, whose comparison has these models, by revision."""
    return experiments.rows(
        commits, lambda rev: {"models": comparisons[rev]} if rev in comparisons else None
    )


def test_results_are_sorted_by_validation_and_not_by_test_accuracy():
    low, high = model("a", 0.8, accuracy=0.99), model("b", 0.9, accuracy=0.7)
    other = model("a", 0.85)
    latest = state("r1", {**BASE, "compare": ["a"]}, "one")
    table = rows([commit(experiment(latest))], r1=[other], **{"0" * 40: [low, high]})
    assert table == [
        Row("main", "", high), Row("one", "compare=[a]", other), Row("main", "", low),
    ]  # fmt: skip


def test_changed_settings_have_their_full_names_and_are_written_as_for_dvc():
    after = {
        "compare": ["a", "größer"],
        "train": {"epochs": 3, "augment": {"flip": "both", "crop": 2.0}},
        "whiten": True,
    }
    flat = experiments.flatten(after)
    assert experiments.changed_settings(experiments.flatten(BASE), flat) == (
        "compare=[a, größer], train.augment.flip=both, train.augment.crop=2.0, whiten=true"
    )
    assert experiments.changed_settings(flat, flat) == ""
    assert experiments.changed_settings({"seed": 0, "margin": None}, {}) == "seed=null"


def test_experiments_without_a_result_are_listed_last_with_the_reason():
    one, two = {**BASE, "margin": 1}, {**BASE, "margin": 2}
    error = {"msg": "Experiment run failed", "type": ""}
    table = rows(
        [commit(
            experiment(state("r1", one, "first"), "queued"),
            experiment(state("r2", two, "second", error), "failed"),
            experiment(state("r3", None), "running"),
            experiment(state("r4", None, "fourth", {"msg": "no params.yaml", "type": ""})),
            experiment(state("r5", one, "fifth")),
            experiment(state("r6", two, "sixth"), "success"),
        )],
        r1=[model("a", 1.0)], r2=[model("a", 1.0)], r6=[model("a", 0.5)],
    )  # fmt: skip
    assert table == [
        Row("sixth", "margin=2", model("a", 0.5)),
        Row("main", "", None, "no result"),
        Row("first", "margin=1", None, "queued"),
        Row("second", "margin=2", None, "failed"),
        Row("r3", "", None, "running"),
        Row("fourth", "", None, "error"),
        Row("fifth", "margin=1", None, "no result"),
    ]


def test_a_model_without_validation_accuracy_comes_after_those_with_one(capsys):
    low, unvalidated = model("a", 0.1), model("b", 0.0)
    del unvalidated["val_accuracy"]
    table = rows([commit(experiment(state("r1", BASE, "one")))], r1=[unvalidated, low])
    assert [row.result for row in table] == [low, unvalidated, None]
    experiments.print_rows(table)
    assert re.search(r"│ b +│ +– │ +90\.00 │", capsys.readouterr().out)


def test_commits_without_experiments_are_left_out():
    named = state("r1", BASE, "one")
    table = rows([commit(), commit(experiment(named), name=None)], r1=[model("a", 0.5)])
    assert [row.experiment for row in table] == ["one", "0000000"]


def printed(width: int, changed: str) -> list[list[str]]:
    """Return the cells of a table with one row on a terminal."""
    row = ("sable-limn", changed, model("airnet_narrow", 0.95678))
    code = f"""
from pipeline.tools.experiments import Row, print_rows
print_rows([Row(*{row!r})])
"""
    lines = on_terminal(code, width)
    assert max(map(len, lines)) <= width
    return cells(lines)[1:]


def test_the_table_fits_100_columns():
    assert printed(100, "train.learning_rate=0.0003") == [
        ["sable-limn", "train.learning_rate=0.0003", "airnet_narrow", "95.68", "90.00",
         "[85.00, 95.00]"]
    ]  # fmt: skip


def test_at_80_columns_no_name_is_broken_into_pieces():
    changed = "models.airnet_narrow.build.kernel_initializer=he_normal"
    assert printed(80, changed) == [
        ["sable-limn", "models.airnet_narrow.", "airnet_narrow", "95.68", "90.00"],
        ["", "build.kernel_initializer=", "", "", ""],
        ["", "he_normal", "", "", ""],
    ]


GRAPH = """
stages:
  compare:
    cmd: test ${rate} -lt 9 && mkdir -p metrics && cp ${rate}.json metrics/comparison.json
    deps: ["${rate}.json"]
    outs:
      - metrics/comparison.json: {cache: false}
"""


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A repository that has run with rate 1."""
    for name in [name for name in os.environ if name.startswith(("GIT_", "DVC_"))]:
        monkeypatch.delenv(name)
    for role in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{role}_NAME", "test")
        monkeypatch.setenv(f"GIT_{role}_EMAIL", "test@example.org")
    monkeypatch.chdir(tmp_path)
    for rate in (1, 2, 9):
        models = [model("a", 0.1 * rate), model("b", 0.06 * rate)]
        Path(f"{rate}.json").write_text(json.dumps({"models": models}))
    Path("params.yaml").write_text("rate: 1\n")
    Path("dvc.yaml").write_text(GRAPH)
    git("init", "-q", "-b", "main")
    dvc("init", "-q")
    dvc("repro", "-q")
    git("add", "-A")
    git("commit", "-qm", "first")
    return tmp_path


def git(*argv: str) -> None:
    subprocess.run(["git", *argv], check=True, capture_output=True)


def dvc(*argv: str) -> None:
    subprocess.run([sys.executable, "-m", "dvc", *argv], check=True, capture_output=True)


def shown(capsys, *argv: str) -> list[list[str]]:
    experiments.main(list(argv))
    return cells(capsys.readouterr().out.splitlines())[1:]


def test_experiments_of_real_dvc(repository, capsys):
    experiments.main([])
    assert capsys.readouterr().out.startswith("experiments: this commit has none.")

    dvc("exp", "run", "-q", "-n", "better", "-S", "rate=2")
    git("checkout", "-q", ".")
    dvc("exp", "run", "-q", "--queue", "-n", "broken", "-S", "rate=9")
    better, main = ["better", "rate=2"], ["main", ""]
    assert shown(capsys) == [
        [*better, "a", "20.00", "90.00", "[85.00, 95.00]"],
        [*better, "b", "12.00", "90.00", "[85.00, 95.00]"],
        [*main, "a", "10.00", "90.00", "[85.00, 95.00]"],
        [*main, "b", "6.00", "90.00", "[85.00, 95.00]"],
        ["broken", "rate=9", "(queued)", "", "", ""],
    ]

    git("commit", "-q", "--allow-empty", "-m", "second")
    experiments.main([])
    assert capsys.readouterr().out.startswith("experiments: this commit has none.")
    rows = shown(capsys, "--all-commits", "--model", "b")
    assert [row[2] for row in rows] == ["b", "b", "(queued)"]
    with pytest.raises(PipelineError, match=r"--model: must be one of a, b\. Got c"):
        experiments.main(["--all-commits", "--model", "c"])


@pytest.mark.long
def test_a_failed_experiment_is_named_with_the_way_to_its_log(repository, capsys):
    dvc("exp", "run", "-q", "--queue", "-n", "broken", "-S", "rate=9")
    subprocess.run([sys.executable, "-m", "dvc", "exp", "run", "--run-all"], capture_output=True)
    experiments.main([])
    out = capsys.readouterr().out
    assert cells(out.splitlines())[-1] == ["broken", "rate=9", "(failed)", "", "", ""]
    assert out.endswith("failed: broken. `dvc queue logs broken` shows why\n")


def test_a_folder_that_dvc_cannot_list_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PipelineError, match=r"`dvc exp show` must list them\. Got: ERROR: you are"):
        experiments.main([])


def test_the_comparison_it_reads_is_an_output_of_the_graph():
    stages = yaml.safe_load((REPOSITORY / "dvc.yaml").read_text())["stages"]
    assert {experiments.COMPARISON.as_posix(): {"cache": False}} in stages["compare"]["outs"]
