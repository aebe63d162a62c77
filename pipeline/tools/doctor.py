"""Doctor: what keeps the pipeline from running, and how to fix it.

    python -m pipeline doctor             as `make doctor`: looks, and changes nothing
    python -m pipeline doctor --repair    part of `make repro`: repairs what a killed DVC left

Not a stage. It asks DVC, Git, uv and nvidia-smi, and needs no network. DVC writes two files in
place. If it is killed while it does so, every later DVC stops at them:

    .dvc/tmp/rwlock    JSON: the files that a running stage reads and writes, with pid and command
    dvc.lock           what the stages last ran with; written after each of them
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import yaml
from rich.console import Console
from rich.text import Text

from pipeline.config import params
from pipeline.core.errors import PipelineError, first_few, one_line, run
from pipeline.runtime import select_backend
from pipeline.tools import parallel

RWLOCK = Path(".dvc/tmp/rwlock")
LOCK_FILES = (Path("dvc.lock"), Path("studies/dvc.lock"))
CONFLICT = b"<<<<<<< "  # of a merge, which its author resolves
DVC = re.compile(r"(^|[/\\])dvc(\.exe|[/\\]__main__\.py)?$")  # not `vim dvc.yaml`
STYLES = {"ok": "green", "note": "cyan", "fix": "bold red"}
GIB = 2**30
GPU_FIELDS = "index,uuid,name,driver_version,memory.used,memory.total"
GPU_BUSY = 0.25  # share of a GPU's memory; JAX takes the other three quarters when it starts
# how the names of the packages begin that a backend needs beside itself to use a GPU
GPU_PACKAGES = {"jax": "jax-cuda", "tensorflow": "nvidia-cudnn"}


class Finding(NamedTuple):
    where: str
    problem: str
    remedy: str = ""
    fix: bool = True
    """False: good to know, and nothing is wrong"""

    def __str__(self) -> str:
        said = f"{self.where}: {self.problem}".rstrip(".")
        return one_line(f"{said}. {self.remedy}" if self.remedy else said)


def repair() -> None:
    """Repair what a killed DVC left, unless one works here; name files that make stages stale."""
    if damaged() and not dvc_at_work():
        for path in damaged():  # looked at again: a DVC that was at work may have ended since
            if path == RWLOCK:
                path.unlink(missing_ok=True)
                print(f"doctor: removed {path}, left by a dvc that was killed")
            else:
                _restore(path)
    for finding in stray_files():
        print(f"doctor: {finding}")


def damaged() -> list[Path]:
    """Return those of DVC's files that a killed DVC left so that every other one stops at them."""
    checks = {RWLOCK: _check_rwlock} | dict.fromkeys(LOCK_FILES, _check_lock_file)
    return [path for path, check in checks.items() if not _passes(path, check)]


def _passes(path: Path, check: Callable[[bytes], None]) -> bool:
    for _ in range(3):
        try:
            check(path.read_bytes())
        except FileNotFoundError:
            return True
        except (ValueError, TypeError, KeyError, AttributeError, yaml.YAMLError):
            time.sleep(0.1)  # a DVC may be writing it right now
        else:
            return True
    return False


def _check_rwlock(text: bytes) -> None:
    rwlock = json.loads(text)
    readers = (holder for holders in rwlock.get("read", {}).values() for holder in holders)
    for holder in (*rwlock.get("write", {}).values(), *readers):
        try:
            words = psutil.Process(holder["pid"]).cmdline()
        except psutil.ZombieProcess:  # ended, but alive for DVC until its parent notices
            words = []
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue  # the next DVC removes the entry of one that ended
        # a notebook that uses DVC from Python has a command of its own
        if not _is_dvc(words) and not " ".join(words).endswith(holder["cmd"]):
            raise ValueError(f"{holder['pid']} is another process, which DVC would wait for")


def _check_lock_file(text: bytes) -> None:
    """Refuse what DVC refuses of a dvc.lock that ends too early: gaps, and hashes of 1 or 2."""
    if CONFLICT in text:
        return
    lock = yaml.load(text, yaml.BaseLoader)  # noqa: S506 (makes text only, "" where nothing is)
    blocks = [lock]
    for stage in lock.get("stages", {}).values():
        files = [*stage.get("deps", []), *stage.get("outs", [])]
        blocks += [stage, *files]
        whole = all(len(file.get("md5", "none")) > 2 for file in files) and stage["cmd"]
        # their values may be empty: null
        if not whole or not all(isinstance(x, dict) for x in stage.get("params", {}).values()):
            raise ValueError("cut short in a stage")
    if not lock["schema"] or any("" in block.values() for block in blocks):
        raise ValueError("cut short after a key")


