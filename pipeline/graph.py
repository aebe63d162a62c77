"""Graph: what dvc.yaml declares, and what the scripts of its stages import and read.

Not a stage. DVC does not see imports: `make doctor` and tests/test_graph.py compare the two. Files
are parsed, never run.
"""

import ast
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml

from pipeline import reading
from pipeline.errors import PipelineError

# what is found by name at run time, which the walk cannot see: as dvc.yaml has it
BY_NAME = {
    "report": "pipeline/report.html.jinja",
    "train": "pipeline/architectures/${item.architecture}.py",
    "inspect": "pipeline/architectures/${item.architecture}.py",
    "study": "pipeline/architectures/${item}.py",
}
# the same, where any file of a folder may be it
FOLDERS = {"download": "pipeline/datasets"}
# attributes of `params` and `common` that are no settings: of the module, or of pydantic
METHODS = {"load", "read", "reading", "check_model", "model_copy"}
# methods, and the settings that they read; a study's models are its own
STAND_FOR = {
    "all_models": {"models", "finetune"},
    "train_of": {"train"},
    "pictures_of": {"inspect", "models", "finetune", "reference"},
    "train.under": {"train", "backend"},
}


def read_yaml(path: Path) -> dict[str, Any]:
    """Read dvc.yaml, dvc.lock or params.yaml as a mapping."""
    try:
        raw = reading.parse(path.read_text("utf-8"))
    except FileNotFoundError:
        raise PipelineError(f"{path}: no such file. `git checkout {path}`") from None
    except yaml.YAMLError as error:
        raise PipelineError(
            f"{path}: not valid YAML: {error}. Mend it, or `git checkout {path}`"
        ) from None
    if not isinstance(raw, dict):
        raise PipelineError(f"{path}: must be a mapping of keys to values. Got {raw!r:.60}")
    return raw


def read_stages(path: Path) -> dict[str, dict[str, Any]]:
    """Return the stages of a dvc.yaml as they stand there, those of a `foreach` unexpanded."""
    return read_yaml(path).get("stages") or {}


def body(stage: dict[str, Any]) -> dict[str, Any]:
    return stage.get("do", stage)


def script(stage: dict[str, Any]) -> str | None:
    """Return the module of pipeline/ that a stage runs, if it runs one."""
    found = re.search(r"-m pipeline\.(\w+)", str(body(stage).get("cmd")))
    return found[1] if found else None


def paths(entries: Iterable[Any]) -> list[str]:
    """Return the paths of deps, outs or metrics, which may be mappings of a path to options."""
    return [entry if isinstance(entry, str) else next(iter(entry)) for entry in entries]


def instances(stages: dict[str, dict[str, Any]], params: dict[str, Any]) -> Iterator[str]:
    """Name the stages as DVC does: one of a `foreach` is `train@baseline`."""
    for name, stage in stages.items():
        each = stage.get("foreach")
        if isinstance(each, str):  # ${models}
            each = params.get(each.strip("${} "), {})
        if each is None:
            yield name
        else:
            yield from (f"{name}@{key}" for key in each)


def parse(path: Path) -> Iterator[ast.AST]:
    """Go through all that a file of Python says."""
    try:
        return ast.walk(ast.parse(path.read_text("utf-8")))
    except SyntaxError as error:
        raise PipelineError(
            f"{path}: must be valid Python. Got in line {error.lineno}: {error.msg}"
        ) from None


def imports(path: Path, top: Path) -> Iterator[str]:
    """Every module that a file imports, at its top or inside a function."""
    package = path.relative_to(top).parent.parts
    for node in parse(path):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*above, *([node.module] if node.module else [])])
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)


def own_imports(path: Path, top: Path) -> set[str]:
    """Return the modules of pipeline/ that a file imports."""
    parts = {name.split(".")[1] for name in imports(path, top) if name.startswith("pipeline.")}
    return {name for name in parts if (top / f"pipeline/{name}.py").is_file()}


def files_needed(script: str, top: Path) -> set[str]:
    """Return the files of pipeline/ that run when a script does, through any number of imports."""
    waiting = {f"pipeline/{script}.py"}
    if folder := FOLDERS.get(script):
        waiting |= {f"{folder}/{path.name}" for path in (top / folder).glob("*.py")}
    found: set[str] = set()
    while waiting:
        file = waiting.pop()
        found.add(file)
        waiting |= {f"pipeline/{name}.py" for name in own_imports(top / file, top)} - found
    return found | ({BY_NAME[script]} if script in BY_NAME else set())


def files_declared(stage: dict[str, Any]) -> set[str]:
    return {dep for dep in paths(body(stage).get("deps", [])) if dep.startswith("pipeline/")}


def params_needed(stage: dict[str, Any], script: str, top: Path) -> set[str]:
    """Return the settings of params.yaml that a stage reads, as attributes in its script."""
    nodes = parse(top / f"pipeline/{script}.py")
    chains = {ast.unparse(node) for node in nodes if isinstance(node, ast.Attribute)}
    form = r"(?:params|common)\.(\w+(?:\.\w+)?)"
    read = {found[1] for chain in chains if (found := re.fullmatch(form, chain))} - METHODS
    # the longest form only: params.split.validation, not params.split too
    read = {name for name in read if not any(other.startswith(f"{name}.") for other in read)}
    read = {each for name in read for each in STAND_FOR.get(name, {name})}
    group = str(stage.get("foreach")).strip("${} ")
    if {group, "models", "finetune"} <= read:
        # of one model, by its name on the command line
        return read - {"models", "finetune"} | {group + ".${key}"}
    return read


def params_declared(stage: dict[str, Any]) -> set[str]:
    return {name for name in body(stage).get("params", []) if isinstance(name, str)}
