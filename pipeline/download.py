"""Download: fetch the data set named in params.yaml, its images encoded as they came.

Reads   the data set's source; for `dataset: folder`, the images below `folder`
Writes  data/raw/{train,test}.parquet    image (bytes, path), label int64, id string
Params  dataset, folder, test_share, test_seed
"""

import argparse
import importlib
from pathlib import Path

from pipeline import raw
from pipeline.errors import run
from pipeline.params import DATASETS, load


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--raw", type=Path, required=True)
    args = parser.parse_args(argv)
    params = load()

    module = params.dataset if (DATASETS / f"{params.dataset}.py").is_file() else "tfds"
    dataset = importlib.import_module(f"pipeline.datasets.{module}").load(
        params.dataset, params.folder, params.test_share, params.test_seed
    )
    raw.write(args.raw, dataset)
    counts = ", ".join(f"{size} {split}" for split, size in dataset.sizes.items())
    print(
        f"download: {dataset.source}: {counts} images, {len(dataset.classes)} classes -> {args.raw}"
    )


if __name__ == "__main__":
    run(main)
