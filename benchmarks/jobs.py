"""Two models at once: the graph of digits with two baselines, `make repro JOBS=2` against JOBS=1.

Whole graphs, from the split on, as after a change of `seed`.
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
    clone = plan.folder / "jobs"
    process(["git", "clone", "--quiet", str(REPOSITORY), str(clone)], plan.folder)
    params = yaml_reader.parse((clone / "params.yaml").read_text("utf-8")) | {"models": MODELS}
    seeds = itertools.count()

    def repro(*command: str) -> Sample:
        text = yaml.safe_dump(params | {"seed": next(seeds)})
        (clone / "params.yaml").write_text(text, "utf-8")
        return process(python("-m", *command), clone)

    one, two = ("dvc", "repro"), ("pipeline.tools.parallel", "2")
    repro(*one)  # data and bytecode are then there
    samples = alternate({OURS: lambda: repro(*two), "one after the other": lambda: repro(*one)},
                        plan.runs)  # fmt: skip
    return [summarize("two models at once, JOBS=2", "s", samples)]
