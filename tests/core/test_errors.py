"""Errors: what a stage says of what its reader can mend, and that a bug keeps its traceback."""

import errno
import sys

import numpy as np
import pytest

from pipeline.core.errors import PipelineError, first_few, run


def said(error: BaseException) -> str:
    """What is written to stderr, with exit status 1, when a stage raises it."""

    def main() -> None:
        raise error

    with pytest.raises(SystemExit) as stopped:
        run(main)
    assert isinstance(stopped.value.code, str)
    return stopped.value.code


@pytest.mark.parametrize(("number", "message"), [
    (errno.ENOSPC, "error: data/x: No space left on device. Free some space, or put it on anot"),
    (errno.EDQUOT, "error: data/x: Disk quota exceeded. Free some space, or put it on another d"),
    (errno.EFBIG, "error: data/x: File too large. Set a smaller preprocess.image_size, or put i"),
    (errno.EROFS, "error: data/x: Read-only file system. Make it writable, or work in a copy"),
    (errno.EACCES, "error: data/x: Permission denied. Give this user the right to it, or work"),
    (errno.EPERM, "error: data/x: Operation not permitted. Give this user the right to it, or"),
])  # fmt: skip
def test_what_the_machine_refuses_is_one_line_with_the_way_out(number, message):
    assert said(OSError(number, "whatever a library says", "data/x")).startswith(message)


def test_a_write_that_does_not_know_its_file_names_the_command(monkeypatch):
    monkeypatch.setattr("sys.argv", ["/x/pipeline/download.py", "--raw", "data/raw"])
    expected = "error: download --raw data/raw: No space left on device. Free some space, or put"
    assert said(OSError(errno.ENOSPC, "no space")).startswith(expected)
    # NumPy's word for it has no number
    assert said(OSError("1000 requested and 232 written")).startswith(expected)


@pytest.mark.parametrize("trains", [True, False])
def test_an_array_larger_than_memory_names_batch_size_where_there_are_batches(monkeypatch, trains):
    monkeypatch.delitem(sys.modules, "keras", raising=False)
    if trains:
        monkeypatch.setitem(sys.modules, "keras", None)
    first = r"Lower train\.batch_size .*, lower" if trains else "Lower"
    message = (
        rf"error: not enough memory \(Unable to allocate .*\)\. {first} preprocess\.image_size"
    )
    with pytest.raises(SystemExit, match=message):
        run(lambda: np.ones(2**50).sum())
    memory = OSError(errno.ENOMEM, "Cannot allocate memory")
    assert ("batch_size" in said(memory)) == trains


@pytest.mark.parametrize("bug", [
    FileNotFoundError(errno.ENOENT, "No such file", "x"), OSError("what"), RuntimeError("x"),
    ValueError("x"), IsADirectoryError(errno.EISDIR, "Is a directory", "x"),
])  # fmt: skip
def test_a_bug_keeps_its_traceback(bug):
    def main() -> None:
        raise bug

    with pytest.raises(type(bug), match=str(bug).replace("[", r"\[")):
        run(main)


def test_names_reach_the_terminal_as_text_that_it_does_not_obey():
    text = "a\x1b[2Jb\x07 \x9b31m\u202egnp.exe\udc80\n  next"
    expected = r"error: a\x1b[2Jb\x07 \x9b31m\u202egnp.exe\udc80 next"
    assert said(PipelineError(text)) == expected
    # letters of every script stay
    assert said(PipelineError("Käse, 猫, Ελλάδα, می\u200cخواهم")) == (
        "error: Käse, 猫, Ελλάδα, می\u200cخواهم"
    )


def test_of_many_names_the_first_are_said_and_the_others_counted():
    names = [str(number) for number in range(13)]
    assert first_few(names) == "0, 1, 2, 3, 4, 5, 6, 7, 8, 9, and 3 more"
    assert first_few(names[:2], "; ") == "0; 1"
    assert first_few([]) == ""
