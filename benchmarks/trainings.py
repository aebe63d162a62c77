"""Trainings: train models with several seeds and record each training, in as many pieces as needed.

    python -m benchmarks.trainings cifar10 --models baseline batchnorm --seeds 0 1 2

Runs the stages with the models of params.yaml, and appends each training that has finished to
benchmarks/results/DATASET.jsonl. A training that is recorded there is not run again, unless its
settings, the type of processor or the number of threads are others. With --folder, the data stay
there, and an interrupted training continues after its last epoch.

At the end, and without --models, it prints the recorded trainings of the data set as a table, each
model compared with the first. Trainings are only compared with those of the same type of processor.

Writes  benchmarks/results/DATASET.jsonl    a line for each training: model, seed, processor,
                                            precision, threads, versions, seconds, accuracy, and
                                            which test images were classified correctly
"""

import argparse
import hashlib
import json
import statistics
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from benchmarks.__main__ import RESULTS, describe
from benchmarks.harness import REPOSITORY, process, python
from pipeline.config import yaml_reader
from pipeline.core.errors import PipelineError, run
from pipeline.core.files import read_json
from pipeline.stats import correctness
from pipeline.stats.crossed import compare_all, mean_interval

# Settings of the published studies that differ from params.yaml: of the model, or a section of all.
SETTINGS: dict[str, dict[str, dict[str, Any]]] = {
    "cifar10": {
        "batchnorm": {"build": {"batch_norm_momentum": 0.99}, "train": {"batch_size": 128}},
        "airnet_wide": {"split": {"validation": 0}},  # trains on all 50,000 images
    },
}
DATA = (
    "pipeline.download --raw data/raw",
    "pipeline.preprocess --raw data/raw --arrays data/arrays",
)
SPLIT = "pipeline.split --arrays data/arrays --split {split} --metrics split.json"
TRAIN = (
    "pipeline.train {model} {seed} --arrays data/arrays --split {split}/{seed}.npz "
    "--out models/{model}/{seed}.keras --history history.csv --metrics train.json --run run.json"
)
EVALUATE = (
    "pipeline.evaluate {model} --models models/{model} --arrays data/arrays --split {split} "
    "--metrics test.json --predictions predictions --confusion confusion.csv"
)
# test-time augmentation with --mirror, from `evaluate` of params.yaml
VIEWS = {"mirrored": {"mirror": True}, "shifted": {"mirror": True, "shift": 1}}
# trainings that agree in these can be compared
MACHINE = ("device", "precision", "threads")


def path_of(dataset: str) -> Path:
    """Return the file with the trainings on a data set."""
    return RESULTS / f"{dataset.replace('/', '_')}.jsonl"


def read(path: Path) -> list[dict]:
    """Read the recorded trainings, in the order in which they finished."""
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def read_params() -> dict[str, Any]:
    """Read params.yaml of the repository."""
    return yaml_reader.parse((REPOSITORY / "params.yaml").read_text("utf-8"))


def settings(dataset: str, model: str) -> dict[str, Any]:
    """Return params.yaml for trainings of one model on a data set.

    Raises:
        PipelineError: params.yaml has no such model.
    """
    params = read_params()
    if model not in params["models"]:
        raise PipelineError(f"--models: must be of {', '.join(params['models'])}. Got {model}")
    config = params["models"][model]
    for section, changes in SETTINGS.get(dataset, {}).get(model, {}).items():
        target = config if section in ("build", "train") else params
        target[section] = {**(target.get(section) or {}), **changes}
    return params | {"dataset": dataset, "compare": [model], "champion": "auto"}


def split_folder(params: dict[str, Any]) -> str:
    """Return the folder with the splits of these settings."""
    return f"data/split_{params['split']['validation']}"


def prepare(folder: Path, params: dict[str, Any], seeds: list[int]) -> None:
    """Write the arrays and the splits that are not in the folder yet."""
    write_params(folder, params, seeds)
    if not (folder / "data/arrays/info.json").exists():
        for stage in DATA:
            process(python("-m", *stage.split()), folder)
    split = split_folder(params)
    if not all((folder / split / f"{seed}.npz").exists() for seed in seeds):
        process(python("-m", *SPLIT.format(split=split).split()), folder)


def write_params(folder: Path, params: dict[str, Any], seeds: list[int]) -> None:
    """Write params.yaml with these seeds."""
    (folder / "params.yaml").write_text(yaml.safe_dump(params | {"seeds": seeds}), "utf-8")


def train(
    folder: Path, params: dict[str, Any], model: str, seed: int, mirror: bool
) -> dict[str, Any]:
    """Train and evaluate a model with one seed, and return what to record."""

    def run_stage(stage: str) -> None:
        names = {"model": model, "seed": seed, "split": split_folder(params)}
        process(python("-m", *stage.format(**names).split()), folder)

    write_params(folder, params, [seed])
    run_stage(TRAIN)
    run_stage(EVALUATE)
    (test,), trained = read_json(folder / "test.json")["seeds"], read_json(folder / "train.json")
    mirrored = {}
    for name, views in VIEWS.items() if mirror else ():
        write_params(folder, params | {"evaluate": params["evaluate"] | views}, [seed])
        run_stage(EVALUATE)
        mirrored[f"{name}_accuracy"] = read_json(folder / "test.json")["accuracy"]
    return {
        **read_json(folder / "run.json"),
        "epochs": trained["epochs"],
        "parameters": trained["parameters"],
        "val_accuracy": trained[trained["kept"]].get("val_accuracy"),  # null: no validation images
        "accuracy": test["accuracy"],
        **mirrored,
        "correct": test["correct"],
    }


