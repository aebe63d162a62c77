"""Split: hold out part of the training images for validation, for each seed, and find duplicates.

If the data set has a validation split, that is used for every seed, and nothing is held out.

Reads   data/arrays/{train,test}/{images,labels}.npy, data/arrays/info.json
Writes  data/split/SEED.npz    train (k,) int64, validation (n - k,) int64: row numbers, sorted
        metrics/split.json     of the first seed's split only: number of rows, skipped images,
                               images with several frames and images of each class, for each part;
                               whether validation rows were held out; exact duplicates
Params  split.validation, seeds
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
from pipeline.core.files import atomic_path, read_json, write_json
from pipeline.core.splitting import stratified_split
from pipeline.core.text import counted
from pipeline.data import arrays

READ_VALUES = 2**20  # pixel values read at a time: 4 MiB


Split = tuple[arrays.Images | np.ndarray, np.ndarray, np.ndarray]


def duplicates(splits: Mapping[str, Split], classes: list[str]) -> dict:
    """Find identical images within splits and across them.

    Args:
        splits: Images `(n, h, w, c)`, labels `(n,)` int64 in [0, k) and row numbers of each split.
        classes: k names.

    Returns:
        `within`: number of images of each split that repeat an earlier one. `across`: number of
        distinct images that two splits share. `groups`: rows of each set of identical images.
        `conflicts`: the sets with different labels, with the class of each row.
    """
    occurrences: dict[bytes, list[tuple[str, int, int]]] = defaultdict(list)
    for split, (images, labels, rows) in splits.items():
        chunk = batch_size(images.shape[1:], READ_VALUES)
        for start in range(0, len(rows), chunk):
            chunk_rows = rows[start : start + chunk]
            for row, image in zip(chunk_rows.tolist(), images[chunk_rows], strict=True):
                digest = hashlib.blake2b(image.data, digest_size=16).digest()
                occurrences[digest].append((split, row, int(labels[row])))
    groups = [group for group in occurrences.values() if len(group) > 1]
    names = [[split for split, _, _ in group] for group in groups]
    return {
        "within": {
            split: sum(max(0, group.count(split) - 1) for group in names) for split in splits
        },
        "across": {
            f"{a}_{b}": sum(a in group and b in group for group in names)
            for a, b in combinations(splits, 2)
        },
        "groups": [[f"{split} {row}" for split, row, _ in group] for group in groups],
        "conflicts": [
            [f"{split} {row} ({classes[label]})" for split, row, label in group]
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
        remedy = "Add some, move split.validation towards 0.5, or provide a validation split"
        share = params.split.validation
        splits = [
            stratified_split(labels, info["classes"], share, seed, "split", remedy)
            for seed in params.seeds
        ]
    else:
        rows, first = np.arange(len(labels)), len(labels) - info["validation"]
        splits = [(rows[:first], rows[first:])] * len(params.seeds)
    train, validation = splits[0]
    duplicate_images = duplicates(
        {
            "train": (images, labels, train),
            "validation": (images, labels, validation),
            "test": (test_images, test_labels, np.arange(len(test_labels))),
        },
        info["classes"],
    )
    labels_by_split = {
        "train": labels[train], "validation": labels[validation], "test": test_labels
    }  # fmt: skip
    classes = info["classes"]
    class_counts = {
        split: np.bincount(split_labels, minlength=len(classes)).tolist()
        for split, split_labels in labels_by_split.items()
    }
    metrics = {
        "rows": {split: sum(counts) for split, counts in class_counts.items()},
        "held_out": held_out,
        "skipped": info["skipped"],
        "multi_frame": info["multi_frame"],
        "duplicates": duplicate_images,
        "classes": [
            {"class": name, **{split: counts[label] for split, counts in class_counts.items()}}
            for label, name in enumerate(classes)
        ],
    }
    with atomic_path(args.split) as folder:
        for seed, split in zip(params.seeds, splits, strict=True):
            arrays.write_split(folder / f"{seed}.npz", *split)
    write_json(args.metrics, metrics)
    across = sum(duplicate_images["across"].values())
    origin = "held out" if held_out else "from the data set"
    print(
        f"split: {len(train)} train, {len(validation)} validation rows ({origin}) -> {args.split}"
    )
    missing = [row["class"] for row in metrics["classes"] if not row["validation"]]
    if missing:
        print(f"split: warning: no validation images of {first_few(missing)}: too few images")
    if across:
        print(f"split: warning: {counted(across, 'image')} in two splits, see {args.metrics}")
    if conflicts := duplicate_images["conflicts"]:
        print(
            f"split: warning: {counted(len(conflicts), 'image')} in two classes, so a label is "
            f"wrong, for example {first_few(conflicts[0])}. See {args.metrics}"
        )


if __name__ == "__main__":
    run(main)
