"""Gradients: their norm."""

import numpy as np
import pytest

from pipeline.training.gradients import l2_norm

# installed with scikit-learn
threadpoolctl = pytest.importorskip("threadpoolctl")


def test_the_norm_does_not_depend_on_the_number_of_cores():
    assert l2_norm(np.array([[3.0], [4.0]])) == 5
    values = np.random.default_rng(0).random(2**17)
    with threadpoolctl.threadpool_limits(1):
        on_one_core = l2_norm(values)
    assert l2_norm(values) == on_one_core
