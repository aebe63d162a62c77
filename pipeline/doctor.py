"""Doctor: what keeps the graph from running, or from rerunning what it should; and the way out.

    python -m pipeline.doctor        as `make doctor`

Not a stage. It changes nothing, needs no network, and waits for no lock.
"""

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from pipeline import graph, locks, machine, storage
from pipeline.errors import PipelineError, run
from pipeline.finding import Finding

# scripts that take long: DVC's run cache brings back what they made of the same inputs before
EXPENSIVE = {"download", "preprocess", "train"}
STYLES = {"ok": "green", "note": "cyan", "mend": "bold red"}


def stages(top: Path) -> Iterator[tuple[str, dict[str, Any], str]]:
    """Go through the stages that run a script of pipeline/, each with its place and the script."""
    for file in ("dvc.yaml", "studies/dvc.yaml"):
        if not (top / file).is_file():
            continue
        for name, stage in graph.read_stages(top / file).items():
            script = graph.script(stage)
            if script and not (top / f"pipeline/{script}.py").is_file():
                raise PipelineError(f"{file}: {name}: no file pipeline/{script}.py. Mend its cmd")
            if script:
                yield f"{file}: {name}", stage, script


def imports(top: Path) -> Iterator[Finding]:
    """Compare the files that a stage imports with its deps."""
    for where, stage, script in stages(top):
        needed, declared = graph.files_needed(script, top), graph.files_declared(stage)
        for file in sorted(needed - declared):
            way = f"Add `- {file}` to its deps: a change there would rerun nothing"
            yield Finding(where, f"imports {file} and does not say so", way)
        for file in sorted(declared - needed):
            way = "Take it out of its deps: a change there reruns the stage for nothing"
            yield Finding(where, f"does not import {file}", way, mend=False)


def params(top: Path) -> Iterator[Finding]:
    """Compare the settings of params.yaml that a stage reads with its params."""
    for where, stage, script in stages(top):
        needed, declared = graph.params_needed(stage, script, top), graph.params_declared(stage)
        for name in sorted(needed):
            # train covers train.epochs
            if not any(name == each or name.startswith(f"{each}.") for each in declared):
                way = f"Add {name} to its params: a change of it would rerun nothing"
                yield Finding(where, f"reads {name} and does not say so", way)


def run_cache(top: Path) -> Iterator[Finding]:
    """Look for `cache: false` where it costs most: it turns a stage's run cache off."""
    for where, stage, script in stages(top):
        kinds = ("outs", "metrics", "plots") if script in EXPENSIVE else ()
        for out in (out for kind in kinds for out in graph.body(stage).get(kind, [])):
            if isinstance(out, dict) and not next(iter(out.values())).get("cache", True):
                what = f"`cache: false` on {next(iter(out))} turns off the run cache of the stage"
                yield Finding(where, what, "Take it out: what ran before runs again")


CHECKS: dict[str, Callable[[Path], Iterator[Finding] | list[Finding]]] = {
    "locks": locks.left_behind,
    "imports": imports,
    "params": params,
    "run cache": run_cache,
    "outputs": storage.missing,
    "versions": machine.versions,
    "disk": storage.disk,
    "GPU": machine.gpu,
}


def examine(check: Callable[[Path], Iterator[Finding] | list[Finding]], top: Path) -> list[str]:
    """Run one check; return its lines, each with `ok`, `note` or `mend` in front."""
    try:
        found = list(check(top))
    except PipelineError as error:  # it cannot even look; the other checks can
        return [f"mend {' '.join(str(error).split())}"]
    return [f"{'mend' if each.mend else 'note'} {each}" for each in found] or ["ok"]


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.parse_args(argv)
    top = Path()
    if not (top / ".dvc").is_dir():
        raise PipelineError(f"no .dvc in {Path.cwd()}. Run from the repository's top")
    console = Console(soft_wrap=True, highlight=False)
    wrong = 0
    for name, check in CHECKS.items():
        for line in examine(check, top):
            word, _, text = line.partition(" ")
            wrong += word == "mend"
            console.print(
                Text.assemble((f"{word:4}", STYLES[word]), f"  {name:9}  {text}".rstrip())
            )
    if wrong:
        raise PipelineError(f"{wrong} to mend. The lines above say how")


if __name__ == "__main__":
    run(main)
