"""Commands: `python -m pipeline` lists them, `python -m pipeline predict IMAGE…` runs one."""

import argparse
import ast
import importlib
import sys
from pathlib import Path

from pipeline.core.errors import run

TOOLS = Path(__file__).parent / "tools"


def commands() -> dict[str, str]:
    """Return each module of tools/ that has a `main`, with the first line of its docstring."""
    found = {}
    for path in sorted(TOOLS.glob("[!_]*.py")):
        tree = ast.parse(path.read_text("utf-8"))
        if any(isinstance(node, ast.FunctionDef) and node.name == "main" for node in tree.body):
            _, _, text = (ast.get_docstring(tree) or "").partition("\n")[0].partition(": ")
            found[path.stem] = text
    return found


def main() -> None:
    known = commands()
    listed = "\n".join(f"  {name:<10}{text}" for name, text in known.items())
    parser = argparse.ArgumentParser(
        prog="python -m pipeline",
        usage="%(prog)s COMMAND ...",
        description="Commands beside the stages of dvc.yaml. COMMAND --help says more of one.",
        epilog=f"commands:\n{listed}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", choices=known, metavar="COMMAND", help=argparse.SUPPRESS)
    if len(sys.argv) == 1:
        parser.print_help()
        return
    name = parser.parse_args(sys.argv[1:2]).command
    sys.argv[:2] = [f"python -m pipeline {name}"]  # as --help and errors of the command name it
    importlib.import_module(f"pipeline.tools.{name}").main()


if __name__ == "__main__":
    run(main)
