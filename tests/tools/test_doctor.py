"""Doctor: real faults in a real repository are found and nothing else; two are repaired."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path

import pytest
import yaml

from pipeline.tools import doctor
from tests.conftest import REPOSITORY, write_params

NUMPY = metadata.version("numpy")
FILES = {
    ".gitignore": "/data\n/*.txt\n__pycache__/\n*.log\n",
    ".dvcignore": "__pycache__/\n",
    "pipeline/core/names.py": "FOLDER = 'data/raw'\n",
    "download.py": """
import sys
from pathlib import Path
sys.path.insert(0, "pipeline/core")  # `import pipeline` is the installed package
from names import FOLDER
Path(FOLDER).mkdir(parents=True)
for name in "xy":
    Path(FOLDER, name).write_text(name)
""",
    "count.py": """
import sys
from pathlib import Path
Path(sys.argv[1] + ".txt").write_text(sys.argv[1] + Path("data/raw/x").read_text())
""",
    "dvc.yaml": """
stages:
  download:
    cmd: python -c 'import download'
    deps: [download.py, pipeline/core]
    params: [seeds]
    outs: [data/raw]
  count:
    foreach: [a, b]
    do:
      cmd: python count.py ${item}
      deps: [count.py, data/raw]
      outs: ["${item}.txt"]
""",
    "pyproject.toml": """
[project]
name = "mine"
version = "0"
requires-python = ">=3.11"
dependencies = ["numpy"]
[tool.uv]
package = false
""",
    "uv.lock": f"""
