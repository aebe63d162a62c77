"""Locks: those of DVC and Git, who holds them, and what of them a killed process has left.

    .dvc/tmp/lock      held for the moments in which DVC changes something; the file itself stays,
                       and the kernel lets go of it when its process ends
    .dvc/tmp/rwlock    JSON: the files that a running stage reads and writes, with pid and command
    .git/index.lock    there while Git changes its index
    dvc.lock           what stages have run with. No lock, but DVC writes it in place, a fifth of a
                       second after every stage: killed (or stopped by Ctrl-C) at that, it is cut
                       short

A process that was killed leaves the last three behind.

    python -m pipeline.locks        mends rwlock and dvc.lock where they would stop every other DVC;
                                    part of `make repro`
"""

import fcntl
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import psutil
import pydantic
import voluptuous
import yaml
from dvc.schema import COMPILED_LOCKFILE_SCHEMA
from pydantic import BaseModel, ConfigDict

from pipeline.errors import run
from pipeline.finding import Finding

RWLOCK = Path(".dvc/tmp/rwlock")
# of the repository, and of rwlock while it is written
FLOCKS = (Path(".dvc/tmp/lock"), Path(".dvc/tmp/rwlock.lock"))
LOCK_FILES = (Path("dvc.lock"), Path("studies/dvc.lock"))
SINCE = "what was trained since is in DVC's run cache, and is not trained again"
CONFLICT = b"<<<<<<< "  # a merge's, for its author to resolve


