"""Predict: classify images with a trained model.

    python -m pipeline predict IMAGE…           files, folders, or - for standard input
    python -m pipeline predict --json IMAGE…    a line of JSON each, in the order given:
                                                {"file", "predictions": [{"class", "probability"}]}
                                                or {"file", "error"}
    python -m pipeline predict --seen DIR IMAGE…    each image as the model sees it, too, as PNG

Not a stage. The model's own file says how its images were preprocessed; params.yaml is not read. A
file that is no image is an error, the others are predicted, and the exit status is 1.

Reads   models/champion.keras, or another as --model; the images
"""

import argparse
import json
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from scipy.special import softmax

from pipeline.core.batching import batch_size
from pipeline.core.console import Column, print_table
from pipeline.core.errors import PipelineError, one_line, run
from pipeline.data import preprocessor
from pipeline.data.preprocessor import Preprocessor
from pipeline.ingest.images import BadImage, open_for
from pipeline.runtime import select_backend

if TYPE_CHECKING:
    from PIL import Image

CHAMPION = Path(__file__).parents[2] / "models/champion.keras"  # from any working directory
STDIN = "-"
SEEN = 256  # pixels, the longer side of what --seen writes, at most; larger images stay as they are


class Prediction(NamedTuple):
    file: str
    probabilities: np.ndarray | None
    """Of each class, `(k,)`; none where there is an error"""
    error: str = ""
    image: np.ndarray | None = None
    """As the model takes it, `(h, w, c)`"""


def files(given: list[str]) -> list[str]:
    """Return the files that are meant; of a folder all below it, sorted, but hidden ones.

    Raises:
        PipelineError: There is no such file or folder, or nothing in it.
    """
    paths = []
    for name in given:
        path = Path(name)
        if name == STDIN or (path.exists() and not path.is_dir()):
            paths.append(name)
            continue
        if not path.is_dir():
            raise PipelineError(f"{name}: no such file or folder. Name another")
        below = [
            str(file)
            for file in sorted(path.rglob("*"))
            # a link to nothing is an error of its own; a pipe would be waited for
            if (file.is_file() or not file.exists())
            and not any(step.startswith(".") for step in file.relative_to(path).parts)
        ]
        if not below:
            raise PipelineError(f"{name}: must hold images. Got an empty folder. Name another")
        paths += below
    return paths


def read(file: str, kept: Preprocessor) -> np.ndarray:
    """Return an image as the model takes it, `(h, w, c)` float32.

    Raises:
        BadImage: It cannot be read.
    """
    try:
        encoded = sys.stdin.buffer.read() if file == STDIN else Path(file).read_bytes()
    except OSError as error:
        raise BadImage(f"cannot be read ({error.strerror})") from None
    return kept.apply(open_for(encoded, kept))


def predict_files(
    files: list[str], kept: Preprocessor, logits: Callable[[np.ndarray], np.ndarray]
) -> Iterator[Prediction]:
    """Yield an answer to each file, in order; a batch of images is in memory at a time.

    Args:
        logits: From images `(b, h, w, c)` float32 to `(b, k)`.
    """
    size = batch_size(kept.image_shape)
    for start in range(0, len(files), size):
        images, errors = {}, {}
        for row, file in enumerate(files[start : start + size]):
            try:
                images[row] = read(file, kept)
            except BadImage as error:
                errors[row] = str(error)
        odds = softmax(logits(np.stack(list(images.values()))), axis=1) if images else ()
        answered = dict(zip(images, odds, strict=True))
        for row, file in enumerate(files[start : start + size]):
            yield Prediction(file, answered.get(row), errors.get(row, ""), images.get(row))


def seen(image: np.ndarray, kept: Preprocessor) -> "Image.Image":
    """Return an image as the model takes it, `(h, w, c)`, as a picture; enlarged, each pixel is a
    square."""
    from PIL import Image

    height, width, channels = image.shape
    pixels = kept.pixels(image)
    picture = Image.fromarray(pixels[..., 0] if channels == 1 else pixels)
    times = max(1, SEEN // max(height, width))
    return picture.resize((width * times, height * times), Image.Resampling.NEAREST)


def write_seen(folder: Path, number: int, answer: Prediction, kept: Preprocessor) -> None:
    """Write what the model sees of a file; the number keeps files of the same name apart."""
    if answer.image is not None:
        stem = "stdin" if answer.file == STDIN else Path(answer.file).stem
        seen(answer.image, kept).save(folder / f"{number:04d}-{stem[:100]}.png")


def top_classes(probabilities: np.ndarray, classes: list[str], top: int) -> list[tuple[str, float]]:
    """Return the most likely classes, the first of equals first."""
    order = np.argsort(-probabilities, kind="stable")[:top]
    return [(classes[i], round(float(probabilities[i]), 6)) for i in order]


def as_json(answer: Prediction, classes: list[str], top: int) -> str:
    if answer.probabilities is None:
        return json.dumps({"file": answer.file, "error": answer.error})
    ranked = top_classes(answer.probabilities, classes, top)
    predictions = [{"class": name, "probability": probability} for name, probability in ranked]
    return json.dumps({"file": answer.file, "predictions": predictions})


def show(answers: list[Prediction], classes: list[str], top: int) -> None:
    """Print the answers as a table, without the files that could not be read."""
    columns = [Column("file"), Column("class"), Column("probability", numeric=True)]
    if top > 1:
        columns.append(Column("then", drop=1))
    rows = []
    for answer in answers:
        if answer.probabilities is None:
            continue
        (first, share), *others = top_classes(answer.probabilities, classes, top)
        row = [answer.file, first, f"{share:.4f}"]
        if top > 1:
            row.append(", ".join(f"{name} {probability:.4f}" for name, probability in others))
        rows.append(row)
    if rows:
        print_table(columns, rows)


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be 1 or more. Got {text}")
    return int(text)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="file, folder, or - for stdin")
    parser.add_argument("--model", type=Path, default=CHAMPION)
    parser.add_argument("--top", type=positive, default=3, help="classes to name, of each image")
    parser.add_argument("--json", action="store_true", help="a line of JSON for each image")
    parser.add_argument(
        "--seen", type=Path, metavar="DIR", help="write what the model sees of each image there"
    )
    args = parser.parse_args(argv)

    kept = preprocessor.read(args.model)
    named = files(args.images)
    if args.seen:
        args.seen.mkdir(parents=True, exist_ok=True)
    select_backend.use_default()
    from pipeline.runtime import backend

    model = backend.load(args.model)
    top, answered, failed = min(args.top, len(kept.classes)), [], False
    for number, answer in enumerate(predict_files(named, kept, model.predict_on_batch), 1):
        if args.seen:
            write_seen(args.seen, number, answer, kept)
        if answer.error:
            failed = True
            print(f"error: {one_line(f'{answer.file}: {answer.error}')}", file=sys.stderr)
        if args.json:
            print(as_json(answer, kept.classes, top))
        else:
            answered.append(answer._replace(image=None))  # or all would be in memory
    show(answered, kept.classes, top)
    if failed:
        sys.exit(1)


if __name__ == "__main__":
    if hasattr(signal, "SIGPIPE"):  # `… | head` ends it, as any command
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    run(main)
