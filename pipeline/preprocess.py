"""Preprocess: decode every image into arrays, of which any rows can be read.

Reads   data/raw/{train,test}.parquet
Writes  data/arrays/{train,test}/images.npy    (n, h, w, c) float32, normalized, or uint8, which
                                               is normalized when it is read
        data/arrays/{train,test}/labels.npy    (n,) int64
        data/arrays/{train,test}/SHA256SUMS    of these files
        data/arrays/info.json                  class names, shape, normalization, statistics,
                                               intensity range, images of which only the high
                                               byte was read, images skipped, validation images
                                               at the end of train (0: the data set has no
                                               validation split)
Params  preprocess
"""

import argparse
from itertools import repeat
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.config.params import load
from pipeline.config.schema import Preprocess
from pipeline.core.errors import PipelineError, first_few, run
from pipeline.core.files import atomic_path, write_json
from pipeline.data import arrays
from pipeline.data.preprocessor import Preprocessor
from pipeline.ingest import decoding, parquet
from pipeline.ingest.decoding import Decoded, Options, Task
from pipeline.ingest.images import ColourAmongGrey

SPLITS = ("train", "test")


def statistics(histogram: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and standard deviation of each channel, exactly, from its histogram.

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
    """Turn one group of images in [0, 1] into (pixel - mean) / std, in place."""
    preprocessor.standardize(arrays.rows(task.target, task.start, task.stop))


def before(row: int, tasks: list[Task], decoded: list[Decoded]) -> list[Decoded]:
    """Return the groups before a row, which is the first of one."""
    return [group for task, group in zip(tasks, decoded, strict=True) if task.start < row]


def decode(
    sources: dict[str, Path], folder: Path, options: Options, num_train: int
) -> tuple[dict[str, list[Task]], dict[str, list[Decoded]]]:
    """Decode every split, and again with what is known only then: colour, and the range of pixels.

    Args:
        sources: Parquet file of each split.
        folder: Gets the arrays.
        options: To begin with; the tasks that are returned have those that were used.
        num_train: Images of train that are not the data set's own validation split.

    Returns:
        As `decoding.decode_all`.
    """
    try:
        tasks, decoded = decoding.decode_all(sources, folder, options)
    except ColourAmongGrey:
        options = options._replace(shape=(*options.shape[:2], 3))
        tasks, decoded = decoding.decode_all(sources, folder, options)
    groups = before(num_train, tasks["train"], decoded["train"])
    if found := [pair for group in groups for pair in group.extremes]:
        lows, highs = zip(*found, strict=True)
        options = options._replace(intensity_range=(min(lows), max(highs)))
        tasks, decoded = decoding.decode_all(sources, folder, options)
    return tasks, decoded


def preprocess(raw_folder: Path, folder: Path, settings: Preprocess) -> dict:
    """Write the arrays of both splits, and info.json.

    Args:
        raw_folder: Holds train.parquet and test.parquet.
        folder: Gets train/, test/ and info.json.
        settings: Of params.yaml.

    Returns:
        What info.json holds: class names, image shape, normalization, statistics, the intensity
        range, the number of images skipped, and how many images at the end of train are a
        validation split of the data set's own. Statistics and range are those of the images
        before these.

    Raises:
        PipelineError: A class has no images, or images cannot be decoded or differ in size.
    """
    sources = {split: raw_folder / f"{split}.parquet" for split in SPLITS}
    source, classes = parquet.describe(sources["train"])
    labels = {split: parquet.labels(path) for split, path in sources.items()}
    num_train = len(labels["train"]) - parquet.num_validation(sources["train"])
    parquet.check_classes(source, classes, {**labels, "train": labels["train"][:num_train]})
    # without a first one all are bad, whatever the shape, and decoding lists them
    first = decoding.first_image(sources.values(), settings.max_megapixels)
    first = first or Image.new("L", (1, 1))
    height, width = settings.image_size or (first.height, first.width)
    options = Options(
        shape=(height, width, 3 if first.mode == "RGB" else 1),
        resize=settings.image_size is not None,
        dtype=settings.dtype,
        intensity_range=settings.intensity_range,
        max_megapixels=settings.max_megapixels,
    )
    with atomic_path(folder) as beside:
        tasks, decoded = decode(sources, beside, options, num_train)
        options = tasks["train"][0].options
        bad = [text for split in SPLITS for group in decoded[split] for text in group.bad]
        if bad and settings.on_bad_image == "error":
            raise PipelineError(
                f"{source}: every file must be a sound image. Got {len(bad)} of another kind: "
                f"{first_few(bad, '; ')}. Replace or remove them, or set "
                "preprocess.on_bad_image: skip"
            )
        good = {split: np.concatenate([g.good for g in decoded[split]]) for split in SPLITS}
        validation = int(good["train"][num_train:].sum())
        if not validation and num_train < len(good["train"]):
            raise PipelineError(
                f"{source}: validation must hold images. Got none that can be read. Add some, or "
                "remove the validation split"
            )
        for split in SPLITS:
            labels[split] = labels[split][good[split]]
            np.save(beside / split / "labels.npy", labels[split])
        trained_on = labels["train"][: len(labels["train"]) - validation]
        parquet.check_classes(source, classes, {**labels, "train": trained_on})
        groups = before(num_train, tasks["train"], decoded["train"])
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
            "high_byte": {split: sum(g.high_byte for g in decoded[split]) for split in SPLITS},
            "skipped": {split: sum(len(g.bad) for g in decoded[split]) for split in SPLITS},
            "validation": validation,
        }
        if settings.normalize == "standardize" and settings.dtype == "float32":
            every = [task for own in tasks.values() for task in own]
            with decoding.mapper(len(every)) as run_all:
                list(run_all(standardize_group, every, repeat(Preprocessor.of(info))))
        for split in SPLITS:
            arrays.seal(beside / split)
        write_json(beside / "info.json", info)
    return info


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--raw", type=Path, required=True)
    parser.add_argument("--arrays", type=Path, required=True)
    args = parser.parse_args(argv)
    params = load()

    info = preprocess(args.raw, args.arrays, params.preprocess)
    shape = " × ".join(map(str, info["image_shape"]))
    scaled = "{:g} to {:g} as 0 to 255".format(*info["intensity_range"] or (0, 255))
    deep = f", {scaled}" if info["intensity_range"] else ""
    if high_byte := sum(info["high_byte"].values()):
        deep += f", {high_byte} in colour of 16 bits by their high 8"
    skipped = sum(info["skipped"].values())
    tail = f", {skipped} skipped as bad" if skipped else ""
    print(f"preprocess: {shape} images, {info['normalize']}{deep}{tail} -> {args.arrays}")


if __name__ == "__main__":
    run(main)
