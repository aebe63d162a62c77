"""Pull request: compare this run with another revision, as Markdown.

    python -m pipeline pull_request --against origin/main

Not a stage. Of the other revision it needs only files in Git: metrics/test records which test
images each training classified correctly. So it needs no remote, and runs nothing again.

Reads   metrics/comparison.json, plots/learning_curves.csv; of the champion metrics/test/MODEL.json
        and data/predictions/MODEL/SEED.parquet; metrics of the champion at the other revision
Params  margin
"""

import argparse
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from pipeline.config.params import load
from pipeline.core.errors import run
from pipeline.core.files import read_json
from pipeline.core.text import counted, markdown
from pipeline.data import tables
from pipeline.data.predictions import read_table
from pipeline.reporting.chart_style import mean_curves
from pipeline.reporting.results import verdict
from pipeline.stats.correctness import correct_table
from pipeline.tools import gate

# outputs of compare, evaluate and plot, as in dvc.yaml
COMPARISON = Path("metrics/comparison.json")
PREDICTIONS = Path("data/predictions")
CURVES = Path("plots/learning_curves.csv")
MAX_IMAGES = 20  # in a table
MAX_POINTS = 20  # epochs in a chart: Mermaid writes each below the axis
# Mermaid's charts have no legend, so the text above shows a square in the color of each line
COLORS = {"🟦": "#2f7ed8", "🟧": "#d97706", "🟩": "#17966b", "🟪": "#7c6ae0", "🟥": "#d64545"}


def changed_images(here: np.ndarray, there: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the numbers of the newly wrong images, and of the newly right ones.

    An image counts as right if more than half of the trainings classify it correctly.

    Args:
        here: `(k, n)` bool, which of n images each of k trainings classified correctly.
        there: `(j, n)` bool, the same at the other revision.
    """
    right, was_right = (2 * table.sum(axis=0) > len(table) for table in (here, there))
    return np.flatnonzero(was_right & ~right), np.flatnonzero(right & ~was_right)


def image_table(
    images: np.ndarray, here: np.ndarray, there: np.ndarray, predictions: pd.DataFrame
) -> list[str]:
    """Return a table of images in lines of Markdown.

    Args:
        images: Their numbers.
        here: As for `changed_images`.
        there: As for `changed_images`.
        predictions: Of all trainings here, from `read_table`.
    """
    rows = predictions.groupby(predictions.groupby("seed").cumcount())
    lines = ["| image | class | predicted | correct here | correct there |", "|" + " --- |" * 5]
    for number in images[:MAX_IMAGES].tolist():
        image = rows.get_group(number)
        predicted = ", ".join(image["predicted"].value_counts().index)  # the most frequent first
        names = image["id"].iloc[0], image["actual"].iloc[0], predicted
        counts = [f"{table[:, number].sum()} of {len(table)}" for table in (here, there)]
        lines.append(f"| {' | '.join([*map(markdown, names), *counts])} |")
    if len(images) > MAX_IMAGES:
        lines += ["", f"The first {MAX_IMAGES} are shown."]
    return lines


def learning_curves(curves: pd.DataFrame) -> list[str]:
    """Return a chart of the accuracies over the epochs, in lines of Markdown.

    They are those on the validation images, or without any, those on the training images.

    Args:
        curves: From `mean_curves`. The models beyond the number of colors are left out.
    """
    names = list(dict.fromkeys(curves["model"]))[: len(COLORS)]
    split = max(curves["split"], key=["train", "validation"].index)
    chosen = curves[curves["split"] == split]
    table = 100 * chosen.pivot(index="epoch", columns="model", values="accuracy")[names]
    step = -(-len(table) // MAX_POINTS)
    table = table.iloc[(len(table) - 1) % step :: step]  # with the last epoch
    # COLORS may have more colors than there are models
    legend = [f"{square} {markdown(name)}" for square, name in zip(COLORS, names, strict=False)]
    palette = ", ".join(list(COLORS.values())[: len(names)])
    low = min(99, int(table.min().min()))
    return [
        f"Accuracy in % ({split}), mean over the trainings: {', '.join(legend)}",
        "",
        "```mermaid",
        "---",
        f'config: {{themeVariables: {{xyChart: {{plotColorPalette: "{palette}"}}}}}}',
        "---",
        "xychart-beta",
        f"  x-axis epoch [{', '.join(map(str, table.index))}]",
        f"  y-axis {low} --> 100",
        # a shorter training has values for the first epochs only
        *(f"  line [{', '.join(f'{v:.2f}' for v in table[name].dropna())}]" for name in names),
        "```",
    ]


def compare(revision: str, commit: str, margin: float) -> list[str]:
    """Return the comparison of this run with another revision, in lines of Markdown.

    Args:
        revision: Its name, for messages.
        commit: Its hash.
        margin: Difference in accuracy that counts as equally good, in (0, 1).
    """
    here = gate.champion_here()
    there = gate.load_champion(partial(gate.json_at, commit))
    comparison = read_json(COMPARISON)
    result, description = gate.describe_against(revision, here, there, margin)
    lines = [
        f"## Results against {markdown(revision)}",
        "",
        f"**{markdown(verdict(comparison['models'], here.model, comparison['level']))}**",
        "",
        f"Champion: {markdown(description)}.",
        "",
    ]
    if there and result:  # otherwise the description says why they are not compared
        correct = correct_table(here.seeds), correct_table(there.seeds)
        seeds = [training["seed"] for training in here.seeds]
        predictions = read_table(PREDICTIONS / here.model, seeds)
        for title, images in zip(("wrong", "right"), changed_images(*correct), strict=True):
            count = f"{counted(len(images), 'test image')} of {gate.image_count(here):,}"
            lines += [f"### Newly {title}: {count}", ""]
            if len(images):
                lines += [*image_table(images, *correct, predictions), ""]
        lines += ["An image counts as right if more than half of the trainings are correct.", ""]
    return [*lines, "### Learning curves", "", *learning_curves(mean_curves(tables.read(CURVES)))]


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--against", required=True, help="a branch, tag or commit", metavar="REV")
    revision = parser.parse_args(argv).against
    params = load()
    print("\n".join(compare(revision, gate.resolve(revision), params.margin / 100)))


if __name__ == "__main__":
    run(main)
