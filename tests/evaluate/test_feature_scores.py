"""Scores from stored features: clips are paired by id, and real clips have the same scores beside them."""

import dataclasses

import numpy as np
import pytest

from proav.evaluate.feature_scores import clip_values
from proav.evaluate.job import Comparison, table_numbers
from proav.evaluate.measure import Measured
from proav.evaluate.numbers import Resampling
from proav.metrics.protocols import FeatureScore, find_protocol

DRAWS = Resampling(num_resamples=40, seed=0)
KL = FeatureScore("KL-I3D", "class_divergence", ("i3d-kinetics400",))


def measured(**features):
    count = len(next(iter(features.values())))
    names = [str(number) for number in range(count)]
    return Measured(
        ids=names,
        sources=names,
        labels=["dog", "cat"] * (count // 2),
        scores={},
        features=features,
        problems={},
        cost={},
    )


def vectors(seed, *, count=12, width=4):
    return list(np.random.default_rng(seed).normal(size=(count, 2, width)).astype(np.float32))


def test_clips_are_paired_by_id():
    real = measured(**{"i3d-kinetics400": vectors(0)})
    made = dataclasses.replace(
        real, ids=real.ids[::-1], features={"i3d-kinetics400": real.features["i3d-kinetics400"][::-1]}
    )
    assert clip_values(KL, made) is None
    assert clip_values(KL, made, real=real) == pytest.approx(np.zeros(12), abs=1e-12)
    fewer = dataclasses.replace(
        real, ids=real.ids[:6], features={"i3d-kinetics400": real.features["i3d-kinetics400"][:6]}
    )
    assert np.isnan(clip_values(KL, made, real=fewer)).sum() == 6


def test_agreement_and_classes_stand_in_the_table_beside_the_real_ones():
    sound, logits = (
        vectors(1),
        [np.array([[1.0, 0.0]] if number % 3 else [[0.0, 1.0]]) for number in range(12)],
    )
    fake = measured(**{"imagebind-video": sound, "imagebind-audio": sound, "classifier": logits})
    real = measured(
        **{
            "imagebind-video": vectors(2),
            "imagebind-audio": vectors(3),
            "classifier": [np.array([[1.0, 0.0]])] * 12,
        }
    )
    protocol = dataclasses.replace(find_protocol("full"), distances=(), scores=())
    missing = {"i3d-kinetics400": "its weights", "synchformer": "longer clips"}
    comparison = Comparison("generated", "", None, None)
    rows = {
        row.metric: row
        for row in table_numbers(
            protocol, comparison, {"real": real, "fake": fake}, DRAWS, missing, classes=("dog", "cat")
        )
    }
    assert set(rows) == {"AV-IB", "DeSync", "label_accuracy"} and rows["DeSync"].needs == "longer clips"
    assert rows["AV-IB"].value == pytest.approx(1) and rows["AV-IB"].floor < 0.9 and rows["AV-IB"].clips == 12
    hits = [(number % 3 > 0) == (number % 2 == 0) for number in range(12)]
    assert rows["label_accuracy"].value == pytest.approx(np.mean(hits)) and rows[
        "label_accuracy"
    ].floor == pytest.approx(0.5)
    assert rows["label_accuracy"].low < rows["label_accuracy"].value < rows["label_accuracy"].high
