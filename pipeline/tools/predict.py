"""Predict: classify images with a trained model.

    python -m pipeline predict IMAGE…           files, folders, or - for standard input
    python -m pipeline predict --json IMAGE…    one line of JSON per image, in the order given:
                                                {"file", "predictions": [{"class", "probability"}]}
                                                or {"file", "error"}
    python -m pipeline predict --seen DIR IMAGE…    also write each image as the model sees it (PNG)
    python -m pipeline predict --ensemble IMAGE…    mean probabilities over all trainings of the
                                                    champion
    python -m pipeline predict --accuracy 0.95 IMAGE…
                                                classify only the images for which the validation
                                                images say that 95 % are classified correctly

Not a stage. The model file holds its preprocessing; params.yaml is not read. A file that is not an
image is reported as an error; the other files are still classified, and the exit status is 1.

Reads   models/champion.keras, or the model given by --model; with --ensemble metrics/champion.json,
        and metrics/test/MODEL.json and models/MODEL/SEED.keras of the champion; the images
"""

import argparse
import json
import math
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from pipeline.core.batching import batch_size
from pipeline.core.console import Column, print_table
from pipeline.core.errors import PipelineError, one_line, run
from pipeline.core.files import read_json, require_file, sha256
from pipeline.core.text import counted
from pipeline.data import calibration
from pipeline.data.calibration import Calibration, Threshold
from pipeline.data.preprocessor import Preprocessor
from pipeline.data.preprocessor import read as read_preprocessor
from pipeline.ingest.images import BadImage, open_for
from pipeline.runtime import select_backend
from pipeline.stats.confidence import accuracy_bounds, choose_threshold

if TYPE_CHECKING:
    from PIL import Image

REPOSITORY = Path(__file__).parents[2]  # from any working directory
CHAMPION = REPOSITORY / "models/champion.keras"
STDIN = "-"
ENLARGED_SIDE = 256  # pixels; smaller images are enlarged to a longer side of at most this


class Prediction(NamedTuple):
    file: str
    probabilities: np.ndarray | None
    """Of the classes, `(k,)` in [0, 1]; None if the file could not be read"""
    error: str = ""
    image: np.ndarray | None = None
    """The input of the model, `(h, w, c)` float32"""


def ensemble_files(repository: Path) -> list[Path]:
    """Return the files of all trainings of the champion.

    Raises:
        PipelineError: A file is missing, or not the one that was evaluated.
    """
    champion = read_json(repository / "metrics/champion.json")["model"]
    test = repository / f"metrics/test/{champion}.json"
    trainings = read_json(test).get("seeds")
    if not trainings:  # metrics of older versions
        raise PipelineError(f"{test}: must list the trainings of the model. Run `dvc repro`")
    files = []
    for training in trainings:
        file = repository / f"models/{champion}/{training['seed']}.keras"
        require_file(file, "Run `dvc pull` or `dvc repro`")
        if sha256(file) != training["sha256"]:
            raise PipelineError(f"{file}: not the file that was evaluated. Run `dvc repro`")
        files.append(file)
    return files


def confidence_threshold(model: Path, calibrated: Calibration, accuracy: float) -> Threshold:
    """Return the lowest confidence above which a model is known to reach an accuracy.

    Raises:
        PipelineError: The validation images show it of no confidence.
    """
    if not calibrated.thresholds:
        raise PipelineError(
            f"{model}: --accuracy needs a model whose file holds its results on validation images. "
            "Got none: it was trained without validation images, or by an older version. Train it "
            "again with split.validation above 0"
        )
    threshold = choose_threshold(calibrated.thresholds, accuracy)
    if threshold is None:
        highest = math.floor(1000 * accuracy_bounds(calibrated.thresholds).max()) / 1000
        raise PipelineError(
            f"{model}: --accuracy must be at most {highest:g}, the highest that its "
            f"{counted(calibrated.images, 'validation image')} can show. Got {accuracy:g}. Lower "
            "it, or train with more validation images"
        )
    return threshold


def expand_folders(names: list[str]) -> list[str]:
    """Replace each folder by the files below it, sorted and without hidden files.

    Raises:
        PipelineError: A file or folder does not exist, or a folder holds no file.
    """
    files = []
    for name in names:
        path = Path(name)
        if name == STDIN or (path.exists() and not path.is_dir()):
            files.append(name)
            continue
        if not path.is_dir():
            raise PipelineError(f"{name}: no such file or folder. Name another")
        below = [
            str(file)
            for file in sorted(path.rglob("*"))
            # a broken link is reported as an error; reading a named pipe would block
            if (file.is_file() or not file.exists())
            and not any(part.startswith(".") for part in file.relative_to(path).parts)
        ]
        if not below:
            raise PipelineError(f"{name}: must hold images. Got an empty folder. Name another")
        files += below
    return files


