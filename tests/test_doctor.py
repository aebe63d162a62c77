"""Doctor: each thing to mend is found where it really is, and only there."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path

import pytest
import yaml

from pipeline import doctor, graph, locks
from tests.conftest import REPOSITORY

NUMPY = metadata.version("numpy")
FILES = {
    ".gitignore": "/data\n/*.txt\n__pycache__/\n",
    "params.yaml": "seed: 1\nbackend: tensorflow\nmodels:\n  a: {n: 1}\n  b: {n: 2}\n",
    "pipeline/names.py": "FOLDER = 'data/raw'\n",
    "pipeline/spare.py": "",
    "pipeline/download.py": """
import types
from pathlib import Path
import yaml
from pipeline.names import FOLDER
params = types.SimpleNamespace(**yaml.safe_load(open("params.yaml")))
Path(FOLDER).mkdir(parents=True)
for name in "xy":
    Path(FOLDER, name).write_text(name * params.seed)
""",
    "pipeline/count.py": """
import sys
from pathlib import Path
Path(sys.argv[1] + ".txt").write_text(sys.argv[1] + Path("data/raw/x").read_text())
""",
    "dvc.yaml": """
stages:
  download:
    cmd: python -m pipeline.download
    deps: [pipeline/download.py, pipeline/names.py]
    params: [seed]
    outs: [data/raw]
  count:
    foreach: ${models}
    do:
      cmd: python -m pipeline.count ${key}
      deps: [pipeline/count.py, data/raw]
      outs: ["${key}.txt"]
""",
    "uv.lock": f"""
