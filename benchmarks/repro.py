"""`dvc repro` with nothing to do, as a whole process, in a clone where all has run."""

from benchmarks.harness import OURS, REPOSITORY, Plan, alternate, process, python, summarize

REPRO = python("-m", "dvc", "repro")


def measure(plan: Plan) -> list[dict]:
    clone = plan.folder / "clone"
    process(["git", "clone", "--quiet", str(REPOSITORY), str(clone)], plan.folder)
    print("  the graph of digits runs once", flush=True)
    process(REPRO, clone)
    samples = alternate({OURS: lambda: process(REPRO, clone)}, plan.runs)
    return [summarize("dvc repro, nothing to do", "s", samples)]
