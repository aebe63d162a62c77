"""Errors that users can fix, and how commands report them."""

import errno
import os
import re
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType

INTERRUPTED = "interrupted. All finished outputs are kept. Run the same command to continue"

# Characters that a terminal would interpret: control characters, lone surrogates, and marks that
# change the direction of text.
CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff\u200e\u200f\u202a-\u202e\u2066-\u2069]")

MAX_NAMES = 10  # names listed in one message; there may be thousands

FREE_SPACE = "Free some space, or put it on another disk"
GET_PERMISSION = "Give this user the right to it, or work in a copy of your own"
# Errors caused by the machine rather than a bug, and how to fix them.
OS_REMEDIES = {
    errno.ENOSPC: FREE_SPACE,
    errno.EDQUOT: FREE_SPACE,
    errno.EFBIG: "Set a smaller preprocess.image_size, or put it on another disk",
    errno.EROFS: "Make it writable, or work in a copy that is",
    errno.EACCES: GET_PERMISSION,
    errno.EPERM: GET_PERMISSION,
}


class PipelineError(Exception):
    """An error that the user can fix.

    A message is one line: where, what was expected, what was received, and the remedy. Several
    problems have one message each. Any other exception is a bug and keeps its traceback.
    """

    def __init__(self, *problems: str) -> None:
        super().__init__(*problems)

    def __str__(self) -> str:
        return "; ".join(self.args)


def run(main: Callable[[], None]) -> None:
    """Run the main function of a command; report errors that users can fix, each in one line.

    These are `PipelineError`, full disks, missing permissions, lack of memory, and operations
    without a deterministic implementation, with exit status 1. Ctrl-C and SIGTERM (sent by Slurm,
    Kubernetes and `kill`) are reported in one line too; the exit status is then 128 plus the signal
    number, as in a shell.
    """
    signal.signal(signal.SIGTERM, _stop)
    try:
        main()
    except KeyboardInterrupt as stop:
        signum = stop.args[0] if stop.args else signal.SIGINT
        print(INTERRUPTED, file=sys.stderr)
        sys.exit(128 + signum)
    except PipelineError as error:
        problems = error.args
    except Exception as error:
        problems = (_explain(error),)
        if not problems[0]:
            raise
    else:
        return
    sys.exit("\n".join(f"error: {one_line(problem)}" for problem in problems))


def first_few(items: Sequence[str], separator: str = ", ") -> str:
    """Join the first `MAX_NAMES` items, and state how many more there are."""
    more = [f"and {len(items) - MAX_NAMES} more"] if len(items) > MAX_NAMES else []
    return separator.join([*items[:MAX_NAMES], *more])


def one_line(text: str) -> str:
    """Return a text as one line, with control characters escaped.

    Temporary names of outputs that are being written (`files.atomic_path`) are replaced by their
    final names.
    """
    text = re.sub(r"\.\d+\.part\.", "", " ".join(text.split()))
    return CONTROL.sub(lambda match: ascii(match[0])[1:-1], text)


def _explain_os_error(error: OSError) -> str:
    number = error.errno
    if number is None and re.fullmatch(r"\d+ requested and \d+ written", str(error)):
        number = errno.ENOSPC  # NumPy's wording
    if number not in OS_REMEDIES:
        return ""
    # an error from writing names no file, so name the command with its paths
    path = error.filename2 or error.filename or _command()
    return f"{path}: {os.strerror(number)}. {OS_REMEDIES[number]}"


def _command() -> str:
    return " ".join([Path(sys.argv[0]).stem, *sys.argv[1:]])


def _explain(error: Exception) -> str:
    """Return the message for an error that a user can fix; empty for a bug."""
    text = explain_memory_error(error)
    if isinstance(error, OSError):
        return text or _explain_os_error(error)
    return text or _explain_nondeterminism(error)


def explain_memory_error(error: Exception, batch_size: int = 1) -> str:
    """Return the message for lack of memory, also on a GPU; empty for any other error.

    Args:
        error: From Python, NumPy, TensorFlow or JAX.
        batch_size: Images per batch, if a user can change it.
    """
    text = str(error)
    # TensorFlow and JAX have classes for kinds of errors; lack of memory on a GPU has several
    of_backend = type(error).__name__ in ("InternalError", "JaxRuntimeError", "UnknownError")
    if not (
        isinstance(error, MemoryError)
        or (isinstance(error, OSError) and error.errno == errno.ENOMEM)
        or type(error).__name__ == "ResourceExhaustedError"
        or (of_backend and re.search("(?i)RESOURCE_EXHAUSTED|out.of.memory|ALLOC_FAILED", text))
    ):
        return ""
    if os.strerror(errno.ENOSPC) in text:  # TensorFlow reports a full disk as RESOURCE_EXHAUSTED
        return f"{_command()}: {text}. {FREE_SPACE}"
    # TensorFlow's message is a page of text about the graph
    reason_match = re.search(r"(OOM when|Out of memory|Unable to).{,20} allocat\w+[^\n]*", text)
    reason = f" ({reason_match[0]})" if reason_match else ""
    remedy = "lower preprocess.image_size, or close other programs"
    if batch_size > 1:
        setting = "train.batch_size (or batch_size under the model's own `train:`)"
        remedy = f"lower {setting} to {batch_size // 2}, {remedy}"
    return f"not enough memory{reason}. {remedy[0].upper()}{remedy[1:]}"


def _explain_nondeterminism(error: Exception) -> str:
    """Return the message for an operation that the backend refuses; empty for any other error.

    Some operations have no deterministic implementation on a GPU.
    """
    text = str(error)
    reason = re.search(r"[^\n]*(eterministic (GPU )?implementation|Determinism is not)[^\n]*", text)
    if type(error).__name__ not in ("UnimplementedError", "JaxRuntimeError") or not reason:
        return ""
    # a path, which contains the name of the layer
    path = re.search(r'(?:\{\{node |op_name=")([^}"]+)', text)
    return (
        f"{path[1] if path else reason[0]}: no deterministic implementation on this device. Use "
        "another layer, another backend in params.yaml, or the CPU (CUDA_VISIBLE_DEVICES=)"
    )


def _stop(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt(signum)
