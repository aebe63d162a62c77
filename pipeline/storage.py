"""Storage: what DVC's cache holds of the outputs in dvc.lock, and how much room is left.

DVC keeps a file as files/md5/<2>/<30 digits of its MD5>, and of a folder a JSON list of its files
under the same kind of name, with .dir behind it. Looked up here without DVC: it takes its lock.
"""

import json
import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

from pipeline import graph
from pipeline.errors import PipelineError, first_few
from pipeline.finding import Finding

GIB = 2**30


def missing(top: Path) -> list[Finding]:
    """Find outputs of dvc.lock that are neither in the cache nor in place."""
    if not (top / "dvc.lock").is_file():
        return [Finding("dvc.lock", "not there: nothing has run yet", "`dvc repro`", mend=False)]
    stages = graph.read_stages(top / "dvc.yaml")
    # of models that are gone from params.yaml, dvc.lock keeps what they were
    names = set(graph.instances(stages, graph.read_yaml(top / "params.yaml")))
    objects = cache_dir(top) / "files/md5"
    lost = [
        out["path"]
        for name, stage in (graph.read_yaml(top / "dvc.lock").get("stages") or {}).items()
        for out in stage.get("outs", [])
        if name in names and "md5" in out
        if not _in_place(top / out["path"], out) and not _in_cache(objects, out["md5"])
    ]
    if not lost:
        return []
    what = f"neither in place nor in the cache, as recorded: {first_few(lost)}"
    way = "`dvc pull` gets them from a remote that has them; `dvc repro` makes them again"
    return [Finding("dvc.lock", what, way)]


def _in_place(path: Path, out: dict[str, Any]) -> bool:
    """Tell whether an output is there, by its size: its hash would take too long."""
    return path.exists() and size(path) == out.get("size")


def _in_cache(objects: Path, md5: str) -> bool:
    path = objects / md5[:2] / md5[2:]
    if not path.is_file():
        return False
    if path.suffix != ".dir":
        return True
    try:
        return all(_in_cache(objects, file["md5"]) for file in json.loads(path.read_bytes()))
    except ValueError:  # cut short
        return False


def disk(top: Path) -> list[Finding]:
    """Compare free space with 1 GiB and twice the raw data, of which arrays are made."""
    raw = graph.body(graph.read_stages(top / "dvc.yaml").get("download", {})).get("outs", [])
    wanted = max(GIB, 2 * sum(size(top / path) for path in graph.paths(raw)))
    cached = cache_dir(top)
    places = {"the repository": top.resolve(), "DVC's cache": cached}
    found: dict[int, Finding] = {}
    for name, place in places.items():
        there = next(path for path in (place, *place.parents) if path.is_dir())
        free = shutil.disk_usage(there).free
        what = f"{amount(free)} free for {name}, and the cache holds {amount(size(cached))}"
        finding = Finding(str(place), what, mend=False)
        if free < wanted:
            way = "`dvc gc --workspace` frees what only other commits need (`dvc push` it first)"
            finding = Finding(str(place), f"{what}; expected {amount(wanted)} or more", way)
        found.setdefault(there.stat().st_dev, finding)  # one line a disk
    return list(found.values())


def amount(count: int) -> str:
    return f"{count / GIB:,.1f} GiB" if count >= GIB else f"{count / 2**20:,.1f} MiB"


def size(path: Path) -> int:
    """Return the bytes of a file, or of all files in a folder; 0 where there is none."""
    if path.is_dir():
        return sum(
            size(Path(folder) / name) for folder, _, files in os.walk(path) for name in files
        )
    return path.stat().st_size if path.is_file() else 0


def cache_dir(top: Path) -> Path:
    """Ask DVC for its cache, which any of four files of configuration may place."""
    return _ask(top.resolve())


@cache  # 0.7 s
def _ask(top: Path) -> Path:
    ask = [sys.executable, "-m", "dvc", "cache", "dir"]
    done = subprocess.run(ask, cwd=top, capture_output=True, text=True)
    if done.returncode:
        raise PipelineError(f"`dvc cache dir` must name a folder. Got {done.stderr.strip()}")
    return (top / done.stdout.strip()).resolve()
