"""Doctor: report what keeps the pipeline from running, and how to fix it.

    python -m pipeline doctor             as `make doctor`: reports, and changes nothing
    python -m pipeline doctor --repair    part of `make repro`: repairs what a killed DVC left

Not a stage. It asks DVC, Git, uv and nvidia-smi, and needs no network. DVC writes two files in
place. If it is killed while writing one of them, DVC refuses to run until the file is repaired:

    .dvc/tmp/rwlock    JSON: the files that a running stage reads and writes, with its process id
    dvc.lock           the inputs and outputs of the last run of each stage
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil

from pipeline import inputs
from pipeline.config import params
from pipeline.config.schema import Params
from pipeline.core.errors import PipelineError, first_few, one_line, run
from pipeline.core.text import counted
from pipeline.runtime import gpu, select_backend

RWLOCK = Path(".dvc/tmp/rwlock")
LOCK_FILES = (Path("dvc.lock"), Path("studies/dvc.lock"))
# `python …/bin/dvc repro` and `python -m dvc repro`, but not `vim dvc.yaml`
DVC = re.compile(r"(^|[/\\])dvc(\.exe|[/\\]__main__\.py)?$")
GIB = 2**30

Findings = Iterator[tuple[str, str]]
"""A level, which is `fix` or `note` (for information only), and a message with the remedy"""


def repair(settings: Params) -> None:
    """Repair what a killed DVC left, unless a DVC is running here, and report stray files.

    Also removes outputs of models and seeds that are not in params.yaml, as the stage `inputs` does
    when it runs. It does not run after `git checkout` with `dvc checkout`, which removes these
    outputs itself, but not in a copied or moved repository, where it does not know them.
    """
    if not running_dvc():  # asked first: what a DVC was still writing is whole once it has ended
        for path in damaged_files():
            if path == RWLOCK:
                path.unlink(missing_ok=True)
                print(f"repro: removed {path}, left behind by a killed DVC")
            else:
                _restore(path)
        if removed := inputs.remove_old_outputs(settings.compare, settings.seeds):
            print(
                f"repro: removed {counted(len(removed), 'output')} of models and seeds that are "
                f"not in params.yaml, such as {removed[0]}. DVC's cache keeps them"
            )
    for _, message in check_code():
        print(f"repro: {message}")


def damaged_files() -> list[Path]:
    """Return the files that a killed DVC left in a state that DVC refuses."""
    checks = {RWLOCK: _blocks, **dict.fromkeys(LOCK_FILES, _is_cut_short)}
    return [path for path, is_damaged in checks.items() if path.exists() and is_damaged(path)]


def _is_cut_short(lock_file: Path) -> bool:
    """Return whether a file that DVC writes from start to end stops within a line or at a key."""
    text = lock_file.read_bytes()
    return not text.endswith(b"\n") or text.rstrip().endswith(b":")


def _blocks(rwlock: Path) -> bool:
    """Return whether DVC cannot read the file, or would wait for a process that is not DVC."""
    try:
        entries = json.loads(rwlock.read_bytes())
        readers = [holder for holders in entries.get("read", {}).values() for holder in holders]
        return any(map(_is_stale, [*entries.get("write", {}).values(), *readers]))
    except (ValueError, TypeError, KeyError, AttributeError):
        return True


def _is_stale(holder: dict[str, Any]) -> bool:
    try:
        command = " ".join(psutil.Process(holder["pid"]).cmdline())
    except psutil.ZombieProcess:  # ended, but DVC takes it for running
        return True
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return False  # DVC itself removes the entry of a process that ended
    return not command.endswith(holder["cmd"])  # the process id was reused


def _restore(lock_file: Path) -> None:
    """Restore a lock file from Git, or remove it; move the damaged file to .dvc/tmp."""
    backup = Path(".dvc/tmp", str(lock_file).replace(os.sep, "-"))
    backup.parent.mkdir(exist_ok=True)
    lock_file.replace(backup)
    restored = shutil.which("git") and not _call("git", "checkout", "--", str(lock_file)).returncode
    action = "restored from Git" if restored else "removed"
    print(
        f"repro: {action}: {lock_file}, cut short by a killed DVC (the damaged file is {backup}). "
        "Stages that have run since then are restored from DVC's run cache"
    )


def running_dvc() -> list[str]:
    """Return the DVC processes in this repository; another user's may be elsewhere."""
    here = Path.cwd().resolve()
    running = []
    for process in psutil.process_iter(["cmdline", "cwd"]):
        command, folder = process.info["cmdline"] or [], process.info["cwd"]
        # the working directory of another user's process is hidden
        if any(map(DVC.search, command[:3])) and Path(folder or here).is_relative_to(here):
            running.append(f"pid {process.pid} (`{' '.join(command)}`)")
    return running


