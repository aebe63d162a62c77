"""Label issues: rank the images whose labels are probably wrong.

Each training predicts images that it was not trained on: its validation images and the test images.
The probabilities of an image are averaged over the trainings of all models that held it out.

Reads   data/predictions/MODEL/SEED.parquet, data/arrays/rows/{train,test}.parquet
Writes  data/label_issues/{train,test}.csv    the images whose label is probably wrong, the most
                                              suspicious first: id; label: the suggested class;
                                              given: the class of the label; score: probability of
                                              the suggested minus that of the given class; agree:
                                              number of trainings that predict the suggested class;
                                              trainings: number that held the image out
        metrics/label_issues.json             of train and test: number of images, of images that
                                              a training held out, and of label issues
Params  compare, seeds
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from pipeline.config.params import load
from pipeline.core.errors import run
from pipeline.core.files import atomic_path, write_json
from pipeline.data import predictions, rows
from pipeline.data.predictions import Predictions
from pipeline.stats.confident_learning import find_label_issues

# where the predictions of held-out training images and of test images come from
SOURCES = {"train": "validation", "test": "test"}


class HeldOut(NamedTuple):
    """Predictions for n images by the trainings that held them out."""

    ids: list[str]
    labels: np.ndarray
    """`(n,)` int64, in [0, k)"""
    probabilities: np.ndarray
    """`(n, k)` mean over the trainings"""
    votes: np.ndarray
    """`(n, k)` int64, number of trainings that predict each class"""


def collect(trainings: Sequence[Predictions]) -> HeldOut:
    """Combine the predictions of several trainings, which may have held out different images.

    Args:
        trainings: Predictions of one split by each training.
    """
    row_of: dict[str, int] = {}
    for training in trainings:
        for id in training.ids:
            row_of.setdefault(id, len(row_of))
    shape = len(row_of), len(trainings[0].classes)
    labels, total = np.zeros(len(row_of), np.int64), np.zeros(shape)
    votes = np.zeros(shape, np.int64)
    for training in trainings:
        image_rows = np.array([row_of[id] for id in training.ids], np.int64)
        labels[image_rows] = training.labels
        total[image_rows] += training.probabilities
        votes[image_rows, training.predicted] += 1
    return HeldOut(list(row_of), labels, total / votes.sum(axis=1, keepdims=True), votes)


def issue_table(held_out: HeldOut, classes: list[str]) -> pd.DataFrame:
    """Return the images whose label is probably wrong, the most suspicious first.

    Args:
        held_out: Predictions for n images.
        classes: k names.

    Returns:
        id, label, given, score, agree and trainings, as in data/label_issues/train.csv.
    """
    issues = find_label_issues(held_out.probabilities, held_out.labels)
    names = np.array(classes, object)
    return pd.DataFrame(
        {
            "id": [held_out.ids[row] for row in issues.rows],
            "label": names[issues.suggested],
            "given": names[held_out.labels[issues.rows]],
            "score": issues.scores.round(4),
            "agree": held_out.votes[issues.rows, issues.suggested],
            "trainings": held_out.votes[issues.rows].sum(axis=1),
        }
    )


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for path in ("predictions", "arrays", "issues", "metrics"):
        parser.add_argument(f"--{path}", type=Path, required=True)
    args = parser.parse_args(argv)
    params = load()

    trainings = [
        predictions.read(args.predictions / name / f"{seed}.parquet")
        for name in params.compare
        for seed in params.seeds
    ]
    classes = trainings[0].classes
    metrics = {}
    with atomic_path(args.issues) as folder:
        folder.mkdir()
        for split, source in SOURCES.items():
            held_out = collect([training.of(source) for training in trainings])
            table = issue_table(held_out, classes)
            table.to_csv(folder / f"{split}.csv", index=False)
            metrics[split] = {
                "images": len(rows.ids(args.arrays, split)),
                "held_out": len(held_out.ids),
                "issues": len(table),
            }
    write_json(args.metrics, metrics)
    train, test = metrics["train"], metrics["test"]
    print(
        f"label_issues: labels that are probably wrong: {train['issues']} of "
        f"{train['held_out']:,} held-out training images ({train['images']:,} in all), "
        f"{test['issues']} of {test['images']:,} test images -> {args.issues}"
    )


if __name__ == "__main__":
    run(main)
