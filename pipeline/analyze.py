"""Analyze: tabulate the layers of one trained model, and draw what they compute and learn.

The model is that of the first seed.

Reads   models/MODEL/SEED.keras, data/arrays/…, data/split/SEED.npz,
        data/predictions/MODEL/SEED.parquet,
        data/inputs/pictures/MODEL.json    which pictures to draw; if none, only layers.csv is
                                           written
Writes  plots/analysis/MODEL/   layers.csv, flow.csv, pictures, and analysis.json, which lists the
                                pictures with their titles and descriptions
Params  models.MODEL, train, seeds, backend, threads

`python -m pipeline.analyze models/MODEL/SEED.keras --table` prints the layers of any model trained
by this pipeline and writes nothing.
"""

import argparse
import dataclasses
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from tqdm import tqdm

from pipeline.config.params import load
from pipeline.core.batching import batch_size
from pipeline.core.console import Column, print_table
from pipeline.core.errors import PipelineError, run
from pipeline.core.files import atomic_path, read_json, write_json
from pipeline.core.splitting import stratified_sample
from pipeline.core.text import counted
from pipeline.data import arrays
from pipeline.data.predictions import read as read_predictions
from pipeline.data.preprocessor import read as read_preprocessor
from pipeline.runtime import select_backend

if TYPE_CHECKING:
    from pipeline.analysis.layer_table import Row

# Size of the batch from which gradients, responses and statistics are computed. Large images get a
# smaller batch, since all feature maps are in memory at once.
BATCH = 256
BATCH_VALUES = 2**20
EXAMPLES = 4  # correct test images to show, and as many misclassified ones


def most_confident(predictions: pd.DataFrame) -> np.ndarray:
    """Return the rows of the most confident correct predictions, then of the misclassified images.

    Args:
        predictions: One row per test image: actual, predicted and confidence.

    Returns:
        Up to 2 * EXAMPLES row numbers, int. Each half is sorted by confidence, highest first.
    """
    ranked = predictions.sort_values("confidence", ascending=False, kind="stable")
    correct = ranked["actual"] == ranked["predicted"]
    return np.concatenate([ranked.index[correct][:EXAMPLES], ranked.index[~correct][:EXAMPLES]])


def print_layers(rows: "list[Row]", name: str) -> None:
    """Print the layers of a model as a table."""
    from pipeline.analysis.layer_table import total

    columns = (
        Column("name"),
        Column("type", drop=4),
        Column("output", numeric=True),
        Column("parameters", numeric=True),
        Column("trained", numeric=True, drop=2),
        Column("MACs", numeric=True, drop=6),
        Column("receptive field", numeric=True, drop=5),
        Column("stride", numeric=True, drop=1),
        Column("bytes", numeric=True, drop=3),
    )
    cells = []
    for row in rows:
        counts = [f"{n:,}" if n else "" for n in (row.parameters, row.trainable, row.macs)]
        output = "×".join(map(str, row.output_shape))
        size = f"{row.activation_bytes:,}"
        cells.append([row.name, row.type, output, *counts, row.receptive_field, row.stride, size])
    sums = {key: f"{value:,}" for key, value in total(rows).items()}
    counts = [sums[key] for key in ("parameters", "trainable", "macs")]
    last = ["total", "", "", *counts, "", "", sums["activation_bytes"]]
    print_table(columns, cells, f"{name}: one image", last)