def check_code() -> Findings:
    """Find untracked files in the folders of code that stages depend on."""
    if not shutil.which("git"):
        return
    # .dvcignore has the syntax of .gitignore; DVC hashes the files that it does not exclude
    options = ("--others", "--exclude-per-directory=.dvcignore", "-z")
    # no stage depends on pipeline/tools; of the files directly in pipeline/, on its script only
    folders = ("pipeline/*/*", ":!pipeline/tools")
    output = _call("git", "ls-files", *options, "--", *folders).stdout
    if names := [name for name in output.split("\0") if name]:
        problem = "not tracked by Git, and makes the stages that depend on its folder run again"
        yield "note", f"{first_few(names)}: {problem}. `git add` it, or move it elsewhere"


def check_dvc() -> Findings:
    """Ask DVC which stages are stale and which outputs are lost."""
    if processes := running_dvc():
        yield "note", f"{first_few(processes)}: running here. Try again when it has ended"
        return
    if paths := [str(path) for path in damaged_files()]:
        yield "fix", f"{first_few(paths)}: damaged by a killed DVC. `make repro` repairs it"
        return
    if stale := _ask_dvc("status", "dvc.yaml"):
        names = first_few(list(stale))
        yield "note", f"stages: {len(stale)} to run: {names}. `make repro` runs them"
    data = _ask_dvc("data", "status", "--granular")
    changed = data.get("uncommitted", {})
    absent = {*changed.get("deleted", ()), *changed.get("modified", ())}
    if lost := [path for path in data.get("not_in_cache", ()) if path in absent]:
        remedy = "`dvc pull` fetches them from a remote; `dvc repro` runs their stages again"
        yield "fix", f"{first_few(sorted(lost))}: neither here nor in the cache. {remedy}"


def _ask_dvc(*command: str) -> dict[str, Any]:
    done = _call(sys.executable, "-m", "dvc", *command, "--json")
    if done.returncode:
        message = done.stderr.strip().removeprefix("ERROR: ")
        raise PipelineError(f"`dvc {' '.join(command)}` fails: {message}")
    return json.loads(done.stdout)


def check_packages() -> Findings:
    """Ask uv whether Python and the installed packages are those of uv.lock."""
    if not (uv := shutil.which("uv")):
        yield "note", "uv: not found, so versions are not compared. `pip install uv`"
        return
    options = ("--locked", "--check", "--offline", "--inexact")  # more may be installed
    done = _call(uv, "sync", *options, UV_PROJECT_ENVIRONMENT=sys.prefix)
    if missing := re.findall(r"^ [+~] (.+)", done.stderr, re.M):
        remedy = "`uv sync --locked --inexact` installs them"
        yield "fix", f"uv.lock: not installed: {first_few(missing)}. {remedy}"
    elif done.returncode:  # Python's version, or uv.lock itself
        yield "fix", f"uv.lock: {done.stderr.rpartition('error: ')[2]}"


def check_disk() -> Findings:
    """Compare free space with 1 GiB and twice the raw data, from which arrays are made."""
    raw = sum(path.stat().st_size for path in Path("data/raw").rglob("*") if path.is_file())
    needed = max(GIB, 2 * raw)
    cache = _call(sys.executable, "-m", "dvc", "cache", "dir").stdout.strip()
    folders = (Path(cache if Path(cache).is_dir() else ".dvc").resolve(), Path.cwd())
    for folder in {folder.stat().st_dev: folder for folder in folders}.values():
        free = shutil.disk_usage(folder).free
        message = f"{folder}: {free / GIB:,.1f} GiB free; a run may need {needed / GIB:,.1f} GiB"
        remedy = "`dvc gc --workspace` deletes what only other commits use (push it first)"
        yield ("fix", f"{message}. {remedy}") if free < needed else ("note", message)


def check_training() -> Findings:
    """Check params.yaml, its backend and the available GPUs."""
    settings = params.load()
    params.check_folder(settings.folder)
    select_backend.check(settings.backend)
    yield from gpu.findings(settings.backend)


def _call(*command: str, **variables: str) -> subprocess.CompletedProcess[str]:
    env = os.environ | variables
    return subprocess.run(command, env=env, capture_output=True, text=True, errors="replace")


CHECKS: dict[str, Callable[[], Findings]] = {
    "DVC": check_dvc,
    "code": check_code,
    "packages": check_packages,
    "disk": check_disk,
    "training": check_training,
}


def examine(check: Callable[[], Findings]) -> list[tuple[str, str]]:
    """Run one check; return its findings, or the level `ok` without a message."""
    try:
        findings = list(check()) or [("ok", "")]
    except PipelineError as error:  # the other checks still run
        findings = [("fix", problem) for problem in error.args]
    return [(level, one_line(message)) for level, message in findings]


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repair", action="store_true", help="repair what a killed DVC left")
    args = parser.parse_args(argv)
    if not Path(".dvc").is_dir():
        raise PipelineError(f"no .dvc in {Path.cwd()}. Run from the top of the repository")
    if args.repair:
        repair(params.load())
        return
    fixes = 0
    for name, check in CHECKS.items():
        for level, message in examine(check):
            fixes += level == "fix"
            print(f"{level:4}  {name:8}  {message}".rstrip(), flush=True)
    if fixes:
        raise PipelineError(f"{fixes} to fix. The lines above say how")


if __name__ == "__main__":
    run(main)
