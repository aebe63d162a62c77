"""Compare: test each model against the reference, and choose the champion.

Reads   metrics/test/MODEL.json and metrics/train/MODEL.json of each model; models/MODEL.keras
        of the champion
Writes  metrics/comparison.json     difference in accuracy, its interval, p and verdict
        metrics/champion.json       name and test metrics of the champion
        models/champion.keras       copy of the champion's file
Params  models, finetune, reference, champion, seed
"""

import argparse
import shutil
from pathlib import Path

from pipeline.config.params import load
from pipeline.core.console import Column, print_table
from pipeline.core.errors import PipelineError, run
from pipeline.core.files import atomic_path, read_json, require_file, sha256, write_json
from pipeline.stats.correctness import same_images, unpack
from pipeline.stats.paired import LEVEL, paired


def choose_champion(setting: str, validation: dict[str, float]) -> str:
    """Return the name of the champion.

    Args:
        setting: `champion` in params.yaml: a model, or `auto` for the best validation accuracy.
        validation: Validation accuracy of each model. The first of several equal ones wins.
    """
    return max(validation, key=lambda name: validation[name]) if setting == "auto" else setting


def print_comparison(rows: list[dict], champion: str, reason: str) -> None:
    """Print a table with a row for each model; its title names the champion and the reason."""
    cells = []
    for row in rows:
        comparison = ["", "", "", "reference"]
        if "verdict" in row:
            comparison = [
                f"{row['difference']:+.4f}",
                f"[{row['difference_low']:+.4f}, {row['difference_high']:+.4f}]",
                f"{row['mcnemar_p']:.2g}",
                row["verdict"],
            ]
        interval = f"[{row['accuracy_low']:.4f}, {row['accuracy_high']:.4f}]"
        accuracies = [f"{row['val_accuracy']:.4f}", f"{row['accuracy']:.4f}", interval]
        cells.append([row["model"], f"{row['parameters']:,}", *accuracies, *comparison])
    columns = (
        Column("model"),
        Column("parameters", numeric=True, drop=1),
        Column("validation", numeric=True, drop=4),
        Column("test accuracy", numeric=True),
        Column("accuracy interval", numeric=True, drop=2),
        Column(f"vs {rows[0]['model']}", numeric=True),
        Column("difference interval", numeric=True, drop=5),
        Column("p", numeric=True, drop=3),
        Column("verdict"),
    )
    print_table(columns, cells, f"Test set, {LEVEL:.0%} intervals; champion: {champion} ({reason})")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for folder in ("test", "train", "models"):
        parser.add_argument(f"--{folder}", type=Path, required=True)
    for output in ("comparison", "champion", "champion-model"):
        parser.add_argument(f"--{output}", type=Path, required=True)
    args = parser.parse_args(argv)
    params = load()

    # DVC does not detect a new order of keys, so the order of models cannot define the reference
    names = sorted(params.all_models, key=lambda name: name != params.reference)
    reference = names[0]
    # not all files of a folder: it may also contain those of removed models
    test = {name: read_json(args.test / f"{name}.json") for name in names}
    train = {name: read_json(args.train / f"{name}.json") for name in names}
    packed = {name: metrics["answers"][0] for name, metrics in test.items()}
    rows = []
    for name in names:
        if not same_images(packed[name], packed[reference]):
            raise PipelineError(
                f"{args.test}: {name} and {reference} were not evaluated on the same images. "
                "Run `dvc repro`"
            )
        row = {
            "model": name,
            "parameters": train[name]["parameters"],
            "val_accuracy": train[name][train[name]["kept"]]["val_accuracy"],
            **{key: value for key, value in test[name].items() if not isinstance(value, list)},
        }
        if name != reference:
            row |= paired(unpack(packed[name]), unpack(packed[reference]), params.seed)
        rows.append(row)

    champion = choose_champion(params.champion, {row["model"]: row["val_accuracy"] for row in rows})
    model = require_file(args.models / f"{champion}.keras")
    if sha256(model) != test[champion]["model"][0]["sha256"]:
        raise PipelineError(f"{model}: not the file that was evaluated. Run `dvc repro`")

    write_json(args.comparison, {"reference": reference, "level": LEVEL, "models": rows})
    scalars = {key: value for key, value in test[champion].items() if not isinstance(value, list)}
    write_json(args.champion, {"model": champion, **scalars})
    with atomic_path(args.champion_model) as path:
        shutil.copyfile(model, path)
    reason = "best validation accuracy" if params.champion == "auto" else "named in params.yaml"
    print_comparison(rows, champion, reason)
    print(f"compare: champion {champion} -> {args.champion_model}")


if __name__ == "__main__":
    run(main)
