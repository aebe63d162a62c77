"""Silence TensorFlow's native log output while it is imported."""

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def silenced() -> Iterator[None]:
    """Discard what native code writes to stderr in the block.

    TensorFlow 2.21 logs several lines about missing drivers while it is imported, whatever
    TF_CPP_MIN_LOG_LEVEL says. The variable silences later messages. Python exceptions are not
    affected.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    sys.stderr.flush()
    stderr = os.dup(2)
    with Path(os.devnull).open("w") as null:
        os.dup2(null.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        # TensorFlow warns of retracing when a study trains several models one after the other
        logging.getLogger("tensorflow").setLevel(logging.ERROR)
