"""Compare: every model side by side, and whether a difference to the reference is luck.

Reads   metrics/test/MODEL.json, metrics/train/MODEL.json, plots/predictions/MODEL.csv of
        every model; models/MODEL.keras of the champion
Writes  metrics/comparison.json     accuracy difference, its interval, p and verdict
        metrics/champion.json       name and test metrics of the champion
        models/champion.keras       a copy of its file
Params  models, finetune, reference, champion, seed
"""

import argparse
import hashlib
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
from rich.console import Console
from rich.table import Table
from scipy.stats import binomtest, bootstrap

from pipeline.errors import PipelineError, run
from pipeline.files import read_json, replacing, write_json
from pipeline.params import load

# Resamples of the bootstrap: the interval's ends are then good to about 2 % of its width.
RESAMPLES = 10_000
LEVEL = 0.95


def paired(correct: np.ndarray, reference: np.ndarray, seed: int) -> dict:
    """Compare two models on the same test images.

    Args:
        correct: `(n,)` bool, the images that the model got right.
        reference: `(n,)` bool, those that the reference got right.
        seed: Of the bootstrap.

    Returns:
        difference of accuracy with its paired percentile bootstrap interval (Efron 1979),
        p of McNemar's exact test (McNemar 1947), and a verdict: `better` or `worse` where
        the interval excludes 0 and p < 0.05, else `not distinguishable`.
    """
    # paired: an image is drawn together with both answers, so their difference is drawn
    gain = correct.astype(float) - reference.astype(float)
    low, high = bootstrap(
        (gain,),
        np.mean,
        n_resamples=RESAMPLES,
        batch=100,
        confidence_level=LEVEL,
        method="percentile",
        rng=seed,
    ).confidence_interval
    only_model, only_reference = int((gain > 0).sum()), int((gain < 0).sum())
    discordant = only_model + only_reference
    p = binomtest(only_model, discordant).pvalue if discordant else 1.0
    verdict = "not distinguishable"
    if p < 1 - LEVEL and not low <= 0 <= high:
        verdict = "better" if gain.mean() > 0 else "worse"
    return {
        "difference": float(gain.mean()),
        "difference_low": float(low),
        "difference_high": float(high),
        "only_this_right": only_model,
        "only_reference_right": only_reference,
        "mcnemar_p": float(p),
        "verdict": verdict,
    }


def choose(champion: str, validation: dict[str, float]) -> str:
    """Return the champion: as named, or for `auto` the best validation accuracy, first on a tie."""
    return max(validation, key=lambda name: validation[name]) if champion == "auto" else champion


def read(folder: Path, names: list[str], suffix: str) -> dict[str, Path]:
    """Return the file of every model; a folder may hold those of former models too."""
    paths = {name: folder / f"{name}{suffix}" for name in names}
    for name, path in paths.items():
        if not path.is_file():
            raise PipelineError(f"{path}: no such file. Run `dvc repro evaluate@{name}`")
    return paths


def show(rows: list[dict], champion: str) -> None:
    """Print the comparison as a table."""
    table = Table(
        title=f"Test set, {LEVEL:.0%} intervals; champion (by validation unless named): {champion}"
    )
    table.add_column("model")
    for heading in ("parameters", "validation", "test accuracy", f"vs {rows[0]['model']}", "p"):
        table.add_column(heading, justify="right")
    table.add_column("verdict")
    for row in rows:
        against = ["", "", "reference"]
        if "verdict" in row:
            interval = f"[{row['difference_low']:+.4f}, {row['difference_high']:+.4f}]"
            against = [
                f"{row['difference']:+.4f} {interval}",
                f"{row['mcnemar_p']:.2g}",
                row["verdict"],
            ]
        accuracy = f"{row['accuracy']:.4f} [{row['accuracy_low']:.4f}, {row['accuracy_high']:.4f}]"
        table.add_row(
            row["model"], f"{row['parameters']:,}", f"{row['val_accuracy']:.4f}", accuracy, *against
        )
    # a pipe or a log has no width of its own, and a cut table says nothing
    console = Console()
    Console(width=console.width if console.is_terminal else 140).print(table)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for folder in ("test", "train", "predictions", "models"):
        parser.add_argument(f"--{folder}", type=Path, required=True)
    for output in ("comparison", "champion", "champion-model"):
        parser.add_argument(f"--{output}", type=Path, required=True)
    args = parser.parse_args(argv)
    params = load()

    # DVC does not see the order of a mapping, so the reference has a key of its own
    names = sorted(params.all_models, key=lambda name: name != params.reference)
    test = {name: read_json(path) for name, path in read(args.test, names, ".json").items()}
    train = {name: read_json(path) for name, path in read(args.train, names, ".json").items()}
    tables = {
        # a class may be called NA
        name: pd.read_csv(path, dtype=str, keep_default_na=False)
        for name, path in read(args.predictions, names, ".csv").items()
    }
    first = tables[names[0]]
    rows = []
    for name, table in tables.items():
        if not table["actual"].equals(first["actual"]):
            raise PipelineError(
                f"{args.predictions}: {name} and {names[0]} were not measured on the same images. "
                "Run `dvc repro`"
            )
        row = {
            "model": name,
            "parameters": train[name]["parameters"],
            "val_accuracy": train[name][train[name]["kept"]]["val_accuracy"],
            **{key: value for key, value in test[name].items() if not isinstance(value, list)},
        }
        if name != names[0]:
            right = (table["actual"] == table["predicted"]).to_numpy()
            row |= paired(right, (first["actual"] == first["predicted"]).to_numpy(), params.seed)
        rows.append(row)

    champion = choose(params.champion, {row["model"]: row["val_accuracy"] for row in rows})
    model = read(args.models, [champion], ".keras")[champion]
    if hashlib.sha256(model.read_bytes()).hexdigest() != test[champion]["model"][0]["sha256"]:
        raise PipelineError(
            f"{model}: is not the file that was evaluated. Run `dvc repro evaluate@{champion}`"
        )

    write_json(args.comparison, {"reference": names[0], "level": LEVEL, "models": rows})
    scalars = {key: value for key, value in test[champion].items() if not isinstance(value, list)}
    write_json(args.champion, {"model": champion, **scalars})
    with replacing(args.champion_model) as path:
        shutil.copyfile(model, path)
    show(rows, champion)
    print(f"compare: champion {champion} -> {args.champion_model}")


if __name__ == "__main__":
    run(main)
