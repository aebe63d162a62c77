"""Analyze: what one trained network is made of, responds to, looks at, and where it learns.

Reads   models/MODEL.keras, data/arrays/…, data/split.npz, plots/predictions/MODEL.csv,
        data/analysis/MODEL.json     which pictures to draw; without any, there is layers.csv alone
Writes  plots/analysis/MODEL/        layers.csv, flow.csv, pictures, and analysis.json, which lists
                                    the pictures with their titles and descriptions
Params  models.MODEL or finetune.MODEL, train, seed, backend

`python -m pipeline.analyze models/MODEL.keras --table` shows the layers of any model that is
trained here, and writes nothing.
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
from pipeline.data import arrays, preprocessor, tables
from pipeline.runtime import select_backend

if TYPE_CHECKING:
    from pipeline.analysis.layer_table import Row

# Images that gradients, responses and statistics are taken from; fewer where they are large, since
# all feature maps are kept at once.
BATCH = 256
BATCH_VALUES = 2**20
LOOKED_AT = 4  # test images each that it got right and wrong, the surest of them


def surest(predictions: pd.DataFrame) -> np.ndarray:
    """Return the rows of the surest right answers, then of the surest mistakes."""
    right = predictions["actual"] == predictions["predicted"]
    order = predictions["confidence"].sort_values(ascending=False, kind="stable").index
    ranked = predictions.loc[order]
    return np.concatenate(
        [ranked.index[right[order]][:LOOKED_AT], ranked.index[~right[order]][:LOOKED_AT]]
    )


def show(rows: "list[Row]", name: str) -> None:
    """Print the layers as a table."""
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
        tail = (row.receptive_field, row.stride, f"{row.activation_bytes:,}")
        cells.append([row.name, row.type, output, *counts, *tail])
    sums = {key: f"{value:,}" for key, value in total(rows).items()}
    counts = [sums[key] for key in ("parameters", "trainable", "macs")]
    last = ["total", "", "", *counts, "", "", sums["activation_bytes"]]
    print_table(columns, cells, f"{name}: one image", last)


def sample(rows: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Return rows for one batch of images of a shape, evenly spaced."""
    count = batch_size(shape, BATCH_VALUES, BATCH)
    return rows[np.unique(np.linspace(0, len(rows) - 1, count).astype(int))]


def told(name: str, parts: Iterable[str]) -> Iterator[str]:
    """Yield what is drawn, and say so: by a bar on a terminal, elsewhere by a line each."""
    bar = tqdm(parts, f"analyze: {name}", unit="picture", leave=False, disable=None)
    for part in bar:
        words = part.replace("_", " ")
        bar.set_postfix_str(words)
        if bar.disable:
            print(f"analyze: {name}: {words} …", flush=True)
        yield part


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, help="models/MODEL.keras")
    parser.add_argument("--table", action="store_true", help="show the layers, and write nothing")
    for path in ("arrays", "split", "predictions", "pictures", "out"):
        parser.add_argument(f"--{path}", type=Path)
    args = parser.parse_args(argv)
    needed = (args.arrays, args.split, args.predictions, args.pictures, args.out)
    if not args.table and not all(needed):
        parser.error(
            "--arrays, --split, --predictions, --pictures and --out are needed, or --table"
        )
    return args


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    if args.table:
        preprocessor.read(args.model)  # says what is wrong with a file, before Keras is imported
        select_backend.use_default()
        from pipeline.analysis import layer_table
        from pipeline.analysis.network import unnested
        from pipeline.runtime import backend

        show(layer_table.table(unnested(backend.load(args.model))), args.model.stem)
        return
    analyze(args)


def analyze(args: argparse.Namespace) -> None:
    params, name = load(), args.model.stem
    kept = preprocessor.read(args.model)
    if name not in params.all_models:
        raise PipelineError(
            f"analyze: {name} must be one of {', '.join(params.all_models)} in params.yaml"
        )
    wanted = read_json(args.pictures)
    predictions = tables.read(args.predictions)
    images, labels = arrays.load(args.arrays / "train")
    train, _ = arrays.read_split(args.split, len(labels))
    tested, _ = arrays.load(args.arrays / "test")

    select_backend.use(params.backend)
    from pipeline.analysis import gallery, gradient_flow, layer_table
    from pipeline.analysis.network import unnested
    from pipeline.runtime import backend
    from pipeline.runtime.input_pipeline import Batches, Subset
    from pipeline.training import building, optim, whitening

    settings = params.train_of(name)
    shape = tuple(kept.image_shape)
    model = backend.load(args.model)
    flat = unnested(model)
    rows = layer_table.table(flat)
    sampled = Subset(images, labels, sample(train, shape))
    batch, one_hot = Batches(sampled, len(kept.classes), BATCH)[0]
    chosen = surest(predictions)
    looked_at = tested[chosen], predictions.iloc[chosen]

    def gradients() -> pd.DataFrame:
        start = building.build(params.all_models[name], shape, len(kept.classes), params.seed)
        if settings.whiten:
            whitening.whiten(start, Subset(images, labels, train))
        backend.make_deterministic(params.seed)  # dropout
        return gradient_flow.table(model, start, batch, one_hot, optim.loss(settings))

    with atomic_path(args.out) as folder:
        folder.mkdir()
        pictures = gallery.Pictures(folder, name)
        drawing: dict[str, Callable[[], None]] = {
            "layers": lambda: pictures.layers(rows),
            "feature_maps": lambda: pictures.feature_maps(flat, *looked_at, kept),
            "grad_cam": lambda: pictures.grad_cam(flat, *looked_at, kept),
            "flow": lambda: pictures.flow(gradients()),
            "kernels": lambda: pictures.kernels(flat),
            "filters": lambda: pictures.filters(flat, kept, batch, params.seed),
        }
        for part in told(name, [part for part in drawing if part in wanted]):
            drawing[part]()
        listed = pd.DataFrame([dataclasses.asdict(row) for row in rows])
        listed["output_shape"] = ["×".join(map(str, row.output_shape)) for row in rows]
        listed.to_csv(folder / "layers.csv", index=False)
        found = {"pictures": pictures.listed, "total": layer_table.total(rows)}
        write_json(folder / "analysis.json", found)
    print(f"analyze: {name}: {len(rows)} layers, {len(pictures.listed)} pictures -> {args.out}")


if __name__ == "__main__":
    run(main)