def _restore(path: Path) -> None:
    """Take dvc.lock from Git, or do without; what was left of it goes to .dvc/tmp."""
    kept = Path(".dvc/tmp", str(path).replace(os.sep, "-"))
    kept.parent.mkdir(exist_ok=True)
    path.replace(kept)
    restored = shutil.which("git") and _call("git", "checkout", "--", str(path)).returncode == 0
    source = "restored from Git" if restored else "removed"
    print(
        f"doctor: {source}: {path}, cut short by a dvc that was killed (what was left of it is "
        f"{kept}). DVC's run cache has what was trained since: it is not trained again"
    )


def dvc_at_work() -> list[str]:
    """Return each DVC that runs in this repository, or may: of other users the folder is hidden."""
    here = Path.cwd().resolve()
    return [
        f"pid {process.pid} (`{' '.join(words)}`)"
        for process in psutil.process_iter(["cmdline", "cwd"])
        if _is_dvc(words := process.info["cmdline"] or [])
        and ((cwd := process.info["cwd"]) is None or Path(cwd).is_relative_to(here))
    ]


def _is_dvc(words: list[str]) -> bool:
    """Tell from a command line: `python …/bin/dvc repro`, `python -m dvc repro`."""
    return any(DVC.search(word) for word in words[:3])


def stray_files() -> Iterator[Finding]:
    """Find files that Git does not track in folders of code that stages depend on."""
    if not shutil.which("git") or not (folders := _code_folders()):
        return
    # .dvcignore is written like .gitignore: what it leaves is what DVC hashes
    options = ("--others", "--exclude-per-directory=.dvcignore", "-z")
    listed = _call("git", "ls-files", *options, "--", *folders).stdout
    if names := [name for name in listed.split("\0") if name]:
        problem = "not in Git, and the stages that depend on its folder run again because of it"
        remedy = "`git add` it, or move it elsewhere"
        yield Finding(first_few(names), problem, remedy, fix=False)


def _code_folders() -> list[str]:
    try:
        stages = yaml.load(Path("dvc.yaml").read_text("utf-8"), yaml.BaseLoader)["stages"]  # noqa: S506 (text only)
        deps = {dep for stage in stages.values() for dep in stage.get("do", stage).get("deps", ())}
    except (OSError, ValueError, TypeError, KeyError, AttributeError, yaml.YAMLError):
        return []  # DVC says what is wrong with it
    return sorted(dep for dep in deps if dep.startswith("pipeline/") and Path(dep).is_dir())


def graph() -> Iterator[Finding]:
    """Ask DVC which stages are stale, and which outputs are lost."""
    if working := dvc_at_work():
        yield Finding(first_few(working), "at work here", "Look again when it has ended", fix=False)
        return
    if paths := damaged():
        problem = "left so by a dvc that was killed, and every other dvc stops at it"
        yield from (Finding(str(path), problem, "`make repro` repairs it") for path in paths)
        return
    if stale := _ask_dvc("status", "dvc.yaml"):
        problem = f"{len(stale)} to run: {first_few(list(stale))}"
        yield Finding("stages", problem, "`make repro` runs them", fix=False)
    data = _ask_dvc("data", "status", "--granular")
    changed = data.get("uncommitted", {})
    absent = {*changed.get("deleted", ()), *changed.get("modified", ())}
    if lost := [path for path in data.get("not_in_cache", ()) if path in absent]:
        problem = "neither in place nor in the cache, as recorded"
        remedy = "`dvc pull` gets what a remote has; `dvc repro` makes outputs again"
        yield Finding(first_few(sorted(lost)), problem, remedy)


def _ask_dvc(*command: str) -> dict[str, Any]:
    done = _call(sys.executable, "-m", "dvc", *command, "--json")
    if done.returncode:
        said = done.stderr.strip().removeprefix("ERROR: ")
        raise PipelineError(f"`dvc {' '.join(command)}` fails: {said}")
    return json.loads(done.stdout)


def packages() -> Iterator[Finding]:
    """Ask uv whether Python and the packages of the pipeline are those of uv.lock."""
    if not (uv := shutil.which("uv")):
        yield Finding("uv", "not found: versions are not compared", "`pip install uv`", fix=False)
        return
    options = ("--locked", "--check", "--offline", "--inexact")  # more may be installed
    done = _call(uv, "sync", *options, UV_PROJECT_ENVIRONMENT=sys.prefix)
    if done.returncode:
        missing = first_few(re.findall(r"^ [+~] (.+)", done.stderr, re.M))
        # else it is the file itself, or Python: in uv's words
        problem = f"not installed: {missing}" if missing else done.stderr.rpartition("error: ")[2]
        yield Finding(
            "uv.lock", problem, "`uv sync --locked --inexact` installs it" if missing else ""
        )


