"""Input pipeline: images and labels as Keras's fit and predict read them, a batch at a time."""

import math
from typing import Any, NamedTuple

import keras
import numpy as np

from pipeline.runtime import distributed


class Subset(NamedTuple):
    """Some of the images of a data set."""

    images: Any
    """`(n, h, w, c)` float32, indexed by row numbers; need not be in memory"""
    labels: np.ndarray
    """`(n,)` int64, in [0, k)"""
    rows: np.ndarray
    """`(m,)` int64: which of the n belong to the part"""


class Batches(keras.utils.PyDataset):
    """Batches of a part, read when they are needed, so that memory does not grow with it.

    Of several processes, each reads its own share of every batch.

    Yields:
        images `(b, h, w, c)` float32, or their rows `(b,)` int32, and one-hot labels
        `(b, num_classes)` float32; with `mirror` `(images, mirrored)` in place of images,
        mirrored `(b,)` bool.
    """

    def __init__(
        self,
        part: Subset,
        num_classes: int,
        batch_size: int,
        shuffle: int | None = None,
        rows_only: bool = False,
        mirror: bool = False,
    ):
        """Args:
        shuffle: Seed of the order, drawn anew each epoch; None: the order of the part.
        rows_only: For a model that looks its images up.
        mirror: Whether to say which images to mirror: each in every other epoch, half of
            them first (Jordan 2024); without `shuffle`, as for validation, none.
        """
        super().__init__()
        self.rows_only = rows_only
        self.part, self.num_classes, self.batch_size = part, num_classes, batch_size
        self.random = None if shuffle is None else np.random.default_rng(shuffle)
        self.rows = part.rows
        self.mirrored: np.ndarray | None = None  # (n,) bool, by row number
        if mirror:
            self.mirrored = np.zeros(len(part.labels), bool)
            if self.random is not None:
                self.mirrored = self.random.random(len(part.labels)) < 0.5
        self.on_epoch_end()

    def __len__(self) -> int:
        return math.ceil(len(self.rows) / self.batch_size)

    def __getitem__(self, index: int) -> tuple[Any, np.ndarray]:
        rows = self.rows[index * self.batch_size : (index + 1) * self.batch_size]
        rows = distributed.local_shard(rows, self.batch_size)
        one_hot = np.zeros((len(rows), self.num_classes), np.float32)
        one_hot[np.arange(len(rows)), self.part.labels[rows]] = 1
        images = rows.astype(np.int32) if self.rows_only else self.part.images[rows]
        return images if self.mirrored is None else (images, self.mirrored[rows]), one_hot

    def on_epoch_end(self) -> None:
        if self.random is not None:
            self.rows = self.random.permutation(self.part.rows)
            if self.mirrored is not None:
                self.mirrored = ~self.mirrored
