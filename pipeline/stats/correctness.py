"""Correctness: which test images a model got right, in so few bytes that Git can keep them.

metrics/test/MODEL.json holds them under `answers`, as a list of one, since `dvc metrics show`
leaves lists out. Two models, of one commit or of two, are compared by them image by image, and
without DVC's cache. 10,000 images take 1.7 KB.
"""

import base64
import hashlib
import json

import numpy as np


def pack(correct: np.ndarray, actual: np.ndarray) -> dict:
    """Return what `unpack` and `same_images` read.

    Args:
        correct: `(n,)` bool, the images that the model got right.
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
    """Return `(n,)` bool, the images that the model got right."""
    packed = np.frombuffer(base64.b64decode(answers["right"]), np.uint8)  # (ceil(n / 8),)
    return np.unpackbits(packed, count=answers["images"]).astype(bool)


def same_images(answers: dict, others: dict) -> bool:
    """Tell whether both were measured on the same test images.

    By their number, classes and order: other photographs of the same classes in the same order
    pass for the same, and so does the same photograph at another size, which it should.
    """
    return answers["classes_sha256"] == others["classes_sha256"]
