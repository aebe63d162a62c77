"""Gate: refuse a champion that is worse than that of another branch.

    python -m pipeline gate --against main

Not a stage. It reads only files that Git tracks, so it needs none of the data, models and
predictions in DVC's cache: a fresh clone is enough.

Reads   dvc.yaml, dvc.lock; metrics/champion.json and metrics/test/MODEL.json of the champion, here
        and at the other revision
Params  gate, margin
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
from pipeline.core.text import counted
from pipeline.stats import crossed
from pipeline.stats.correctness import correct_table, same_images

# outputs of compare and evaluate, as in dvc.yaml
CHAMPION = Path("metrics/champion.json")
TEST = Path("metrics/test")
# A stage whose inputs are missing here passes if dvc.lock records the same hashes for them. One
# case is not noticed in a fresh clone: a stage that depends on part of a folder which another stage
# has since rewritten, for example after `dvc repro preprocess` alone (DVC issue 11099).
DRY_RUN = ("repro", "--dry", "--allow-missing", "--keep-going")
NOTHING_TO_DO = "Data and pipelines are up to date."


class Champion(NamedTuple):
    model: str
    accuracy: float
    """Mean share of the test images over all trainings, in [0, 1]"""
    seeds: list[dict]
    """Metrics of each training, as in metrics/test"""


def check_lock() -> None:
    """Check that `dvc repro` would run no stage.

    Raises:
        PipelineError: Names the stages that it would run.
    """
    done = subprocess.run([sys.executable, "-m", "dvc", *DRY_RUN], capture_output=True, text=True)
    # The exit status is 0 even if stages would run. A stale stage whose inputs are missing here
    # fails instead (DVC issue 9021), and is named in the error.
    stale = re.findall(r"^Running stage '(.+)':$", done.stdout, re.M)
    for failed in re.findall(r"^ERROR: failed to reproduce (.+)$", done.stderr, re.M):
        stale += re.findall(r"'(.+?)'", failed)
    if stale:
        raise PipelineError(
            f"gate: dvc.lock: must be up to date. Got stages that would run: {first_few(stale)}. "
            "Run `dvc repro`, and commit dvc.lock, metrics/ and data/inputs/"
        )
    if done.returncode or NOTHING_TO_DO not in done.stdout:
        raise PipelineError(
            f"gate: dvc.lock: `dvc {' '.join(DRY_RUN)}` must find nothing to do. "
            f"Got: {done.stderr or done.stdout}"
        )


def check_floor(champion: Champion, floor: float | None) -> str:
    """Check the champion's accuracy against gate.floor and describe the result.

    Raises:
        PipelineError: The accuracy is below the floor.
    """
    accuracy = f"{100 * champion.accuracy:.1f} %"
    if floor is None:
        return f"{accuracy} test accuracy, no minimum set"
    if champion.accuracy < floor:
        raise PipelineError(
            f"gate: floor: test accuracy of {champion.model} must be at least {100 * floor:g} %. "
            f"Got {accuracy} of {counted(image_count(champion), 'image')}, "
            f"{100 * (floor - champion.accuracy):.1f} points too low. "
            "Improve the model, or lower gate.floor in params.yaml"
        )
    return f"{accuracy} test accuracy, at least {100 * floor:g} % required"


def describe_against(
    revision: str, here: Champion, there: Champion | None, margin: float
) -> tuple[str, str]:
    """Compare the champion here with the one at a revision.

    Args:
        revision: Its name, for messages.
        here: The champion of the working tree.
        there: The champion at the revision, if it has one.
        margin: Difference in accuracy that counts as equally good, in (0, 1).

    Returns:
        The verdict, empty if they cannot be compared; and a description with the numbers.
    """
    if there is None:
        return "", f"not compared: {revision} has no test results of each training of its champion"
    if not same_images(here.seeds[0]["correct"], there.seeds[0]["correct"]):
        images = f"{image_count(here):,} here, {image_count(there):,} at {revision}"
        return "", f"not compared: the test images differ ({images})"
    comparison = crossed.compare_models(correct_table(there.seeds), correct_table(here.seeds))
    p = float(comparison.p)
    accuracies = (
        f"{here.model} {100 * here.accuracy:.1f} %, {revision}'s {there.model} "
        f"{100 * there.accuracy:.1f} %"
    )
    sentence = crossed.sentence(comparison, p, margin, f"{revision}'s {there.model}")
    return crossed.verdict(comparison, p, margin), f"{accuracies}, p {p:.2g}: {sentence}"


def check_against(revision: str, here: Champion, there: Champion | None, margin: float) -> str:
    """Compare the champion here with the one at a revision and describe the result.

    Args:
        revision, here, there, margin: As for `describe_against`.

    Raises:
        PipelineError: The champion here is significantly worse.
    """
    verdict, result = describe_against(revision, here, there, margin)
    if verdict == "worse":
        raise PipelineError(
            f"gate: against {revision}: the champion must not be significantly worse. "
            f"Got {result}. "
            f"`git diff {revision}` and `dvc params diff {revision}` show what changed"
        )
    return result


def image_count(champion: Champion) -> int:
    """Return the number of test images."""
    return champion.seeds[0]["correct"]["images"]


def git(*argv: str, expected: str) -> str:
    """Run git and return its output.

    Raises:
        PipelineError: It fails or is not installed. States what was expected.
    """
    try:
        done = subprocess.run(["git", *argv], capture_output=True, encoding="utf-8")
    except FileNotFoundError:
        raise PipelineError("git: no such program. Install it, or add it to PATH") from None
    if done.returncode:
        raise PipelineError(f"{expected}. Got: {done.stderr}")
    return done.stdout


def resolve(revision: str) -> str:
    """Return the commit hash of a revision."""
    git("rev-parse", "--git-dir", expected="--against: must be run in a clone of the repository")
    return git(
        "rev-parse", "--verify", f"{revision}^{{commit}}",
        expected=f"--against: {revision} must be a branch, tag or commit of this clone; "
        "`git fetch --unshallow` completes a shallow clone",
    ).strip()  # fmt: skip


def json_at(commit: str, path: Path) -> Any:
    """Return the content of a JSON file in a commit, or None if the commit does not have it."""
    name = f"./{path.as_posix()}"  # relative: the project need not be at the repository's top
    readable = f"{name} of {commit}: must be readable"
    if not git("ls-tree", commit, name, expected=readable):
        return None
    return json.loads(git("show", f"{commit}:{name}", expected=readable))


def load_champion(read: Callable[[Path], Any]) -> Champion | None:
    """Return the champion with its test results, or None if they are missing.

    Args:
        read: Returns the content of a JSON file, or None if there is no such file.
    """
    champion = read(CHAMPION)
    metrics = champion and read(TEST / f"{champion['model']}.json")
    if not metrics or "seeds" not in metrics:  # metrics of older versions lack them
        return None
    return Champion(champion["model"], metrics["accuracy"], metrics["seeds"])


def champion_here() -> Champion:
    """Return the champion of the working tree.

    Raises:
        PipelineError: Its test results are missing.
    """
    champion = load_champion(read_json)
    if champion is None:
        raise PipelineError(
            f"{TEST}: test results of each training of the champion are missing. Run `dvc repro`"
        )
    return champion


def report(result: str) -> None:
    print(f"gate: {result}", flush=True)  # flushed: it precedes an error in a common log


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--against", required=True, help="a branch, tag or commit", metavar="REV")
    revision = parser.parse_args(argv).against
    params = load()

    commit = resolve(revision)
    check_lock()
    report("dvc.lock: up to date")
    here = champion_here()
    report(f"floor: {check_floor(here, params.gate.floor)}")
    there = load_champion(partial(json_at, commit))
    report(f"against {revision}: {check_against(revision, here, there, params.margin / 100)}")


if __name__ == "__main__":
    run(main)
