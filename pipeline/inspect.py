"""Inspect: what one trained network is made of, responds to, looks at, and where it learns.

Reads   models/MODEL.keras, data/arrays/…, data/split.npz, plots/predictions/MODEL.csv
Writes  plots/inspect/MODEL/    layers.csv, flow.csv, pictures, and inspect.json, which lists
                                the pictures with their titles and descriptions
Params  models.MODEL or finetune.MODEL, train, seed, backend

`python -m pipeline.inspect models/MODEL.keras --table` shows the layers of any model that is
trained here, and writes nothing.
"""

import argparse
import dataclasses
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
import pandas as pd
from rich.console import Console
from rich.table import Table

from pipeline import arrays, engine, preprocessing
from pipeline.errors import PipelineError, run
from pipeline.files import read_json, replacing, write_json
from pipeline.params import load

if TYPE_CHECKING:
    import keras
    from matplotlib.figure import Figure

    from pipeline.inspect_plot import Shown
    from pipeline.layers import Row

# Images that gradients, responses and statistics are taken from; fewer where they are large, since
# all feature maps are kept at once.
BATCH = 256
BATCH_VALUES = 2**21
LOOKED_AT = 4  # test images each that it got right and wrong, the surest of them
COLOURS = (1, 3)  # channels that can be drawn


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
    from pipeline.layers import total

    table = Table(title=f"{name}: one image", title_style="bold")
    names = ["layer", "type", "output", "parameters", "trained", "MACs", "sees", "stride", "bytes"]
    for number, heading in enumerate(names):
        table.add_column(heading, justify="left" if number < 2 else "right", no_wrap=True)
    for row in rows:
        numbers = (row.parameters, row.trainable, row.macs)
        output = "×".join(map(str, row.output_shape))
        cells = [f"{number:,}" if number else "" for number in numbers]
        tail = (row.receptive_field, row.stride, f"{row.activation_bytes:,}")
        table.add_row(row.name, row.type, output, *cells, *tail)
    sums = total(rows)
    table.add_section()
    sums_of = [f"{sums[key]:,}" for key in ("parameters", "trainable", "macs")]
    table.add_row("total", "", "", *sums_of, "", "", f"{sums['activation_bytes']:,}")
    # a pipe or a log has no width of its own, and a cut table says nothing
    console = Console()
    Console(width=console.width if console.is_terminal else 160).print(table)


