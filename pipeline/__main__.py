"""Commands: list them with `python -m pipeline`, run one with `python -m pipeline COMMAND`."""

import argparse
import importlib
import re
import sys
from pathlib import Path

from pipeline.core.errors import run

TOOLS = Path(__file__).parent / "tools"
FIRST_LINE = re.compile(r'"""[\w ]+: (.+?)"*\n')


def commands() -> dict[str, str]:
    """Return the modules of tools/ that define `main`, each with its one-line description."""
    descriptions = {}
    for path in sorted(TOOLS.glob("[!_]*.py")):
        text = path.read_text("utf-8")
        if "\ndef main(" in text and (first_line := FIRST_LINE.match(text)):
            descriptions[path.stem] = first_line[1]
    return descriptions


def main() -> None:
    descriptions = commands()
    listing = "\n".join(f"  {name:<13}{text}" for name, text in descriptions.items())
    parser = argparse.ArgumentParser(
        prog="python -m pipeline",
        usage="%(prog)s COMMAND ...",
        description="Commands that are not stages. COMMAND --help describes one in full.",
        epilog=f"commands:\n{listing}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", choices=descriptions, metavar="COMMAND", help=argparse.SUPPRESS)
    if len(sys.argv) == 1:
        parser.print_help()
        return
    name = parser.parse_args(sys.argv[1:2]).command
    sys.argv[:2] = [f"python -m pipeline {name}"]  # shown by its --help and errors
    importlib.import_module(f"pipeline.tools.{name}").main()


if __name__ == "__main__":
    run(main)