def read_image(file: str, preprocessor: Preprocessor) -> np.ndarray:
    """Return an image as input of the model, `(h, w, c)` float32.

    Raises:
        BadImage: It cannot be read.
    """
    try:
        encoded = sys.stdin.buffer.read() if file == STDIN else Path(file).read_bytes()
    except OSError as error:
        raise BadImage(f"cannot be read ({error.strerror})") from None
    return preprocessor.apply(open_for(encoded, preprocessor))


def predict_files(
    files: list[str],
    preprocessor: Preprocessor,
    networks: Sequence[Callable[[np.ndarray], np.ndarray]],
) -> Iterator[Prediction]:
    """Yield the prediction for each file, in order, with one batch of images in memory at a time.

    Args:
        files: Paths, or - for standard input.
        preprocessor: The preprocessing of the networks.
        networks: Each maps images `(b, h, w, c)` float32 to probabilities `(b, k)`, over which
            the mean is taken.
    """
    size = batch_size(preprocessor.image_shape)
    for start in range(0, len(files), size):
        images, errors = {}, {}
        for row, file in enumerate(files[start : start + size]):
            try:
                images[row] = read_image(file, preprocessor)
            except BadImage as error:
                errors[row] = str(error)
        probabilities = {}
        if images:
            batch = np.stack(list(images.values()))
            mean = np.mean([network(batch) for network in networks], axis=0)
            probabilities = dict(zip(images, mean, strict=True))
        for row, file in enumerate(files[start : start + size]):
            yield Prediction(file, probabilities.get(row), errors.get(row, ""), images.get(row))


def to_picture(image: np.ndarray, preprocessor: Preprocessor) -> "Image.Image":
    """Return the input of a model, `(h, w, c)`, as a picture, enlarged unsmoothed if small."""
    from PIL import Image

    height, width, channels = image.shape
    pixels = preprocessor.pixels(image)
    picture = Image.fromarray(pixels[..., 0] if channels == 1 else pixels)
    scale = max(1, ENLARGED_SIDE // max(height, width))
    return picture.resize((width * scale, height * scale), Image.Resampling.NEAREST)


def write_picture(
    folder: Path, number: int, prediction: Prediction, preprocessor: Preprocessor
) -> None:
    """Write a file as the model sees it; the number distinguishes files of the same name."""
    if prediction.image is not None:
        stem = "stdin" if prediction.file == STDIN else Path(prediction.file).stem
        picture = to_picture(prediction.image, preprocessor)
        picture.save(folder / f"{number:04d}-{stem[:100]}.png")


def is_unsure(probabilities: np.ndarray, threshold: Threshold | None) -> bool:
    """Return whether the predicted class has a probability below the threshold, if any."""
    return threshold is not None and bool(probabilities.max() < threshold.confidence)


def top_classes(probabilities: np.ndarray, classes: list[str], top: int) -> list[tuple[str, float]]:
    """Return the most likely classes with their probabilities; ties keep the order of classes."""
    order = np.argsort(-probabilities, kind="stable")[:top]
    return [(classes[i], round(float(probabilities[i]), 6)) for i in order]


def as_json(
    prediction: Prediction, classes: list[str], top: int, threshold: Threshold | None
) -> str:
    """Return a prediction, or its error, as one line of JSON; with a threshold, whether unsure."""
    if prediction.probabilities is None:
        return json.dumps({"file": prediction.file, "error": prediction.error})
    ranked = top_classes(prediction.probabilities, classes, top)
    predictions = [{"class": name, "probability": probability} for name, probability in ranked]
    row: dict[str, Any] = {"file": prediction.file, "predictions": predictions}
    if threshold:
        row["unsure"] = is_unsure(prediction.probabilities, threshold)
    return json.dumps(row)


def show(
    predictions: list[Prediction], classes: list[str], top: int, threshold: Threshold | None
) -> None:
    """Print a table of the predictions, without the files that could not be read.

    The class of an image below the threshold is `unsure`, and all its likely classes follow.
    """
    columns = [Column("file"), Column("class"), Column("probability", numeric=True)]
    if top > 1:
        columns.append(Column("then", drop=1))
    rows = []
    for prediction in predictions:
        if prediction.probabilities is None:
            continue
        ranked = top_classes(prediction.probabilities, classes, top)
        (first, confidence), *others = ranked
        if is_unsure(prediction.probabilities, threshold):
            first, others = "unsure", ranked
        row = [prediction.file, first, f"{confidence:.4f}"]
        if top > 1:
            row.append(", ".join(f"{name} {probability:.4f}" for name, probability in others))
        rows.append(row)
    if rows:
        print_table(columns, rows)


def show_coverage(
    predictions: list[Prediction], threshold: Threshold, calibrated: Calibration, accuracy: float
) -> None:
    """Print how many images were classified, and what the validation images say of them."""
    unsure = [
        is_unsure(prediction.probabilities, threshold)
        for prediction in predictions
        if prediction.probabilities is not None
    ]
    print(
        f"predict: {len(unsure) - sum(unsure):,} of {counted(len(unsure), 'image')} classified, "
        f"{sum(unsure):,} unsure (probability below {threshold.confidence:g})\n"
        f"predict: {threshold.images:,} of {counted(calibrated.images, 'validation image')} reach "
        f"it, and {threshold.correct:,} of those are correct: with 95 % confidence, at least "
        f"{100 * accuracy:.4g} % of new images like them will be"
    )


def share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"must be in (0, 1), such as 0.95. Got {text}")
    return value


