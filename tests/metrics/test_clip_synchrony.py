"""Synchrony of clips with events at known times: high if picture and sound coincide, near zero if not."""

import numpy as np

from proav.media.container import Clip
from proav.media.melframes import MelFrames
from proav.metrics.clip_synchrony import clip_synchrony
from tests.tiny import tiny_config

FPS, RATE, FRAMES = 10, 16_000, 16
CONFIG = tiny_config(
    "clip.fps=10",
    "clip.num_frames=16",
    "clip.height=64",
    "clip.width=64",
    "mel.num_bins=64",
    "mel.hop=100",
    "mdsa.plane_size=16",
)


def made_clip(seed, late_frames=0):
    """A square jumps at three random frames, and a burst of noise sounds at each.

    late_frames: by how many frames the sound is late.
    """
    generator = np.random.default_rng(seed)
    events = np.sort(generator.choice(np.arange(2, 12), 3, replace=False))
    video, place = np.full((FRAMES, 64, 64, 3), 60, np.uint8), 0
    for frame in range(FRAMES):
        place = int(generator.integers(5)) if frame in events else place
        video[frame, 8 + place * 8 : 24 + place * 8, 20:40] = 220
    audio = np.zeros(FRAMES * RATE // FPS, np.float32)
    for event in events + late_frames:
        first = int(event * RATE / FPS)
        if first < len(audio):
            burst = generator.uniform(-0.7, 0.7, 1200).astype(np.float32)[: len(audio) - first]
            audio[first : first + len(burst)] += burst
    return Clip(video, audio.clip(-1, 1), FPS, RATE)


def mean_synchrony(late_frames):
    mel_frames = MelFrames(CONFIG)
    return np.nanmean([clip_synchrony(made_clip(seed, late_frames), mel_frames) for seed in range(24)])


def test_it_falls_when_the_sound_is_late():
    scores = [mean_synchrony(late) for late in (0, 1, 2, 4)]
    assert scores[0] > 0.3 and scores[0] > scores[1] > scores[2] and max(scores[2:]) < 0.15


def test_it_is_undefined_without_events():
    clip = made_clip(0)
    silent, still = (
        Clip(clip.video, np.zeros_like(clip.audio), FPS, RATE),
        Clip(np.full_like(clip.video, 90), clip.audio, FPS, RATE),
    )
    short = Clip(clip.video[:8], clip.audio[: 8 * RATE // FPS], FPS, RATE)
    assert all(np.isnan(clip_synchrony(one, MelFrames(CONFIG))) for one in (silent, still, short))
