"""Report: results as a table for the terminal and for the documentation, and as one picture."""

import json
import re
from pathlib import Path

from benchmarks.harness import OURS
from pipeline.core.console import Column, print_table
from pipeline.reporting.drawing import Figure, NullFormatter, NullLocator, plt

COLUMNS = ("", OURS, "against", "", "times as good", "run by run", "n")
NOTE = f"Medians. Times as good: above 1, {OURS} is faster, or needs less. Run by run: min to max."
MARKERS = "<!-- benchmarks: written by python -m benchmarks -->\n", "<!-- /benchmarks -->\n"
TICKS = (0.1, 0.2, 0.5, 0.7, 1, 1.5, 2, 3, 5, 10, 20, 50)


def read(folder: Path) -> list[dict]:
    """Read the results of all benchmarks in a folder, sorted by name."""
    return [json.loads(path.read_text("utf-8")) for path in sorted(folder.glob("*.json"))]


def rows(results: list[dict]) -> list[tuple[str, ...]]:
    """Return a row of COLUMNS for each pair of ways, and for a way that stands alone."""
    found: list[tuple[str, ...]] = []
    for done in (done for result in results for done in result["comparisons"]):
        n, (own, *others) = str(done["n"]), done["ways"]
        medians = {way: amount(facts, done["unit"]) for way, facts in done["ways"].items()}
        for other in others:
            ratio = done["against"][other]
            spread = f"{times(ratio['min'])} to {times(ratio['max'])}"
            comparison = other, medians[other], times(ratio["ratio"]), spread
            found.append((done["title"], medians[own], *comparison, n))
        if not others:
            found.append((done["title"], medians[own], "", "", "", "", n))
    return found


def amount(way: dict, unit: str) -> str:
    median = way["median"]
    text = f"{median:,.0f} {unit}" if median >= 100 else f"{median:.3g} {unit}"
    return f"{text}, {way['precision']}" if "precision" in way else text


def times(ratio: float) -> str:
    return f"{ratio:.2f}×" if ratio < 9.995 else f"{ratio:.0f}×"


def made_on(results: list[dict]) -> list[str]:
    """Say what was measured where and with what, a line for each difference."""
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
    drop = {"n": 1, "run by run": 2}
    print_table([Column(heading, drop=drop.get(heading, 0)) for heading in COLUMNS], rows(results))
    print("\n".join([NOTE, *made_on(results)]))


def markdown(results: list[dict]) -> str:
    """Return what stands between the markers of the page: nothing where nothing was measured."""
    if not results:
        return ""
    lines = [COLUMNS, ["---"] * len(COLUMNS), *rows(results)]
    table = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    notes = "\n\n".join([NOTE, *(f"{line}." for line in made_on(results))])
    return f"\n![times as good](../benchmarks/results/benchmarks.png)\n\n{table}\n{notes}\n\n"


def in_page(page: str) -> tuple[str, str, str]:
    """Return what stands before the markers, between them and after them."""
    before, between, after = re.split("|".join(map(re.escape, MARKERS)), page)
    return before, between, after


def write_page(path: Path, results: list[dict]) -> None:
    before, _, after = in_page(path.read_text("utf-8"))
    path.write_text(before + markdown(results).join(MARKERS) + after, "utf-8")


def draw(results: list[dict]) -> Figure:
    """Draw how many times as good cnn-pipeline is as each other way, with the spread."""
    pairs = [
        (done["title"], other, ratio)
        for result in results
        for done in result["comparisons"]
        for other, ratio in done["against"].items()
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
    axes.set_yticks(
        range(len(pairs)), [f"{title}  |  against {other}" for title, other, _ in pairs]
    )
    axes.set_xscale("log")
    axes.set(xlim=(low, high), ylim=(len(pairs) - 0.5, -0.5))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())
    ticks = [tick for tick in TICKS if low <= tick <= high]
    axes.set_xticks(ticks, [f"{tick:g}×" for tick in ticks])
    axes.grid(axis="x", alpha=0.3)
    axes.set_xlabel(f"right of 1×: {OURS} is faster, or needs less memory")
    axes.set_title(f"How many times as good as another way {OURS} is\n"
                   "dot: ratio of the medians; bar: smallest to largest ratio, run by run",
                   fontsize=11)  # fmt: skip
    figure.text(0.01, -0.01, "\n".join(made_on(results)), fontsize=7, va="top", color="0.35")
    figure.tight_layout()
    return figure