version = 1
revision = 3
requires-python = ">=3.11"
[[package]]
name = "mine"
version = "0"
source = {{ virtual = "." }}
dependencies = [{{ name = "numpy" }}]
[package.metadata]
requires-dist = [{{ name = "numpy" }}]
[[package]]
name = "numpy"
version = "{NUMPY}"
source = {{ registry = "https://pypi.org/simple" }}
[[package.wheels]]
url = "https://example.org/numpy-{NUMPY}-py3-none-any.whl"
hash = "sha256:{"0" * 64}"
""",
}


def environment(**variables: str) -> dict[str, str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    clean = {
        k: v for k, v in os.environ.items() if not k.startswith(("GIT_", "DVC_", "KERAS_", "UV_"))
    }
    return {**clean, "PATH": path, **variables}


UV = shutil.which("uv", path=environment()["PATH"])


def run(folder: Path, *argv: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        argv, cwd=folder, env=environment(**env), capture_output=True, text=True, timeout=60
    )


@pytest.fixture(scope="module")
def healthy(tmp_path_factory) -> Path:
    """A repository of Git and DVC with a small graph that has run."""
    folder = tmp_path_factory.mktemp("healthy")
    for name, text in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text.lstrip())
    write_params(folder)
    (folder / "data/folder").mkdir(parents=True)
    for command in (
        "git init -q -b main",
        "git config user.email test@example.org",
        "git config user.name test",
        "dvc init -q",
        "dvc repro",
        "git add -A",
        "git commit -qm healthy",
    ):
        done = run(folder, *command.split())
        assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def repository(healthy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "repository"
    shutil.copytree(healthy, folder)
    monkeypatch.chdir(folder)
    monkeypatch.delenv("KERAS_BACKEND", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("PATH", environment()["PATH"])
    return folder


def lines(check: str) -> list[str]:
    return [" ".join(line).strip() for line in doctor.examine(doctor.CHECKS[check])]


def edit(name: str, old: str, new: str) -> None:
    text = Path(name).read_text()
    assert old in text
    Path(name).write_text(text.replace(old, new))


def wait_for_stage(process: subprocess.Popen) -> None:
    """Wait until `dvc repro` runs a stage of `sleep 60` and has written rwlock."""
    assert any(b"> sleep 60" in line for line in process.stdout or ())


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen]]:
    """Start processes that are killed at the end of the test, with their children."""
    started = []

    def popen(*argv: str) -> subprocess.Popen:
        process = subprocess.Popen(
            argv, env=environment(), start_new_session=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        started.append(process)
        return process

    yield popen
    for process in started:
        kill(process)
        process.communicate()


def kill(process: subprocess.Popen) -> None:
    if process.returncode is None:
        os.killpg(process.pid, signal.SIGKILL)


def doctor_command(folder: Path, *argv: str, **env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pipeline.tools.doctor", *argv]
    return run(folder, *command, PYTHONPATH=str(REPOSITORY), **env)


def test_a_healthy_repository_has_nothing_to_fix(repository):
    done = doctor_command(repository, CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 0, done.stdout + done.stderr
    levels = [line.split()[0] for line in done.stdout.splitlines()]
    assert levels == ["ok"] * 3 + ["note"] * 2  # disk and GPU


def test_each_problem_is_one_line_and_the_exit_status_is_1(repository):
    (repository / ".dvc/tmp/rwlock").write_text("")
    edit("params.yaml", "backend: tensorflow", "backend: tensorfow")
    done = doctor_command(repository)
    assert done.returncode == 1
    assert done.stderr == "error: 2 to fix. The lines above say how\n"
    assert (
        "fix   DVC       .dvc/tmp/rwlock: damaged by a killed DVC. `make repro` repairs it\n"
    ) in done.stdout
    assert "fix   training  params.yaml: backend must be " in done.stdout


def test_a_folder_without_dvc_is_refused(tmp_path):
    done = doctor_command(tmp_path)
    assert done.returncode == 1
    assert done.stderr == f"error: no .dvc in {tmp_path}. Run from the top of the repository\n"


def test_each_mistake_in_params_yaml_is_a_line_of_its_own(project):
    edit("params.yaml", "seeds: [0]", "seed: [0]")
    edit("params.yaml", "threads: 1", "threads: 0")
    assert doctor.examine(doctor.check_training) == [
        ("fix", "params.yaml: seed is an unknown key. Did you mean seeds?"),
        ("fix", "params.yaml: threads must be greater than or equal to 1. Got 0"),
    ]


# What a killed DVC leaves behind.


def test_a_running_dvc_is_noted_and_the_entry_of_a_killed_one_is_left_to_dvc(repository, start):
    edit("dvc.yaml", "stages:", "stages:\n  slow:\n    cmd: sleep 60\n    outs: [slow.txt]")
    process = start("dvc", "repro", "slow")
    wait_for_stage(process)
    (line,) = lines("DVC")
    assert line.startswith(f"note pid {process.pid} (`")
    assert line.endswith("dvc repro slow`): running here. Try again when it has ended")

    kill(process)
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    # a zombie, which DVC takes for running
    assert lines("DVC")[0].startswith("fix .dvc/tmp/rwlock: damaged by a killed DVC")
    process.wait()
    assert lines("DVC") == ["note stages: 1 to run: slow. `make repro` runs them"]
    # DVC removes the entry of a process that ended
    edit("dvc.yaml", "sleep 60", "echo > slow.txt")
    assert run(repository, "dvc", "repro", "slow").returncode == 0
    assert lines("DVC") == ["ok"]


def test_a_cut_rwlock_is_repaired_but_no_file_of_a_running_dvc(repository, start):
    edit("dvc.yaml", "stages:", "stages:\n  slow:\n    cmd: sleep 60\n    outs: [slow.txt]")
    rwlock = repository / ".dvc/tmp/rwlock"
    rwlock.write_text("")  # killed while writing it
    done = run(repository, "dvc", "repro", "count@a")
    assert "Unable to read RWLock-file" in done.stderr
    doctor.main(["--repair"])
    assert run(repository, "dvc", "repro", "count@a").returncode == 0
    process = start("dvc", "repro", "slow")
    wait_for_stage(process)
    written = rwlock.read_text()
    assert str(process.pid) in written
    Path("dvc.lock").write_text("")  # the running DVC may be writing it
    doctor.main(["--repair"])
    assert rwlock.read_text() == written
    assert Path("dvc.lock").read_text() == ""


def test_an_rwlock_with_the_reused_pid_of_another_process_is_removed(repository, start):
    pid = start("sleep", "60").pid
    entry = {"pid": pid, "cmd": "/home/me/.venv/bin/dvc repro"}
    rwlock = repository / ".dvc/tmp/rwlock"
    rwlock.write_text(json.dumps({"write": {str(repository / "a.txt"): entry}, "read": {}}))
    assert f"(PID {pid})" in run(repository, "dvc", "repro", "-f", "count@a").stderr
    doctor.main(["--repair"])
    assert run(repository, "dvc", "repro", "-f", "count@a").returncode == 0


def test_outputs_of_seeds_that_git_took_out_of_params_yaml_are_removed(repository, capsys):
    paths = [Path(f"metrics/{folder}/baseline/{seed}.json") for folder in ("train", "run")
             for seed in (0, 999)]  # fmt: skip
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    doctor.main(["--repair"])
    assert [path.exists() for path in paths] == [True, False, True, False]
    assert capsys.readouterr().out == (
        "repro: removed 2 outputs of models and seeds that are not in params.yaml, such as "
        "metrics/run/baseline/999.json. DVC's cache keeps them\n"
    )


def test_a_program_that_uses_dvc_from_python_keeps_its_lock(repository, start):
    process = start("sleep", "60")  # its command line ends with the recorded command
    rwlock = repository / ".dvc/tmp/rwlock"
    written = json.dumps({"read": {"/a": [{"pid": process.pid, "cmd": "sleep 60"}]}})
    rwlock.write_text(written)
    doctor.main(["--repair"])
    assert rwlock.read_text() == written


def test_a_program_that_shows_dvc_yaml_is_not_a_running_dvc(repository, start):
    start("tail", "-f", "dvc.yaml")
    Path(".dvc/tmp/rwlock").write_text("")
    doctor.main(["--repair"])
    assert not Path(".dvc/tmp/rwlock").exists()


def test_an_rwlock_that_was_cut_short_is_removed(repository):
    rwlock = repository / ".dvc/tmp/rwlock"
    for text in ("", '{"write": {"/a', '{"write": {"/a": 7}}'):
        rwlock.write_text(text)
        assert run(repository, "dvc", "repro", "-f", "count@a").returncode != 0, text
        doctor.main(["--repair"])
        assert not rwlock.exists(), text
    assert run(repository, "dvc", "repro", "-f", "count@a").returncode == 0


# where writing stopped: at the start, in a key, after a stage's name, after a key, in a hash
CUTS = [None, "schem", "  count@a:\n", "  count@a:\n    cmd:", "md5: 9"]


def test_a_dvc_lock_that_was_cut_short_is_restored_from_git(repository, capsys):
    lock = Path("dvc.lock")
    whole = lock.read_text()
    for cut in CUTS:
        left = whole[: whole.index(cut) + len(cut)] if cut else ""
        lock.write_text(left)
        assert run(repository, "dvc", "repro").returncode != 0, cut
        assert lines("DVC")[0].startswith("fix dvc.lock: damaged by a killed DVC"), cut
        doctor.main(["--repair"])
        out = capsys.readouterr().out
        assert "repro: restored from Git: dvc.lock, cut short by a killed DVC" in out, cut
        assert (repository / ".dvc/tmp/dvc.lock").read_text() == left
        assert lock.read_text() == whole
    done = run(repository, "dvc", "repro")
    assert done.returncode == 0
    assert "Running stage" not in done.stdout
    assert lock.read_text() == whole


def test_a_dvc_lock_that_git_does_not_have_is_written_again_from_the_run_cache(repository, capsys):
    lock = Path("dvc.lock")
    whole = lock.read_text()
    run(repository, "git", "rm", "-q", "--cached", "dvc.lock")
    lock.write_text(whole[:-1].rpartition("\n")[0] + "\n      size:")
    doctor.main(["--repair"])
    assert "repro: removed: dvc.lock, cut short by a killed DVC" in capsys.readouterr().out
    assert "Running stage" not in run(repository, "dvc", "repro").stdout
    assert lock.read_text() == whole


def test_a_whole_dvc_lock_with_empty_params_is_left_alone(repository):
    edit("dvc.yaml", "[seeds]", "[seeds, preprocess.image_size, train.class_weights]")
    assert run(repository, "dvc", "repro").returncode == 0
    whole = Path("dvc.lock").read_text()
    assert "image_size:\n" in whole  # null
    doctor.main(["--repair"])
    assert Path("dvc.lock").read_text() == whole


def test_a_dvc_lock_with_a_merge_conflict_is_left_to_its_author(repository):
    conflict = "<<<<<<< HEAD\nschema: '2.0'\n=======\nschema: '3.0'\n>>>>>>> theirs\n"
    Path("dvc.lock").write_text(conflict)
    doctor.main(["--repair"])
    assert Path("dvc.lock").read_text() == conflict
    assert lines("DVC")[0].startswith("fix `dvc status dvc.yaml` fails: ")


def test_an_error_of_dvc_is_reported_and_the_other_checks_still_run(repository):
    edit("dvc.yaml", "stages:", "stages: [")
    assert lines("DVC")[0].startswith("fix `dvc status dvc.yaml` fails: './dvc.yaml' is invalid")
    assert lines("code") == lines("packages") == ["ok"]


# What makes stages run.


def test_an_untracked_file_in_a_folder_of_code_is_named(repository, capsys):
    for name in ("stray.py", "ignored.log", "__pycache__/names.pyc"):
        path = Path("pipeline/core", name)
        path.parent.mkdir(exist_ok=True)
        path.write_text("")
    problem = (
        "pipeline/core/ignored.log, pipeline/core/stray.py: not tracked by Git, and makes the "
        "stages that depend on its folder run again. `git add` it, or move it elsewhere"
    )
    assert lines("code") == [f"note {problem}"]
    doctor.main(["--repair"])
    assert capsys.readouterr().out == f"repro: {problem}\n"
    assert lines("DVC") == ["note stages: 1 to run: download. `make repro` runs them"]
    for name in ("stray.py", "ignored.log"):
        Path("pipeline/core", name).unlink()
    assert lines("DVC") == lines("code") == ["ok"]


# Stored outputs and disk space.


def cached(path: str) -> Path:
    """Return the path of an output in DVC's cache."""
    recorded = yaml.safe_load(Path("dvc.lock").read_text())["stages"].values()
    outs = {out["path"]: out["md5"] for stage in recorded for out in stage["outs"]}
    return Path(".dvc/cache/files/md5", outs[path][:2], outs[path][2:])


