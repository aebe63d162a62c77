"""Split: hold out part of the training images for validation, and look for leaks.

A data set that brings a validation split keeps it, whatever the seed: nothing is held out.

Reads   data/arrays/{train,test}/{images,labels}.npy, data/arrays/info.json
Writes  data/split.npz        train (k,) int64, validation (n - k,) int64: row numbers, sorted
        metrics/split.json    rows and exact duplicates of each part, whether validation rows
                              were held out, images of each class and in two classes, images
                              that preprocess skipped
Params  split.validation, seed
"""

import argparse
import hashlib
from collections import defaultdict
from collections.abc import Mapping
from itertools import combinations
from pathlib import Path

import numpy as np

from pipeline.config.params import load
from pipeline.core.batching import batch_size
from pipeline.core.errors import first_few, run
from pipeline.core.files import read_json, write_json
from pipeline.core.splitting import stratified_split
from pipeline.data import arrays

READ_VALUES = 2**20  # at a time: 4 MiB


Part = tuple[arrays.Images | np.ndarray, np.ndarray, np.ndarray]


def duplicates(parts: Mapping[str, Part], classes: list[str]) -> dict:
    """Find images that are equal to the last bit, within parts and across them.

    Args:
        parts: Name to images `(n, h, w, c)` and their labels `(n,)` int64 in [0, k), and the row
            numbers that belong to the part.
        classes: k names.

    Returns:
        Number of images that repeat an earlier one `within` each part; number of distinct
        images that two parts share, `across`; their rows, as `groups`; and those of them that
        stand in two classes, so that one label is wrong, with each class, as `conflicts`.
    """
    places: dict[bytes, list[tuple[str, int, int]]] = defaultdict(list)
    for part, (images, labels, rows) in parts.items():
        chunk = batch_size(images.shape[1:], READ_VALUES)
        for at in range(0, len(rows), chunk):
            some = rows[at : at + chunk]
            for row, image in zip(some.tolist(), images[some], strict=True):
                digest = hashlib.blake2b(image.data, digest_size=16).digest()
                places[digest].append((part, row, int(labels[row])))
    groups = [group for group in places.values() if len(group) > 1]
    names = [[part for part, _, _ in group] for group in groups]
    return {
        "within": {part: sum(max(0, group.count(part) - 1) for group in names) for part in parts},
        "across": {
            f"{a}_{b}": sum(a in g and b in g for g in names) for a, b in combinations(parts, 2)
        },
        "groups": [[f"{part} {row}" for part, row, _ in group] for group in groups],
        "conflicts": [
            [f"{part} {row} ({classes[label]})" for part, row, label in group]
            for group in groups
            if len({label for _, _, label in group}) > 1
        ],
    }


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arrays", type=Path, required=True)
    parser.add_argument("--split", type=Path, required=True)
    parser.add_argument("--metrics", type=Path, required=True)
    args = parser.parse_args(argv)
    params = load()

    images, labels = arrays.load(args.arrays / "train")
    test_images, test_labels = arrays.load(args.arrays / "test")
    info = read_json(args.arrays / "info.json")
    held_out = not info["validation"]
    if held_out:
        remedy = "Add some, move split.validation towards 0.5, or bring a validation split"
        train, validation = stratified_split(
            labels, info["classes"], params.split.validation, params.seed, "split", remedy
        )
    else:
        train, validation = np.split(np.arange(len(labels)), [len(labels) - info["validation"]])
    found = duplicates(
        {
            "train": (images, labels, train),
            "validation": (images, labels, validation),
            "test": (test_images, test_labels, np.arange(len(test_labels))),
        },
        info["classes"],
    )
    parts = {"train": labels[train], "validation": labels[validation], "test": test_labels}
    metrics = {
        "rows": {part: len(own) for part, own in parts.items()},
        "held_out": held_out,
        "skipped": info["skipped"],
        "duplicates": found,
        "classes": [
            {"class": name, **{part: int((own == label).sum()) for part, own in parts.items()}}
            for label, name in enumerate(info["classes"])
        ],
    }
    arrays.write_split(args.split, train, validation)
    write_json(args.metrics, metrics)
    across = sum(found["across"].values())
    origin = "held out" if held_out else "of the data set, nothing held out"
    print(
        f"split: {len(train)} train, {len(validation)} validation rows ({origin}) -> {args.split}"
    )
    missing = [row["class"] for row in metrics["classes"] if not row["validation"]]
    if missing:
        print(f"split: warning: no validation images of {first_few(missing)}: too few of it")
    if across:
        print(f"split: warning: {across} images stand in two parts, see {args.metrics}")
    if conflicts := found["conflicts"]:
        print(
            f"split: warning: {len(conflicts)} images stand in two classes, as "
            f"{first_few(conflicts[0])}: one label is wrong, see {args.metrics}"
        )


if __name__ == "__main__":
    run(main)
