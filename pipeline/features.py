"""Features: compute what the frozen layers of a model make of each training image, once.

Training then starts from the features in every epoch and with every seed, and does not run the
frozen layers again. A model has none if nothing in it is frozen, or if its images are changed at
random (augmentation) before they reach the frozen layers.

Reads   data/inputs/features/MODEL.json    what the features depend on; null: the model has none
        data/arrays/train/images.npy, data/arrays/info.json
Writes  data/features/MODEL/               features.npy (n, …) float32, one row per training image,
                                           and features.json: the hash of the frozen weights; null:
                                           no features, and nothing else is written
Params  backend, threads
"""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.config.params import load
from pipeline.config.schema import Model
from pipeline.core.batching import batch_size
from pipeline.core.errors import run
from pipeline.core.files import atomic_path, read_json, write_json
from pipeline.core.progress import progress
from pipeline.core.text import counted
from pipeline.data import arrays
from pipeline.data.features import ARRAY, RECORD
from pipeline.runtime import select_backend

if TYPE_CHECKING:
    import keras

# Of the initial weights. If the frozen ones depend on it, train does not use the features.
SEED = 0


def frozen_body(settings: dict[str, Any], info: dict[str, Any]) -> "keras.Model | None":
    """Return the frozen layers of a model, from images to features; None if it has none.

    Args:
        settings: The model's architecture and settings, and the precision to compute in.
        info: Contents of data/arrays/info.json.
    """
    from pipeline.runtime import acceleration
    from pipeline.training import building, frozen

    model_config = Model.model_validate(settings["model"])
    model = building.build(model_config, info["image_shape"], len(info["classes"]), SEED)
    precision = acceleration.resolve_precision(settings["precision"])
    parts = frozen.split(acceleration.accelerate(model, precision))
    return parts.body if parts else None


def batches(num_images: int, size: int) -> Iterator[tuple[int, int]]:
    """Yield the first row of each batch, and how many of its rows the previous batch had.

    All batches have the same size, so the last two can overlap. A smaller last batch would make
    TensorFlow trace the network again, which takes seconds.

    Args:
        num_images: At least `size`.
        size: Images per batch.
    """
    for start in range(0, num_images, size):
        first = min(start, num_images - size)
        yield first, start - first


def write(body: "keras.Model", images: arrays.Images, path: Path, name: str) -> None:
    """Write the features of all images to a .npy file, batch by batch.

    Args:
        body: From images to features.
        images: `(n, h, w, c)`.
        path: The file.
        name: Of the model, for the progress bar.
    """
    shape = (len(images), *body.output_shape[1:])
    size = min(batch_size(images.shape[1:]), len(images))
    with path.open("wb") as file:
        header = {"descr": "<f4", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        starts = list(batches(len(images), size))
        for first, seen in progress(starts, len(starts), f"features: {name}", "batch"):
            values = body.predict_on_batch(images[first : first + size])
            file.write(np.asarray(values[seen:], "<f4").tobytes())


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="a name under `models:` in params.yaml")
    parser.add_argument("--inputs", type=Path, required=True)
    parser.add_argument("--arrays", type=Path, required=True)
    parser.add_argument("--features", type=Path, required=True)
    args = parser.parse_args(argv)
    params = load()

    settings = read_json(args.inputs)
    record, description = None, "no frozen layers"
    with atomic_path(args.features) as folder:
        folder.mkdir()
        if settings:
            images, _ = arrays.load(args.arrays / "train")
            select_backend.use(params.backend, params.threads)
            from pipeline.training.frozen import weights_hash

            if body := frozen_body(settings, read_json(args.arrays / "info.json")):
                write(body, images, folder / ARRAY, args.model)
                arrays.seal(folder)
                record = {"weights": weights_hash(body)}
                size = "×".join(map(str, body.output_shape[1:]))
                description = f"{size} values of each of {counted(len(images), 'image')}"
        write_json(folder / RECORD, record)
    print(f"features: {args.model}: {description} -> {args.features}")


if __name__ == "__main__":
    run(main)
