"""Preprocess: decode all images into arrays, and normalize them.

Reads   data/raw/{train,test}.parquet, corrections/…
Writes  data/arrays/{train,test}/images.npy    (n, h, w, c) float32, normalized, or uint8, which
                                               is normalized when it is read
        data/arrays/{train,test}/labels.npy    (n,) int64
        data/arrays/{train,test}/SHA256SUMS    checksums of both files
        data/arrays/rows/{train,test}.parquet  id string, and metadata if the data set has any: the
                                               image in each row of the arrays
        data/arrays/corrections.json           numbers of images that were excluded, and of labels
                                               that were corrected. Apart, so that models are not
                                               trained again after a test label is corrected
        data/arrays/info.json                  class names, shape, resizing, normalization,
                                               statistics, intensity range; numbers of images
                                               read by their high byte only or by their first
                                               frame only, of skipped images, and of validation
                                               images at the end of train (0 if the data set has
                                               no validation split)
Params  preprocess
"""

import argparse
from itertools import chain, repeat
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.config.params import load
from pipeline.config.schema import Preprocess
from pipeline.core.errors import PipelineError, first_few, run
from pipeline.core.files import atomic_path, read_json, write_json
from pipeline.core.text import counted
from pipeline.data import arrays, rows
from pipeline.data.preprocessor import Preprocessor
from pipeline.ingest import corrections, decoding, parquet
from pipeline.ingest.decoding import Decoded, Options, Task
from pipeline.ingest.images import ColorAmongGrayscale

SPLITS = ("train", "test")


