"""Graph: measure `make repro` and `dvc repro` in a clone, with nothing to do or from `split` on."""

import itertools
import sys
from pathlib import Path

import yaml

from benchmarks.harness import OURS, REPOSITORY, Command, Plan, Variant, process, python
from pipeline.config import yaml_reader

DVC = python("-m", "dvc", "repro")
# make takes .venv as it is: to install it is another thing to measure
MAKE = ["make", "--assume-old=.venv/ready", "repro"]


def clone(plan: Plan, epochs: int | None) -> Path:
    """Clone the repository, run its graph once, and return the clone.

    Args:
        plan: How to measure.
        epochs: Of each training; None: those of params.yaml.
    """
    folder = plan.folder / f"clone-{epochs}"
    process(["git", "clone", "--quiet", str(REPOSITORY), str(folder)], plan.folder)
    (folder / ".venv").symlink_to(sys.prefix)
    if epochs:
        params = read_params(folder)
        write_params(folder, params | {"train": params["train"] | {"epochs": epochs}})
    print("  the graph runs once", flush=True)
    process(DVC, folder)
    return folder


def read_params(folder: Path) -> dict:
    return yaml_reader.parse((folder / "params.yaml").read_text("utf-8"))


def write_params(folder: Path, params: dict) -> None:
    (folder / "params.yaml").write_text(yaml.safe_dump(params), "utf-8")


def nothing_to_do(plan: Plan) -> dict[str, Variant]:
    """Return both commands, in a clone in which every stage has run."""
    folder = clone(plan, epochs=1)
    return {OURS: Command(folder, MAKE), "dvc repro": Command(folder, DVC)}


def jobs(plan: Plan) -> dict[str, Variant]:
    """Return two stages at once, and one after another, each time with other seeds."""
    folder = clone(plan, epochs=1 if plan.quick else None)
    params, seeds = read_params(folder), itertools.count(100)

    def change_seeds() -> None:
        write_params(folder, params | {"seeds": [next(seeds) for _ in params["seeds"]]})

    two = python("-m", "pipeline", "repro", "2")
    return {
        OURS: Command(folder, two, before=change_seeds),
        "JOBS=1": Command(folder, DVC, before=change_seeds),
    }
