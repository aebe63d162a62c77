"""Split: hold out part of the training images for validation, for each seed, and find duplicates.

If the data set has a validation split, that is used for every seed, and nothing is held out. With
`split.validation: 0` and no such split, all training images are trained on.

Reads   data/arrays/{train,test}/{images,labels}.npy, data/arrays/rows/{train,test}.parquet,
        data/arrays/info.json
Writes  data/split/SEED.npz    train (k,) int64, validation (n - k,) int64: row numbers, sorted
        metrics/split.json     of the first seed's split only: number of rows, skipped images,
                               images with several frames and images of each class, for each part;
                               whether validation rows were held out; number of groups, and of
                               groups in two splits; exact and near-duplicates by id; images with
                               a duplicate in an earlier split: their number, rows of those in test
Params  seeds, split
"""

import argparse
import hashlib
from collections import defaultdict
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from pipeline.config import schema
from pipeline.config.params import load
from pipeline.core.batching import batch_size
from pipeline.core.errors import PipelineError, first_few, run
from pipeline.core.files import atomic_path, read_json, write_json
from pipeline.core.splitting import Grouping, stratified_folds, stratified_split
from pipeline.core.text import counted
from pipeline.data import arrays, near_duplicates, rows

SPLITS = ("train", "validation", "test")
READ_VALUES = 2**20  # pixel values read at a time: 4 MiB


class Contents(NamedTuple):
    """What is compared of n images."""

    digests: list[bytes]
    """Equal for images with the same pixels"""
    spectra: np.ndarray
    """Of `near_duplicates.spectra`, float16"""


def describe(images: arrays.Images | np.ndarray) -> Contents:
    """Read images `(n, h, w, c)` once, and return what is compared of each."""
    digests, spectra = [], []
    chunk = batch_size(images.shape[1:], READ_VALUES)
    for start in range(0, len(images), chunk):
        part = images[start : start + chunk]
        digests += [hashlib.blake2b(image.data, digest_size=16).digest() for image in part]
        spectra.append(near_duplicates.spectra(part).astype(np.float16))
    return Contents(digests, np.concatenate(spectra))


def exact_groups(digests: Sequence[bytes]) -> list[list[int]]:
    """Return the numbers of the images in each group of two or more identical images."""
    numbers = defaultdict(list)
    for number, digest in enumerate(digests):
        numbers[digest].append(number)
    return [group for group in numbers.values() if len(group) > 1]


def near_groups(contents: Contents, labels: np.ndarray) -> list[list[int]]:
    """Return the numbers of the images in each group that near-duplicates connect.

    A group also contains the exact duplicates of its images.

    Args:
        contents: Of n images.
        labels: `(n,)` int64.
    """
    digests = np.array([int.from_bytes(digest[:8]) for digest in contents.digests], np.uint64)
    _, firsts, kinds = np.unique(digests, return_index=True, return_inverse=True)
    found = near_duplicates.find(contents.spectra[firsts], labels[firsts])
    edges = (np.ones(len(found.pairs)), found.pairs.T)
    _, components = connected_components(coo_array(edges, shape=(len(firsts),) * 2))
    groups = defaultdict(list)
    connected = np.isin(components, components[found.pairs.ravel()])
    for number, kind in enumerate(kinds.tolist()):
        if connected[kind]:
            groups[int(components[kind])].append(number)
    return list(groups.values())


def summarize(
    groups: list[list[int]],
    splits: Sequence[str],
    ids: Sequence[str],
    labels: np.ndarray,
    classes: list[str],
) -> dict:
    """Describe groups of duplicates.

    Args:
        groups: Numbers of the images in each group.
        splits: Split of each of n images.
        ids: Id of each image.
        labels: `(n,)` int64 in [0, k).
        classes: k names.

    Returns:
        `within`: number of images of each split that repeat another one in it. `across`: number of
        groups that two splits share. `groups`: split and id of each image, groups across splits
        first. `conflicts`: the groups with different labels, with the class of each image.
    """
    names = [[splits[number] for number in group] for group in groups]
    return {
        "within": {
            split: sum(max(0, group.count(split) - 1) for group in names) for split in SPLITS
        },
        "across": {
            f"{a}_{b}": sum(a in group and b in group for group in names)
            for a, b in combinations(SPLITS, 2)
        },
        "groups": [
            [f"{splits[number]} {ids[number]}" for number in group]
            for group in sorted(groups, key=lambda group: len({splits[n] for n in group}) == 1)
        ],
        "conflicts": [
            [f"{splits[number]} {ids[number]} ({classes[labels[number]]})" for number in group]
            for group in groups
            if len(set(labels[group])) > 1
        ],
    }


def leaked(groups: list[list[int]], splits: Sequence[str], split: str) -> list[int]:
    """Return the numbers of the images of a split that have a duplicate in an earlier split.

    Args:
        groups: Numbers of the images in each group.
        splits: Split of each of n images.
        split: validation or test.
    """
    earlier = SPLITS[: SPLITS.index(split)]
    numbers = [
        number for group in groups for number in group
        if splits[number] == split and any(splits[n] in earlier for n in group)
    ]  # fmt: skip
    return sorted(set(numbers))