def disk() -> Iterator[Finding]:
    """Compare free space with 1 GiB and twice the raw data, of which arrays are made."""
    raw = sum(path.stat().st_size for path in Path("data/raw").rglob("*") if path.is_file())
    wanted = max(GIB, 2 * raw)
    said = _call(sys.executable, "-m", "dvc", "cache", "dir").stdout.strip()
    cache = Path(said if Path(said).is_dir() else ".dvc").resolve()
    places = {place.stat().st_dev: place for place in (cache, Path.cwd())}
    for place in places.values():
        free = shutil.disk_usage(place).free
        problem = f"{free / GIB:,.1f} GiB free; {wanted / GIB:,.1f} GiB may be needed"
        remedy = "`dvc gc --workspace` frees what only other commits need (`dvc push` it first)"
        yield Finding(str(place), problem, remedy if free < wanted else "", fix=free < wanted)


def training() -> Iterator[Finding]:
    """Check params.yaml, its backend, and the GPUs that it may use."""
    settings = params.load()
    params.check_folder(settings.folder)
    select_backend.check(backend := settings.backend)
    command = ["nvidia-smi", f"--query-gpu={GPU_FIELDS}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=3, check=True)
    except FileNotFoundError:
        yield Finding("GPU", "none: the processor trains", fix=False)
        return
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        remedy = "Reboot after an update of the driver, or install it again"
        yield Finding("nvidia-smi", str(error.output or error).strip(), remedy)
        return
    usable = set(parallel.usable_gpus())
    rows = [row.split(", ") for row in done.stdout.splitlines()]
    rows = [row for row in rows if usable & set(row[:2])]
    yield from map(_gpu, rows)
    installed = {str(each.name).lower() for each in metadata.distributions()}
    if not rows:
        yield Finding("GPU", "hidden by CUDA_VISIBLE_DEVICES: the processor trains", fix=False)
    elif not any(name.startswith(GPU_PACKAGES.get(backend, "")) for name in installed):
        problem = f"{backend} is installed without what it needs for a GPU: the processor trains"
        remedy = "`backend: jax` in params.yaml, and `uv pip install 'jax[cuda13]'`"
        yield Finding("params.yaml: backend", problem, remedy, fix=backend == "jax")


def _gpu(row: list[str]) -> Finding:
    index, _, name, driver, used, total = row
    problem = f"{name}, driver {driver}, {used} of {total} MiB in use"
    # of a GPU that shares the processor's memory, nvidia-smi says [N/A]
    if used.isdigit() and total.isdigit() and int(used) > GPU_BUSY * int(total):
        remedy = "End what `nvidia-smi` lists, or name another in CUDA_VISIBLE_DEVICES"
        return Finding(f"GPU {index}", problem, remedy)
    return Finding(f"GPU {index}", problem, fix=False)


def _call(*command: str, **variables: str) -> subprocess.CompletedProcess[str]:
    env = os.environ | variables
    return subprocess.run(command, env=env, capture_output=True, text=True, errors="replace")


CHECKS: dict[str, Callable[[], Iterator[Finding]]] = {
    "DVC": graph,
    "code": stray_files,
    "packages": packages,
    "disk": disk,
    "training": training,
}


def examine(check: Callable[[], Iterator[Finding]]) -> list[tuple[str, str]]:
    """Run one check; return its lines, each with `ok`, `note` or `fix`."""
    try:
        return [("fix" if each.fix else "note", str(each)) for each in check()] or [("ok", "")]
    except PipelineError as error:  # it cannot even look; the other checks can
        return [("fix", one_line(str(error)))]


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repair", action="store_true", help="repair what a killed DVC left")
    args = parser.parse_args(argv)
    if not Path(".dvc").is_dir():
        raise PipelineError(f"no .dvc in {Path.cwd()}. Run from the repository's top")
    if args.repair:
        repair()
        return
    console = Console(soft_wrap=True, highlight=False)
    to_fix = 0
    for name, check in CHECKS.items():
        for level, line in examine(check):
            to_fix += level == "fix"
            style = (f"{level:4}", STYLES[level])
            console.print(Text.assemble(style, f"  {name:8}  {line}".rstrip()))
    if to_fix:
        raise PipelineError(f"{to_fix} to fix. The lines above say how")


if __name__ == "__main__":
    run(main)
