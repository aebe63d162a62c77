"""Confident learning: find labels that are probably wrong."""

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.neighbors import KNeighborsClassifier

from pipeline.stats.confident_learning import find_label_issues, wrong_shares

# Probability of class 1 of three images labelled 0 and three labelled 1. The mean probability of
# the label is 0.6 and 0.82: the third image belongs confidently to class 1, the fourth and the
# sixth to class 1, and the fifth to none.
PROBABILITIES = np.array([[0.9, 0.1], [0.8, 0.2], [0.1, 0.9], [0.1, 0.9], [0.3, 0.7], [0.14, 0.86]])
LABELS = np.array([0, 0, 0, 1, 1, 1])


def test_the_share_of_wrong_labels_counts_images_that_belong_confidently_to_a_class():
    assert wrong_shares(PROBABILITIES, LABELS).tolist() == pytest.approx([1 / 3, 0])
    # a class without images has no wrong labels
    wider = np.pad(PROBABILITIES, ((0, 0), (0, 1)))
    assert wrong_shares(wider, LABELS).tolist() == pytest.approx([1 / 3, 0, 0])


def test_the_least_probable_labels_are_issues_as_many_as_the_share_says():
    issues = find_label_issues(PROBABILITIES, LABELS)
    assert (issues.rows.tolist(), issues.suggested.tolist()) == ([2], [1])
    assert issues.scores.tolist() == pytest.approx([0.8])
    # the clearest first
    reversed_labels = find_label_issues(PROBABILITIES, np.array([1, 1, 0, 0, 0, 0]))
    assert reversed_labels.scores.tolist() == sorted(reversed_labels.scores, reverse=True)
    none = find_label_issues(PROBABILITIES[[0, 1, 3, 4]], LABELS[[0, 1, 3, 4]])
    assert none.rows.tolist() == []


def test_an_image_of_the_most_probable_class_is_no_issue():
    # half of class 0 belongs confidently to class 1, but of the others none is more probable there
    probabilities = np.array([[0.6, 0.4], [0.9, 0.1], [0.45, 0.55], [0.51, 0.49]])
    issues = find_label_issues(probabilities, np.array([0, 0, 1, 1]))
    assert set(issues.rows) <= {3}


def test_most_of_the_first_suspects_are_labels_that_were_changed():
    digits = load_digits()
    random = np.random.default_rng(0)
    changed = random.choice(len(digits.target), 90, replace=False)  # 5 %
    labels = digits.target.copy()
    labels[changed] = (labels[changed] + random.integers(1, 10, 90)) % 10
    folds = StratifiedKFold(3, shuffle=True, random_state=0)
    probabilities = cross_val_predict(
        KNeighborsClassifier(10), digits.data, labels, cv=folds, method="predict_proba"
    )
    issues = find_label_issues(probabilities, labels)
    first = np.isin(issues.rows[:90], changed)
    assert first.sum() / 90 > 0.9
    assert len(issues.rows) < 100
    right = issues.suggested[:90][first] == digits.target[issues.rows[:90][first]]
    assert right.mean() > 0.95
