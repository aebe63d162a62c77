"""Live curves: the finished epochs of all trainings, in files that are drawn while they train.

    plots/live/accuracy.csv    model, seed, split, epoch, accuracy
    plots/live/loss.csv        model, seed, split, epoch, loss

`dvc plots show` and the DVC extension of VS Code draw each file as one chart (see `plots:` in
dvc.yaml). They are no outputs: Git ignores them, and no stage reads them. DVCLive instead writes a
folder for each training with a file for each metric. DVC draws one chart for each file, so that no
two models would share a chart.
"""

import csv
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock

from pipeline.core.files import atomic_path, write_json

FOLDER = Path("plots/live")
COLUMNS = ("accuracy", "loss")  # one file each
PREFIXES = {"train": "", "validation": "val_"}  # of a split's columns in the history
# The extension of VS Code draws the charts again when this file changes. DVCLive writes it, too.
SIGNAL = Path(".dvc/tmp/exps/run/DVCLIVE_STEP_COMPLETED")

Row = dict[str, Any]


def show(model: str, seed: int, history: Sequence[Mapping[str, float]]) -> None:
    """Replace the rows of one training. A failure is printed and does not stop the training.

    Args:
        model: Name of the model.
        seed: Seed of the training.
        history: One row per finished epoch, as train writes them.
    """

    def rows(column: str) -> list[Row]:
        return [
            {"model": model, "seed": str(seed), "split": split, "epoch": row["epoch"],
             column: row[prefix + column]}
            for split, prefix in PREFIXES.items()
            for row in history
            if prefix + column in row  # there may be no validation images
        ]  # fmt: skip

    try:
        _rewrite(lambda *training: training != (model, str(seed)), rows)
        if root := os.environ.get("DVC_ROOT"):  # set by DVC
            write_json(Path(root) / SIGNAL, {"pid": os.getpid(), "step": len(history)})
    except OSError as error:
        print(f"train: {model}-{seed}: the live curves are not written: {error}", flush=True)


def remove_others(models: Collection[str], seeds: Collection[int]) -> None:
    """Remove the rows of all models and seeds but these."""
    if FOLDER.exists():
        names = {str(seed) for seed in seeds}
        _rewrite(lambda model, seed: model in models and seed in names, lambda column: [])


def _rewrite(keep: Callable[[str, str], bool], new: Callable[[str], list[Row]]) -> None:
    """Keep the rows of some models and seeds in each file, and add new ones, sorted."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    # a process that holds the lock may have been suspended
    with FileLock(FOLDER / ".lock", timeout=10):
        for column in COLUMNS:
            path = FOLDER / f"{column}.csv"
            header = ["model", "seed", "split", "epoch", column]
            rows = [row for row in _read(path, header) if keep(row["model"], row["seed"])]
            rows = sorted([*rows, *new(column)], key=lambda row: (row["model"], row["seed"]))
            if not rows:  # DVC cannot draw a file without rows
                path.unlink(missing_ok=True)
                continue
            with atomic_path(path) as part, part.open("w", encoding="utf-8", newline="") as file:
                table = csv.DictWriter(file, header, lineterminator="\n")
                table.writeheader()
                table.writerows(rows)


def _read(path: Path, header: list[str]) -> list[Row]:
    """Return the rows of a file; none if it does not exist, is damaged or has other columns."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            table = csv.DictReader(file, restval="")
            return list(table) if table.fieldnames == header else []
    except (FileNotFoundError, csv.Error, UnicodeDecodeError):
        return []
