"""Native log: TensorFlow imported without its lines about drivers that are not there."""

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def silenced() -> Iterator[None]:
    """Drop what native code writes to stderr in the block; Python's errors still reach it.

    TensorFlow 2.21 logs several lines while it is imported, whatever
    TF_CPP_MIN_LOG_LEVEL says; the variable silences those that come later.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    sys.stderr.flush()
    stderr = os.dup(2)
    with Path(os.devnull).open("w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        # it takes the models that a study trains one after the other for one, traced anew
        logging.getLogger("tensorflow").setLevel(logging.ERROR)
