"""Input pipeline: batches of images and labels for Keras's fit and predict."""

import math
from typing import Any, NamedTuple

import keras
import numpy as np

from pipeline.runtime import distributed


class Subset(NamedTuple):
    """A subset of the images of a data set, such as the training split."""

    images: Any
    """`(n, h, w, c)` float32, indexed by row numbers; need not be in memory"""
    labels: np.ndarray
    """`(n,)` int64, in [0, k)"""
    rows: np.ndarray
    """`(m,)` int64: row numbers of the images in the subset"""


class Batches(keras.utils.PyDataset):
    """Batches of a subset, read on demand, so that memory does not grow with the data set.

    In distributed training each process reads its own shard of every batch.

    Yields:
        Images `(b, h, w, c)` float32, or their rows `(b,)` int32, and one-hot labels
        `(b, num_classes)` float32. With `mirror`, `(images, mirrored)` instead of images, where
        mirrored is `(b,)` bool.
    """

    def __init__(
        self,
        subset: Subset,
        num_classes: int,
        batch_size: int,
        shuffle: int | None = None,
        rows_only: bool = False,
        mirror: bool = False,
    ):
        """Args:
        shuffle: Seed to shuffle with, again in every epoch; None: the order of the subset.
        rows_only: Yield row numbers instead of images, for a model that looks them up.
        mirror: Whether to mark images to mirror: each image in every other epoch, half of them
            in the first epoch (Jordan 2024). Without `shuffle`, as in validation, no image is
            marked.
        """
        super().__init__()
        self.rows_only = rows_only
        self.subset, self.num_classes, self.batch_size = subset, num_classes, batch_size
        self.random = None if shuffle is None else np.random.default_rng(shuffle)
        self.rows = subset.rows
        self.mirrored: np.ndarray | None = None  # (n,) bool, by row number
        if mirror:
            self.mirrored = np.zeros(len(subset.labels), bool)
            if self.random is not None:
                self.mirrored = self.random.random(len(subset.labels)) < 0.5
        self.on_epoch_end()

    def __len__(self) -> int:
        return math.ceil(len(self.rows) / self.batch_size)

    def __getitem__(self, index: int) -> tuple[Any, np.ndarray]:
        rows = self.rows[index * self.batch_size : (index + 1) * self.batch_size]
        rows = distributed.local_shard(rows, self.batch_size)
        one_hot = np.zeros((len(rows), self.num_classes), np.float32)
        one_hot[np.arange(len(rows)), self.subset.labels[rows]] = 1
        images = rows.astype(np.int32) if self.rows_only else self.subset.images[rows]
        return images if self.mirrored is None else (images, self.mirrored[rows]), one_hot

    def on_epoch_end(self) -> None:
        if self.random is not None:
            self.rows = self.random.permutation(self.subset.rows)
            if self.mirrored is not None:
                self.mirrored = ~self.mirrored