LOST = "fix {}: neither here nor in the cache. `dvc pull` fetches them from a remote; "
LOST += "`dvc repro` runs their stages again"


def test_an_output_is_lost_only_if_both_cache_and_workspace_lack_it(repository):
    cached("a.txt").unlink()
    Path("b.txt").unlink()
    assert not [line for line in lines("DVC") if line.startswith("fix")]
    Path("a.txt").unlink()
    assert lines("DVC")[1:] == [LOST.format("a.txt")]
    assert run(repository, "dvc", "repro").returncode == 0
    assert Path("a.txt").read_text() == "ax"
    assert lines("DVC") == ["ok"]


def test_a_single_file_of_a_folder_can_be_lost_with_and_without_git(repository):
    files = {file["relpath"]: file["md5"] for file in json.loads(cached("data/raw").read_text())}
    md5 = files["y"]
    (cached("data/raw").parents[1] / md5[:2] / md5[2:]).unlink()
    Path("data/raw/y").unlink()
    assert lines("DVC")[-1] == LOST.format("data/raw/y")
    shutil.rmtree(".git")
    assert run(repository, "dvc", "config", "--local", "core.no_scm", "true").returncode == 0
    assert lines("DVC")[-1] == LOST.format("data/raw/y")
    assert lines("code") == ["ok"]


