"""Model card: describe the champion, and collect its files in a folder that can be published.

Reads   models/champion.keras, models/export/…; data/arrays/{train,test}/SHA256SUMS;
        metrics/{champion,comparison,export,label_issues,split}.json and metrics/test/MODEL.json of
        the champion; pipeline/reporting/model_card.md.jinja
Writes  models/champion/README.md        model card in the format of Hugging Face
        models/champion/champion.*       copies of the model and of its exports
        models/champion/classes.txt      a class name on each line, in the order of the outputs
        models/champion/SHA256SUMS       checksums of all but the card, which you may edit, as
                                         sha256sum writes them
Params  champion, dataset, folder, models, train
"""

import argparse
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import yaml
from huggingface_hub import EvalResult, ModelCardData

from pipeline.config.params import load
from pipeline.core.errors import PipelineError, one_line, run
from pipeline.core.files import atomic_path, read_json, require_file, sha256
from pipeline.core.text import counted, markdown, percent, signed
from pipeline.data.preprocessor import Preprocessor
from pipeline.data.preprocessor import read as read_preprocessor
from pipeline.reporting import results

TEMPLATES = Path(__file__).with_name("reporting")
WORST_CLASSES = 5  # classes in the table of the lowest accuracies, at most
INPUTS = (
    "model", "export", "train-sums", "test-sums", "split", "comparison", "champion", "test",
    "exports", "label-counts",
)  # fmt: skip


class Format(NamedTuple):
    """How the card names an export format."""

    file: str
    runtime: str
    tag: str
    """On the Hugging Face Hub"""


FORMATS = {
    "onnx": Format("champion.onnx", "ONNX Runtime", "onnx"),
    "litert": Format("champion.tflite", "LiteRT", "tflite"),
}


def metadata(
    name: str, training: dict[str, Any], formats: list[str], dataset: str, source: str
) -> ModelCardData:
    """Return the metadata of the card, with the results of the model's file on the test images.

    Args:
        name: Of the model.
        training: Its entry in `seeds` of metrics/test/MODEL.json.
        formats: Keys of FORMATS, those that the model could be exported to.
        dataset: `dataset` in params.yaml.
        source: Name of the data set, for readers.
    """
    values = (("accuracy", "accuracy"), ("f1", "F1, mean over classes"), ("loss", "log loss"))
    return ModelCardData(
        library_name="keras",
        pipeline_tag="image-classification",
        tags=[FORMATS[name].tag for name in formats],
        metrics=["accuracy"],
        model_name=name,
        eval_results=[
            EvalResult(
                task_type="image-classification",
                # as Hugging Face names a folder with a folder for each class
                dataset_type="imagefolder" if dataset == "folder" else dataset,
                dataset_name=one_line(source),
                dataset_split="test",
                metric_type=kind,
                metric_name=f"{description}, seed {training['seed']}",
                metric_value=round(training[kind], 6),
            )
            for kind, description in values
        ],
    )


def array_sum(path: Path) -> str:
    """Return the SHA-256 of images.npy from the checksums of a split's arrays."""
    sums = require_file(path).read_text("utf-8").splitlines()
    return next(line.split()[0] for line in sums if line.endswith("  images.npy"))


def worst_classes(classes: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the classes with the lowest recall, ascending, without those that have no test images.

    Args:
        classes: `classes` of metrics/test/MODEL.json.
    """
    tested = [row for row in classes if row["images"]]
    return sorted(tested, key=lambda row: row["recall"])[:WORST_CLASSES]


def render(page: dict[str, Any]) -> str:
    """Render the card. The template formats names with the filter `markdown`."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES, encoding="utf-8"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "counted": counted, "markdown": markdown, "percent": percent, "signed": signed
    }  # fmt: skip
    return environment.get_template("model_card.md.jinja").render(**page)


def read_page(args: argparse.Namespace, preprocessor: Preprocessor) -> dict[str, Any]:
    """Read the outputs of other stages and return the template's variables.

    Raises:
        PipelineError: The model is not the file that was evaluated.
    """
    comparison = read_json(args.comparison)
    champion = read_json(args.champion)["model"]
    test = read_json(args.test / f"{champion}.json")
    training = test["seeds"][0]
    if sha256(require_file(args.model)) != training["sha256"]:
        raise PipelineError(f"{args.model}: not the file that was evaluated. Run `dvc repro`")
    return {
        "champion": champion,
        "models": comparison["models"],
        "level": comparison["level"],
        "verdict": results.verdict(comparison["models"], champion, comparison["level"]),
        "without_leaks": comparison["without_leaks"],
        "training": training,
        "trainings": test["seeds"],
        "worst_classes": worst_classes(test["classes"]),
        "preprocessor": preprocessor,
        "split": read_json(args.split),
        "array_sums": {
            split: array_sum(getattr(args, f"{split}_sums")) for split in ("train", "test")
        },
        "exports": results.exports(args.exports),
        "formats": FORMATS,
        "label_issues": read_json(args.label_counts),
    }


def write_sums(folder: Path) -> None:
    """Write the checksums of all files in a folder."""
    sums = "".join(f"{sha256(path)}  {path.name}\n" for path in sorted(folder.iterdir()))
    (folder / "SHA256SUMS").write_text(sums, "utf-8", newline="\n")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in (*INPUTS, "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    args = parser.parse_args(argv)
    params = load()

    preprocessor = read_preprocessor(args.model)
    page = read_page(args, preprocessor)
    name = page["champion"]
    source = results.source(params.dataset, params.folder)
    settings = {
        "models": {name: params.models[name].model_dump(mode="json", exclude={"train"})},
        "train": params.train_of(name).model_dump(mode="json"),
    }
    formats = [row["format"] for row in page["exports"] if "not_written" not in row]
    page |= {
        "metadata": metadata(name, page["training"], formats, params.dataset, source).to_yaml(),
        "source": source,
        "champion_reason": results.champion_reason(params.champion, page["models"], name),
        "settings": yaml.safe_dump(settings, sort_keys=False, allow_unicode=True),
    }
    with atomic_path(args.out) as folder:
        folder.mkdir()
        for path in (args.model, *sorted(args.export.iterdir())):
            shutil.copyfile(path, folder / path.name)
        classes = "".join(f"{one_line(name)}\n" for name in preprocessor.classes)
        (folder / "classes.txt").write_text(classes, "utf-8", newline="\n")
        write_sums(folder)
        (folder / "README.md").write_text(render(page), "utf-8", newline="\n")
        count = len(list(folder.iterdir()))
    print(f"model_card: {name}: {counted(count, 'file')} -> {args.out}")


if __name__ == "__main__":
    run(main)
