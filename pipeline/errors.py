"""The one error a reader of the message can mend, and how a stage reports it."""

import signal
import sys
from collections.abc import Callable
from types import FrameType

INTERRUPTED = "interrupted: nothing is half-written; `dvc repro` goes on from here"


class PipelineError(Exception):
    """What the reader can fix: where, what was expected, what was received, the way out.

    Anything else that is raised is a bug of ours and keeps its traceback.
    """


def run(main: Callable[[], None]) -> None:
    """Run a stage's main; a `PipelineError` becomes one line on stderr and exit status 1.

    So does being told to stop: Ctrl-C, and SIGTERM, which Slurm, Kubernetes and `kill` send; the
    exit status is then 128 and the signal's number, as a shell has it.
    """
    signal.signal(signal.SIGTERM, _stop)
    try:
        main()
    except KeyboardInterrupt as stop:
        signum = stop.args[0] if stop.args else signal.SIGINT
        print(INTERRUPTED, file=sys.stderr)
        sys.exit(128 + signum)
    except PipelineError as error:
        sys.exit(f"error: {' '.join(str(error).split())}")


def _stop(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt(signum)
