"""Errors: errors that users can fix are one line; bugs keep their traceback."""

import errno
import sys

import numpy as np
import pytest

from pipeline.core.errors import PipelineError, first_few, run


def message_of(error: BaseException) -> str:
    """Return the message that a command writes to stderr for an error, with exit status 1."""

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
def test_an_error_of_the_operating_system_is_one_line_with_a_remedy(number, message):
    assert message_of(OSError(number, "whatever a library says", "data/x")).startswith(message)


def test_a_failed_write_without_file_name_names_the_command(monkeypatch):
    monkeypatch.setattr("sys.argv", ["/x/pipeline/download.py", "--raw", "data/raw"])
    expected = "error: download --raw data/raw: No space left on device. Free some space, or put"
    assert message_of(OSError(errno.ENOSPC, "no space")).startswith(expected)
    # NumPy's error has no number
    assert message_of(OSError("1000 requested and 232 written")).startswith(expected)


@pytest.mark.parametrize("trains", [True, False])
def test_lack_of_memory_names_batch_size_only_in_training(monkeypatch, trains):
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
    assert ("batch_size" in message_of(memory)) == trains


@pytest.mark.parametrize("bug", [
    FileNotFoundError(errno.ENOENT, "No such file", "x"), OSError("what"), RuntimeError("x"),
    ValueError("x"), IsADirectoryError(errno.EISDIR, "Is a directory", "x"),
])  # fmt: skip
def test_a_bug_keeps_its_traceback(bug):
    def main() -> None:
        raise bug

    with pytest.raises(type(bug), match=str(bug).replace("[", r"\[")):
        run(main)


def test_control_characters_in_names_are_escaped():
    text = "a\x1b[2Jb\x07 \x9b31m\u202egnp.exe\udc80\n  next"
    expected = r"error: a\x1b[2Jb\x07 \x9b31m\u202egnp.exe\udc80 next"
    assert message_of(PipelineError(text)) == expected
    # letters of all scripts are kept
    assert message_of(PipelineError("Käse, 猫, Ελλάδα, می\u200cخواهم")) == (
        "error: Käse, 猫, Ελλάδα, می\u200cخواهم"
    )


def test_the_first_names_are_listed_and_the_others_counted():
    names = [str(number) for number in range(13)]
    assert first_few(names) == "0, 1, 2, 3, 4, 5, 6, 7, 8, 9, and 3 more"
    assert first_few(names[:2], "; ") == "0; 1"
    assert first_few([]) == ""
