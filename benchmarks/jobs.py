"""Jobs: compare `make repro JOBS=2` with JOBS=1 on the default graph, two models on digits.

Each sample runs the graph from the split on, as after a change of `seeds`.
"""

import itertools

import yaml

from benchmarks.harness import OURS, REPOSITORY, Plan, Sample, alternate, process, python, summarize
from pipeline.config import yaml_reader


def measure(plan: Plan) -> list[dict]:
    """Measure two stages at once and one after another; a quick run trains one epoch, one seed."""
    clone = plan.folder / "jobs"
    process(["git", "clone", "--quiet", str(REPOSITORY), str(clone)], plan.folder)
    params = yaml_reader.parse((clone / "params.yaml").read_text("utf-8"))
    if plan.quick:
        params |= {"train": params["train"] | {"epochs": 1}, "seeds": [0]}
    seeds = itertools.count()

    def repro(*command: str) -> Sample:
        text = yaml.safe_dump(params | {"seeds": [next(seeds) for _ in params["seeds"]]})
        (clone / "params.yaml").write_text(text, "utf-8")
        return process(python("-m", *command), clone)

    one, two = ("dvc", "repro"), ("pipeline.tools.parallel", "2")
    repro(*one)  # creates the data and the bytecode
    variants = {OURS: lambda: repro(*two), "JOBS=1": lambda: repro(*one)}
    title = f"make repro JOBS=2, {len(params['compare'])} models, {len(params['seeds'])} seeds"
    return [summarize(title, "s", alternate(variants, plan.runs))]