def record(
    dataset: str,
    models: list[str],
    seeds: list[int],
    mirror: bool,
    folder: Path,
    path: Path,
    threads: int | None = None,
) -> None:
    """Run and record the trainings that are not recorded yet.

    Args:
        dataset: As in params.yaml.
        models: Names in params.yaml.
        seeds: Of each model.
        mirror: Whether to measure accuracy with each of VIEWS too.
        folder: To work in.
        path: The file to append to.
        threads: CPU threads of each training; None: those of params.yaml.
    """
    params = {model: settings(dataset, model) for model in models}
    for values in params.values():
        values["threads"] = threads or values["threads"]
        prepare(folder, values, seeds)
    device = describe()["machine"]["device"]
    for seed in seeds:  # the outer loop, so that a slowdown of the machine affects all models
        for model, values in params.items():
            used = [values["models"][model]]
            used += [values[name] for name in ("train", "preprocess", "split", "evaluate")]
            identity = {
                "model": model,
                "seed": seed,
                "settings": hashlib.sha256(json.dumps(used).encode()).hexdigest()[:12],
                "device": device,
                "threads": str(values["threads"]),
            }
            recorded = read(path) if path.exists() else []
            if any(all(line[key] == identity[key] for key in identity) for line in recorded):
                continue
            training = identity | train(folder, values, model, seed, mirror) | identity
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(training) + "\n")
            print(
                f"{model}, seed {seed}: test accuracy {training['accuracy']:.4f}, "
                f"{training['train_seconds']:.0f} s",
                flush=True,
            )


def correct(trainings: Iterable[dict]) -> np.ndarray:
    """Return `(k, n)` bool: which test images each training classified correctly."""
    return np.stack([correctness.unpack(training["correct"]) for training in trainings])


def by_machine(trainings: list[dict]) -> dict[tuple[str, ...], dict[str, list[dict]]]:
    """Return the trainings by MACHINE and model, of each model those with its last settings."""
    groups: dict[tuple[str, ...], dict[str, list[dict]]] = {}
    for training in trainings:
        models = groups.setdefault(tuple(training[key] for key in MACHINE), {})
        same = [
            line
            for line in models.get(training["model"], [])
            if line["settings"] == training["settings"]
        ]
        models[training["model"]] = [*same, training]
    return groups


def table(trainings: list[dict], margin: float, order: list[str]) -> str:
    """Return the trainings as a table in Markdown, each model compared with the first.

    Args:
        trainings: As `read` returns them.
        margin: As in params.yaml, in percentage points.
        order: Names of the models, in the order of the rows.
    """
    lines = []
    for (device, precision, threads), by_model in by_machine(trainings).items():
        reference, *others = models = sorted(by_model, key=order.index)
        tables = {model: correct(by_model[model]) for model in models}
        verdicts = compare_all(tables, dict.fromkeys(others, reference), margin / 100)
        backend = by_model[reference][0]["backend"]
        used = f"threads {threads}, " if backend.startswith("tensorflow") else ""
        lines += [
            f"{device}, {backend}, {precision}; {used}95 % intervals over seeds and images, "
            "standard deviation over trainings; mirrored: with evaluate.mirror; shifted: with "
            "evaluate.shift: 1 as well:",
            "",
            f"| | trainings | test accuracy | sd | mirrored | shifted | against {reference} "
            "| training |",
            "| --- | --- | --- | --- | --- | --- | --- | --- |",
        ]
        for model in models:
            group, mean = by_model[model], mean_interval(tables[model])
            views = [
                [line[f"{name}_accuracy"] for line in group if f"{name}_accuracy" in line]
                for name in VIEWS
            ]
            seconds = [line["train_seconds"] for line in group]
            cells = (
                model,
                len(group),
                f"{100 * mean.mean:.1f} % [{100 * mean.low:.1f}, {100 * mean.high:.1f}]",
                "" if len(group) == 1 else f"{100 * mean.standard_deviation:.1f}",
                *(f"{100 * statistics.mean(of):.1f} %" if of else "" for of in views),
                verdicts[model]["sentence"] if model in verdicts else "",
                f"{statistics.median(seconds):,.0f} s ({min(seconds):,.0f} to {max(seconds):,.0f})",
            )
            lines.append(f"| {' | '.join(map(str, cells))} |")
        lines.append("")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="benchmarks.trainings", description=__doc__ and __doc__.splitlines()[0]
    )
    parser.add_argument("dataset", help="as in params.yaml")
    parser.add_argument("--models", nargs="+", default=[], help="names in params.yaml")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="default: 0 1 2")
    parser.add_argument(
        "--mirror",
        action="store_true",
        help="also record accuracy with evaluate.mirror, and with evaluate.shift: 1 besides",
    )
    parser.add_argument("--threads", type=int, help="CPU threads; default: those of params.yaml")
    parser.add_argument("--folder", type=Path, help="keep data and checkpoints here")
    args = parser.parse_args(argv)
    path = path_of(args.dataset)
    if args.models:
        with tempfile.TemporaryDirectory() as temporary:
            folder = (args.folder or Path(temporary)) / path.stem
            folder.mkdir(parents=True, exist_ok=True)
            record(args.dataset, args.models, args.seeds, args.mirror, folder, path, args.threads)
    if not path.exists():
        raise PipelineError(f"{path}: has no trainings. Name some with --models")
    params = read_params()
    print(table(read(path), params["margin"], list(params["models"])))


if __name__ == "__main__":
    run(main)
