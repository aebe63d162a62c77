"""The one error a reader of the message can mend, and how a stage reports it."""

import sys
from collections.abc import Callable


class PipelineError(Exception):
    """What the reader can fix: where, what was expected, what was received, the way out.

    Anything else that is raised is a bug of ours and keeps its traceback.
    """


def run(main: Callable[[], None]) -> None:
    """Run a stage's main; a `PipelineError` becomes one line on stderr and exit status 1."""
    try:
        main()
    except PipelineError as error:
        sys.exit(f"error: {' '.join(str(error).split())}")
