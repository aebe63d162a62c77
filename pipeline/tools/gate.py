"""Gate: may this be merged? Compares the champion with another branch's.

    python -m pipeline gate --against main

Not a stage. It judges the working tree by what Git keeps, of both sides, and needs none of the
data, models and predictions in DVC's cache: a bare clone will do.

Reads   dvc.yaml, dvc.lock; metrics/champion.json and metrics/test/MODEL.json of the champion, here
        and at the other revision
Params  gate, seed
"""

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.config.params import load
from pipeline.core.errors import PipelineError, first_few, run
from pipeline.core.files import read_json
from pipeline.stats.correctness import same_images, unpack
from pipeline.stats.paired import paired

# outputs of compare and evaluate, as in dvc.yaml
CHAMPION = Path("metrics/champion.json")
TEST = Path("metrics/test")
# A stage whose inputs are not in this folder passes if dvc.lock agrees on them. Not seen: in a
# bare clone, a part of a folder that another stage has written anew (DVC issue 11099), as by
# `dvc repro preprocess` alone.
DRY_RUN = ("repro", "--dry", "--allow-missing", "--keep-going")
NOTHING_TO_DO = "Data and pipelines are up to date."


class Champion(NamedTuple):
    """A champion, its test accuracy, and its correct images as in `correctness.pack`."""

    model: str
    accuracy: float
    answers: dict


def check_lock() -> None:
    """Raise a PipelineError that names the stages that `dvc repro` would run."""
    done = subprocess.run([sys.executable, "-m", "dvc", *DRY_RUN], capture_output=True, text=True)
    # the exit status is 0 where stages would run, too; but one that is stale and has inputs that
    # are not here fails (DVC issue 9021), and is named at the end
    stale = re.findall(r"^Running stage '(.+)':$", done.stdout, re.M)
    for failed in re.findall(r"^ERROR: failed to reproduce (.+)$", done.stderr, re.M):
        stale += re.findall(r"'(.+?)'", failed)
    if stale:
        raise PipelineError(
            f"gate: dvc.lock: must be current. Got stages that would run: {first_few(stale)}. "
            "Run `dvc repro`, and commit dvc.lock and metrics/"
        )
    if done.returncode or NOTHING_TO_DO not in done.stdout:
        raise PipelineError(
            f"gate: dvc.lock: `dvc {' '.join(DRY_RUN)}` must find nothing to do. "
            f"Got: {done.stderr or done.stdout}"
        )


def check_floor(champion: Champion, floor: float | None) -> str:
    """Return what is to be said of the champion's accuracy; raise if it is below the floor."""
    accuracy = f"{100 * champion.accuracy:.1f} %"
    if floor is None:
        return f"{accuracy} of the test images, none asked"
    if champion.accuracy < floor:
        images = champion.answers["images"]
        raise PipelineError(
            f"gate: floor: {champion.model} must get {100 * floor:g} % of the test images right. "
            f"Got {accuracy} ({round(champion.accuracy * images):,} of {images:,}), "
            f"{100 * (floor - champion.accuracy):.1f} points too few. "
            "Improve the model, or lower gate.floor in params.yaml"
        )
    return f"{accuracy} of the test images, at least {100 * floor:g} % asked"


def check_against(revision: str, mine: Champion, theirs: Champion | None, seed: int) -> str:
    """Return what the comparison says; raise if the champion is significantly worse."""
    if theirs is None:
        return "not compared: no metrics with its champion's answers there yet"
    if not same_images(mine.answers, theirs.answers):
        images = f"{mine.answers['images']:,} here, {theirs.answers['images']:,} there"
        return f"not compared: other test images ({images})"
    comparison = paired(unpack(mine.answers), unpack(theirs.answers), seed)
    points, low, high = (
        f"{100 * comparison[key]:+z.1f}"
        for key in ("difference", "difference_low", "difference_high")
    )
    difference = (
        f"{mine.model} {100 * mine.accuracy:.1f} %, {revision}'s {theirs.model} "
        f"{100 * theirs.accuracy:.1f} %: {points} points [{low}, {high}], "
        f"p {comparison['mcnemar_p']:.2g}"
    )
    if comparison["verdict"] == "worse":
        raise PipelineError(
            f"gate: against {revision}: the champion must not be worse beyond noise. "
            f"Got {difference}. "
            f"`git diff {revision}` and `dvc params diff {revision}` say what changed"
        )
    verdict = "better" if comparison["verdict"] == "better" else "not worse beyond noise"
    return f"{difference}: {verdict}"


def git(*argv: str, expected: str) -> str:
    """Run git and return what it prints; where it fails, raise what was expected."""
    try:
        done = subprocess.run(["git", *argv], capture_output=True, encoding="utf-8")
    except FileNotFoundError:
        raise PipelineError("git: no such program. Install it, or add it to PATH") from None
    if done.returncode:
        raise PipelineError(f"{expected}. Got: {done.stderr}")
    return done.stdout


def commit_of(revision: str) -> str:
    git("rev-parse", "--git-dir", expected="--against: must be run in a clone of the repository")
    return git(
        "rev-parse", "--verify", f"{revision}^{{commit}}",
        expected=f"--against: {revision} must be a branch, tag or commit that `git log` knows; "
        "`git fetch --unshallow` brings those that a shallow clone lacks",
    ).strip()  # fmt: skip


def json_at(commit: str, path: Path) -> Any:
    """Return what a JSON file held in a commit, None where there was none."""
    name = f"./{path.as_posix()}"  # from this folder, which need not be the repository's top
    readable = f"{name} of {commit}: must be readable"
    if not git("ls-tree", commit, name, expected=readable):
        return None
    return json.loads(git("show", f"{commit}:{name}", expected=readable))


def champion_of(read: Callable[[Path], Any]) -> Champion | None:
    """Return the champion that `read` finds; None without metrics, or of a time without answers."""
    champion = read(CHAMPION)
    metrics = champion and read(TEST / f"{champion['model']}.json")
    if not metrics or "answers" not in metrics:
        return None
    return Champion(champion["model"], metrics["accuracy"], metrics["answers"][0])


def report(what: str) -> None:
    print(f"gate: {what}", flush=True)  # before the error, where both go to one log


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--against", required=True, help="a branch, tag or commit", metavar="REV")
    revision = parser.parse_args(argv).against
    params = load()

    commit = commit_of(revision)
    check_lock()
    report("dvc.lock: current")
    mine = champion_of(read_json)
    if mine is None:
        raise PipelineError(f"{TEST}: must hold the answers of the champion. Run `dvc repro`")
    report(f"floor: {check_floor(mine, params.gate.floor)}")
    theirs = champion_of(partial(json_at, commit))
    report(f"against {revision}: {check_against(revision, mine, theirs, params.seed)}")


if __name__ == "__main__":
    run(main)
