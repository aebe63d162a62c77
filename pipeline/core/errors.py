"""The one error a reader of the message can mend, and how a stage reports it."""

import errno
import os
import re
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType

INTERRUPTED = "interrupted: nothing is half-written; the same command goes on from here"

# What no name may hold, since a terminal obeys it: control characters, halves of characters,
# and marks that turn the direction of a line.
CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff\u200e\u200f\u202a-\u202e\u2066-\u2069]")

MAX_NAMES = 10  # names in a message, where there may be thousands

FREE_SPACE = "Free some space, or put it on another disk"
GET_PERMISSION = "Give this user the right to it, or work in a copy of your own"
# What the machine and no bug is the cause of, and the way out.
OS_REMEDIES = {
    errno.ENOSPC: FREE_SPACE,
    errno.EDQUOT: FREE_SPACE,
    errno.EFBIG: "Set a smaller preprocess.image_size, or put it on another disk",
    errno.EROFS: "Make it writable, or work in a copy that is",
    errno.EACCES: GET_PERMISSION,
    errno.EPERM: GET_PERMISSION,
}


class PipelineError(Exception):
    """What the reader can fix: where, what was expected, what was received, the way out.

    Anything else that is raised is a bug of ours and keeps its traceback.
    """


def run(main: Callable[[], None]) -> None:
    """Run a stage's main; what the reader can mend is one line on stderr and exit status 1.

    That is a `PipelineError`, a disk or a right that is missing, and memory that is. So is being
    told to stop: Ctrl-C, and SIGTERM, which Slurm, Kubernetes and `kill` send; the exit status is
    then 128 and the signal's number, as a shell has it.
    """
    signal.signal(signal.SIGTERM, _stop)
    try:
        main()
    except KeyboardInterrupt as stop:
        signum = stop.args[0] if stop.args else signal.SIGINT
        print(INTERRUPTED, file=sys.stderr)
        sys.exit(128 + signum)
    except PipelineError as error:
        text = str(error)
    except OSError as error:
        text = (
            _explain_memory_error(error)
            if error.errno == errno.ENOMEM
            else _explain_os_error(error)
        )
        if not text:
            raise
    except _memory_errors() as error:
        text = _explain_memory_error(error)
        if not text:
            raise
    else:
        return
    sys.exit(f"error: {one_line(text)}")


def first_few(items: Sequence[str], separator: str = ", ") -> str:
    """Join the first of many items, and say how many more there are."""
    more = [f"and {len(items) - MAX_NAMES} more"] if len(items) > MAX_NAMES else []
    return separator.join([*items[:MAX_NAMES], *more])


def one_line(text: str) -> str:
    """Return a text as one line that a terminal shows and does not obey, whatever is in it.

    Outputs that are still being written (files.atomic_path) have the names that they will have.
    """
    text = re.sub(r"\.\d+\.part\.", "", " ".join(text.split()))
    return CONTROL.sub(lambda match: ascii(match[0])[1:-1], text)


def _explain_os_error(error: OSError) -> str:
    number = error.errno
    if number is None and re.fullmatch(r"\d+ requested and \d+ written", str(error)):
        number = errno.ENOSPC  # as NumPy says it
    if number not in OS_REMEDIES:
        return ""
    # a write, unlike opening, does not know its file: one of those on the command line
    path = error.filename2 or error.filename or _command()
    return f"{path}: {os.strerror(number)}. {OS_REMEDIES[number]}"


def _command() -> str:
    return " ".join([Path(sys.argv[0]).stem, *sys.argv[1:]])


def _memory_errors() -> tuple[type[BaseException], ...]:
    """Return what says that memory is short, of Python and of the libraries that are loaded."""
    kinds: list[type[BaseException]] = [MemoryError]
    if tensorflow := sys.modules.get("tensorflow"):
        kinds.append(tensorflow.errors.ResourceExhaustedError)
    if jax := sys.modules.get("jax"):
        kinds.append(jax.errors.JaxRuntimeError)
    return tuple(kinds)


def _explain_memory_error(error: BaseException) -> str:
    text = str(error)
    # JAX has one class for all that goes wrong while it computes
    of_jax = type(error).__name__ == "JaxRuntimeError"
    if of_jax and not re.search("RESOURCE_EXHAUSTED|Out of memory", text):
        return ""
    if os.strerror(errno.ENOSPC) in text:  # so TensorFlow calls a full disk
        return f"{_command()}: {text}. {FREE_SPACE}"
    # out of a page of text about the graph
    reason_match = re.search(r"(OOM when|Out of memory|Unable to) allocat\w+[^\n]*", text)
    reason = f" ({reason_match[0]})" if reason_match else ""
    remedy = "lower preprocess.image_size, or close other programs"
    if "keras" in sys.modules:
        remedy = f"lower train.batch_size (or batch_size under the model's own `train:`), {remedy}"
    return f"not enough memory{reason}. {remedy[0].upper()}{remedy[1:]}"


def _stop(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt(signum)
