"""Pipeline: prepare the interpreter before a command runs.

`python -m pipeline.NAME` imports this first. It changes no output, so no stage depends on it.
"""

import os
import sys
from types import TracebackType


def report_missing_package(
    kind: type[BaseException], error: BaseException, traceback: TracebackType | None
) -> None:
    """Report a package that is not installed in one line, and other exceptions as Python does."""
    name = getattr(error, "name", None) or "pipeline"
    if kind is not ModuleNotFoundError or name.split(".")[0] == "pipeline":
        sys.__excepthook__(kind, error, traceback)
        return
    print(
        f"error: {name} is not installed for {sys.executable}. Run `make repro`, which sets up "
        ".venv, then `source .venv/bin/activate`",
        file=sys.stderr,
    )


if sys.argv[0] == "-m":  # while Python is still looking for the module to run
    if sys.flags.optimize > 1:
        # Altair needs docstrings, which level 2 removes, and --help prints them
        os.environ.pop("PYTHONOPTIMIZE", None)
        command = sys.orig_argv[sys.orig_argv.index("-m") :]
        os.execv(sys.executable, [sys.executable, *command])
    sys.excepthook = report_missing_package