def held_out_splits(
    settings: schema.Split,
    seeds: list[int],
    labels: np.ndarray,
    classes: list[str],
    groups: np.ndarray | None,
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return the rows of the training and the validation images for each seed.

    Args:
        settings: Section `split` of params.yaml.
        seeds: Of the trainings. The first one determines the folds.
        labels: `(n,)` int64 in [0, k).
        classes: k names.
        groups: `(n,)`, images that are not divided; None: there are none.
    """
    if settings.method == "folds":
        remedy = "Add images, use fewer seeds, or set split.method: holdout"
        return stratified_folds(labels, classes, len(seeds), seeds[0], "split", remedy, groups)
    remedy = "Add some, move split.validation towards 0.5, or provide a validation split"
    return [
        stratified_split(labels, classes, settings.validation, seed, "split", remedy, groups)
        for seed in seeds
    ]


def describe_groups(groups: np.ndarray, splits: Sequence[str]) -> dict:
    """Return the number of groups, and of those that two splits share.

    Args:
        groups: `(n,)`.
        splits: Split of each of n images.
    """
    members = {split: set(groups[np.array(splits) == split].tolist()) for split in SPLITS}
    return {
        "groups": len(np.unique(groups)),
        "across": {f"{a}_{b}": len(members[a] & members[b]) for a, b in combinations(members, 2)},
    }


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arrays", type=Path, required=True)
    parser.add_argument("--split", type=Path, required=True)
    parser.add_argument("--metrics", type=Path, required=True)
    args = parser.parse_args(argv)
    params = load()
    settings = params.split

    train_images, train_labels = arrays.load(args.arrays / "train")
    test_images, test_labels = arrays.load(args.arrays / "test")
    num_train = len(train_labels)
    labels = np.concatenate([train_labels, test_labels])
    ids = [id for file in ("train", "test") for id in rows.ids(args.arrays, file)]
    info = read_json(args.arrays / "info.json")
    classes = info["classes"]
    if info["validation"] and settings.method == "folds":
        raise PipelineError(
            "params.yaml: split.method must be holdout, because the data set has a validation "
            "split. Got folds. Change it, or move the validation images to train"
        )
    grouping = Grouping(settings.group, settings.group_pattern)
    metadata = [
        values
        for file in ("train", "test")
        if settings.group is not None
        for values in rows.metadata(args.arrays, file).to_dict("records")
    ]
    groups = grouping.groups("split", ids, metadata)
    held_out = not info["validation"] and settings.holds_out
    if held_out:
        train_groups = None if groups is None else groups[:num_train]
        splits = held_out_splits(settings, params.seeds, train_labels, classes, train_groups)
    else:
        all_rows, first = np.arange(num_train), num_train - info["validation"]
        splits = [(all_rows[:first], all_rows[first:])] * len(params.seeds)

    train, validation = splits[0]
    split_of = np.array(["train"] * num_train + ["test"] * len(test_labels), "U10")
    split_of[validation] = "validation"
    names = split_of.tolist()
    class_counts = {
        split: np.bincount(labels[split_of == split], minlength=len(classes)).tolist()
        for split in SPLITS
    }
    described = [describe(train_images), describe(test_images)]
    contents = Contents(
        described[0].digests + described[1].digests,
        np.concatenate([part.spectra for part in described]),
    )
    exact, near = exact_groups(contents.digests), near_groups(contents, labels)
    leaks = {split: leaked(exact + near, names, split) for split in SPLITS[1:]}
    metrics = {
        "rows": {split: sum(counts) for split, counts in class_counts.items()},
        "held_out": held_out,
        "skipped": info["skipped"],
        "multi_frame": info["multi_frame"],
        "grouped": None if groups is None else describe_groups(groups, names),
        "duplicates": summarize(exact, names, ids, labels, classes),
        "near_duplicates": summarize(near, names, ids, labels, classes),
        "leaked": {split: len(numbers) for split, numbers in leaks.items()},
        "leaked_test_rows": [number - num_train for number in leaks["test"]],
        "classes": [
            {"class": name, **{split: counts[label] for split, counts in class_counts.items()}}
            for label, name in enumerate(classes)
        ],
    }
    with atomic_path(args.split) as folder:
        for seed, split in zip(params.seeds, splits, strict=True):
            arrays.write_split(folder / f"{seed}.npz", *split)
    write_json(args.metrics, metrics)
    origin = "from the data set" if info["validation"] else "held out"
    print(
        f"split: {len(train)} train, {len(validation)} validation rows ({origin}) -> {args.split}"
    )
    for warning in warnings(metrics):
        print(f"split: warning: {warning}. See {args.metrics}")


def warnings(metrics: dict) -> list[str]:
    """Return what makes results of these splits doubtful.

    Args:
        metrics: Contents of metrics/split.json.
    """
    texts = []
    missing = [row["class"] for row in metrics["classes"] if not row["validation"]]
    if missing and metrics["rows"]["validation"]:
        texts.append(f"no validation images of {first_few(missing)}: too few images")
    if across := sum((metrics["grouped"] or {"across": {}})["across"].values()):
        texts.append(f"{counted(across, 'group')} in two splits of the data set")
    for split, count in metrics["leaked"].items():
        if count:
            earlier = " or ".join(SPLITS[: SPLITS.index(split)])
            texts.append(f"{counted(count, f'{split} image')} with a duplicate in {earlier}")
    if conflicts := metrics["duplicates"]["conflicts"]:
        texts.append(
            f"{counted(len(conflicts), 'image')} in two classes, so a label is wrong, for example "
            f"{first_few(conflicts[0])}"
        )
    return texts


if __name__ == "__main__":
    run(main)
