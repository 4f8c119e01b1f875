"""Clips degraded in known ways, with rising strength. A good distance rises with the strength."""

import numpy as np

from proav.media.container import Clip


def noisy(clip: Clip, strength: float, seed: int) -> Clip:
    """White noise on the pictures; strength: its standard deviation, as a share of full scale."""
    noise = np.random.default_rng(seed).normal(0, 255 * strength, clip.video.shape)
    return Clip(np.clip(clip.video + noise, 0, 255).astype(np.uint8), clip.audio, clip.fps, clip.sample_rate)


def blurred(clip: Clip, strength: int, seed: int) -> Clip:
    """Replaces blocks of strength x strength pixels by their mean."""
    frames, height, width, _ = clip.video.shape
    blocks = clip.video.reshape(frames, height // strength, strength, width // strength, strength, 3).mean(
        (2, 4)
    )
    return Clip(
        blocks.round().astype(np.uint8).repeat(strength, 1).repeat(strength, 2),
        clip.audio,
        clip.fps,
        clip.sample_rate,
    )


def shuffled(clip: Clip, strength: float, seed: int) -> Clip:
    """Shuffles this share of the frames."""
    generator, order = np.random.default_rng(seed), np.arange(len(clip.video))
    chosen = generator.choice(len(order), round(strength * len(order)), replace=False)
    order[np.sort(chosen)] = chosen
    return Clip(clip.video[order], clip.audio, clip.fps, clip.sample_rate)


def frozen(clip: Clip, strength: float, seed: int) -> Clip:
    """Repeats one frame over the last share of the clip."""
    last = round((1 - strength) * (len(clip.video) - 1))
    return Clip(
        clip.video[np.minimum(np.arange(len(clip.video)), last)], clip.audio, clip.fps, clip.sample_rate
    )


def hissing(clip: Clip, strength: float, seed: int) -> Clip:
    """White noise on the sound; strength: its root mean square, with full scale 1."""
    noise = np.random.default_rng(seed).normal(0, strength, clip.audio.shape)
    return Clip(clip.video, np.clip(clip.audio + noise, -1, 1).astype(np.float32), clip.fps, clip.sample_rate)


def muffled(clip: Clip, strength: float, seed: int) -> Clip:
    """Removes all frequencies above the share (1 - strength) of the band."""
    spectrum = np.fft.rfft(clip.audio)
    spectrum[int((1 - strength) * len(spectrum)) :] = 0
    return Clip(
        clip.video,
        np.fft.irfft(spectrum, len(clip.audio)).clip(-1, 1).astype(np.float32),
        clip.fps,
        clip.sample_rate,
    )


OF_PICTURES = {
    "noise": (noisy, (0.05, 0.1, 0.2)),
    "blur": (blurred, (2, 4, 8)),
    "shuffle": (shuffled, (0.25, 0.5, 1.0)),
    "freeze": (frozen, (0.3, 0.6, 1.0)),
}
OF_SOUND = {"noise": (hissing, (0.003, 0.01, 0.03)), "low-pass": (muffled, (0.5, 0.75, 0.9))}
