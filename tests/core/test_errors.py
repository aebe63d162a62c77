"""Errors: errors that users can fix are one line; bugs keep their traceback."""

import errno

import numpy as np
import pytest

from pipeline.core.errors import PipelineError, explain_memory_error, first_few, run


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


def test_several_problems_are_one_line_each():
    error = PipelineError("x must be 1.\nGot 2", "y is missing. Add it")
    assert message_of(error) == "error: x must be 1. Got 2\nerror: y is missing. Add it"


def test_a_failed_write_without_file_name_names_the_command(monkeypatch):
    monkeypatch.setattr("sys.argv", ["/x/pipeline/download.py", "--raw", "data/raw"])
    expected = "error: download --raw data/raw: No space left on device. Free some space, or put"
    assert message_of(OSError(errno.ENOSPC, "no space")).startswith(expected)
    # NumPy's error has no number
    assert message_of(OSError("1000 requested and 232 written")).startswith(expected)


def test_lack_of_memory_is_one_line():
    message = r"error: not enough memory \(Unable to allocate .*\)\. Lower preprocess\.image_size"
    with pytest.raises(SystemExit, match=message):
        run(lambda: np.ones(2**50).sum())
    assert explain_memory_error(OSError(errno.ENOSPC, "No space left on device")) == ""
    memory = OSError(errno.ENOMEM, "Cannot allocate memory")
    assert message_of(memory).startswith("error: not enough memory. Lower preprocess.image_size")


def backend_error(name: str, message: str) -> Exception:
    """Return an error of the class that TensorFlow or JAX raises, without importing either."""
    return type(name, (Exception,), {})(message)


@pytest.mark.parametrize(("name", "message", "reason"), [
    ("ResourceExhaustedError",
     "Graph execution error:\nOOM when allocating tensor with shape[128,64] on GPU:0\n\t [[node]]",
     " (OOM when allocating tensor with shape[128,64] on GPU:0)"),
    ("JaxRuntimeError", "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 9 bytes.",
     " (Out of memory while trying to allocate 9 bytes.)"),
    ("InternalError", "CUDA_ERROR_OUT_OF_MEMORY: out of memory", ""),
    ("UnknownError", "Failed to create: CUDNN_STATUS_ALLOC_FAILED", ""),
])  # fmt: skip
def test_lack_of_memory_on_a_gpu_names_the_batch_size_to_try(name, message, reason):
    error = backend_error(name, message)
    assert explain_memory_error(error, batch_size=128) == (
        f"not enough memory{reason}. Lower train.batch_size (or batch_size under the model's own "
        "`train:`) to 64, lower preprocess.image_size, or close other programs"
    )
    # other stages choose the size of their batches themselves
    assert message_of(error).startswith(f"error: not enough memory{reason}. Lower preprocess.im")


@pytest.mark.parametrize(("name", "message", "where"), [
    ("UnimplementedError",
     "Graph execution error:\nA deterministic GPU implementation of ResizeNearestNeighborGrad is "
     "not currently available.\n\t [[{{node gradient_tape/net/upsample/ResizeGrad}}]] [Op:__infer]",
     "gradient_tape/net/upsample/ResizeGrad"),
    ("UnimplementedError", "Determinism is not yet supported for Dilation2DBackpropInput",
     "Determinism is not yet supported for Dilation2DBackpropInput"),
    ("JaxRuntimeError",
     'UNIMPLEMENTED: HLO instruction %s = scatter(%a), metadata={op_name="jit(step)/net/pool"} does'
     " not have a deterministic implementation, but run-to-run determinism is required.",
     "jit(step)/net/pool"),
])  # fmt: skip
def test_an_operation_without_a_deterministic_implementation_is_named(name, message, where):
    assert message_of(backend_error(name, message)) == (
        f"error: {where}: no deterministic implementation on this device. Use another layer, "
        "another backend in params.yaml, or the CPU (CUDA_VISIBLE_DEVICES=)"
    )


@pytest.mark.parametrize("bug", [
    FileNotFoundError(errno.ENOENT, "No such file", "x"), OSError("what"), RuntimeError("x"),
    ValueError("x"), IsADirectoryError(errno.EISDIR, "Is a directory", "x"),
    backend_error("UnimplementedError", "no such kernel"),
    backend_error("JaxRuntimeError", "INTERNAL: x"), backend_error("InternalError", "x"),
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