requires-python = ">=3.11, <3.99"
[[package]]
name = "mine"
source = {{ virtual = "." }}
dependencies = [{{ name = "numpy" }}]
[[package]]
name = "numpy"
version = "{NUMPY}"
source = {{ registry = "https://pypi.org/simple" }}
""",
}
# a command line as DVC's own is not: `python -c … FILE`
HOLD = "import fcntl, sys; f = open(sys.argv[1]); fcntl.flock(f, fcntl.LOCK_EX); print(); input()"
HARDLINK = """
import os, sys
from dvc.lock import make_lock
make_lock(sys.argv[1], tmp_dir=os.path.dirname(sys.argv[1]), hardlink_lock=True).lock()
os._exit(1)
"""


def environment(**own: str) -> dict[str, str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("GIT_", "DVC_", "KERAS_"))}
    return {**clean, "PATH": path, **own}


def run(folder: Path, *argv: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        argv, cwd=folder, env=environment(**env), capture_output=True, text=True, timeout=60
    )


@pytest.fixture(scope="module")
def healthy(tmp_path_factory) -> Path:
    """A repository of Git and DVC with a small graph that has run."""
    folder = tmp_path_factory.mktemp("healthy")
    for name, text in FILES.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text.lstrip())
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
    return folder


def lines(check: str) -> list[str]:
    return doctor.examine(doctor.CHECKS[check], Path())


def edit(name: str, old: str, new: str) -> None:
    text = Path(name).read_text()
    assert old in text
    Path(name).write_text(text.replace(old, new))


def wait_for(holds: Callable[[], object]) -> None:
    for _ in range(300):
        if holds():
            return
        time.sleep(0.1)
    pytest.fail("waited 30 s in vain")


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


def test_healthy_repository_has_nothing_to_mend(repository):
    done = run(repository, sys.executable, "-m", "pipeline.doctor",
               PYTHONPATH=str(REPOSITORY), CUDA_VISIBLE_DEVICES="")  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    said = [line.split()[0] for line in done.stdout.splitlines()]
    assert said == ["ok"] * 6 + ["note"] * 2  # disk and GPU


def test_what_is_to_mend_is_said_in_a_line_and_by_the_exit_status(repository):
    edit("pipeline/names.py", "FOLDER", "import pipeline.spare\nFOLDER")
    (repository / ".dvc/tmp/rwlock").write_text("")
    done = run(repository, sys.executable, "-m", "pipeline.doctor", PYTHONPATH=str(REPOSITORY))
    assert done.returncode == 1
    assert done.stderr == "error: 2 to mend. The lines above say how\n"
    assert (
        "mend  imports    dvc.yaml: download: imports pipeline/spare.py and does not say so. Add "
        "`- pipeline/spare.py` to its deps: a change there would rerun nothing\n"
    ) in done.stdout
    assert "mend  locks      .dvc/tmp/rwlock: no JSON" in done.stdout


def test_doctor_is_for_a_repository_of_dvc(tmp_path):
    done = run(tmp_path, sys.executable, "-m", "pipeline.doctor", PYTHONPATH=str(REPOSITORY))
    assert done.returncode == 1
    assert done.stderr == f"error: no .dvc in {tmp_path}. Run from the repository's top\n"


def test_check_that_cannot_look_says_why_and_the_others_go_on(repository):
    edit("dvc.yaml", "stages:", "stages: [")
    assert lines("imports")[0].startswith("mend dvc.yaml: not valid YAML: while parsing")
    assert lines("locks") == ["ok"]
    (repository / "params.yaml").unlink()
    assert lines("GPU") == ["mend params.yaml: no such file. `git checkout params.yaml`"]


def test_script_that_is_no_python_is_named(repository):
    edit("pipeline/count.py", "import sys", "import sys sys")
    said = ["mend pipeline/count.py: must be valid Python. Got in line 1: invalid syntax"]
    assert lines("imports") == lines("params") == said


# locks


def test_dvc_at_work_is_noted_and_a_killed_one_is_left_to_dvc(repository, start):
    edit("dvc.yaml", "stages:", "stages:\n  slow:\n    cmd: sleep 60\n    outs: [slow.txt]")
    process = start("dvc", "repro", "slow")
    runs(process)
    at_work = [line for line in lines("locks") if f"pid {process.pid} " in line]
    assert len(at_work) == 1
    assert at_work[0].startswith(f"note .dvc/tmp/rwlock: pid {process.pid} (`")
    assert "dvc repro slow`) is at work." in at_work[0]

    kill(process)
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    # nobody has asked for its exit status: for DVC it lives on
    assert "is no dvc any more, but its pid lives" in lines("locks")[0]
    process.wait()
    (line,) = lines("locks")
    assert line.startswith(f"note .dvc/tmp/rwlock: pid {process.pid} (`")
    assert line.endswith("was killed. The next dvc takes it out by itself")
    # which it does
    edit("dvc.yaml", "sleep 60", "echo > slow.txt")
    assert run(repository, "dvc", "repro", "slow").returncode == 0
    assert lines("locks") == ["ok"]


def test_what_would_stop_dvc_is_taken_away_and_what_one_at_work_has_written_is_not(
    repository, start
):
    edit("dvc.yaml", "stages:", "stages:\n  slow:\n    cmd: sleep 60\n    outs: [slow.txt]")
    rwlock = repository / ".dvc/tmp/rwlock"
    rwlock.write_text("")  # killed in the middle of writing it
    done = run(repository, "dvc", "repro", "count@a")
    assert "Unable to read RWLock-file" in done.stderr
    locks.release(repository)
    assert run(repository, "dvc", "repro", "count@a").returncode == 0
    process = start("dvc", "repro", "slow")
    runs(process)
    written = rwlock.read_text()
    assert str(process.pid) in written
    Path("dvc.lock").write_text("")  # it may be writing that one
    locks.release(repository)
    assert rwlock.read_text() == written
    assert Path("dvc.lock").read_text() == ""


def test_pid_that_another_process_has_now_is_to_mend(repository, start):
    pid = start("sleep", "60").pid
    entry = {"pid": pid, "cmd": "/home/me/.venv/bin/dvc repro"}
    rwlock = repository / ".dvc/tmp/rwlock"
    rwlock.write_text(json.dumps({"write": {str(repository / "a.txt"): entry}, "read": {}}))
    assert lines("locks") == [
        f"mend .dvc/tmp/rwlock: pid {pid} (`/home/me/.venv/bin/dvc repro`) is no dvc any more, but "
        "its pid lives: DVC takes it for at work. When no dvc runs here: `rm .dvc/tmp/rwlock`"
    ]
    stopped = run(repository, "dvc", "repro", "-f", "count@a")
    assert f"(PID {pid})" in stopped.stderr
    rwlock.unlink()
    assert run(repository, "dvc", "repro", "-f", "count@a").returncode == 0


@pytest.mark.parametrize("text", ["", '{"write": {"/a', '{"write": {"/a": 7}}'])
def test_rwlock_that_was_cut_short_is_to_delete(repository, text):
    rwlock = repository / ".dvc/tmp/rwlock"
    rwlock.write_text(text)
    assert lines("locks") == [
        "mend .dvc/tmp/rwlock: no JSON as DVC writes it: dvc was killed at that, and stops at it "
        "from now on. Delete it: `rm .dvc/tmp/rwlock`"
    ]
    assert run(repository, "dvc", "repro", "-f", "count@a").returncode != 0
    rwlock.unlink()
    assert run(repository, "dvc", "repro", "-f", "count@a").returncode == 0


# the end of what was written: nothing, in a key, behind a stage's name and in one. (Elsewhere, as
# in a hash, what is left is valid: DVC reads it, and asks its run cache.)
@pytest.mark.parametrize(
    ("cut", "tracked"),
    [(None, True), ("schem", True), ("  count@a:\n", True), ("  count@b", False)],
)
def test_dvc_lock_that_was_cut_short_is_gits_again(repository, capsys, cut, tracked):
    lock = Path("dvc.lock")
    whole = lock.read_text()
    left = whole[: whole.index(cut) + len(cut)] if cut else ""
    if not tracked:
        run(repository, "git", "rm", "-q", "--cached", "dvc.lock")
    lock.write_text(left)
    assert run(repository, "dvc", "repro").returncode != 0
    assert lines("locks") == [
        "mend dvc.lock: not as DVC writes it: dvc was killed at that, and stops at it from now on. "
        f"`git checkout dvc.lock`: {locks.SINCE}"
    ]
    locks.release(repository)
    what = "is Git's again" if tracked else "begins anew"
    assert f"locks: dvc.lock of a dvc that was killed {what}" in capsys.readouterr().out
    assert (repository / ".dvc/tmp/dvc.lock").read_text() == left
    done = run(repository, "dvc", "repro")
    assert done.returncode == 0
    assert "Running stage" not in done.stdout
    assert lock.read_text() == whole


def test_dvc_lock_in_which_a_merge_stopped_is_its_authors(repository):
    conflict = "<<<<<<< HEAD\nschema: '2.0'\n=======\nschema: '3.0'\n>>>>>>> theirs\n"
    Path("dvc.lock").write_text(conflict)
    locks.release(repository)
    assert Path("dvc.lock").read_text() == conflict


def test_lock_that_no_dvc_holds_names_who_holds_it(repository, start):
    lock = repository / ".dvc/tmp/lock"
    process = start(sys.executable, "-c", HOLD, str(lock))
    process.stdout.readline()
    (line,) = lines("locks")
    assert line.startswith(f"mend .dvc/tmp/lock: held by pid {process.pid} (`")
    assert line.endswith(f"A killed dvc started it: end it, `kill {process.pid}`")
    kill(process)
    process.wait()
    assert lines("locks") == ["ok"]


def test_lock_that_a_dvc_holds_is_noted(repository, start):
    script = repository / "bin/dvc"  # stands for a long `dvc pull`
    script.parent.mkdir()
    script.write_text(HOLD)
    start(sys.executable, str(script), str(repository / ".dvc/tmp/lock")).stdout.readline()
    assert lines("locks") == [
        "note .dvc/tmp/lock: dvc is at work here. Wait, or `dvc --wait-for-lock`"
    ]


@pytest.mark.parametrize("name", ["lock", "rwlock.lock"])
def test_hard_link_that_a_killed_dvc_left_is_to_delete(repository, name):
    run(repository, "dvc", "config", "--local", "core.hardlink_lock", "true")
    for left in ("lock", "rwlock.lock"):  # of the other kind
        (repository / ".dvc/tmp" / left).unlink()
    lock = repository / ".dvc/tmp" / name
    run(repository, sys.executable, "-c", HARDLINK, str(lock))
    assert lines("locks") == [
        f"mend .dvc/tmp/{name}: a hard link that a killed dvc left, and no dvc runs here. Delete "
        f"it: `rm .dvc/tmp/{name}`"
    ]
    again = ("dvc", "repro", "-f", "count@a")
    assert "Unable to acquire lock" in run(repository, *again).stderr
    lock.unlink()
    assert run(repository, *again).returncode == 0
    assert lines("locks") == ["ok"]


def test_index_lock_of_a_killed_git_is_to_delete(repository, start):
    lock = repository / ".git/index.lock"
    edit("params.yaml", "seed: 1", "seed: 2")
    process = start("git", "-c", "core.editor=sleep 60; true", "commit", "-a")
    wait_for(lock.is_file)
    assert lines("locks") == [
        "note .git/index.lock: git is at work here. Wait, or close its editor"
    ]
    kill(process)
    process.wait()
    assert lines("locks") == [
        "mend .git/index.lock: a killed git left it, and no git runs here. `rm .git/index.lock`"
    ]
    lock.unlink()
    assert lines("locks") == ["ok"]


# the graph


def test_own_graph_declares_what_it_imports_and_reads():
    for check in (doctor.imports, doctor.params, doctor.run_cache):
        assert list(check(REPOSITORY)) == []


def test_import_that_deps_miss_and_dep_that_nothing_imports(repository):
    edit("pipeline/count.py", "import sys", "import sys\nfrom pipeline import spare")
    edit("dvc.yaml", "pipeline/names.py]", "pipeline/names.py, pipeline/count.py]")
    assert lines("imports") == [
        "note dvc.yaml: download: does not import pipeline/count.py. Take it out of its deps: a "
        "change there reruns the stage for nothing",
        "mend dvc.yaml: count: imports pipeline/spare.py and does not say so. Add "
        "`- pipeline/spare.py` to its deps: a change there would rerun nothing",
    ]


def test_script_that_is_not_there_is_named(repository):
    edit("dvc.yaml", "pipeline.count ", "pipeline.missing ")
    assert lines("imports") == ["mend dvc.yaml: count: no file pipeline/missing.py. Mend its cmd"]


def test_setting_that_params_miss(repository):
    edit("pipeline/download.py", "params.seed", "(params.seed + params.test.seed)")
    assert lines("params") == [
        "mend dvc.yaml: download: reads test.seed and does not say so. Add test.seed to its "
        "params: a change of it would rerun nothing"
    ]
    edit("dvc.yaml", "[seed]", "[seed, test]")
    assert lines("params") == ["ok"]


def test_cache_false_is_to_mend_on_an_expensive_stage_alone(repository):
    edit("dvc.yaml", 'outs: ["${key}.txt"]', 'outs: ["${key}.txt": {cache: false}]')
    assert lines("run cache") == ["ok"]
    edit("dvc.yaml", "outs: [data/raw]", "outs: [data/raw: {cache: false}]")
    assert lines("run cache") == [
        "mend dvc.yaml: download: `cache: false` on data/raw turns off the run cache of the stage. "
        "Take it out: what ran before runs again"
    ]


# what is stored


def cached(path: str) -> Path:
    """The object in DVC's cache of an output, or of a file in it."""
    recorded = yaml.safe_load(Path("dvc.lock").read_text())["stages"].values()
    outs = {out["path"]: out["md5"] for stage in recorded for out in stage["outs"]}
    return Path(".dvc/cache/files/md5", outs[path][:2], outs[path][2:])


