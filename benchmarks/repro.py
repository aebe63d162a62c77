"""Repro: measure `dvc repro` with nothing to do, in a clone in which every stage has run."""

from benchmarks.harness import OURS, REPOSITORY, Plan, alternate, process, python, summarize

REPRO = python("-m", "dvc", "repro")


def measure(plan: Plan) -> list[dict]:
    """Run the graph once, with an epoch per training, then measure `dvc repro`."""
    clone = plan.folder / "clone"
    process(["git", "clone", "--quiet", str(REPOSITORY), str(clone)], plan.folder)
    params = clone / "params.yaml"
    params.write_text(params.read_text("utf-8").replace("epochs: 20", "epochs: 1", 1), "utf-8")
    print("  the graph of digits runs once", flush=True)
    process(REPRO, clone)
    samples = alternate({OURS: lambda: process(REPRO, clone)}, plan.runs)
    return [summarize("dvc repro, nothing to do", "s", samples)]