def statistics(histogram: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Compute the exact mean and standard deviation of each channel from its histogram.

    Args:
        histogram: Pixel counts `(c, 256)` int64.

    Returns:
        Mean and standard deviation, each `(c,)` float64, of pixels in [0, 1].
    """
    values = np.arange(256) / 255
    count = histogram.sum(axis=1)
    mean = histogram @ values / count
    variance = (histogram * (values - mean[:, None]) ** 2).sum(axis=1) / count
    return mean, np.sqrt(variance)


def standardize_group(task: Task, preprocessor: Preprocessor) -> None:
    """Standardize one group of images in [0, 1] in their file: (pixel - mean) / std."""
    images = np.array(arrays.rows(task.target, task.start, task.stop))
    arrays.write_rows(task.target, task.start, preprocessor.standardize(images))


def groups_before(row: int, tasks: list[Task], decoded: list[Decoded]) -> list[Decoded]:
    """Return the decoded groups before a row, which must be the first row of a group."""
    return [group for task, group in zip(tasks, decoded, strict=True) if task.start < row]


def decode(
    sources: dict[str, Path], folder: Path, options: Options, num_train: int
) -> tuple[dict[str, list[Task]], dict[str, list[Decoded]]]:
    """Decode every split.

    Images are decoded again if a later image turns out to be in color, or after the intensity range
    of the training images has been found.

    Args:
        sources: Parquet file of each split.
        folder: Folder for the arrays.
        options: Initial options. The returned tasks hold the final ones.
        num_train: Number of images in train before those of the validation split.

    Returns:
        The tasks of each split and their results, as `decoding.decode_all`.
    """
    try:
        tasks, decoded = decoding.decode_all(sources, folder, options)
    except ColorAmongGrayscale:
        options = options._replace(shape=(*options.shape[:2], 3))
        tasks, decoded = decoding.decode_all(sources, folder, options)
    groups = groups_before(num_train, tasks["train"], decoded["train"])
    if pixel_ranges := [pixel_range for group in groups for pixel_range in group.extremes]:
        lows, highs = zip(*pixel_ranges, strict=True)
        options = options._replace(intensity_range=(min(lows), max(highs)))
        tasks, decoded = decoding.decode_all(sources, folder, options)
    return tasks, decoded


def preprocess(raw_folder: Path, folder: Path, settings: Preprocess) -> dict:
    """Write the arrays of both splits, the ids of their rows, corrections.json and info.json.

    Args:
        raw_folder: Folder with train.parquet and test.parquet.
        folder: Folder to write: train/, test/, rows/, corrections.json and info.json.
        settings: Section `preprocess` of params.yaml.

    Returns:
        The contents of info.json. Statistics and intensity range are those of the training images,
        without the validation images at the end of train.

    Raises:
        PipelineError: A class has no images, images cannot be decoded or differ in size, or a file
            of corrections is invalid.
    """
    sources = {split: raw_folder / f"{split}.parquet" for split in SPLITS}
    source, classes = parquet.describe(sources["train"])
    ids = {split: parquet.rows(path)["id"].to_pylist() for split, path in sources.items()}
    all_ids = chain.from_iterable(ids.values())
    corrected = corrections.read(settings.exclude, settings.relabel, all_ids, classes)
    given = {split: parquet.labels(path) for split, path in sources.items()}
    labels = {split: corrected.correct(ids[split], given[split]) for split in SPLITS}
    changes = {
        "excluded": {split: sum(id in corrected.excluded for id in ids[split]) for split in SPLITS},
        "relabeled": {split: int((labels[split] != given[split]).sum()) for split in SPLITS},
    }
    num_train = len(labels["train"]) - parquet.num_validation(sources["train"])
    parquet.check_classes(source, classes, {**labels, "train": labels["train"][:num_train]})
    first = decoding.first_image(sources.values(), settings.max_megapixels, corrected.excluded)
    # if no image can be opened, decoding lists them all, whatever the shape
    first = first or Image.new("L", (1, 1))
    height, width = settings.image_size or (first.height, first.width)
    options = Options(
        shape=(height, width, 3 if first.mode == "RGB" else 1),
        resize=settings.resize if settings.image_size else None,
        dtype=settings.dtype,
        intensity_range=settings.intensity_range,
        max_megapixels=settings.max_megapixels,
        excluded=corrected.excluded,
    )
    with atomic_path(folder) as temporary:
        tasks, decoded = decode(sources, temporary, options, num_train)
        options = tasks["train"][0].options
        bad = [text for split in SPLITS for group in decoded[split] for text in group.bad]
        if bad and settings.on_bad_image == "error":
            raise PipelineError(
                f"{source}: every file must be a valid image. Got {len(bad)} that are not: "
                f"{first_few(bad, '; ')}. Replace or remove them, or set "
                "preprocess.on_bad_image: skip"
            )
        good = {split: np.concatenate([group.good for group in decoded[split]]) for split in SPLITS}
        validation = int(good["train"][num_train:].sum())
        if not validation and num_train < len(good["train"]):
            raise PipelineError(
                f"{source}: validation must contain valid images. Got none. Add some, or "
                "remove the validation split"
            )
        for split in SPLITS:
            labels[split] = labels[split][good[split]]
            np.save(temporary / split / "labels.npy", labels[split])
            rows.write(temporary, split, parquet.rows(sources[split]).filter(good[split]))
        train_labels = labels["train"][: len(labels["train"]) - validation]
        parquet.check_classes(source, classes, {**labels, "train": train_labels})
        groups = groups_before(num_train, tasks["train"], decoded["train"])
        for split in SPLITS:
            tasks[split] = decoding.close_gaps(tasks[split], decoded[split])
        mean, std = statistics(np.sum([group.histogram for group in groups], axis=0))
        info = {
            "classes": classes,
            "image_shape": list(options.shape),
            "normalize": settings.normalize,
            "mean": mean.tolist(),
            "std": std.tolist(),
            "intensity_range": options.intensity_range and list(options.intensity_range),
            "max_megapixels": settings.max_megapixels,
            "resize": settings.resize,
            "high_byte": {split: sum(g.high_byte for g in decoded[split]) for split in SPLITS},
            "multi_frame": {split: sum(g.multi_frame for g in decoded[split]) for split in SPLITS},
            "skipped": {split: sum(len(g.bad) for g in decoded[split]) for split in SPLITS},
            "validation": validation,
        }
        if settings.normalize == "standardize" and settings.dtype == "float32":
            all_tasks = list(chain.from_iterable(tasks.values()))
            with decoding.mapper(len(all_tasks)) as parallel_map:
                list(parallel_map(standardize_group, all_tasks, repeat(Preprocessor.of(info))))
        for split in SPLITS:
            arrays.seal(temporary / split)
        write_json(temporary / "corrections.json", changes)
        write_json(temporary / "info.json", info)
    return info


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--raw", type=Path, required=True)
    parser.add_argument("--arrays", type=Path, required=True)
    args = parser.parse_args(argv)
    params = load()

    info = preprocess(args.raw, args.arrays, params.preprocess)
    shape = " × ".join(map(str, info["image_shape"]))
    notes = ""
    if info["intensity_range"]:
        notes += ", {:g} to {:g} scaled to 0 to 255".format(*info["intensity_range"])
    if high_byte := sum(info["high_byte"].values()):
        notes += f", high 8 bits of {counted(high_byte, 'image')} in 16-bit color"
    if multi_frame := sum(info["multi_frame"].values()):
        notes += f", first frame of {counted(multi_frame, 'animated or multi-page file')}"
    if skipped := sum(info["skipped"].values()):
        notes += f", {counted(skipped, 'bad image')} skipped"
    changes = read_json(args.arrays / "corrections.json")
    if excluded := sum(changes["excluded"].values()):
        notes += f", {counted(excluded, 'image')} excluded"
    if relabeled := sum(changes["relabeled"].values()):
        notes += f", {counted(relabeled, 'label')} corrected"
    print(f"preprocess: {shape} images, {info['normalize']}{notes} -> {args.arrays}")


if __name__ == "__main__":
    run(main)
