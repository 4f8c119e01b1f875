"""Scores of a segment against closed forms and made clips, and against real clips if they are here.

The made clips have shots, flashes and fades, and known lags of the sound. Fingerprints are compared with
those of the same clips encoded again.
"""

import io
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from proav.config.reading import config_from_dict
from proav.media.container import Clip, encode_clip, read_clip
from proav.media.melframes import MelFrames
from proav.signals.fingerprints import picture_hash, sound_hash
from proav.signals.segment_scores import (
    BLACK_LUMA,
    SCORE_FIELDS,
    reduce_pictures,
    segment_scores,
    shot_starts,
)
from proav.signals.synchrony import synchrony

RATE = 16000
REAL_CLIPS = Path(os.environ.get("PROAV_REAL_CLIPS", "real-clips"))
needs_real_clips = pytest.mark.skipif(
    not REAL_CLIPS.is_dir(), reason=f"no folder {REAL_CLIPS}; PROAV_REAL_CLIPS names where the real clips are"
)


def mel_of(sound_L, *, fps=10, hop=100):
    clip = {"num_frames": 8, "fps": fps, "height": 64, "width": 64, "sample_rate": RATE}
    mdsa = {"plane_size": 8, "bi_block": {"block_size": 4}, "audio_input": "tiled"}
    config = config_from_dict({"clip": clip, "mel": {"num_bins": 64, "hop": hop}, "mdsa": mdsa})
    return MelFrames(config).encode(torch.from_numpy(sound_L)[None])[0].numpy().astype(np.float16)


