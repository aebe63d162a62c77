"""Print the comparison of models; apart from its computation, whose import of SciPy takes 0.6 s."""

from pipeline.core.console import Column, print_table
from pipeline.core.text import signed


def print_comparison(rows: list[dict], level: float) -> None:
    """Print a table with a row for each model.

    Args:
        rows: `models` of metrics/comparison.json, the reference first.
        level: Of the confidence intervals, in (0, 1).
    """
    cells = []
    for row in rows:
        comparison = ["", "", "", "reference"]
        if "verdict" in row:
            comparison = [
                signed(100 * row["difference"], 2),
                f"[{signed(100 * row['difference_low'], 2)}, "
                f"{signed(100 * row['difference_high'], 2)}]",
                f"{row['p_holm']:.2g}",
                row["verdict"],
            ]
        deviation = f" ± {100 * row['accuracy_sd']:.2f}" if "accuracy_sd" in row else ""
        cells.append([
            row["model"],
            f"{row['parameters']:,}",
            f"{100 * row['val_accuracy']:.2f}" if "val_accuracy" in row else "–",
            f"{100 * row['accuracy']:.2f}{deviation}",
            f"[{100 * row['accuracy_low']:.2f}, {100 * row['accuracy_high']:.2f}]",
            *comparison,
        ])  # fmt: skip
    columns = (
        Column("model"),
        Column("parameters", numeric=True, drop=1),
        Column("validation", numeric=True, drop=3),
        Column("test", numeric=True),
        Column("test interval", numeric=True, drop=2),
        Column(f"vs {rows[0]['model']}", numeric=True),
        Column("difference interval", numeric=True, drop=5),
        Column("p", numeric=True, drop=4),
        Column("verdict"),
    )
    count = rows[0]["trainings"]
    trained = "one training each" if count == 1 else f"mean ± SD of {count} trainings"
    adjusted = ", p adjusted (Holm)" if len(rows) > 2 else ""
    print_table(columns, cells, f"Accuracy in %, {trained}, {level:.0%} intervals{adjusted}")
