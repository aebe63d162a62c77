"""Jobs: compare `make repro JOBS=2` with JOBS=1 on a graph of two baselines on digits.

Each sample runs the graph from the split on, as after a change of `seed`.
"""

import itertools

import yaml

from benchmarks.harness import OURS, REPOSITORY, Plan, Sample, alternate, process, python, summarize
from pipeline.config import yaml_reader

MODELS = {
    "baseline": {"architecture": "baseline"},
    "baseline_he": {"architecture": "baseline", "build": {"kernel_initializer": "he_normal"}},
}


def measure(plan: Plan) -> list[dict]:
    """Measure two models at once and one after the other."""
    clone = plan.folder / "jobs"
    process(["git", "clone", "--quiet", str(REPOSITORY), str(clone)], plan.folder)
    params = yaml_reader.parse((clone / "params.yaml").read_text("utf-8")) | {"models": MODELS}
    seeds = itertools.count()

    def repro(*command: str) -> Sample:
        text = yaml.safe_dump(params | {"seed": next(seeds)})
        (clone / "params.yaml").write_text(text, "utf-8")
        return process(python("-m", *command), clone)

    one, two = ("dvc", "repro"), ("pipeline.tools.parallel", "2")
    repro(*one)  # creates the data and the bytecode
    variants = {OURS: lambda: repro(*two), "one after the other": lambda: repro(*one)}
    samples = alternate(variants, plan.runs)
    return [summarize("two models at once, JOBS=2", "s", samples)]
