"""Summary: print the comparison, the verdict, and what changed in Git.

    python -m pipeline summary

Not a stage, so that it is printed even if no stage had to run.

Reads   metrics/comparison.json, metrics/champion.json
"""

import argparse
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

from pipeline.core.errors import run
from pipeline.core.files import read_json
from pipeline.reporting.results import verdict
from pipeline.stats.comparison_table import print_comparison

# outputs of compare and report, as in dvc.yaml
COMPARISON = Path("metrics/comparison.json")
CHAMPION = Path("metrics/champion.json")
REPORT = Path("plots/report.html")
# files and folders that a run rewrites and Git tracks
TRACKED = ("dvc.lock", "metrics", "data/inputs")
UNBOUNDED = 10_000  # width in characters if the output is not a terminal


def changed_since_commit() -> list[str]:
    """Return which of `TRACKED` differ from the last commit; none without Git."""
    if not shutil.which("git"):
        return []
    command = ("git", "status", "--porcelain", "--")
    return [
        path
        for path in TRACKED
        if subprocess.run([*command, path], capture_output=True, text=True).stdout
    ]


def main(argv: list[str] | None = None) -> None:
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args(argv)
    comparison = read_json(COMPARISON)
    lines = [
        verdict(comparison["models"], read_json(CHAMPION)["model"], comparison["level"]),
        f"Report: {REPORT.resolve()}",
    ]
    if names := changed_since_commit():
        lines.append(
            f"Changed since the last commit: {', '.join(names)}. This is expected: each run is "
            "recorded there, and results differ slightly between types of processor. Commit the "
            f"changes to keep them, or undo them with `git restore {' '.join(names)}`."
        )
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else UNBOUNDED
    print()
    print_comparison(comparison["models"], comparison["level"])
    for line in lines:
        print(textwrap.fill(line, width, break_long_words=False, break_on_hyphens=False))


if __name__ == "__main__":
    run(main)
