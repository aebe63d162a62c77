"""Experiments: list DVC's experiments, the best validation accuracy first.

    python -m pipeline experiments                  experiments of the current commit
    python -m pipeline experiments --model NAME     only the results of this model
    python -m pipeline experiments --all-commits    experiments of all commits

Not a stage. Shows for each experiment the settings that it changed, and for each of its models the
mean validation and test accuracy over the trainings. The results are sorted by validation accuracy:
selecting an experiment by test accuracy would bias the reported result.

Reads   metrics/comparison.json of each experiment and of its commit, in Git
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.core.console import Column, print_table
from pipeline.core.errors import PipelineError, first_few, run
from pipeline.stats.crossed import LEVEL
from pipeline.tools.gate import json_at

COMPARISON = Path("metrics/comparison.json")  # output of compare, as in dvc.yaml
PARAMS = "params.yaml"
SHOW = ("exp", "show", "--json", "--hide-workspace")
SUCCESS = "success"


class Row(NamedTuple):
    experiment: str
    changed: str
    """Settings that differ from those of the experiment's commit"""
    result: dict[str, Any] | None
    """Of a model, as in metrics/comparison.json; None if there is no result"""
    state: str = SUCCESS
    """SUCCESS, or why there is no result: queued, running, failed, error or no result"""


def dvc_experiments(all_commits: bool) -> list[dict[str, Any]]:
    """Return commits with their experiments, as `dvc exp show --json` does.

    Raises:
        PipelineError: DVC cannot list them.
    """
    command = [sys.executable, "-m", "dvc", *SHOW, *(["--all-commits"] if all_commits else [])]
    done = subprocess.run(command, capture_output=True, encoding="utf-8")
    if done.returncode:
        raise PipelineError(f"experiments: `dvc exp show` must list them. Got: {done.stderr}")
    return json.loads(done.stdout)


def settings(state: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of a commit or an experiment by their full names."""
    data = state["data"] or {}
    return flatten(data.get("params", {}).get(PARAMS, {}).get("data", {}))


def flatten(nested: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested settings by their full names, such as train.learning_rate."""
    flat: dict[str, Any] = {}
    for name, value in nested.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def changed_settings(before: dict[str, Any], after: dict[str, Any]) -> str:
    """Return the settings that differ, as `dvc exp run -S` takes them. A missing one is null."""
    names = dict.fromkeys([*after, *before])
    return ", ".join(
        f"{name}={json.dumps(after.get(name), ensure_ascii=False)}".replace('"', "")
        for name in names
        if after.get(name) != before.get(name)
    )


def rows(commits: list[dict[str, Any]], read: Callable[[str], Any]) -> list[Row]:
    """Return the results of all experiments and of their commits, best validation accuracy first.

    Args:
        commits: As `dvc_experiments` returns them.
        read: Returns metrics/comparison.json of a revision, or None if it has none.
    """
    table = []
    for commit in commits:
        if not commit["experiments"]:
            continue
        before = settings(commit)
        table += results(commit["name"] or commit["rev"][:7], "", read(commit["rev"]))
        for experiment in commit["experiments"]:
            latest = experiment["revs"][0]
            name = experiment["name"] or latest["name"] or latest["rev"][:7]
            changed = changed_settings(before, settings(latest)) if latest["data"] else ""
            state = (experiment["executor"] or {}).get("state", SUCCESS)
            if state == SUCCESS and latest["error"]:
                state = "error"
            if state == SUCCESS:
                table += results(name, changed, read(latest["rev"]))
            else:
                # Git has no result, and DVC shows the metrics of the commit
                table.append(Row(name, changed, None, state))
    return sorted(table, key=lambda row: -row.result.get("val_accuracy", 0) if row.result else 1)


def results(experiment: str, changed: str, comparison: dict[str, Any] | None) -> list[Row]:
    """Return a row for each model of an experiment."""
    if comparison is None:
        return [Row(experiment, changed, None, "no result")]
    return [Row(experiment, changed, model) for model in comparison["models"]]


def print_rows(table: list[Row]) -> None:
    """Print a table of experiments and models."""
    cells = []
    for row in table:
        accuracies = [f"({row.state})", "", "", ""]
        if result := row.result:
            low, high = 100 * result["accuracy_low"], 100 * result["accuracy_high"]
            accuracies = [
                result["model"],
                f"{100 * result['val_accuracy']:.2f}" if "val_accuracy" in result else "–",
                f"{100 * result['accuracy']:.2f}",
                f"[{low:.2f}, {high:.2f}]",
            ]
        cells.append([row.experiment, row.changed, *accuracies])
    columns = (
        Column("experiment"),
        Column("changed"),
        Column("model"),
        Column("validation", numeric=True),
        Column("test", numeric=True),
        Column("test interval", numeric=True, drop=1),
    )
    print_table(
        columns, cells, f"Mean accuracy in %, {LEVEL:.0%} intervals; best validation accuracy first"
    )


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="show only the results of this model", metavar="NAME")
    parser.add_argument(
        "--all-commits", action="store_true", help="show the experiments of all commits"
    )
    args = parser.parse_args(argv)

    table = rows(dvc_experiments(args.all_commits), lambda revision: json_at(revision, COMPARISON))
    if not table:
        print(
            "experiments: this commit has none. `dvc exp run` runs one; --all-commits shows those "
            "of other commits"
        )
        return
    if args.model:
        names = {row.result["model"] for row in table if row.result}
        if args.model not in names:
            raise PipelineError(
                f"--model: must be one of {', '.join(sorted(names)) or '(no results yet)'}. "
                f"Got {args.model}"
            )
        table = [row for row in table if row.result is None or row.result["model"] == args.model]
    print_rows(table)
    if failed := [row.experiment for row in table if row.state == "failed"]:
        print(f"failed: {first_few(failed)}. `dvc queue logs {failed[0]}` shows why")


if __name__ == "__main__":
    run(main)
