"""Commands: list them with `python -m pipeline`, run one with `python -m pipeline COMMAND`."""

import argparse
import ast
import importlib
import sys
from pathlib import Path

from pipeline.core.errors import run

TOOLS = Path(__file__).parent / "tools"


def commands() -> dict[str, str]:
    """Return the modules of tools/ that define `main`, each with its one-line description."""
    descriptions = {}
    for path in sorted(TOOLS.glob("[!_]*.py")):
        tree = ast.parse(path.read_text("utf-8"))
        if any(isinstance(node, ast.FunctionDef) and node.name == "main" for node in tree.body):
            first_line = (ast.get_docstring(tree) or "").partition("\n")[0]
            descriptions[path.stem] = first_line.partition(": ")[2]
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
