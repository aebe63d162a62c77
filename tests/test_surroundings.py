"""Surroundings: settings of the machine and of its user change no output."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import grimp
import pytest

from pipeline.runtime import select_backend
from tests.conftest import REPOSITORY, arguments, task, write_arrays

EVALUATE = (
    "baseline --models out --arrays arrays --split splits --metrics out/test/baseline.json "
    "--predictions out/predictions/baseline --confusion out/baseline.csv"
).split()
PLOT = (
    "--arrays arrays --history out --predictions out/predictions --test out/test "
    "--samples out/samples.png --curves out/curves.csv --learning-curves out/curves.png "
    "--test-accuracy out/accuracy.png --class-accuracy out/classes.png "
    "--confusion out/confusion --examples out/examples"
).split()


def outputs(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != "run.json"
    }


@pytest.mark.slow
def test_settings_of_keras_matplotlib_and_python_change_no_byte(prepared, edit, stage, hostile):
    edit("compare: [baseline, batchnorm]", "compare: [baseline]")
    write_arrays(prepared / "arrays/test", *task(20))
    files = {"history.csv": "baseline/0.csv", "model.keras": "0.keras"}
    train = [
        next((arg.replace(old, new) for old, new in files.items() if old in arg), arg)
        for arg in arguments("baseline", "out")
    ]
    runs = []
    for env in (dict[str, str](), hostile):
        for name, argv in (
            ("train", train), ("evaluate", EVALUATE), ("plot", PLOT),
        ):  # fmt: skip
            done = stage(f"pipeline.{name}", *argv, **env)
            assert (done.returncode, done.stderr) == (0, ""), name
        runs.append(outputs(prepared / "out"))
        shutil.rmtree(prepared / "out")
        # matplotlib reads this one before any other
        (prepared / "matplotlibrc").write_text("axes.facecolor: black\n")
    default, changed = runs
    assert len(default) == 13
    assert [name for name in default if default[name] != changed.get(name)] == []


@pytest.mark.slow
def test_a_keras_json_that_keras_would_refuse_is_not_read(tmp_path, stage):
    (tmp_path / ".keras").mkdir()
    program = "import keras\nprint(keras.config.floatx(), keras.src.backend.config.keras_home())"
    (tmp_path / "program.py").write_text(f"from pipeline.runtime import backend\n{program}\n")
    for text in ('{"floatx": "bfloat16"}', '{"epsilon": 1}', "[]", "{"):
        (tmp_path / ".keras/keras.json").write_text(text)
        done = stage("program", HOME=str(tmp_path))
        # downloads stay in the folder that all projects share
        assert done.stdout == f"float32 {tmp_path}/.keras\n", done.stderr
    done = stage("program", HOME=str(tmp_path), KERAS_HOME=str(tmp_path / "own"))
    assert done.stdout == f"float32 {tmp_path}/own\n", done.stderr
    assert list((tmp_path / "own").iterdir()) == []


@pytest.mark.slow
def test_variables_that_change_numbers_are_recorded_if_a_user_sets_them(
    prepared, stage, monkeypatch
):
    for name in [name for name in os.environ if name.startswith(select_backend.NUMERIC_PREFIXES)]:
        monkeypatch.delenv(name)
    variables = {"OMP_NUM_THREADS": "1", "NVIDIA_TF32_OVERRIDE": "0"}
    runs = []
    for number, env in enumerate((dict[str, str](), variables)):
        done = stage("pipeline.train", *arguments("baseline", f"out{number}"), **env)
        assert done.returncode == 0, done.stderr
        runs.append(json.loads((prepared / f"out{number}/run.json").read_text()))
    assert runs[1].keys() - runs[0].keys() == variables.keys()
    assert variables.items() <= runs[1].items()
    assert not [name for name in runs[0] if name.isupper()]  # none that the stage itself sets


def test_only_variables_that_change_numbers_are_recorded(monkeypatch):
    for name in list(os.environ):
        monkeypatch.delenv(name)
    for name in ("CUDA_VISIBLE_DEVICES", "JAX_X", "TF_CPP_VMODULE", "TF_TOKEN_X", "XLA_FLAGS"):
        monkeypatch.setenv(name, "1")
    assert select_backend.environment() == {"JAX_X": "1", "XLA_FLAGS": "1"}


def test_only_one_module_imports_matplotlib():
    modules = grimp.build_graph("pipeline", "benchmarks", include_external_packages=True)
    importers = modules.find_modules_that_directly_import("matplotlib")
    assert importers == {"pipeline.reporting.drawing"}


# the report uses Altair, which needs docstrings
@pytest.mark.parametrize(
    ("command", "title"), [("pipeline predict", "Predict"), ("pipeline.report", "Report")]
)
def test_commands_run_without_docstrings(project, stage, command, title):
    argv = [sys.executable, "-OO", "-m", *command.split(), "--help"]
    by_option = subprocess.run(argv, cwd=REPOSITORY, capture_output=True, text=True)
    for done in (by_option, stage(*command.split(), "--help", PYTHONOPTIMIZE="2")):
        assert (done.returncode, done.stderr) == (0, "")
        assert f"\n{title}: " in done.stdout


@pytest.mark.parametrize("command", ["pipeline params", "pipeline predict", "pipeline.plot"])
def test_without_the_packages_one_line_says_how_to_install_them(command):
    argv = [sys.executable, "-S", "-m", *command.split(), "photo.jpg"]
    done = subprocess.run(argv, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert " is not installed for " in done.stderr
    assert done.stderr.endswith(
        "Run `make repro`, which sets up .venv, then `source .venv/bin/activate`\n"
    )


def test_a_missing_module_of_the_pipeline_keeps_its_traceback(tmp_path):
    shutil.copytree(REPOSITORY / "pipeline", tmp_path / "pipeline")
    (tmp_path / "pipeline/core/errors.py").unlink()
    argv = [sys.executable, "-m", "pipeline.split"]
    done = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True)
    assert done.stderr.startswith("Traceback")


def test_a_clone_that_converts_line_endings_has_the_same_bytes(tmp_path):
    def git(*argv: str, folder: Path = tmp_path) -> str:
        identity = ["-c", "user.name=test", "-c", "user.email=test@example.org"]
        env = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")}
        return subprocess.run(
            ["git", *identity, *argv],
            cwd=folder,
            env=env,
            capture_output=True,
            text=True,
            check=True,
        ).stdout

    files = git("ls-files", "-co", "--exclude-standard", folder=REPOSITORY).splitlines()
    files = [name for name in files if (REPOSITORY / name).is_file()]
    for name in files:
        (tmp_path / "one" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(REPOSITORY / name, tmp_path / "one" / name)
    git("init", "-q", "one")
    git("add", "-A", folder=tmp_path / "one")
    git("commit", "-qm", "one", folder=tmp_path / "one")
    git("clone", "-q", "-c", "core.autocrlf=true", "one", "two")
    assert files
    for name in files:
        assert (tmp_path / "two" / name).read_bytes() == (REPOSITORY / name).read_bytes(), name
    assert git("status", "--short", folder=tmp_path / "two") == ""


@pytest.mark.slow
def test_setting_up_ignores_the_users_settings_of_pip_and_uv(tmp_path):
    for name in ("Makefile", "uv.lock", "pyproject.toml"):
        shutil.copy(REPOSITORY / name, tmp_path)
    makefile = (tmp_path / "Makefile").read_text()
    (uv,) = (line.split()[-1] for line in makefile.splitlines() if line.startswith("UV :="))
    # a uv that records its arguments instead of installing 2.9 GB
    with zipfile.ZipFile(tmp_path / f"uv-{uv}-py3-none-any.whl", "w") as wheel:
        info = f"uv-{uv}.dist-info"
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: uv\nVersion: {uv}\n")
        wheel.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        program = zipfile.ZipInfo(f"uv-{uv}.data/scripts/uv")
        program.external_attr = 0o100755 << 16
        wheel.writestr(program, '#!/bin/sh\necho "$@" $UV_PYTHON $UV_FROZEN >> called\n')
        wheel.writestr(f"{info}/RECORD", "")
    env = {
        **os.environ, "PYTHON": sys.executable,
        "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(tmp_path), "PIP_USER": "1",
        "PIP_TARGET": "elsewhere", "PIP_PREFIX": "elsewhere",
        "UV_PYTHON": "3.9", "UV_FROZEN": "1",
    }  # fmt: skip
    done = subprocess.run(
        ["make", ".venv/ready-dev"], cwd=tmp_path, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    sync = "sync --locked --inexact --quiet --system-certs"
    assert (tmp_path / "called").read_text() == f"{sync}\n{sync} --group dev\n"
    assert not (tmp_path / "elsewhere").exists()
