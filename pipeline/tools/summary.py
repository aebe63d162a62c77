"""Summary: print the verdict, the report's path, and what changed in Git.

    python -m pipeline summary

Not a stage: it is said also where no stage had to run.

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
from pipeline.reporting.parts import verdict

# outputs of compare and report, as in dvc.yaml
COMPARISON = Path("metrics/comparison.json")
CHAMPION = Path("metrics/champion.json")
REPORT = Path("plots/report.html")
# what a run rewrites and Git tracks
TRACKED = ("dvc.lock", "metrics")
UNBOUNDED = 10_000  # columns of text, where there is no terminal


def changed() -> list[str]:
    """Return those of `TRACKED` that differ from the last commit; none without Git."""
    command = ["git", "diff", "--name-only", "--relative", "HEAD", "--", *TRACKED]
    try:
        files = subprocess.run(command, capture_output=True, text=True).stdout.splitlines()
    except FileNotFoundError:
        return []
    return list(dict.fromkeys(file.split("/")[0] for file in files))


def main(argv: list[str] | None = None) -> None:
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args(argv)
    comparison = read_json(COMPARISON)
    lines = [
        verdict(comparison["models"], read_json(CHAMPION)["model"], comparison["level"]),
        f"Report: {REPORT.resolve()}",
    ]
    if names := changed():
        lines.append(
            f"Changed since the last commit: {', '.join(names)}. This is expected: they record "
            "this run, and each kind of processor rounds differently. Commit them to keep them, "
            f"or take the committed ones back with `git restore {' '.join(names)}`."
        )
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else UNBOUNDED
    print()
    for line in lines:
        print(textwrap.fill(line, width, break_long_words=False, break_on_hyphens=False))


if __name__ == "__main__":
    run(main)
