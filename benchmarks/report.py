"""Report: show the results of each machine as a table, in the terminal and the documentation."""

import json
import re
import statistics
from collections.abc import Iterable
from pathlib import Path

from benchmarks.harness import OURS, Sample
from pipeline.core.console import Column, print_table

COLUMNS = ("", OURS, "compared with", "", "ratio", "min to max", "n", "load")
MAX_LOAD = 0.1  # cores that other processes may use during a sample
MORE_IS_BETTER = ("images/s",)
NOTE = (
    f"Medians of n runs. A ratio above 1 means that {OURS} is faster: it is the median of the "
    "ratios of single runs, in which both were measured one after the other; min to max are the "
    "smallest and the largest of them. Load: cores that other programs used in the most disturbed "
    f"sample; above {MAX_LOAD:g}, measure again."
)
MARKERS = "<!-- benchmarks: written by python -m benchmarks -->\n", "<!-- /benchmarks -->\n"


def read(path: Path) -> list[dict]:
    """Read the results of a machine."""
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def read_all(folder: Path) -> list[list[dict]]:
    """Read the results of all machines, sorted by their names."""
    return [read(path) for path in sorted(folder.glob("*.jsonl"))]


def ratios(result: dict, other: str) -> list[float]:
    """Return for each run how many times faster cnn-pipeline was than another variant."""
    unit = result["unit"]
    pairs = zip(result["samples"][OURS], result["samples"][other], strict=True)
    power = 1 if unit in MORE_IS_BETTER else -1
    return [(ours[unit] / theirs[unit]) ** power for ours, theirs in pairs]


def row(result: dict, other: str) -> tuple[str, ...]:
    """Return the cells of COLUMNS for one comparison."""
    values = ratios(result, other)
    samples = result["samples"][OURS] + result["samples"][other]
    return (
        result["title"],
        median(result, OURS),
        other,
        median(result, other),
        times(statistics.median(values)),
        f"{times(min(values))} to {times(max(values))}",
        str(len(values)),
        f"{max_load(samples):.2f}",
    )


def rows(results: list[dict]) -> list[tuple[str, ...]]:
    """Return the rows of the table of a machine."""
    return [row(result, other) for result in results for other in list(result["samples"])[1:]]


def median(result: dict, variant: str) -> str:
    """Return the median of a variant as text, with its unit, precision and mode."""
    unit, facts = result["unit"], result["facts"][variant]
    value = statistics.median(sample[unit] for sample in result["samples"][variant])
    text = f"{value:,.0f} {unit}" if value >= 100 else f"{value:.3g} {unit}"
    return ", ".join([text, *(facts[key] for key in ("precision", "mode") if key in facts)])


def times(ratio: float) -> str:
    """Return a ratio as text, such as 1.50×."""
    return f"{ratio:.2f}×" if ratio < 9.995 else f"{ratio:.0f}×"


def max_load(samples: Iterable[Sample]) -> float:
    """Return the load during the most disturbed sample."""
    return max(sample["load"] for sample in samples)


def warn(when: str, samples: Iterable[Sample]) -> str:
    """Return a warning if other programs used more than MAX_LOAD, otherwise an empty text."""
    if (load := max_load(samples)) <= MAX_LOAD:
        return ""
    return (
        f"warning: {when}: other programs used up to {load:.2f} cores, more than {MAX_LOAD:g}. "
        "End them and measure again"
    )


def machine(results: list[dict]) -> str:
    """Return the description of a machine."""
    return "{device}, {cores} cores, {memory_gib} GiB, `precision: auto` is {precision}".format_map(
        results[-1]["machine"]
    )


def versions(results: list[dict]) -> list[str]:
    """Return a line for each day and set of versions, with the tasks that were measured then."""
    lines: dict[str, list[str]] = {}
    for result in results:
        packages = ", ".join(
            version if name == "backend" else f"{name} {version}"
            for name, version in result["versions"].items()
        )
        lines.setdefault(f"{result['date'][:10]}, {packages}", []).append(result["case"])
    return [f"{', '.join(cases)}: {text}" for text, cases in lines.items()]


def show(machines: list[list[dict]]) -> None:
    """Print the tables and the notes."""
    drop = {"load": 1, "n": 2, "min to max": 3}
    columns = [Column(heading, drop=drop.get(heading, 0)) for heading in COLUMNS]
    for results in machines:
        print_table(columns, rows(results), machine(results))
        print("\n".join(versions(results)))
    print(NOTE)


def markdown(machines: list[list[dict]]) -> str:
    """Return the text between the markers of the page."""
    parts = []
    for results in machines:
        lines = [COLUMNS, ["---"] * len(COLUMNS), *rows(results)]
        table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        parts += [f"### {machine(results)}", table, *(f"{line}." for line in versions(results))]
    return "".join(f"\n{part}\n" for part in ([*parts, NOTE] if parts else ["Not measured yet."]))


def split_page(page: str) -> tuple[str, str, str]:
    """Return the text before, between and after the markers."""
    before, between, after = re.split("|".join(map(re.escape, MARKERS)), page)
    return before, between, after


def write_page(path: Path, machines: list[list[dict]]) -> None:
    """Replace the text between the markers of a page."""
    before, _, after = split_page(path.read_text("utf-8"))
    path.write_text(f"{before}{MARKERS[0]}{markdown(machines)}\n{MARKERS[1]}{after}", "utf-8")
