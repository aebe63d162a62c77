"""Compare: all models side by side, and test whether differences to the reference are chance.

Reads   metrics/test/MODEL.json, metrics/train/MODEL.json of every model; models/MODEL.keras
        of the champion
Writes  metrics/comparison.json     accuracy difference, its interval, p and verdict
        metrics/champion.json       name and test metrics of the champion
        models/champion.keras       a copy of its file
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


def choose(champion: str, validation: dict[str, float]) -> str:
    """Return the champion: as named, or for `auto` the best validation accuracy, first on a tie."""
    return max(validation, key=lambda name: validation[name]) if champion == "auto" else champion


def read(folder: Path, names: list[str], suffix: str) -> dict[str, Path]:
    """Return the file of each model; the folder may also contain files of removed models."""
    return {name: require_file(folder / f"{name}{suffix}") for name in names}


def show(rows: list[dict], champion: str, reason: str) -> None:
    """Print the comparison as a table."""
    cells = []
    for row in rows:
        against = ["", "", "", "reference"]
        if "verdict" in row:
            against = [
                f"{row['difference']:+.4f}",
                f"[{row['difference_low']:+.4f}, {row['difference_high']:+.4f}]",
                f"{row['mcnemar_p']:.2g}",
                row["verdict"],
            ]
        interval = f"[{row['accuracy_low']:.4f}, {row['accuracy_high']:.4f}]"
        accuracies = [f"{row['val_accuracy']:.4f}", f"{row['accuracy']:.4f}", interval]
        cells.append([row["model"], f"{row['parameters']:,}", *accuracies, *against])
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

    # DVC does not see the order of a mapping, so the reference has a key of its own
    names = sorted(params.all_models, key=lambda name: name != params.reference)
    test = {name: read_json(path) for name, path in read(args.test, names, ".json").items()}
    train = {name: read_json(path) for name, path in read(args.train, names, ".json").items()}
    answers = {name: metrics["answers"][0] for name, metrics in test.items()}
    first = answers[names[0]]
    rows = []
    for name, correct in answers.items():
        if not same_images(correct, first):
            raise PipelineError(
                f"{args.test}: {name} and {names[0]} were not measured on the same images. "
                "Run `dvc repro`"
            )
        row = {
            "model": name,
            "parameters": train[name]["parameters"],
            "val_accuracy": train[name][train[name]["kept"]]["val_accuracy"],
            **{key: value for key, value in test[name].items() if not isinstance(value, list)},
        }
        if name != names[0]:
            row |= paired(unpack(correct), unpack(first), params.seed)
        rows.append(row)

    champion = choose(params.champion, {row["model"]: row["val_accuracy"] for row in rows})
    model = read(args.models, [champion], ".keras")[champion]
    if sha256(model) != test[champion]["model"][0]["sha256"]:
        raise PipelineError(f"{model}: is not the file that was evaluated. Run `dvc repro`")

    write_json(args.comparison, {"reference": names[0], "level": LEVEL, "models": rows})
    scalars = {key: value for key, value in test[champion].items() if not isinstance(value, list)}
    write_json(args.champion, {"model": champion, **scalars})
    with atomic_path(args.champion_model) as path:
        shutil.copyfile(model, path)
    reason = "best validation accuracy" if params.champion == "auto" else "named in params.yaml"
    show(rows, champion, reason)
    print(f"compare: champion {champion} -> {args.champion_model}")


if __name__ == "__main__":
    run(main)