LOST = "mend dvc.lock: neither in place nor in the cache, as recorded: {}. `dvc pull` gets them "
LOST += "from a remote that has them; `dvc repro` makes them again"


def test_output_is_lost_only_where_cache_and_workspace_lack_it(repository):
    cached("a.txt").unlink()
    assert lines("outputs") == ["ok"]  # still in place
    Path("b.txt").unlink()
    assert lines("outputs") == ["ok"]  # still in the cache
    Path("a.txt").unlink()
    assert lines("outputs") == [LOST.format("a.txt")]
    assert run(repository, "dvc", "repro").returncode == 0
    assert Path("a.txt").read_text() == "ax"
    assert lines("outputs") == ["ok"]


def test_folder_is_lost_with_any_of_its_files(repository):
    files = {each["relpath"]: each["md5"] for each in json.loads(cached("data/raw").read_text())}
    md5 = files["y"]
    (cached("data/raw").parents[1] / md5[:2] / md5[2:]).unlink()
    assert lines("outputs") == ["ok"]
    Path("data/raw/y").unlink()
    assert lines("outputs") == [LOST.format("data/raw")]


def test_model_that_is_gone_has_lost_nothing(repository):
    edit("params.yaml", "  b: {n: 2}\n", "")
    cached("b.txt").unlink()
    Path("b.txt").unlink()
    assert "b.txt" in Path("dvc.lock").read_text()
    assert lines("outputs") == ["ok"]