def scores_of(video, sound=None, *, fps=10, hop=100):
    sound = np.zeros(len(video) * RATE // fps, np.float32) if sound is None else sound.astype(np.float32)
    return segment_scores(video, sound, fps=fps, sample_rate=RATE, mel_TMS=mel_of(sound, fps=fps, hop=hop))


def texture(seed, *, size=64, smooth=4):
    """uint8 [size, size, 3]: a random picture of coloured patches."""
    patches = np.random.default_rng(seed).integers(20, 236, (size // smooth, size // smooth, 3))
    return np.kron(patches, np.ones((smooth, smooth, 1))).astype(np.uint8)


def shots(*lengths, seed=0, drift=1):
    """Shots with these numbers of frames; each has its own texture that moves `drift` pixels a frame."""
    return np.stack(
        [
            np.roll(texture(seed + number), drift * frame, axis=1)
            for number, length in enumerate(lengths)
            for frame in range(length)
        ]
    )


def starts_of(video, *, fps=10):
    reduced = reduce_pictures(video)
    return shot_starts(reduced.luma_TYX, reduced.colours_TK, fps=fps)


def test_levels_have_closed_forms():
    video = np.zeros((10, 64, 48, 3), np.uint8)
    video[1::2] = 255
    half = np.full(RATE, 0.5, np.float32)
    scores = scores_of(video, half)
    assert set(scores) == {field.name for field in SCORE_FIELDS}
    assert {
        name: scores[name]
        for name in ("rms", "peak", "clipped", "silent", "mean_luma", "motion", "black", "frozen")
    } == {
        "rms": 0.5,
        "peak": 0.5,
        "clipped": 0.0,
        "silent": False,
        "mean_luma": 0.5,
        "motion": 1.0,
        "black": 0.5,
        "frozen": 0.0,
    }
    assert scores_of(video, 0 * half)["silent"] and scores_of(video, 2 * half)["clipped"] == 1.0
    red = np.zeros_like(video)
    red[..., 0] = 255
    assert scores_of(red)["mean_luma"] == pytest.approx(77 / 256)


@pytest.mark.parametrize(
    ("frames", "height", "width", "fps"),
    [(2, 16, 16, 1), (3, 33, 50, 60), (9, 90, 160, 25), (40, 17, 300, 8), (30, 600, 64, 60)],
)
def test_any_size_rate_and_length(frames, height, width, fps):
    rng = np.random.default_rng(0)
    video = rng.integers(0, 256, (frames, height, width, 3), dtype=np.uint8)
    reduced = reduce_pictures(video)
    assert all(16 <= size <= 32 for size in reduced.luma_TYX.shape[1:])
    weights = np.array([77, 150, 29]) / 256
    assert reduced.luma_TYX.mean() == pytest.approx((video.mean(axis=(0, 1, 2)) @ weights) / 255, abs=0.01)
    samples = frames * 12000 // fps
    mel = rng.uniform(-1, 1, (frames, 16, 4)).astype(np.float16)
    scores = segment_scores(
        video, rng.uniform(-1, 1, samples).astype(np.float32), fps=fps, sample_rate=12000, mel_TMS=mel
    )
    assert len(scores["picture_hash"]) == len(scores["sound_hash"]) == 32
    assert math.isnan(scores["sync"]) or -1 <= scores["sync"] <= 1


def test_reduction_is_exact():
    """The mean over whole blocks is exact to float32, whatever the machine's matrix product does."""
    video = np.random.default_rng(0).integers(0, 256, (3, 64, 96, 3), dtype=np.uint8)
    blocks = video.reshape(3, 32, 2, 32, 3, 3).astype(np.int64).sum(axis=(2, 4)) @ np.array([77, 150, 29])
    assert np.array_equal(reduce_pictures(video).luma_TYX, (blocks / (255 * 256 * 6)).astype(np.float32))


def test_stills_are_frozen_and_small_movements_are_not():
    still = np.repeat(texture(0)[None], 30, axis=0)
    assert scores_of(still)["frozen"] == 1.0
    mouth = still.copy()
    mouth[::2, 40:44, 30:36] //= 2
    assert scores_of(mouth)["frozen"] == 0.0
    clip = Clip(still, np.zeros(3 * RATE, np.float32), 10, RATE)
    again = read_clip(io.BytesIO(encode_clip(clip, crf=30)), fps=10, sample_rate=RATE, height=64, width=64)
    assert scores_of(again.video)["frozen"] > 0.9


def test_black_pictures_with_noise_are_black_and_dark_scenes_are_not():
    noise = np.random.default_rng(0).integers(0, 20, (10, 64, 64, 3), dtype=np.uint8)
    assert scores_of(noise)["black"] == 1.0
    noise[:, 20:30, 20:30] = 200
    assert scores_of(noise)["black"] == 0.0


@pytest.mark.parametrize("fps", [5, 10, 25, 60])
def test_cuts_are_found_at_every_rate(fps):
    lengths = [round(1.2 * fps), round(0.8 * fps), round(2 * fps)]
    assert starts_of(shots(*lengths), fps=fps) == [lengths[0], lengths[0] + lengths[1]]


def test_a_cut_with_one_mixed_frame_is_found_once():
    video = shots(20, 20)
    video[20] = (video[19].astype(int) + video[21]) // 2
    assert starts_of(video) == [21]


def test_what_looks_like_a_cut_is_none():
    one = shots(30)
    flash = one.copy()
    flash[12] = 255
    lightning = one.copy()
    lightning[12:14] = np.clip(lightning[12:14].astype(int) + 120, 0, 255).astype(np.uint8)
    mix = np.clip((np.arange(30) - 5) / 20, 0, 1)[:, None, None, None]
    dissolve = ((1 - mix) * one + mix * shots(30, seed=9)).astype(np.uint8)
    fade = (one * (1 - mix)).astype(np.uint8)
    brighter = shots(30, drift=0)
    brighter[15:] = brighter[15:] // 2 + 100
    fast = shots(30, drift=16)
    for name, video in {
        "flash": flash,
        "lightning": lightning,
        "dissolve": dissolve,
        "fade": fade,
        "exposure": brighter,
        "motion": fast,
    }.items():
        assert starts_of(video) == [], name
    assert starts_of(np.concatenate([flash, shots(20, seed=5)])) == [30]


def flashes_and_beeps(*, late=0.0, seconds=10, fps=10, seed=0):
    """Flashes and beeps of about 60 ms at random whole frames.

    late: how long the sound comes after the picture, seconds
    seconds: length of the clip
    fps: frames per second
    seed: decides the frames
    """
    rng = np.random.default_rng(seed)
    frames = rng.choice(np.arange(10, (seconds - 1) * 10), 10, replace=False) * fps // 10
    video = np.full((seconds * fps, 32, 32, 3), 40, np.uint8)
    for later in range(max(1, round(0.06 * fps))):
        video[frames + later, 8:16, 8:16] = 250
    sound = rng.normal(0, 1e-3, seconds * RATE).astype(np.float32)
    for frame in frames:
        first = round((frame / fps + late) * RATE)
        sound[first : first + 960] += 0.4 * np.sin(2 * np.pi * 1000 * np.arange(960) / RATE)
    return video, sound


@pytest.mark.parametrize("fps", [10, 25, 50])
@pytest.mark.parametrize("late", [-0.3, 0.0, 0.1, 0.4])
def test_the_lag_of_the_sound_is_found(fps, late):
    video, sound = flashes_and_beeps(late=late, fps=fps)
    hop = {10: 100, 25: 80, 50: 80}[fps]
    scores = scores_of(video, sound, fps=fps, hop=hop)
    assert scores["sync_lag"] == pytest.approx(late, abs=0.5 / fps + 0.01)
    assert scores["shot_starts"] == []
    if late == 0:
        assert scores["sync"] > 0.7
    elif abs(late) >= 0.3:
        assert scores["sync"] < 0.3


def test_synchrony_is_undefined_without_events():
    video, sound = flashes_and_beeps()
    still, times = np.repeat(video[:1], len(video), axis=0), np.arange(len(sound)) / RATE
    for pictures, heard in (
        (still, sound),
        (video, 0 * sound),
        (video, 0.3 * np.sin(2 * np.pi * 440 * times)),
    ):
        scores = scores_of(pictures, heard)
        assert math.isnan(scores["sync"]) and math.isnan(scores["sync_lag"])
    assert math.isnan(scores_of(video[:6], sound[: 6 * RATE // 10])["sync"])


def bits_apart(one, other):
    return int(np.bitwise_count(np.frombuffer(one, np.uint8) ^ np.frombuffer(other, np.uint8)).sum())


def busy_clip(seed, *, seconds=4, size=96):
    """Textures that drift, and noise whose bands swell; different for each seed."""
    rng = np.random.default_rng(seed)
    ground, front = (
        texture(seed, size=size, smooth=8).astype(float),
        texture(seed + 1000, size=size, smooth=16).astype(float),
    )
    share = 0.5 + 0.4 * np.sin(np.arange(10 * seconds) / 3 + seed)
    video = np.stack(
        [np.roll(mix * ground + (1 - mix) * front, frame // 2, axis=0) for frame, mix in enumerate(share)]
    ).astype(np.uint8)
    times = np.arange(seconds * RATE) / RATE
    tones = [
        np.sin(2 * np.pi * rng.uniform(80, 7000) * times)
        * (1 + np.sin(2 * np.pi * rng.uniform(0.2, 2) * times + seed))
        for _ in range(20)
    ]
    sound = 0.01 * np.sum(tones, axis=0) + rng.normal(0, 0.005, len(times))
    return Clip(video, np.clip(sound, -1, 1).astype(np.float32), 10, RATE)


def test_fingerprints_stay_over_encoding_size_brightness_and_level():
    hashes = []
    for seed in range(6):
        clip = busy_clip(seed)
        scores = scores_of(clip.video, clip.audio)
        content = encode_clip(Clip(clip.video // 8 * 7 + 20, 0.5 * clip.audio, 10, RATE), crf=34)
        again = read_clip(io.BytesIO(content), fps=10, sample_rate=RATE, height=64, width=64)
        other = scores_of(again.video, again.audio)
        assert bits_apart(scores["picture_hash"], other["picture_hash"]) < 32
        assert bits_apart(scores["sound_hash"], other["sound_hash"]) < 32
        hashes.append(scores)
    for one in range(6):
        for other in range(one):
            for name in ("picture_hash", "sound_hash"):
                assert bits_apart(hashes[one][name], hashes[other][name]) > 64


def test_fingerprints_ignore_black_bars_and_level_and_know_nothing_of_black_and_silence():
    clip = busy_clip(3)
    luma = reduce_pictures(clip.video).luma_TYX
    barred = np.zeros((len(clip.video), 192, 96, 3), np.uint8)
    barred[:, 48:144] = clip.video
    assert (
        bits_apart(
            picture_hash(luma, black=BLACK_LUMA),
            picture_hash(reduce_pictures(barred).luma_TYX, black=BLACK_LUMA),
        )
        < 20
    )
    assert picture_hash(np.zeros((9, 32, 32), np.float32), black=BLACK_LUMA) == bytes(32)
    assert picture_hash(np.full((9, 32, 32), 0.5, np.float32), black=BLACK_LUMA) == bytes(32)
    mel = mel_of(clip.audio)
    assert sound_hash(np.full_like(mel, -1)) == bytes(32)
    inside = np.clip(mel, -0.8, 0.8)
    assert bits_apart(sound_hash(inside), sound_hash(inside + np.float16(0.125))) <= 4


@needs_real_clips
def test_cuts_of_real_clips():
    expected = {
        "c034_": [68],
        "c039_": [64],
        "c056_tears-of-steel-battle-film-gunshots-music_d": [10, 42, 55, 60, 75],
        "c098_": [],
        "c000_": [],
    }
    for name, starts in expected.items():
        path = sorted(REAL_CLIPS.glob(f"{name}*"))[0]
        clip = read_clip(str(path), fps=10, sample_rate=RATE, height=64, width=64)
        assert starts_of(clip.video) == starts, path.name


@needs_real_clips
def test_synchrony_of_real_clips_falls_when_the_sound_is_shifted():
    names = ("c020", "c022", "c024", "c029", "c059", "c060", "c061", "c069", "c081", "c083", "c087", "c089")
    shifts, table = (0, 2, 4, 8), []
    for name in names:
        clip = read_clip(
            str(sorted(REAL_CLIPS.glob(f"{name}_*"))[0]), fps=10, sample_rate=RATE, height=64, width=64
        )
        luma = reduce_pictures(clip.video).luma_TYX
        sounds = [np.roll(clip.audio, shift * RATE // 10) for shift in shifts]
        table.append([synchrony(luma, mel_of(sound), fps=10, shot_starts=[])[0] for sound in sounds])
    means = np.mean(table, axis=0)
    assert means[0] > 0.2 and (means[1:] < means[0] / 2).all(), means