def positive_integer(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be 1 or more. Got {text}")
    return int(text)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="file, folder, or - for stdin")
    model = parser.add_mutually_exclusive_group()
    model.add_argument("--model", type=Path, default=CHAMPION)
    model.add_argument(
        "--ensemble",
        action="store_true",
        help="average the probabilities over all trainings of the champion",
    )
    parser.add_argument(
        "--top", type=positive_integer, default=3, help="number of classes to print"
    )
    parser.add_argument(
        "--accuracy",
        type=share,
        metavar="SHARE",
        help="classify only images of a confidence with this accuracy; the others are unsure",
    )
    parser.add_argument("--json", action="store_true", help="print one line of JSON per image")
    parser.add_argument(
        "--seen",
        type=Path,
        metavar="DIR",
        help="write each image as the model sees it to this folder",
    )
    args = parser.parse_args(argv)

    if args.accuracy and args.ensemble:
        parser.error("argument --accuracy: not allowed with argument --ensemble, whose trainings "
                     "have different validation images")  # fmt: skip
    files = expand_folders(args.images)
    paths = ensemble_files(REPOSITORY) if args.ensemble else [args.model]
    remedy = "Run `dvc repro`" if args.model == CHAMPION else "Name another, or run `dvc repro`"
    preprocessor, *others = [read_preprocessor(path, remedy) for path in paths]
    if any(other != preprocessor for other in others):
        raise PipelineError(
            f"{paths[0].parent}: all trainings must have the same preprocessing. Run `dvc repro`"
        )
    calibrated = [calibration.read(path) for path in paths]
    threshold = None
    if args.accuracy:
        threshold = confidence_threshold(args.model, calibrated[0], args.accuracy)
    if args.seen:
        args.seen.mkdir(parents=True, exist_ok=True)
    select_backend.use_default()
    from pipeline.runtime import backend

    def network(path: Path, stored: Calibration) -> Callable[[np.ndarray], np.ndarray]:
        model = backend.load(path)
        return lambda images: stored.probabilities(model.predict_on_batch(images))

    networks = list(map(network, paths, calibrated))
    classes = preprocessor.classes
    top, predictions, failed = min(args.top, len(classes)), [], False
    results = predict_files(files, preprocessor, networks)
    for number, prediction in enumerate(results, 1):
        if args.seen:
            write_picture(args.seen, number, prediction, preprocessor)
        if prediction.error:
            failed = True
            print(f"error: {one_line(f'{prediction.file}: {prediction.error}')}", file=sys.stderr)
        if args.json:
            print(as_json(prediction, classes, top, threshold))
        else:
            predictions.append(prediction._replace(image=None))  # keep no images in memory
    show(predictions, classes, top, threshold)
    if threshold and not args.json:
        show_coverage(predictions, threshold, calibrated[0], args.accuracy)
    if failed:
        sys.exit(1)


if __name__ == "__main__":
    if hasattr(signal, "SIGPIPE"):  # `… | head` ends it quietly, like other commands
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    run(main)