def test_too_little_space_for_twice_the_raw_data_is_to_fix(repository):
    assert lines("disk")[0].startswith(f"note {repository}: ")
    sparse = Path("data/raw/x")
    sparse.chmod(0o644)
    with sparse.open("r+b") as file:  # uses no space
        file.truncate(shutil.disk_usage(".").free)
    assert lines("disk")[0].startswith(f"fix {repository}: ")
    assert "`dvc gc --workspace` deletes" in lines("disk")[0]


# The machine.


@pytest.mark.skipif(not UV, reason="no uv")
def test_a_package_of_another_version_than_locked_is_to_fix(repository):
    edit("uv.lock", NUMPY, "1.0.1")
    assert lines("packages") == [
        "fix uv.lock: not installed: numpy==1.0.1. `uv sync --locked --inexact` installs them"
    ]


@pytest.mark.skipif(not UV, reason="no uv")
def test_a_uv_lock_that_does_not_match_pyproject_toml_is_to_fix(repository):
    edit("pyproject.toml", '["numpy"]', '["numpy>=99"]')
    (line,) = lines("packages")
    assert line.startswith("fix uv.lock: ")


def test_without_uv_versions_are_not_compared(repository, monkeypatch):
    monkeypatch.setenv("PATH", str(repository))
    assert lines("packages") == [
        "note uv: not found, so versions are not compared. `pip install uv`"
    ]


