"""Download: fetch the data set named in params.yaml; its images stay encoded.

Reads   the source of the data set; for `dataset: folder`, the images below `folder`
Writes  data/raw/{train,test}.parquet    image (bytes, path), label int64, id string; a
                                         validation split at the end of train
Params  dataset, folder, test_share, test_seed, split.group, split.group_pattern
"""

import argparse
import importlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pipeline.config.params import DATASETS, check_folder, load
from pipeline.core.errors import MAX_NAMES, first_few, run
from pipeline.core.splitting import Grouping
from pipeline.ingest import parquet


def class_counts(classes: list[str], labels: Sequence[np.ndarray]) -> str:
    """Describe the number of images of each class in one line of bounded length.

    Args:
        classes: k names.
        labels: Labels of each file, `(n,)` int64 in [0, k).
    """
    counts = np.bincount(np.concatenate(labels), minlength=len(classes))
    texts = [f"{name} {count}" for name, count in zip(classes, counts, strict=True)]
    smallest, largest = texts[np.argmin(counts)], texts[np.argmax(counts)]
    extremes = f"; smallest {smallest}, largest {largest}" if len(texts) > MAX_NAMES else ""
    return first_few(texts) + extremes


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--raw", type=Path, required=True)
    args = parser.parse_args(argv)
    params = load()
    if params.dataset == "folder":
        check_folder(params.folder)

    module = params.dataset if (DATASETS / f"{params.dataset}.py").is_file() else "tfds"
    dataset = importlib.import_module(f"pipeline.ingest.datasets.{module}").load(
        params.dataset,
        params.folder,
        params.test_share,
        params.test_seed,
        Grouping(params.split.group, params.split.group_pattern),
    )
    parquet.write(args.raw, dataset)
    counts = ", ".join(f"{size} {split}" for split, size in dataset.sizes.items())
    labels = [parquet.labels(args.raw / f"{file}.parquet") for file in ("train", "test")]
    classes = class_counts(dataset.classes, labels)
    print(
        f"download: {dataset.source}: {counts} images, {len(dataset.classes)} classes ({classes}) "
        f"-> {args.raw}"
    )


if __name__ == "__main__":
    run(main)
