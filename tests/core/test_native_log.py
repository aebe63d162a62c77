import os
import subprocess
import sys

import pytest

from tests.conftest import REPOSITORY


@pytest.mark.slow
def test_tensorflow_prints_no_log_lines():
    env = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    del env["TF_CPP_MIN_LOG_LEVEL"]
    command = "from pipeline.runtime import backend; import keras; print(keras.ops.ones(()) + 1)"
    done = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, env=env)
    assert done.stderr == ""
    assert "2.0" in done.stdout