@pytest.fixture
def smi(tmp_path, monkeypatch) -> Callable[[str], None]:
    """Replace nvidia-smi by a shell script, since a machine may have no GPU."""

    def install(script: str) -> None:
        path = tmp_path / "bin/nvidia-smi"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        monkeypatch.setenv("PATH", f"{path.parent}{os.pathsep}{os.environ['PATH']}")

    return install


TWO_GPUS = """echo "0, GPU-a, NVIDIA H100 80GB HBM3, 570.1, 4, 81559"
echo "1, GPU-b, NVIDIA H100 80GB HBM3, 570.1, 60000, 81559"
"""


def test_a_busy_gpu_is_to_fix_unless_another_is_chosen(repository, smi, monkeypatch):
    smi(TWO_GPUS)
    free, busy = lines("training")[:2]
    assert free == "note GPU 0: NVIDIA H100 80GB HBM3, driver 570.1, 4 of 81559 MiB in use"
    assert busy.startswith("fix GPU 1: NVIDIA H100 80GB HBM3, driver 570.1, 60000 of 81559 MiB")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-a")
    assert lines("training")[0] == free
    assert not any("GPU 1" in line for line in lines("training"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert lines("training") == [
        "note GPU: hidden by CUDA_VISIBLE_DEVICES, so training runs on the CPU"
    ]


def test_without_gpu_support_the_group_to_install_is_named_if_the_driver_fits(repository, smi):
    smi("echo 0, GPU-a, Tesla T4, 550.54.15, 4, 15360")
    assert lines("training") == [
        "note GPU 0: Tesla T4, driver 550.54.15, 4 of 15360 MiB in use",
        "note GPU: not used, since tensorflow needs the group cuda for it (driver 525.60.13 or "
        "later). `make repro GPU=1` or `uv sync --inexact --group cuda` installs it",
    ]
    smi("echo 0, GPU-a, Tesla T4, 470.256.02, 4, 15360")
    assert lines("training")[0] == (
        "fix GPU 0: Tesla T4, driver 470.256.02, 4 of 15360 MiB in use. The groups cuda and "
        "jax-cuda need driver 525.60.13 or later. Update the driver"
    )


def test_a_driver_that_fails_or_does_not_respond_is_to_fix(repository, smi):
    smi("echo 'Failed to initialize NVML: Driver/library version mismatch'; exit 18")
    assert lines("training") == [
        "fix nvidia-smi: Failed to initialize NVML: Driver/library version mismatch. Reboot after "
        "a driver update, or reinstall the driver"
    ]
    smi("exec sleep 60")
    assert "timed out after 3 seconds. Reboot after a driver update" in lines("training")[0]


def test_a_backend_other_than_in_params_yaml_is_to_fix(repository, monkeypatch):
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    (line,) = lines("training")
    assert line.startswith("fix KERAS_BACKEND must be tensorflow, as in params.yaml. Got jax. ")
