"""Scores from features against values worked out by hand."""

import numpy as np
import pytest
from scipy.special import softmax
from scipy.stats import entropy

from proav.metrics.agreement import class_divergence, class_hit, cosine_agreement, offset_seconds


def test_cosine_agreement_by_hand():
    assert cosine_agreement(np.array([[3.0, 0.0], [1.0, 0.0]]), np.array([[0.0, 2.0]])) == 0
    assert cosine_agreement(np.array([[3.0, 4.0]]), np.array([[6.0, 8.0], [0.0, 0.0]])) == pytest.approx(1)
    assert cosine_agreement(np.array([[1.0, 0.0]]), np.array([[1.0, 1.0]])) == pytest.approx(np.sqrt(0.5))
    assert np.isnan(cosine_agreement(np.zeros((1, 2)), np.ones((1, 2))))


def test_offset_of_classes():
    logits = np.zeros((2, 21))
    logits[0, 10], logits[1, 15] = 1, 1  # 0 s and 1 s
    assert offset_seconds(logits) == pytest.approx(0.5) and offset_seconds(logits[:1]) == 0
    logits[0, 0] = 2  # -2 s
    assert offset_seconds(logits) == pytest.approx(1.5)


def test_class_hits():
    logits = np.array([[3.0, 1.0], [0.0, 1.0]])  # means 1.5 and 1
    assert class_hit(logits, "dog", ("dog", "cat")) == 1 and class_hit(logits, "cat", ("dog", "cat")) == 0
    assert np.isnan(class_hit(logits, "rain", ("dog", "cat")))


def test_class_divergence_is_that_of_the_softmax():
    generator = np.random.default_rng(0)
    made, real = generator.normal(size=(2, 3, 5))
    assert class_divergence(made, real) == pytest.approx(
        entropy(softmax(real.mean(0)), softmax(made.mean(0))), rel=1e-9
    )
    even, other = np.log([[0.5, 0.5]]), np.log([[0.25, 0.75]])
    assert class_divergence(other, even) == pytest.approx((np.log(2) + np.log(2 / 3)) / 2, rel=1e-12)
    assert class_divergence(made, made + 7.0) == pytest.approx(0, abs=1e-12)
