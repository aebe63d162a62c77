"""Compare: test each model against the reference, and choose the champion.

Reads   metrics/test/MODEL.json and metrics/train/MODEL/SEED.json of each model; metrics/split.json;
        models/MODEL/SEED.keras of the champion's first seed
Writes  metrics/comparison.json     the accuracies of each model; its difference from the
                                    reference with interval, p, verdict and sources of its spread;
                                    the same without test images that have a duplicate in train or
                                    validation
        metrics/champion.json       name and test metrics of the champion
        models/champion.keras       copy of the champion's file
Params  champion, compare, margin, seeds
"""

import argparse
import shutil
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pipeline.config.params import load
from pipeline.core.errors import PipelineError, run
from pipeline.core.files import atomic_path, read_json, require_file, sha256, write_json
from pipeline.core.text import counted
from pipeline.stats import crossed
from pipeline.stats.comparison_table import print_comparison
from pipeline.stats.correctness import correct_table, same_images
from pipeline.stats.crossed import LEVEL


class Candidate(NamedTuple):
    val_accuracy: float
    """Mean over the trainings"""
    parameters: int


def choose_champion(setting: str, candidates: dict[str, Candidate]) -> str:
    """Return the name of the champion.

    Args:
        setting: `champion` in params.yaml: a model, or `auto` for the best mean validation
            accuracy; on a tie the fewest parameters, then the first.
        candidates: All models, in the order of `compare`.
    """
    if setting != "auto":
        return setting
    return max(
        candidates, key=lambda name: (candidates[name].val_accuracy, -candidates[name].parameters)
    )


def scalars(metrics: dict[str, Any]) -> dict[str, Any]:
    """Return the metrics that are neither lists nor None."""
    return {key: value for key, value in metrics.items() if not isinstance(value, list | None)}


def model_row(name: str, trainings: list[dict[str, Any]], test: dict[str, Any]) -> dict[str, Any]:
    """Return the accuracies of a model; without validation images, those of the test images only.

    Args:
        name: Its name in params.yaml.
        trainings: metrics/train of each training.
        test: metrics/test.
    """
    kept = [training[training["kept"]] for training in trainings]
    validation = [epoch["val_accuracy"] for epoch in kept if "val_accuracy" in epoch]
    row = {"model": name, "parameters": trainings[0]["parameters"]}
    if validation:
        row["val_accuracy"] = float(np.mean(validation))
    if len(validation) > 1:
        row["val_accuracy_sd"] = float(np.std(validation, ddof=1))
    accuracies = [training["accuracy"] for training in test["seeds"]]
    return {**row, **scalars(test), "accuracies": accuracies}


def without_leaks(
    tables: dict[str, np.ndarray], leaked: list[int], margin: float
) -> dict[str, Any] | None:
    """Compare the models without the test images that have a duplicate in train or validation.

    Args:
        tables: `(k, n)` bool of each model, the reference first.
        leaked: Numbers of these test images.
        margin: As for `crossed.verdict`.

    Returns:
        The number of the remaining images, and for each model its accuracy and comparison; None if
        no image is leaked, or fewer than two remain.
    """
    reference, *others = tables
    num_images = tables[reference].shape[1]
    kept = np.setdiff1d(np.arange(num_images), leaked)
    if len(kept) == num_images or len(kept) < 2:
        return None
    remaining = {name: table[:, kept] for name, table in tables.items()}
    comparisons = crossed.compare_all(remaining, dict.fromkeys(others, reference), margin)
    rows = [
        {"model": name, "accuracy": float(table.mean()), **comparisons.get(name, {})}
        for name, table in remaining.items()
    ]
    return {"images": len(kept), "models": rows}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for folder in ("test", "train", "models", "split"):
        parser.add_argument(f"--{folder}", type=Path, required=True)
    for output in ("comparison", "champion", "champion-model"):
        parser.add_argument(f"--{output}", type=Path, required=True)
    args = parser.parse_args(argv)
    params = load()

    reference, *others = params.compare
    margin = params.margin / 100
    # not all files of a folder: it may also contain those of removed models
    test = {name: read_json(args.test / f"{name}.json") for name in params.compare}
    images = {name: metrics["seeds"][0]["correct"] for name, metrics in test.items()}
    rows = []
    for name in params.compare:
        if not same_images(images[name], images[reference]):
            raise PipelineError(
                f"{args.test}: {name} and {reference} were not evaluated on the same images. "
                "Run `dvc repro`"
            )
        trainings = [read_json(args.train / name / f"{seed}.json") for seed in params.seeds]
        rows.append(model_row(name, trainings, test[name]))
    tables = {name: correct_table(metrics["seeds"]) for name, metrics in test.items()}
    comparisons = crossed.compare_all(tables, dict.fromkeys(others, reference), margin)
    for row in rows[1:]:
        row |= comparisons[row["model"]]

    # without validation images, the champion is named or the only model
    candidates = {
        row["model"]: Candidate(row.get("val_accuracy", 0.0), row["parameters"]) for row in rows
    }
    champion = choose_champion(params.champion, candidates)
    first = test[champion]["seeds"][0]
    model = require_file(args.models / champion / f"{first['seed']}.keras")
    if sha256(model) != first["sha256"]:
        raise PipelineError(f"{model}: not the file that was evaluated. Run `dvc repro`")

    facts = {"reference": reference, "level": LEVEL, "margin": margin}
    leaked = read_json(args.split)["leaked_test_rows"]
    clean = without_leaks(tables, leaked, margin)
    write_json(args.comparison, {**facts, "models": rows, "without_leaks": clean})
    val_accuracy = next(row for row in rows if row["model"] == champion).get("val_accuracy")
    metrics = {"model": champion, "val_accuracy": val_accuracy, **test[champion]}
    write_json(args.champion, scalars(metrics))
    with atomic_path(args.champion_model) as path:
        shutil.copyfile(model, path)
    if sys.stdout.isatty():  # as by `dvc repro`; `make repro` prints the table at its end
        print_comparison(rows, LEVEL)
    for row in rows[1:]:
        print(f"compare: {row['model']}: {row['sentence']}")
    if clean:
        print(
            f"compare: without {counted(len(leaked), 'test image')} that have a duplicate in train "
            "or validation:"
        )
        for row in clean["models"][1:]:
            print(f"compare: {row['model']}: {row['sentence']}")
    reason = "best mean validation accuracy" if others else "the only model"
    if params.champion != "auto":
        reason = "named in params.yaml"
    print(f"compare: champion {champion} ({reason}) -> {args.champion_model}")


if __name__ == "__main__":
    run(main)