class Entry(BaseModel):
    """Whose a lock is."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)
    pid: int
    cmd: str


class Entries(BaseModel):
    """What DVC takes as rwlock; at anything else it stops."""

    model_config = ConfigDict(extra="forbid", strict=True)
    write: dict[str, Entry] = {}
    read: dict[str, list[Entry]] = {}


def release(top: Path) -> None:
    """Mend what a killed DVC left so that others stop at it, if none works here."""
    if not _stops(top) or any(_is_dvc(words) for words in _processes(top)):
        return
    for where in _stops(top):  # looked at again: one that was at work may have ended since
        if where == str(RWLOCK):
            (top / RWLOCK).unlink(missing_ok=True)
            print(f"locks: {RWLOCK} of a dvc that was killed is removed")
        else:
            _restore(Path(where), top)


def _stops(top: Path) -> list[str]:
    found = [finding for finding in (*_rwlock(top), *_lock_files(top)) if finding.mend]
    return list(dict.fromkeys(finding.where for finding in found))


def left_behind(top: Path) -> list[Finding]:
    flocks = [finding for path in FLOCKS for finding in _flock(top / path, top)]
    return [*flocks, *_rwlock(top), *_lock_files(top), *_index_lock(top)]


def _flock(path: Path, top: Path) -> Iterator[Finding]:
    where = str(path.relative_to(top))
    if not path.is_file():
        return
    if path.stat().st_nlink > 1:
        # core.hardlink_lock: held while the file has a second name, whoever lives
        if not any(_is_dvc(words) for words in _processes(top)):
            what = "a hard link that a killed dvc left, and no dvc runs here"
            yield Finding(where, what, f"Delete it: `rm {where}`")
        return
    if not _held(path):
        return
    holders = _holders(path)
    if any(_is_dvc(words) for words in holders.values()):
        yield Finding(where, "dvc is at work here", "Wait, or `dvc --wait-for-lock`", False)
        return
    for pid, words in holders.items():
        what = f"held by pid {pid} (`{' '.join(words)}`), which is no dvc"
        yield Finding(where, what, f"A killed dvc started it: end it, `kill {pid}`")
    if not holders and _held(path):  # still, not by one that has ended since
        what = "held by a process of another user or host"
        yield Finding(where, what, f"`fuser -v {where}` as root, or there, says which. End it")


def _held(path: Path) -> bool:
    with path.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _rwlock(top: Path) -> Iterator[Finding]:
    entries = _read(top / RWLOCK)
    if entries is None:
        what = "no JSON as DVC writes it: dvc was killed at that, and stops at it from now on"
        yield Finding(str(RWLOCK), what, f"Delete it: `rm {RWLOCK}`")
        return
    everyone = [*entries.write.values(), *(one for each in entries.read.values() for one in each)]
    for entry in dict.fromkeys(everyone):
        who = f"pid {entry.pid} (`{entry.cmd}`)"
        match _state(entry):
            case "at work":
                what, way = f"{who} is at work", "It lets go of its files by itself"
                yield Finding(str(RWLOCK), what, way, mend=False)
            case "gone":
                what, way = f"{who} was killed", "The next dvc takes it out by itself"
                yield Finding(str(RWLOCK), what, way, mend=False)
            case "another":
                what = f"{who} is no dvc any more, but its pid lives: DVC takes it for at work"
                yield Finding(str(RWLOCK), what, f"When no dvc runs here: `rm {RWLOCK}`")


def _read(path: Path) -> Entries | None:
    for _ in range(3):
        try:
            return Entries.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            return Entries()
        except pydantic.ValidationError:
            time.sleep(0.1)  # a dvc may be writing it right now
    return None


def _state(entry: Entry) -> Literal["at work", "gone", "another"]:
    try:
        words = psutil.Process(entry.pid).cmdline()
    except psutil.ZombieProcess:  # ended, but DVC takes it for alive until its parent notices
        return "another"
    except psutil.NoSuchProcess:
        return "gone"
    except psutil.AccessDenied:
        return "another"
    # what DVC wrote is sys.argv: of a notebook, say, that uses DVC from Python
    known = _is_dvc(words) or " ".join(words).endswith(entry.cmd)
    return "at work" if known else "another"


def _lock_files(top: Path) -> Iterator[Finding]:
    for path in LOCK_FILES:
        if _cut_short(top / path):
            what = "not as DVC writes it: dvc was killed at that, and stops at it from now on"
            way = f"`git checkout {path}`: {SINCE}"
            yield Finding(str(path), what, way)


def _cut_short(path: Path) -> bool:
    for _ in range(3):
        try:
            text = path.read_bytes()
            if CONFLICT not in text:
                COMPILED_LOCKFILE_SCHEMA(yaml.safe_load(text) or {})
        except FileNotFoundError:
            return False
        except (yaml.YAMLError, voluptuous.Invalid):
            time.sleep(0.1)  # a dvc may be writing it right now
        else:
            return False
    return True


def _restore(path: Path, top: Path) -> None:
    """Take dvc.lock from Git, or none; what is left of the one there goes to .dvc/tmp."""
    left = Path(".dvc/tmp", str(path).replace("/", "-"))
    (top / left).parent.mkdir(exist_ok=True)
    (top / path).replace(top / left)
    checkout = ["git", "checkout", "--", str(path)]
    tracked = (
        shutil.which("git")
        and not subprocess.run(checkout, cwd=top, capture_output=True).returncode
    )
    what = "is Git's again" if tracked else "begins anew"
    print(f"locks: {path} of a dvc that was killed {what}, what was left of it is {left}: {SINCE}")


def _index_lock(top: Path) -> Iterator[Finding]:
    ask = ["git", "rev-parse", "--git-path", "index.lock"]  # elsewhere in a worktree
    done = subprocess.run(ask, cwd=top, capture_output=True, text=True)
    path = top / done.stdout.strip()
    if done.returncode or not path.is_file():
        return
    running = any(words and Path(words[0]).name == "git" for words in _processes(top))
    if running or _holders(path):
        yield Finding(str(path), "git is at work here", "Wait, or close its editor", mend=False)
    elif path.is_file():
        yield Finding(str(path), "a killed git left it, and no git runs here", f"`rm {path}`")


def _is_dvc(words: list[str]) -> bool:
    """Tell from a command line: `…/python …/bin/dvc repro`, `python -m dvc repro`."""
    return any(Path(word).stem == "dvc" or word.startswith("dvc.") for word in words[:3])


def _processes(top: Path) -> Iterator[list[str]]:
    """Command line of each process that works in the repository."""
    for process in psutil.process_iter(["cmdline", "cwd"]):
        cwd = process.info["cwd"]
        if cwd and Path(cwd).is_relative_to(top.resolve()):
            yield process.info["cmdline"] or []


def _holders(path: Path) -> dict[int, list[str]]:
    """Pid and command line of what has a file open, apart from this process."""
    wanted = str(path.resolve())
    found = {}
    for process in psutil.process_iter(["open_files", "cmdline"]):
        opened = process.info["open_files"] or []
        if process.pid != os.getpid() and wanted in {file.path for file in opened}:
            found[process.pid] = process.info["cmdline"] or []
    return found


if __name__ == "__main__":
    run(lambda: release(Path()))
