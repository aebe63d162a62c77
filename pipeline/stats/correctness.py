"""Correctness: which test images a model classified correctly, small enough to keep in Git.

metrics/test/MODEL.json stores it for each training, in the list `seeds`, since `dvc metrics show`
omits lists. Two models, even of two commits, can then be compared image by image without DVC's
cache. 10,000 images take 1.7 KB.
"""

import base64
import hashlib
import json

import numpy as np


def pack(correct: np.ndarray, actual: np.ndarray) -> dict:
    """Encode which images were classified correctly as JSON-serializable values.

    Args:
        correct: `(n,)` bool, True for images that were classified correctly.
        actual: `(n,)` str, the class of each image.

    Returns:
        The number of images, a SHA-256 hash of their classes, and one bit per image, in base64.
    """
    classes = json.dumps(actual.tolist()).encode()
    return {
        "images": len(correct),
        "classes_sha256": hashlib.sha256(classes).hexdigest(),
        "right": base64.b64encode(np.packbits(correct).tobytes()).decode(),
    }


def unpack(packed: dict) -> np.ndarray:
    """Decode the result of `pack`: `(n,)` bool, True for images that were classified correctly."""
    bits = np.frombuffer(base64.b64decode(packed["right"]), np.uint8)  # (ceil(n / 8),)
    return np.unpackbits(bits, count=packed["images"]).astype(bool)


def same_images(packed: dict, other: dict) -> bool:
    """Return whether two models were evaluated on the same test images.

    Compares the number, classes and order of the images. Different images with the same classes in
    the same order are not detected. The same images at another size count as the same.
    """
    return packed["classes_sha256"] == other["classes_sha256"]


def correct_table(trainings: list[dict]) -> np.ndarray:
    """Return `(k, n)` bool: which of n images each of k trainings classified correctly.

    Args:
        trainings: Metrics of each training, `seeds` of metrics/test/MODEL.json.
    """
    return np.stack([unpack(training["correct"]) for training in trainings])