def sample_rows(rows: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Return evenly spaced rows for one batch of images.

    Args:
        rows: `(m,)` int, row numbers of the training images.
        shape: `(h, w, c)` of an image. Larger images give fewer rows.
    """
    count = batch_size(shape, BATCH_VALUES, BATCH)
    return rows[np.unique(np.linspace(0, len(rows) - 1, count).astype(int))]


def with_progress(name: str, pictures: Iterable[str]) -> Iterator[str]:
    """Yield the pictures and report progress: a bar on a terminal, otherwise a line for each."""
    bar = tqdm(pictures, f"analyze: {name}", unit="picture", leave=False, disable=None)
    for picture in bar:
        label = picture.replace("_", " ")
        bar.set_postfix_str(label)
        if bar.disable:
            print(f"analyze: {name}: {label} …", flush=True)
        yield picture


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Parse the command line; without --table, all paths are required."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, help="models/MODEL/SEED.keras")
    parser.add_argument("--name", help="MODEL, a name under `models:` in params.yaml")
    parser.add_argument("--table", action="store_true", help="print the layers and write nothing")
    for path in ("arrays", "split", "predictions", "pictures", "out"):
        parser.add_argument(f"--{path}", type=Path)
    args = parser.parse_args(argv)
    required = (args.name, args.arrays, args.split, args.predictions, args.pictures, args.out)
    if not args.table and not all(required):
        parser.error(
            "--name, --arrays, --split, --predictions, --pictures and --out are required without "
            "--table"
        )
    return args


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    if args.table:
        read_preprocessor(args.model)  # reports a missing or damaged file before Keras is imported
        select_backend.use_default()
        from pipeline.analysis import layer_table
        from pipeline.analysis.network import unnested
        from pipeline.runtime import backend

        print_layers(layer_table.table(unnested(backend.load(args.model))), str(args.model))
        return
    analyze(args)


def analyze(args: argparse.Namespace) -> None:
    """Write the layer table and the chosen pictures of one trained model."""
    params, name = load(), args.name
    preprocessor = read_preprocessor(args.model)
    if name not in params.models:
        raise PipelineError(
            f"analyze: {name} must be one of {', '.join(params.models)} in params.yaml"
        )
    seed = params.seeds[0]
    chosen = read_json(args.pictures)
    predictions = read_predictions(args.predictions).of("test").table()
    images, labels = arrays.load(args.arrays / "train")
    train, _ = arrays.read_split(args.split, len(labels))
    settings = params.train_of(name)
    train = stratified_sample(train, labels, settings.train_size, seed)
    test_images, _ = arrays.load(args.arrays / "test")

    select_backend.use(params.backend, params.threads)
    from pipeline.analysis import gallery, gradient_flow, layer_table
    from pipeline.analysis.network import unnested
    from pipeline.runtime import backend
    from pipeline.runtime.input_pipeline import Batches, Subset
    from pipeline.training import building, optim, whitening

    shape, classes = tuple(preprocessor.image_shape), preprocessor.classes
    model = backend.load(args.model)
    flat_model = unnested(model)
    rows = layer_table.table(flat_model)
    sample = Subset(images, labels, sample_rows(train, shape))
    batch, one_hot = Batches(sample, len(classes), BATCH)[0]
    examples = most_confident(predictions)
    example_images, example_predictions = test_images[examples], predictions.iloc[examples]

    def gradient_flow_table() -> pd.DataFrame:
        initial_model = building.build(params.models[name], shape, len(classes), seed)
        if settings.whiten:
            whitening.whiten(initial_model, Subset(images, labels, train))
        backend.make_deterministic(seed)  # dropout
        return gradient_flow.table(model, initial_model, batch, one_hot, optim.loss(settings))

    with atomic_path(args.out) as folder:
        folder.mkdir()
        pictures = gallery.Pictures(folder, name, preprocessor)
        drawing: dict[str, Callable[[], None]] = {
            "layers": lambda: pictures.layers(rows),
            "feature_maps": lambda: pictures.feature_maps(
                flat_model, example_images, example_predictions
            ),
            "grad_cam": lambda: pictures.grad_cam(flat_model, example_images, example_predictions),
            "flow": lambda: pictures.flow(gradient_flow_table()),
            "kernels": lambda: pictures.kernels(flat_model),
            "filters": lambda: pictures.filters(flat_model, batch, seed),
        }
        for picture in with_progress(name, [key for key in drawing if key in chosen]):
            drawing[picture]()
        table = pd.DataFrame([dataclasses.asdict(row) for row in rows])
        table["output_shape"] = ["×".join(map(str, row.output_shape)) for row in rows]
        table.to_csv(folder / "layers.csv", index=False)
        analysis = {"pictures": pictures.contents, "total": layer_table.total(rows)}
        write_json(folder / "analysis.json", analysis)
    drawn = counted(len(pictures.contents), "picture")
    print(f"analyze: {name}: {counted(len(rows), 'layer')}, {drawn} -> {args.out}")


if __name__ == "__main__":
    run(main)
