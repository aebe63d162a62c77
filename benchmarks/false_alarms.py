"""False alarms: how often trainings of one and the same model are called better or worse.

    python -m benchmarks.trainings digits --models baseline --seeds $(seq 0 39)
    python -m benchmarks.false_alarms

Draws two disjoint groups from the recorded trainings many times and compares them as two models.
The level of the test is 5 %, so 5 % of the verdicts may be better or worse.

Reads   benchmarks/results/digits.jsonl
Writes  benchmarks/results/false_alarms.json    of each size of the groups the share of each verdict
"""

import argparse
from collections import Counter

import numpy as np

from benchmarks import trainings
from benchmarks.__main__ import RESULTS
from pipeline.core.errors import run
from pipeline.core.files import write_json
from pipeline.stats.crossed import compare_models, verdict

MODEL = "baseline"
SIZES = (3, 5)
DRAWS = 2_000
RESULT = RESULTS / "false_alarms.json"


def shares(correct: np.ndarray, size: int, margin: float, draws: int = DRAWS) -> dict[str, float]:
    """Return the share of each verdict over random pairs of disjoint groups of trainings.

    Args:
        correct: `(k, n)` which images each training classified correctly.
        size: Trainings of each group.
        margin: As for `crossed.verdict`.
        draws: Number of pairs.
    """
    rng = np.random.default_rng(size)
    counts: Counter[str] = Counter()
    for _ in range(draws):
        rows = rng.permutation(len(correct))
        comparison = compare_models(correct[rows[:size]], correct[rows[size : 2 * size]])
        counts[verdict(comparison, comparison.p, margin)] += 1
    return {word: count / draws for word, count in sorted(counts.items())}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="benchmarks.false_alarms", description=__doc__ and __doc__.splitlines()[0]
    )
    parser.parse_args(argv)
    # of the machine with the first training
    first, *_ = trainings.by_machine(trainings.read(trainings.path_of("digits"))).values()
    group = first[MODEL]
    correct = trainings.correct(group)
    margin = trainings.read_params()["margin"]
    result = {
        "model": MODEL,
        "trainings": len(group),
        "draws": DRAWS,
        **{key: group[0][key] for key in ("device", "precision", "threads", "keras", "backend")},
        "accuracy": {
            "mean": float(correct.mean()),
            "standard_deviation": float(correct.mean(axis=1).std(ddof=1)),
        },
        "verdicts": {f"{size} against {size}": shares(correct, size, margin / 100)
                     for size in SIZES},
    }  # fmt: skip
    write_json(RESULT, result)
    for sizes, verdicts in result["verdicts"].items():
        alarms = verdicts.get("better", 0) + verdicts.get("worse", 0)
        print(f"{sizes}: {alarms:.1%} called better or worse -> {RESULT}")


if __name__ == "__main__":
    run(main)
