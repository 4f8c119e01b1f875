"""The sound of a scene: each event's modes (`proav/metrics/world/laws.py`), from its exact time on."""

import numpy as np
from physics import SECONDS, Scene

from proav.metrics.world.laws import MAX_RADIUS, impact_sound

LOUDEST = 0.8
"""Amplitude of an impact of the reference impulse."""
REFERENCE_IMPULSE = 2 * 1.8 * MAX_RADIUS**2
"""Impulse of the largest object that hits the floor at 2 heights per second, with restitution 0.8."""
PEAK = 0.95
"""Largest sample of a clip. A louder clip is made quieter as a whole."""


def amplitude(impulse: float) -> float:
    """Amplitude of a sound: proportional to impulse^0.5, so that weak impacts can still be heard."""
    return LOUDEST * (impulse / REFERENCE_IMPULSE) ** 0.5


def make_sound(scene: Scene, *, sample_rate: int) -> np.ndarray:
    """The sound of a scene, float32 [samples], mono.

    Sample n is at n / sample_rate. A sound that starts between two samples has the right phase at the second.
    If two objects collide, both sound, each with half of the amplitude.
    """
    seconds_N = np.arange(round(SECONDS * sample_rate)) / sample_rate
    whole_N = np.zeros(len(seconds_N))
    for event in scene.events:
        first = int(np.ceil(event.time * sample_rate))
        since = seconds_N[first:] - event.time
        for pitch in event.pitches:
            own = impact_sound(scene.material, pitch, since)
            whole_N[first:] += amplitude(event.impulse) / len(event.pitches) * own
    peak = np.abs(whole_N).max(initial=0.0)
    return (whole_N * (PEAK / peak if peak > PEAK else 1.0)).astype(np.float32)