def test_many_lost_outputs_are_one_line(repository):
    shutil.rmtree(".dvc/cache")
    shutil.rmtree("data")
    for name in "ab":
        Path(f"{name}.txt").unlink()
    assert lines("outputs") == [LOST.format("data/raw, a.txt, b.txt")]


def test_cache_elsewhere_is_looked_up_there(repository):
    assert run(repository, "dvc", "cache", "dir", "--local", "../elsewhere").returncode == 0
    shutil.move(".dvc/cache", "../elsewhere")
    Path("a.txt").unlink()
    assert lines("outputs") == ["ok"]


def test_disk_without_room_for_twice_the_raw_data(repository):
    assert lines("disk")[0].startswith("note ")
    assert "the cache holds 0.0 MiB" in lines("disk")[0]
    sparse = Path("data/raw/x")
    sparse.chmod(0o644)
    with sparse.open("r+b") as file:  # takes no room
        file.truncate(shutil.disk_usage(".").free)
    assert lines("disk")[0].startswith(f"mend {repository}: ")
    assert "`dvc gc --workspace` frees" in lines("disk")[0]


# the machine


def test_version_other_than_locked(repository):
    edit("uv.lock", NUMPY, "1.0.1")
    assert lines("versions") == [
        f"mend uv.lock: numpy must be 1.0.1. Got {NUMPY}. `uv sync --locked`"
    ]


