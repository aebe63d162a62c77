"""Report: show the results as a table, in the terminal and the documentation, and as a picture."""

import json
import re
from pathlib import Path

from benchmarks.harness import OURS
from pipeline.core.console import Column, print_table
from pipeline.reporting.drawing import Figure, NullFormatter, NullLocator, plt

COLUMNS = ("", OURS, "compared with", "", "ratio", "min to max", "n")
NOTE = (
    f"Medians of n runs. If the ratio is above 1, {OURS} is faster or needs less memory. Min to "
    "max: the ratios of single runs."
)
MARKERS = "<!-- benchmarks: written by python -m benchmarks -->\n", "<!-- /benchmarks -->\n"
TICKS = (0.1, 0.2, 0.5, 0.7, 1, 1.5, 2, 3, 5, 10, 20, 50)


def read(folder: Path) -> list[dict]:
    """Read the results of all benchmarks in a folder, sorted by name."""
    files = [json.loads(path.read_text("utf-8")) for path in sorted(folder.glob("*.json"))]
    return [file for file in files if "comparisons" in file]  # false_alarms.json has none


def rows(results: list[dict]) -> list[tuple[str, ...]]:
    """Return the cells of COLUMNS for each comparison, and for each variant without comparison."""
    cells: list[tuple[str, ...]] = []
    for comparison in (comparison for result in results for comparison in result["comparisons"]):
        title, n, (ours, *others) = comparison["title"], str(comparison["n"]), comparison["ways"]
        medians = {
            name: median(variant, comparison["unit"])
            for name, variant in comparison["ways"].items()
        }
        for other in others:
            ratio = comparison["against"][other]
            spread = f"{times(ratio['min'])} to {times(ratio['max'])}"
            cells.append(
                (title, medians[ours], other, medians[other], times(ratio["ratio"]), spread, n)
            )
        if not others:
            cells.append((title, medians[ours], "", "", "", "", n))
    return cells


def median(variant: dict, unit: str) -> str:
    """Return the median of a variant as text, with its unit and precision."""
    value = variant["median"]
    text = f"{value:,.0f} {unit}" if value >= 100 else f"{value:.3g} {unit}"
    return f"{text}, {variant['precision']}" if "precision" in variant else text


def times(ratio: float) -> str:
    """Return a ratio as text, such as 1.50×."""
    return f"{ratio:.2f}×" if ratio < 9.995 else f"{ratio:.0f}×"


def describe_machines(results: list[dict]) -> list[str]:
    """Return a line for each machine and set of versions, with the benchmarks measured there."""
    lines: dict[str, list[str]] = {}
    for result in results:
        machine, versions = result["machine"], result["versions"]
        text = f"{machine['device']}, {machine['cores']} cores, {machine['memory_gib']} GiB; "
        text += ", ".join(
            version if name == "backend" else f"{name} {version}"
            for name, version in versions.items()
        )
        text += f"; {result['date'][:10]}" + ("; quick: fewer images" if result["quick"] else "")
        lines.setdefault(text, []).append(result["benchmark"])
    return [f"{', '.join(dict.fromkeys(names))}: {text}" for text, names in lines.items()]


def show(results: list[dict]) -> None:
    """Print the table and the notes."""
    drop = {"n": 1, "min to max": 2}
    print_table([Column(heading, drop=drop.get(heading, 0)) for heading in COLUMNS], rows(results))
    print("\n".join([NOTE, *describe_machines(results)]))


def markdown(results: list[dict]) -> str:
    """Return the text between the markers of the page, empty without results."""
    if not results:
        return ""
    lines = [COLUMNS, ["---"] * len(COLUMNS), *rows(results)]
    table = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    notes = "\n\n".join([NOTE, *(f"{line}." for line in describe_machines(results))])
    return f"\n![ratios](../benchmarks/results/benchmarks.png)\n\n{table}\n{notes}\n\n"


def split_page(page: str) -> tuple[str, str, str]:
    """Return the text before, between and after the markers."""
    before, between, after = re.split("|".join(map(re.escape, MARKERS)), page)
    return before, between, after


def write_page(path: Path, results: list[dict]) -> None:
    """Replace the text between the markers of a page."""
    before, _, after = split_page(path.read_text("utf-8"))
    path.write_text(before + markdown(results).join(MARKERS) + after, "utf-8")


def draw(results: list[dict]) -> Figure:
    """Draw the ratio of cnn-pipeline to each other variant, with the range of single runs."""
    pairs = [
        (comparison["title"], other, ratio)
        for result in results
        for comparison in result["comparisons"]
        for other, ratio in comparison["against"].items()
    ]
    colors = {other: f"C{i}" for i, other in enumerate(dict.fromkeys(pair[1] for pair in pairs))}
    low = min([0.7, *(ratio["min"] for *_, ratio in pairs)]) / 1.1
    high = max([2.0, *(ratio["max"] for *_, ratio in pairs)]) * 1.3
    figure, axes = plt.subplots(figsize=(10, 2 + 0.4 * len(pairs)))
    axes.axvspan(1, high, color="green", alpha=0.06)
    axes.axvline(1, color="black", lw=1)
    for place, (_, other, ratio) in enumerate(pairs):
        spread = [ratio["min"], ratio["max"]]
        axes.plot(spread, [place, place], color=colors[other], lw=4, alpha=0.35)
        axes.plot(ratio["ratio"], place, "o", color=colors[other], ms=8)
        at = ratio["ratio"], place
        axes.annotate(
            times(ratio["ratio"]), at, (0, 7), textcoords="offset points", ha="center", fontsize=9
        )
    axes.set_yticks(range(len(pairs)), [f"{title}  |  {other}" for title, other, _ in pairs])
    axes.set_xscale("log")
    axes.set(xlim=(low, high), ylim=(len(pairs) - 0.5, -0.5))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())
    ticks = [tick for tick in TICKS if low <= tick <= high]
    axes.set_xticks(ticks, [f"{tick:g}×" for tick in ticks])
    axes.grid(axis="x", alpha=0.3)
    axes.set_xlabel(f"right of 1×: {OURS} is faster or needs less memory")
    axes.set_title(f"{OURS} compared with other implementations\n"
                   "dot: ratio of the medians; bar: range of the ratios of single runs",
                   fontsize=11)  # fmt: skip
    figure.text(
        0.01, -0.01, "\n".join(describe_machines(results)), fontsize=7, va="top", color="0.35"
    )
    figure.tight_layout()
    return figure
