"""The clock of decoded sound: where there was none, silence stands and a hole is noted."""

from fractions import Fraction

import av
import numpy as np
import pytest

from proav.media.sound import SoundClock

RATE = 8000


def sound(at, seconds):
    """A decoded frame that begins `at` seconds of the file's clock."""
    samples = np.full((1, round(seconds * RATE)), 0.5, np.float32)
    frame = av.AudioFrame.from_ndarray(samples, "fltp", "mono")
    frame.sample_rate, frame.time_base, frame.pts = RATE, Fraction(1, RATE), round(at * RATE)
    return frame


@pytest.mark.parametrize("start", [0.0, 100.0])
def test_late_sound_that_is_dropped_makes_no_hole_shorter(start):
    clock = SoundClock(sample_rate=RATE, start=start, hole_seconds=0.1)
    clock.push(sound(start, 1.0))
    clock.silence_until(10.0)
    for late in (7.0, 7.5, 11.0):
        clock.push(sound(start + late, 0.25))
    clock.finish()
    assert clock.holes == [pytest.approx([1.0, 11.0])] and clock.seconds == 11.25
    assert not clock.take(RATE, 10 * RATE).any() and clock.take(11 * RATE, RATE // 4).all()
