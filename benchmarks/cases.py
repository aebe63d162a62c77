"""Cases: what `python -m benchmarks` measures."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from benchmarks import graph, photographs, predict, startup, train
from benchmarks.harness import Plan, Variant
from benchmarks.train import Setting


class Case(NamedTuple):
    """A task, and the ways to do it that are compared."""

    title: str
    unit: str
    """Unit of the samples that are compared"""
    variants: Callable[[Plan], dict[str, Variant]]
    """Prepares the data, and returns the variants by name, cnn-pipeline first; none if the machine
    cannot run them"""
    runs: int = 7
    """Samples of each variant; 3 with --quick"""
    default: bool = True
    """Whether to measure it if no case is named"""
    quick: bool = False
    """Whether to measure it with --quick if no case is named"""


# an epoch takes 10 s or more on two cores with bfloat16
SMALL = Setting("baseline", 32, 40_000)
LARGE_BATCH = Setting("baseline", 128, 81_920)
WIDE = Setting("batchnorm", 128, 6_400)
ON_GPU = Setting("batchnorm", 512, 716_800)


def _train(setting: Setting, **options: Any) -> Case:
    title = f"train {setting.model}, batch {setting.batch_size}"
    return Case(title, "images/s", partial(train.against_others, setting), **options)


def _predict(architecture: str, count: int) -> Case:
    variants = partial(predict.variants, architecture, count)
    return Case(f"predict {architecture}", "images/s", variants)


CASES: dict[str, Case] = {
    "train-batchnorm-128": _train(WIDE, runs=5, quick=True),
    "train-baseline-32": _train(SMALL, quick=True),
    "train-baseline-128": _train(LARGE_BATCH),
    "side-by-side": Case(
        "two trainings of baseline at once", "images/s", partial(train.side_by_side, SMALL)
    ),
    "predict-batchnorm": _predict("batchnorm", 3_000),
    "predict-baseline": _predict("baseline", 60_000),
    "startup": Case("start to first training step", "s", startup.variants),
    "photographs": Case("3,000 photographs to arrays", "s", photographs.variants),
    "nothing-to-do": Case("make repro, nothing to do", "s", graph.nothing_to_do),
    "jobs": Case("make repro JOBS=2, other seeds", "s", graph.jobs, default=False),
    "determinism": Case(
        "repeat to the bit, baseline, batch 32",
        "images/s",
        partial(train.determinism, SMALL),
        default=False,
    ),
    "gpu": Case(
        f"train {ON_GPU.model} on JAX, batch {ON_GPU.batch_size}",
        "images/s",
        partial(train.gpu, ON_GPU),
        runs=5,
        default=False,
    ),
}
