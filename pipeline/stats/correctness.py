"""Correctness: which test images a model classified correctly, small enough to keep in Git.

metrics/test/MODEL.json stores them under `answers`, as a list of one, since `dvc metrics show`
leaves lists out. So two models, even of two commits, can be compared image by image
without DVC's cache. 10,000 images take 1.7 KB.
"""

import base64
import hashlib
import json

import numpy as np


def pack(correct: np.ndarray, actual: np.ndarray) -> dict:
    """Return what `unpack` and `same_images` read.

    Args:
        correct: `(n,)` bool, the images classified correctly.
        actual: `(n,)` str, the class of each.

    Returns:
        The number of images, a hash of their classes, and a bit for each image, in base64.
    """
    classes = json.dumps(actual.tolist()).encode()
    return {
        "images": len(correct),
        "classes_sha256": hashlib.sha256(classes).hexdigest(),
        "right": base64.b64encode(np.packbits(correct).tobytes()).decode(),
    }


def unpack(answers: dict) -> np.ndarray:
    """Return `(n,)` bool, the images classified correctly."""
    packed = np.frombuffer(base64.b64decode(answers["right"]), np.uint8)  # (ceil(n / 8),)
    return np.unpackbits(packed, count=answers["images"]).astype(bool)


def same_images(answers: dict, others: dict) -> bool:
    """Return whether both were measured on the same test images.

    Compares number, classes and order of the images. Different images of the same classes in the
    same order are not told apart; the same images at another size count as the same.
    """
    return answers["classes_sha256"] == others["classes_sha256"]
