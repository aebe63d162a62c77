"""Confident learning: find labels that are probably wrong from held-out probabilities."""

from typing import NamedTuple

import numpy as np


class LabelIssues(NamedTuple):
    """Which of n labels are probably wrong, and the class that is probably right."""

    rows: np.ndarray
    """`(m,)` int64, rows of these labels, the most suspicious first"""
    suggested: np.ndarray
    """`(m,)` int64, the most probable class of each"""
    scores: np.ndarray
    """`(m,)` float64 in (0, 1], probability of the suggested class minus that of the label"""


def find_label_issues(probabilities: np.ndarray, labels: np.ndarray) -> LabelIssues:
    """Find labels that are probably wrong.

    The number of wrong labels of each class is estimated; of its images, those with the lowest
    probability of the class are issues, if another class is more probable. ("Prune by class".)

    Args:
        probabilities: `(n, k)`, predicted by models that were not trained on the image.
        labels: `(n,)` int64, in [0, k).

    Reference: Northcutt, Jiang & Chuang, "Confident Learning: Estimating Uncertainty in Dataset
        Labels" (2021), https://arxiv.org/abs/1911.00068
    """
    rows = np.arange(len(labels))
    given = probabilities[rows, labels]
    suggested = probabilities.argmax(axis=1)
    scores = probabilities[rows, suggested] - given
    lowest = []
    for label, share in enumerate(wrong_shares(probabilities, labels)):
        members = np.flatnonzero(labels == label)
        count = round(share * len(members))
        lowest.append(members[np.argsort(given[members], kind="stable")[:count]])
    issues = np.concatenate(lowest)
    issues = issues[scores[issues] > 0]
    issues = issues[np.argsort(-scores[issues], kind="stable")]
    return LabelIssues(issues, suggested[issues], scores[issues])


def wrong_shares(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Estimate the share of wrong labels of each class: `(k,)` in [0, 1], 0 without images.

    An image belongs confidently to the classes whose probability is at least the mean probability
    of the class over the images with that label, since models are surer of some classes than of
    others. If there are several, the most probable counts.
    """
    k = probabilities.shape[1]
    given = probabilities[np.arange(len(labels)), labels]
    counts = np.bincount(labels, minlength=k)
    with np.errstate(invalid="ignore"):
        thresholds = np.bincount(labels, weights=given, minlength=k) / counts
        confident = np.where(probabilities >= thresholds, probabilities, 0)
        clear = confident.any(axis=1)
        joint = np.zeros((k, k))
        np.add.at(joint, (labels[clear], confident[clear].argmax(axis=1)), 1)
        return np.nan_to_num(1 - joint.diagonal() / joint.sum(axis=1))
