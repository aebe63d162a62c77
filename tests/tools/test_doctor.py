"""Doctor: each thing to fix is found where it really is, and only there; two are repaired."""

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
sys.path.insert(0, "pipeline/core")  # `import pipeline` is the one that is installed
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
    params: [seed]
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


def environment(**own: str) -> dict[str, str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    clean = {
        k: v for k, v in os.environ.items() if not k.startswith(("GIT_", "DVC_", "KERAS_", "UV_"))
    }
    return {**clean, "PATH": path, **own}


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


def runs(process: subprocess.Popen) -> None:
    """Wait until a `dvc repro` runs a stage of `sleep 60`: then it writes rwlock no more."""
    assert any(b"> sleep 60" in line for line in process.stdout or ())


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen]]:
    """Start processes that end with the test, those that they started included."""
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


def test_healthy_repository_has_nothing_to_fix(repository):
    done = doctor_command(repository, CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 0, done.stdout + done.stderr
    levels = [line.split()[0] for line in done.stdout.splitlines()]
    assert levels == ["ok"] * 3 + ["note"] * 2  # disk and GPU


def test_what_is_to_fix_is_a_line_each_and_the_exit_status(repository):
    (repository / ".dvc/tmp/rwlock").write_text("")
    edit("params.yaml", "backend: tensorflow", "backend: tensorfow")
    done = doctor_command(repository)
    assert done.returncode == 1
    assert done.stderr == "error: 2 to fix. The lines above say how\n"
    assert (
        "fix   DVC       .dvc/tmp/rwlock: left so by a dvc that was killed, and every other dvc "
        "stops at it. `make repro` repairs it\n"
    ) in done.stdout
    assert "fix   training  params.yaml: backend must be " in done.stdout


def test_doctor_is_for_a_repository_of_dvc(tmp_path):
    done = doctor_command(tmp_path)
    assert done.returncode == 1
    assert done.stderr == f"error: no .dvc in {tmp_path}. Run from the repository's top\n"


# what a killed DVC leaves


def test_dvc_at_work_is_noted_and_a_killed_one_is_left_to_dvc(repository, start):
    edit("dvc.yaml", "stages:", "stages:\n  slow:\n    cmd: sleep 60\n    outs: [slow.txt]")
    process = start("dvc", "repro", "slow")
    runs(process)
    (line,) = lines("DVC")
    assert line.startswith(f"note pid {process.pid} (`")
    assert line.endswith("dvc repro slow`): at work here. Look again when it has ended")

    kill(process)
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    # nobody has asked for its exit status: for DVC it lives on
    assert lines("DVC")[0].startswith("fix .dvc/tmp/rwlock: left so by a dvc that was killed")
    process.wait()
    assert lines("DVC") == ["note stages: 1 to run: slow. `make repro` runs them"]
    # DVC removes the entry of one that ended
    edit("dvc.yaml", "sleep 60", "echo > slow.txt")
    assert run(repository, "dvc", "repro", "slow").returncode == 0
    assert lines("DVC") == ["ok"]


def test_what_would_stop_dvc_is_repaired_and_what_one_at_work_has_written_is_not(repository, start):
    edit("dvc.yaml", "stages:", "stages:\n  slow:\n    cmd: sleep 60\n    outs: [slow.txt]")
    rwlock = repository / ".dvc/tmp/rwlock"
    rwlock.write_text("")  # killed in the middle of writing it
    done = run(repository, "dvc", "repro", "count@a")
    assert "Unable to read RWLock-file" in done.stderr
    doctor.main(["--repair"])
    assert run(repository, "dvc", "repro", "count@a").returncode == 0
    process = start("dvc", "repro", "slow")
    runs(process)
    written = rwlock.read_text()
    assert str(process.pid) in written
    Path("dvc.lock").write_text("")  # it may be writing that one
    doctor.main(["--repair"])
    assert rwlock.read_text() == written
    assert Path("dvc.lock").read_text() == ""


def test_pid_that_another_process_has_now_is_repaired(repository, start):
    pid = start("sleep", "60").pid
    entry = {"pid": pid, "cmd": "/home/me/.venv/bin/dvc repro"}
    rwlock = repository / ".dvc/tmp/rwlock"
    rwlock.write_text(json.dumps({"write": {str(repository / "a.txt"): entry}, "read": {}}))
    assert f"(PID {pid})" in run(repository, "dvc", "repro", "-f", "count@a").stderr
    doctor.main(["--repair"])
    assert run(repository, "dvc", "repro", "-f", "count@a").returncode == 0


def test_program_that_uses_dvc_from_python_keeps_its_lock(repository, start):
    process = start("sleep", "60")  # its words end with those that it wrote
    rwlock = repository / ".dvc/tmp/rwlock"
    written = json.dumps({"read": {"/a": [{"pid": process.pid, "cmd": "sleep 60"}]}})
    rwlock.write_text(written)
    doctor.main(["--repair"])
    assert rwlock.read_text() == written


def test_editor_that_shows_a_file_of_dvc_is_no_dvc(repository, start):
    start("tail", "-f", "dvc.yaml")
    Path(".dvc/tmp/rwlock").write_text("")
    doctor.main(["--repair"])
    assert not Path(".dvc/tmp/rwlock").exists()


@pytest.mark.parametrize("text", ["", '{"write": {"/a', '{"write": {"/a": 7}}'])
def test_rwlock_that_was_cut_short_is_removed(repository, text):
    rwlock = repository / ".dvc/tmp/rwlock"
    rwlock.write_text(text)
    assert run(repository, "dvc", "repro", "-f", "count@a").returncode != 0
    doctor.main(["--repair"])
    assert run(repository, "dvc", "repro", "-f", "count@a").returncode == 0


# the end of what was written: nothing, in a key, after a stage's name, after a key and in a hash
# (DVC takes none of fewer than three letters; the rest of a longer one is asked of the run cache)
CUTS = [None, "schem", "  count@a:\n", "  count@a:\n    cmd:", "md5: 9"]


@pytest.mark.parametrize("cut", CUTS)
def test_dvc_lock_that_was_cut_short_is_restored_from_git(repository, capsys, cut):
    lock = Path("dvc.lock")
    whole = lock.read_text()
    left = whole[: whole.index(cut) + len(cut)] if cut else ""
    lock.write_text(left)
    assert run(repository, "dvc", "repro").returncode != 0
    assert lines("DVC")[0].startswith("fix dvc.lock: left so by a dvc that was killed")
    doctor.main(["--repair"])
    assert "doctor: restored from Git: dvc.lock, cut short by a dvc" in capsys.readouterr().out
    assert (repository / ".dvc/tmp/dvc.lock").read_text() == left
    done = run(repository, "dvc", "repro")
    assert done.returncode == 0
    assert "Running stage" not in done.stdout
    assert lock.read_text() == whole


def test_dvc_lock_that_git_does_not_have_is_made_again_from_the_run_cache(repository, capsys):
    lock = Path("dvc.lock")
    whole = lock.read_text()
    run(repository, "git", "rm", "-q", "--cached", "dvc.lock")
    lock.write_text(whole[:-1].rpartition("\n")[0] + "\n      size:")
    doctor.main(["--repair"])
    assert "doctor: removed: dvc.lock, cut short by a dvc" in capsys.readouterr().out
    assert "Running stage" not in run(repository, "dvc", "repro").stdout
    assert lock.read_text() == whole


def test_whole_dvc_lock_is_left_alone_whatever_its_params_hold(repository):
    edit("dvc.yaml", "[seed]", "[seed, preprocess.image_size, train.class_weights]")
    assert run(repository, "dvc", "repro").returncode == 0
    whole = Path("dvc.lock").read_text()
    assert "image_size:\n" in whole  # null
    doctor.main(["--repair"])
    assert Path("dvc.lock").read_text() == whole


def test_dvc_lock_in_which_a_merge_stopped_is_its_authors(repository):
    conflict = "<<<<<<< HEAD\nschema: '2.0'\n=======\nschema: '3.0'\n>>>>>>> theirs\n"
    Path("dvc.lock").write_text(conflict)
    doctor.main(["--repair"])
    assert Path("dvc.lock").read_text() == conflict
    assert lines("DVC")[0].startswith("fix `dvc status dvc.yaml` fails: ")


def test_what_dvc_says_is_passed_on_and_the_other_checks_go_on(repository):
    edit("dvc.yaml", "stages:", "stages: [")
    assert lines("DVC")[0].startswith("fix `dvc status dvc.yaml` fails: './dvc.yaml' is invalid")
    assert lines("code") == lines("packages") == ["ok"]


# what makes stages run


def test_file_that_git_does_not_track_in_a_folder_of_code_is_named(repository, capsys):
    for name in ("stray.py", "ignored.log", "__pycache__/names.pyc"):
        path = Path("pipeline/core", name)
        path.parent.mkdir(exist_ok=True)
        path.write_text("")
    problem = (
        "pipeline/core/ignored.log, pipeline/core/stray.py: not in Git, and the stages that depend "
        "on its folder run again because of it. `git add` it, or move it elsewhere"
    )
    assert lines("code") == [f"note {problem}"]
    doctor.main(["--repair"])
    assert capsys.readouterr().out == f"doctor: {problem}\n"
    assert lines("DVC") == ["note stages: 1 to run: download. `make repro` runs them"]
    for name in ("stray.py", "ignored.log"):
        Path("pipeline/core", name).unlink()
    assert lines("DVC") == lines("code") == ["ok"]


# what is stored


def cached(path: str) -> Path:
    """The object in DVC's cache of an output, or of a file in it."""
    recorded = yaml.safe_load(Path("dvc.lock").read_text())["stages"].values()
    outs = {out["path"]: out["md5"] for stage in recorded for out in stage["outs"]}
    return Path(".dvc/cache/files/md5", outs[path][:2], outs[path][2:])


LOST = "fix {}: neither in place nor in the cache, as recorded. `dvc pull` gets what a remote has; "
LOST += "`dvc repro` makes outputs again"


def test_output_is_lost_only_where_cache_and_workspace_lack_it(repository):
    cached("a.txt").unlink()
    Path("b.txt").unlink()
    assert not [line for line in lines("DVC") if line.startswith("fix")]
    Path("a.txt").unlink()
    assert lines("DVC")[1:] == [LOST.format("a.txt")]
    assert run(repository, "dvc", "repro").returncode == 0
    assert Path("a.txt").read_text() == "ax"
    assert lines("DVC") == ["ok"]


def test_file_of_a_folder_may_be_lost_alone_and_also_without_git(repository):
    files = {each["relpath"]: each["md5"] for each in json.loads(cached("data/raw").read_text())}
    md5 = files["y"]
    (cached("data/raw").parents[1] / md5[:2] / md5[2:]).unlink()
    Path("data/raw/y").unlink()
    assert lines("DVC")[-1] == LOST.format("data/raw/y")
    shutil.rmtree(".git")
    assert run(repository, "dvc", "config", "--local", "core.no_scm", "true").returncode == 0
    assert lines("DVC")[-1] == LOST.format("data/raw/y")
    assert lines("code") == ["ok"]


def test_disk_without_room_for_twice_the_raw_data(repository):
    assert lines("disk")[0].startswith(f"note {repository}: ")
    sparse = Path("data/raw/x")
    sparse.chmod(0o644)
    with sparse.open("r+b") as file:  # takes no room
        file.truncate(shutil.disk_usage(".").free)
    assert lines("disk")[0].startswith(f"fix {repository}: ")
    assert "`dvc gc --workspace` frees" in lines("disk")[0]


# the machine


@pytest.mark.skipif(not UV, reason="no uv")
def test_version_other_than_locked(repository):
    edit("uv.lock", NUMPY, "1.0.1")
    assert lines("packages") == [
        "fix uv.lock: not installed: numpy==1.0.1. `uv sync --locked --inexact` installs it"
    ]


@pytest.mark.skipif(not UV, reason="no uv")
def test_uv_lock_that_is_older_than_pyproject_toml(repository):
    edit("pyproject.toml", '["numpy"]', '["numpy>=99"]')
    (line,) = lines("packages")
    assert line.startswith("fix uv.lock: ")


def test_without_uv_versions_are_not_compared(repository, monkeypatch):
    monkeypatch.setenv("PATH", str(repository))
    assert lines("packages") == ["note uv: not found: versions are not compared. `pip install uv`"]


@pytest.fixture
def smi(tmp_path, monkeypatch) -> Callable[[str], None]:
    """A stand-in for nvidia-smi, since a machine has one or has none."""

    def say(script: str) -> None:
        path = tmp_path / "bin/nvidia-smi"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        monkeypatch.setenv("PATH", f"{path.parent}{os.pathsep}{os.environ['PATH']}")

    return say


TWO = """case $* in *=index,uuid*)
echo "0, GPU-a, NVIDIA H100 80GB HBM3, 570.1, 4, 81559"
echo "1, GPU-b, NVIDIA H100 80GB HBM3, 570.1, 60000, 81559";;
*) echo 0; echo 1;; esac"""


def test_gpu_that_others_use_is_to_fix_until_another_is_chosen(repository, smi, monkeypatch):
    smi(TWO)
    free, busy = lines("training")[:2]
    assert free == "note GPU 0: NVIDIA H100 80GB HBM3, driver 570.1, 4 of 81559 MiB in use"
    assert busy.startswith("fix GPU 1: NVIDIA H100 80GB HBM3, driver 570.1, 60000 of 81559 MiB")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-a")
    assert lines("training")[0] == free
    assert not any("GPU 1" in line for line in lines("training"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert lines("training") == [
        "note GPU: hidden by CUDA_VISIBLE_DEVICES: the processor trains"
    ]  # fmt: skip


def test_driver_that_does_not_answer_is_to_fix(repository, smi):
    smi("echo 'Failed to initialize NVML: Driver/library version mismatch'; exit 18")
    assert lines("training") == [
        "fix nvidia-smi: Failed to initialize NVML: Driver/library version mismatch. Reboot after "
        "an update of the driver, or install it again"
    ]
    smi("exec sleep 60")
    assert "timed out after 3 seconds. Reboot after an update" in lines("training")[0]


def test_backend_that_is_not_chosen(repository, monkeypatch):
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    (line,) = lines("training")
    assert line.startswith("fix KERAS_BACKEND must be tensorflow, as in params.yaml. Got jax. ")