class Pictures:
    """Writes pictures into a folder and lists them."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.listed: list[dict[str, str]] = []

    def add(self, file: str, figure: "Figure", title: str, alt: str) -> None:
        from matplotlib import pyplot as plt

        path = self.folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        # without the version of matplotlib in it
        figure.savefig(
            path, format="png", dpi=100, bbox_inches="tight", metadata={"Software": None}
        )
        plt.close(figure)
        self.listed.append({"file": file, "title": title, "alt": alt})


def learned(
    model: "keras.Model",
    kept: preprocessing.Preprocessing,
    images: np.ndarray,
    seed: int,
    pictures: Pictures,
) -> None:
    """Draw the kernels of the first layer, and what the filters of each convolution respond to."""
    from pipeline import ascent, inspect_plot
    from pipeline.layers import CONVOLUTIONS

    first = next((layer for layer in model.layers if isinstance(layer, CONVOLUTIONS)), None)
    if first and (kernel := first.get_weights()[0]).shape[2] in COLOURS:
        alt = f"{kernel.shape[-1]} kernels of {kernel.shape[0]} by {kernel.shape[1]} pixels"
        figure = inspect_plot.kernels(kernel, first.name)
        pictures.add("kernels.png", figure, f"{first.name}: kernels", alt)
    every = ascent.convolutions(model, images)
    painted = ascent.paint(model, every, kept, seed)
    for number, (convolution, found) in enumerate(zip(every, painted, strict=True), 1):
        pictures.add(
            f"filters/{number:02}_{convolution.name}.png",
            inspect_plot.filters(found, convolution.strongest, convolution.name),
            f"{convolution.name}: what filters respond to",
            f"{len(found)} pictures painted by gradient ascent, one a filter of {convolution.name}",
        )


def looked(
    model: "keras.Model", images: np.ndarray, every: "list[Shown]", kept: Any, pictures: Pictures
) -> None:
    """Draw feature maps of the surest right and wrong answer, and Grad-CAM of all chosen."""
    from pipeline import inspect_plot
    from pipeline.grad_cam import grad_cam
    from pipeline.layers import CONVOLUTIONS, nodes, values_of

    if not every:
        return
    found = [node for node in nodes(model) if isinstance(node.operation, CONVOLUTIONS)]
    if found:
        outputs = values_of(model, [node.output_tensors[0] for node in found], images)
        for kind, right in (("right", True), ("wrong", False)):
            rows = [
                i for i, shown in enumerate(every) if (shown.actual == shown.predicted) == right
            ]
            if rows:
                own = {
                    node.operation.name: values[rows[0]]
                    for node, values in zip(found, outputs, strict=True)
                }
                pictures.add(
                    f"feature_maps_{kind}.png",
                    inspect_plot.feature_maps(every[rows[0]], own),
                    f"Feature maps, surest {kind} answer",
                    f"The image and eight feature maps of each convolution: {every[rows[0]].title}",
                )
    classes = np.array([kept.classes.index(shown.predicted) for shown in every])
    heat = grad_cam(model, images, classes)
    if heat is not None:
        answers = "; ".join(shown.title.replace("\n", ", ") for shown in every)
        pictures.add(
            "grad_cam.png",
            inspect_plot.attention(every, heat),
            "Where it looks",
            f"Test images with a heat map of what spoke for the answer: {answers}",
        )


def flow_table(
    model: "keras.Model", start: "keras.Model", part: Any, loss: Any, num_classes: int
) -> pd.DataFrame:
    """Return a row a layer: norms at the start and at the end, silent ReLUs, moving averages.

    Args:
        model: Trained.
        start: The same network before its training.
        part: The images to take them from.
        loss: As trained with.
        num_classes: k.
    """
    from pipeline import flow, speed
    from pipeline.batches import Batches
    from pipeline.layers import unnested

    images, labels = Batches(part, num_classes, BATCH)[0]
    flat = unnested(model)
    others = pd.DataFrame({"silent": pd.Series(flow.silent(flat, images), dtype=float)})
    moving = pd.DataFrame.from_dict(flow.moving_against_batch(flat, images), orient="index")
    moving = moving.reindex(columns=["mean", "variance"])
    names = [layer.name for layer in flow.weighted(model)]
    norms = pd.DataFrame(index=names)
    for when, network in (("start", start), ("end", model)):
        # the kernels of training, since Keras's own batch normalization does not repeat to the bit
        twin = speed.faster(network, "float32")
        found = pd.DataFrame(flow.norms(twin, images, labels, loss), index=names)
        norms[[f"{kind}_{when}" for kind in found]] = found.astype(float)
    order = [layer.name for layer in flat.layers if layer.name in {*names, *others.index}]
    return norms.join(others, how="outer").join(moving).loc[order].rename_axis("layer")


def sample(rows: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Return rows for one batch of images of a shape, evenly spaced."""
    count = max(1, min(BATCH, BATCH_VALUES // math.prod(shape)))
    return rows[np.unique(np.linspace(0, len(rows) - 1, count).astype(int))]


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, help="models/MODEL.keras")
    parser.add_argument("--table", action="store_true", help="show the layers, and write nothing")
    for path in ("arrays", "split", "predictions", "out"):
        parser.add_argument(f"--{path}", type=Path)
    args = parser.parse_args(argv)
    if not args.table and not all((args.arrays, args.split, args.predictions, args.out)):
        parser.error("--arrays, --split, --predictions and --out are needed, or --table")
    return args


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    if args.table:
        preprocessing.read(args.model)  # says what is wrong with a file, before Keras is imported
        engine.use(os.environ.get("KERAS_BACKEND", "tensorflow"))
        from pipeline import backend, layers

        show(layers.table(layers.unnested(backend.load(args.model))), args.model.stem)
        return
    inspect(args)


def inspect(args: argparse.Namespace) -> None:
    params, name = load(), args.model.stem
    kept = preprocessing.read(args.model)
    if name not in params.all_models:
        raise PipelineError(
            f"inspect: {name} must be one of {', '.join(params.all_models)} in params.yaml"
        )
    if not args.predictions.is_file():
        raise PipelineError(f"{args.predictions}: no such file. Run `dvc repro`")
    # a class may be called NA, or 7
    text = {"actual": str, "predicted": str}
    predictions = pd.read_csv(args.predictions, dtype=text, keep_default_na=False)
    images, labels = arrays.load(args.arrays / "train")
    train, _ = arrays.read_split(args.split, len(labels))
    tested, _ = arrays.load(args.arrays / "test")

    matplotlib.use("agg")
    matplotlib.rcParams["text.parse_math"] = False  # a class name may hold a $
    engine.use(params.backend)
    from pipeline import backend, building, inspect_plot, layers, recipe, whitening
    from pipeline.batches import Part

    settings = params.train_of(name)
    info = read_json(args.arrays / "info.json")
    part = Part(images, labels, sample(train, images.shape[1:]))
    model = backend.load(args.model)
    start = building.build(
        params.all_models[name], info["image_shape"], len(kept.classes), params.seed
    )
    if settings.whiten:
        whitening.whiten(start, Part(images, labels, train))
    flat = layers.unnested(model)
    rows = layers.table(flat)
    with replacing(args.out) as folder:
        folder.mkdir()
        pictures = Pictures(folder)
        pictures.add("layers.png", inspect_plot.layers(rows, name), "Layers", described(rows))
        chosen = surest(predictions)
        every = [
            inspect_plot.Shown(kept.visible(tested[row]), *predictions.iloc[row][COLUMNS])
            for row in chosen
        ]
        if kept.image_shape[2] in COLOURS:
            looked(flat, tested[chosen], every, kept, pictures)
        backend.make_repeatable(params.seed)  # dropout
        table = flow_table(model, start, part, recipe.loss(settings), len(kept.classes))
        figure = inspect_plot.flow(table, name)
        pictures.add("flow.png", figure, "Gradients and weights", "\n".join(spoken(table)))
        learned(flat, kept, images[part.rows], params.seed, pictures)
        table.to_csv(folder / "flow.csv", float_format="%.6g")
        listed = pd.DataFrame([dataclasses.asdict(row) for row in rows])
        listed["output_shape"] = ["×".join(map(str, row.output_shape)) for row in rows]
        listed.to_csv(folder / "layers.csv", index=False)
        found = {"pictures": pictures.listed, "total": layers.total(rows)}
        write_json(folder / "inspect.json", found)
    print(f"inspect: {name}: {len(rows)} layers, {len(pictures.listed)} pictures -> {args.out}")


COLUMNS = ["actual", "predicted", "confidence"]


def described(rows: "list[Row]") -> str:
    from pipeline.layers import total

    sums = total(rows)
    return (
        f"Bars of {len(rows)} layers: {sums['parameters']:,} parameters, {sums['macs']:,} "
        "multiply-accumulates. The same numbers stand in the table of layers"
    )


def spoken(table: pd.DataFrame) -> Iterator[str]:
    """Yield in words what the picture of the flow shows."""
    yield "Norms of gradients and weights of each layer, at the start and at the end of training."
    for column, form in (
        ("silent", "Most silent ReLUs: {:.0%}, in {}."),
        ("mean", "Moving mean farthest from the batch's: {:.2g} σ, {}."),
    ):
        if table[column].notna().any():
            yield form.format(table[column].max(), table[column].idxmax())


if __name__ == "__main__":
    run(main)
