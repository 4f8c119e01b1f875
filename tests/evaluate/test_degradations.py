"""Distances put known degradations of the project's real clips in order.

They are zero for the set itself and rise with the strength of the degradation.
"""

from pathlib import Path

import numpy as np
import pytest
import torch

from bench.helpers.known_degradations import OF_PICTURES, OF_SOUND
from proav.errors import MediaError
from proav.media.container import read_segments
from proav.metrics.distances import Moments, frechet_distance, kernel_distance
from proav.metrics.networks import load_network

CLIPS = Path(__file__).parents[2] / "examples" / "clips"


@pytest.fixture(scope="module")
def real():
    """All windows of 16 frames of 64 x 64 at 10 fps of the shipped clips, with their sound."""
    found = []
    for path in sorted(CLIPS.iterdir()):
        if path.suffix in (".mp4", ".webm", ".wmv"):
            try:
                segments = read_segments(
                    str(path),
                    fps=10,
                    sample_rate=16_000,
                    height=64,
                    width=64,
                    fit="crop",
                    segment_seconds=1.6,
                    min_frames=16,
                )
                found += [clip for _, clip in segments]
            except MediaError:
                continue
    assert len(found) > 66  # more clips than a surrogate has features
    return found


def features(network, clips):
    key = "video" if network.card.kind == "video" else "audio"
    return np.concatenate([network(torch.from_numpy(getattr(clip, key))[None])[0].numpy() for clip in clips])


@pytest.fixture(scope="module")
def measured(real):
    networks = {kind: load_network(f"surrogate-{kind}") for kind in ("video", "audio")}
    return {kind: (network, features(network, real)) for kind, network in networks.items()}


OF_TIME = ("shuffle", "freeze")
"""Degradations of motion alone.

They hardly show in the third moments of random features, so the kernel distance is not tested on them.
"""
CASES = [("video", name, *case) for name, case in OF_PICTURES.items()] + [
    ("audio", name, *case) for name, case in OF_SOUND.items()
]


@pytest.mark.parametrize(
    ("kind", "name", "degrade", "strengths"), CASES, ids=[f"{kind}-{name}" for kind, name, *_ in CASES]
)
def test_distances_rise_with_every_degradation(real, measured, kind, name, degrade, strengths):
    network, clean = measured[kind]
    assert frechet_distance(Moments.of(clean), Moments.of(clean)) == pytest.approx(0, abs=1e-9)
    found = [clean] + [
        features(network, [degrade(clip, strength, number) for number, clip in enumerate(real)])
        for strength in strengths
    ]
    frechet = [frechet_distance(Moments.of(clean), Moments.of(each)) for each in found]
    assert frechet == sorted(frechet), frechet
    if name not in OF_TIME:
        kernel = [kernel_distance(clean, each) for each in found]
        assert kernel == sorted(kernel), kernel
