"""Study: answer a question by training several models with several seeds each.

Reads   studies/STUDY.yaml, data/arrays/train/{images,labels}.npy, data/arrays/info.json,
        data/split/SEED.npz of the first seed of params.yaml, for all trainings; never the test
        images, so that exploring does not bias the test results
Writes  studies/STUDY.json    the result in one sentence, the comparisons, and of each training its
                              measures and which validation images it classified correctly
        studies/STUDY.png     the result as a figure
Params  backend, margin, threads, train
"""

import argparse
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
from pydantic import Field

from pipeline.config import params, yaml_reader
from pipeline.config.schema import Model, Name, Params, PartialTrain, Section, Seeds
from pipeline.core.errors import PipelineError, run
from pipeline.core.files import read_json, write_json
from pipeline.core.progress import progress
from pipeline.core.splitting import stratified_sample
from pipeline.data import arrays
from pipeline.reporting.drawing import save
from pipeline.runtime import select_backend
from pipeline.stats.crossed import LEVEL
from pipeline.trials import figure, summary


class Study(Section):
    """The settings of a study, as in studies/STUDY.yaml."""

    question: Annotated[str, Field(min_length=1)]
    models: Annotated[dict[Name, Model], Field(min_length=2)]
    """Models as in params.yaml; the first is the reference that others are compared with"""
    train: PartialTrain = PartialTrain()
    """Overrides of the training settings in params.yaml"""
    seeds: Annotated[Seeds, Field(min_length=2)]
    """Seeds of the trainings of each model. A seed determines the initial weights, the order of the
    images, augmentation, dropout, and the sample of `train.train_size`"""
    measure: Literal["gap", "seconds_per_epoch", "gradients"] | None = None
    """Measure to report with accuracy"""
    x: Annotated[str, Field(pattern=r"^(build|train)\.\w+$")] | None = None
    """Numeric setting on the x axis. Models whose names agree up to the last _ form a line, and
    are compared with the first line at the same x"""


def load(path: Path, defaults: Params) -> tuple[Study, Params]:
    """Read a study, and validate it like params.yaml.

    Args:
        path: The study's YAML file.
        defaults: The settings of params.yaml.

    Returns:
        The study, and `defaults` with its models and training settings.

    Raises:
        PipelineError: A setting is invalid.
    """
    with yaml_reader.reading(path):
        study = yaml_reader.read(path, Study)
        try:
            train = defaults.train.overridden_by(study.train)
        except pydantic.ValidationError as error:
            raise PipelineError(f"train {error.errors()[0]['ctx']['error']}") from None
        study_params = defaults.model_copy(update={"models": study.models, "train": train})
        for name in study.models:
            params.check_model(study_params, name)
            x = line_and_x(study, study_params, name)[1]
            if study.x and (not isinstance(x, int | float) or isinstance(x, bool)):
                raise PipelineError(
                    f"models.{name}: {study.x} must be a number, because it is x. Got {x}"
                )
    return study, study_params


def line_and_x(study: Study, study_params: Params, name: str) -> tuple[str, Any]:
    """Return the line that a model belongs to, and its x; without x, a line for each model."""
    if study.x is None:
        return name, None
    section, key = study.x.split(".")
    settings = (
        study_params.models[name].build if section == "build" else dict(study_params.train_of(name))
    )
    return name.rpartition("_")[0] or name, settings.get(key)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study", type=Path, help="studies/STUDY.yaml")
    for path in ("arrays", "split", "table", "picture"):
        parser.add_argument(f"--{path}", type=Path, required=True)
    args = parser.parse_args(argv)
    defaults = params.load()
    study, study_params = load(args.study, defaults)
    margin = defaults.margin / 100

    info = read_json(args.arrays / "info.json")
    images, labels = arrays.load(args.arrays / "train")
    train, validation = arrays.read_split(args.split, len(labels))
    if not len(validation):
        raise PipelineError(
            "params.yaml: split.validation must be greater than 0, because studies measure "
            "validation accuracy. Got 0"
        )
    with yaml_reader.reading(args.study):
        train_rows = {
            (name, seed): stratified_sample(
                train, labels, study_params.train_of(name).train_size, seed
            )
            for name in study.models
            for seed in study.seeds
        }

    # importing Keras takes seconds, so all inputs are checked first
    environment = select_backend.environment()
    select_backend.use(defaults.backend, defaults.threads)
    from pipeline.runtime import backend
    from pipeline.runtime.input_pipeline import Subset
    from pipeline.training import building, optim
    from pipeline.trials.measure import measure

    for name, model in study_params.models.items():
        building.build(model, info["image_shape"], len(info["classes"]), 0)
        optim.class_weights(study_params.train_of(name), labels, info["classes"])
    runs: dict[str, list[dict]] = {name: [] for name in study_params.models}
    # loop over seeds first, so that a slowdown of the machine affects all models alike
    queue = [(seed, name) for seed in study.seeds for name in study_params.models]
    for seed, name in progress(queue, len(queue), f"study: {args.study.stem}", "run"):
        subsets = Subset(images, labels, train_rows[name, seed]), Subset(images, labels, validation)
        runs[name].append(
            measure(study_params.models[name], *subsets, study_params.train_of(name), info, seed)
        )

    positions = {name: line_and_x(study, study_params, name) for name in study_params.models}
    epochs = {name: study_params.train_of(name).epochs for name in study_params.models}
    rows = summary.summarize(positions, epochs, runs, margin)
    sentence = summary.sentence(rows, study.measure, study.x, margin)
    save(figure.draw(study.question, rows, study.measure, study.x), args.picture)
    write_json(
        args.table,
        {
            "question": study.question,
            "sentence": sentence,
            "seeds": study.seeds,
            "level": LEVEL,
            "margin": margin,
            "train_images": {name: len(train_rows[name, study.seeds[0]]) for name in study.models},
            "validation_images": len(validation),
            "made_on": backend.describe() | environment,
            "models": rows,
        },
    )
    summary.print_summary(study.question, rows, study.measure)
    for row in rows:
        if row.get("verdict") == "cannot tell":
            print(f"study: {row['model']}: {row['sentence']}")
    print(sentence)
    print(f"study: {len(queue)} runs -> {args.table}, {args.picture}")


if __name__ == "__main__":
    run(main)