def test_local_part_of_a_version_is_no_clash(repository, tmp_path, monkeypatch):
    folder = tmp_path / "site/fake_torch-2.13.0+cpu.dist-info"
    folder.mkdir(parents=True)
    (folder / "METADATA").write_text("Name: fake-torch\nVersion: 2.13.0+cpu\n")
    monkeypatch.syspath_prepend(tmp_path / "site")
    edit("uv.lock", '"numpy"', '"fake-torch"')
    edit("uv.lock", NUMPY, "2.13.0")
    assert lines("versions") == ["ok"]
    edit("uv.lock", "2.13.0", "2.13.1")
    assert "fake-torch must be 2.13.1. Got 2.13.0+cpu" in lines("versions")[0]


def test_package_that_is_not_installed(repository):
    edit("uv.lock", '"numpy"', '"no-such-package"')
    assert f"mend uv.lock: no-such-package {NUMPY} is not installed" in lines("versions")[0]


def test_group_may_be_left_out_but_not_be_another_version(repository):
    numpy = '[{ name = "numpy" }]'
    extra = '[{ name = "no-such-package" }, { name = "pillow" }]'
    edit("uv.lock", numpy, numpy + f"\ndev-dependencies = {{ extra = {extra} }}")
    with Path("uv.lock").open("a") as file:
        for name in ("no-such-package", "pillow"):
            file.write(f'[[package]]\nname = "{name}"\nversion = "1.0"\nsource = {{}}\n')
    pillow = metadata.version("pillow")
    assert lines("versions") == [
        f"mend uv.lock: pillow must be 1.0. Got {pillow}. `uv sync --locked --group extra`"
    ]


def test_python_out_of_range(repository):
    edit("uv.lock", ">=3.11, <3.99", ">=3.98, <3.99")
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    assert lines("versions")[0].startswith(
        f"mend uv.lock: Python must be >=3.98, <3.99. Got {python}. "
    )


def test_uv_lock_that_a_merge_broke(repository):
    edit("uv.lock", "[[package]]", "<<<<<<< HEAD")
    assert lines("versions")[0].startswith("mend uv.lock: not valid TOML: ")


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


def test_gpu_that_others_use_is_to_mend_until_another_is_chosen(repository, smi, monkeypatch):
    smi(TWO)
    free, busy = lines("GPU")[:2]
    assert free == "note GPU 0: NVIDIA H100 80GB HBM3, driver 570.1, 4 of 81559 MiB in use"
    assert busy.startswith("mend GPU 1: NVIDIA H100 80GB HBM3, driver 570.1, 60000 of 81559 MiB")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-a")
    assert lines("GPU")[0] == free
    assert not any("GPU 1" in line for line in lines("GPU"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert lines("GPU") == ["note GPU: hidden by CUDA_VISIBLE_DEVICES: the processor trains"]


def test_driver_that_does_not_answer_is_to_mend(repository, smi):
    smi("echo 'Failed to initialize NVML: Driver/library version mismatch'; exit 18")
    assert lines("GPU") == [
        "mend nvidia-smi: Failed to initialize NVML: Driver/library version mismatch. Reboot after "
        "an update of the driver, or install it anew"
    ]
    smi("exec sleep 60")
    assert lines("GPU")[0].startswith("mend nvidia-smi: no answer in 3 s. Reboot after an update")


def test_backend_that_is_not_installed_or_not_chosen(repository, monkeypatch):
    edit("params.yaml", "backend: tensorflow", "backend: nosuchbackend")
    assert lines("GPU")[0].startswith("mend params.yaml: backend: nosuchbackend is not installed. ")
    edit("params.yaml", "nosuchbackend", "tensorflow")
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    assert lines("GPU")[0] == (
        "mend KERAS_BACKEND: must be as params.yaml says, tensorflow. Got jax. "
        "`unset KERAS_BACKEND`"
    )


def test_stages_of_a_foreach_are_named_as_dvc_names_them(repository):
    params = graph.read_yaml(Path("params.yaml"))
    named = graph.instances(graph.read_stages(Path("dvc.yaml")), params)
    assert list(named) == ["download", "count@a", "count@b"]
    listed = run(repository, "dvc", "stage", "list", "--name-only").stdout.split()
    assert listed == ["download", "count@a", "count@b"]
