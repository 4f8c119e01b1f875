"""The pipeline: a sample depends on (checkpoint, seed, index, settings) alone.

Given streams are kept in the result, and mistakes are reported.
"""

import numpy as np
import pytest
import torch

from proav.errors import CheckpointError, UserError
from proav.generation.coder import pixels_to_unit, unit_to_pixels
from proav.generation.pipeline import SampleRequest, SoundingVideoPipeline
from proav.generation.sampling_settings import SamplingSettings
from proav.media.container import Clip, read_clip
from tests.tiny import LABELS, save_tiny_mdsa, save_tiny_stdit, tiny_config


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    return SoundingVideoPipeline.from_checkpoint(
        save_tiny_stdit(str(tmp_path_factory.mktemp("checkpoints")), tiny_config())
    )


def close(a, b):
    """Equal except for rounding.

    Kernels sum in another order at another batch size, and a pixel may round to the next value. Griffin-Lim
    enlarges such differences in a few samples, by how much differs between processors.
    """
    pixels, samples = np.abs(a.video.astype(int) - b.video.astype(int)), np.abs(a.audio - b.audio)
    is_same_sound = samples.mean() < 1e-3 and samples.max() < 5e-2
    return pixels.max() <= 1 and (pixels > 0).mean() < 0.01 and is_same_sound


def test_shapes_and_rates(pipeline):
    (clip,) = pipeline(1, label="rain", steps=2)
    assert clip.video.shape == (4, 32, 32, 3) and clip.video.dtype == np.uint8
    assert clip.audio.shape == (12_800,) and clip.audio.dtype == np.float32 and np.isfinite(clip.audio).all()
    assert (clip.fps, clip.sample_rate) == (5, 16_000)


def test_a_sample_is_the_same_in_any_batch(pipeline):
    together = pipeline(5, label="rain", seed=3, steps=3, guidance_scale=2.0, batch_size=5)
    apart = pipeline(5, label="rain", seed=3, steps=3, guidance_scale=2.0, batch_size=2)
    assert all(close(a, b) for a, b in zip(together, apart, strict=True))
    assert not close(together[0], together[1])


def test_requests_of_all_kinds_share_a_batch_and_equal_their_solo_runs(pipeline):
    requests = [
        SampleRequest(seed, index, label, settings=SamplingSettings(steps=3, guidance_scale=scale))
        for seed, index, label, scale in [
            (0, 0, "rain", 1.0),
            (7, 2, "speech", 3.0),
            (0, 5, None, 2.0),
            (1, 0, "rain", 0.0),
        ]
    ]
    together = pipeline.sample(requests)
    assert all(
        close(clip, pipeline.sample([request])[0]) for clip, request in zip(together, requests, strict=True)
    )


def test_unlike_tasks_steps_solvers_and_guidance_share_a_batch(pipeline):
    given = pipeline(1, label="rain", seed=9, steps=1)[0]
    settings = [
        SamplingSettings(steps=4),
        SamplingSettings(steps=2, solver="heun", guidance_scale=2.0),
        SamplingSettings(task="a2v", steps=3),
        SamplingSettings(steps=4, guidance_scale=3.0, guidance_interval=(0.3, 0.6)),
        SamplingSettings(task="v2a", steps=5, solver="dpmpp_2m", schedule_shift=2.0),
        SamplingSettings(steps=1, solver="ddim"),
    ]
    requests = [
        SampleRequest(index, index, "rain", given if one.task != "joint" else None, one)
        for index, one in enumerate(settings)
    ]
    told = []
    together = pipeline.sample(requests, on_step=lambda done, total: told.append((done, total)))
    assert told == [(done, 5) for done in range(1, 6)]
    assert all(
        close(clip, pipeline.sample([request])[0]) for clip, request in zip(together, requests, strict=True)
    )


def test_settings_matter(pipeline):
    base = pipeline(1, label="rain", seed=0, steps=3, guidance_scale=2.0)[0]
    for changed in ({"seed": 1}, {"label": "speech"}, {"steps": 4}, {"guidance_scale": 1.0}, {"label": None}):
        other = pipeline(1, **{"label": "rain", "seed": 0, "steps": 3, "guidance_scale": 2.0, **changed})[0]
        assert not np.array_equal(base.video, other.video), changed


def test_progress_is_reported(pipeline):
    told = []
    pipeline(3, steps=2, batch_size=2, on_step=lambda done, total: told.append((done, total)))
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_a2v_keeps_the_given_sound_and_depends_on_it(pipeline):
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 16_000).astype(np.float32)
    (clip,) = pipeline(1, task="a2v", audio=noise, sample_rate=16_000, steps=2)
    assert np.array_equal(clip.audio, noise[:12_800])
    (other,) = pipeline(1, task="a2v", audio=np.zeros(16_000, np.float32), sample_rate=16_000, steps=2)
    assert not np.array_equal(clip.video, other.video)


def test_v2a_keeps_the_given_picture_and_depends_on_it(pipeline):
    video = np.random.default_rng(0).integers(0, 255, (6, 32, 32, 3), dtype=np.uint8)
    (clip,) = pipeline(1, task="v2a", video=video, steps=2)
    assert np.array_equal(clip.video, video[:4])
    (other,) = pipeline(1, task="v2a", video=np.zeros_like(video), steps=2)
    assert not np.allclose(clip.audio, other.audio, atol=1e-3)


def test_another_rate_and_stereo_are_fitted(pipeline):
    stereo = np.random.default_rng(0).uniform(-0.5, 0.5, (2, 48_000)).astype(np.float32)
    (clip,) = pipeline(1, task="a2v", audio=stereo, sample_rate=48_000, steps=1)
    assert clip.audio.shape == (12_800,)
    square = np.sign(np.sin(np.arange(48_000) / 50)).astype(
        np.float32
    )  # at full scale: interpolation overshoots its edges
    (clip,) = pipeline(1, task="a2v", audio=torch.from_numpy(square), sample_rate=np.int64(48_000), steps=1)
    assert 0.9 < np.abs(clip.audio).max() <= 1


def test_a_given_clip_of_another_frame_rate_is_taken_by_time(pipeline):
    video = np.arange(8, dtype=np.uint8)[:, None, None, None].repeat(32, 1).repeat(32, 2).repeat(3, 3)
    (clip,) = pipeline(
        1,
        task="v2a",
        clip=Clip(video=video, audio=np.zeros(12_800, np.float32), fps=10, sample_rate=16_000),
        steps=1,
    )
    assert clip.video[:, 0, 0, 0].tolist() == [0, 2, 4, 6]


def test_given_pictures_of_another_size_keep_their_proportions(pipeline):
    """With data.fit=crop the middle of a picture twice as wide as high is used, as in training."""
    video = np.zeros((4, 64, 128, 3), np.uint8)
    video[:, :, 40:88] = 255
    (clip,) = pipeline(1, task="v2a", video=torch.from_numpy(video), steps=1)
    assert (
        clip.video.shape == (4, 32, 32, 3)
        and (clip.video[:, :, 6:26] > 250).all()
        and (clip.video[:, :, :2] < 5).all()
    )


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"label": "thunder"}, f"expected one of: {', '.join(LABELS)}"),
        ({"task": "dub"}, "expected one of joint"),
        ({"task": "continue"}, "expected one of joint"),
        ({"steps": 0}, "steps=0"),
        ({"num_samples": 0}, "num_samples=0"),
        ({"guidance_scale": -1.0}, "guidance_scale=-1.0"),
        ({"num_windows": 3}, "num_windows=3"),
        ({"task": "a2v"}, "takes audio=... or clip=..."),
        ({"task": "a2v", "audio": np.zeros(100, np.float32)}, "sample_rate"),
        (
            {"task": "a2v", "audio": np.zeros(100, np.float32), "sample_rate": 16_000},
            "expected at least the 0.8 s",
        ),
        ({"task": "a2v", "audio": np.full(20_000, np.nan, np.float32), "sample_rate": 16_000}, "finite"),
        (
            {"task": "a2v", "audio": np.full(20_000, 300, np.int16), "sample_rate": 16_000},
            "expected samples in [-1, 1]",
        ),
        ({"task": "a2v", "audio": np.zeros(20_000, np.float32), "sample_rate": 0}, "sample_rate=0"),
        (
            {"task": "a2v", "audio": np.zeros((0, 20_000), np.float32), "sample_rate": 16_000},
            "shape [0, 20000]",
        ),
        (
            {"task": "a2v", "audio": np.zeros((20_000, 2), np.float32), "sample_rate": 16_000},
            "has more channels than samples; expected [channels, samples]: write audio=waveform.T",
        ),
        ({"task": "a2v", "audio": "rain.wav", "sample_rate": 16_000}, "type str is no array of numbers"),
        ({"task": "a2v", "audio": [[0.0], [0.0, 0.1]], "sample_rate": 16_000}, "type list is no array"),
        ({"task": "v2a", "video": np.zeros((4, 32, 32, 3), np.float32)}, "uint8 [T, H, W, 3]"),
        ({"task": "v2a", "video": np.zeros((2, 32, 32, 3), np.uint8)}, "expected at least 4"),
        ({"audio": np.zeros(20_000, np.float32), "sample_rate": 16_000}, "takes none"),
    ],
)
def test_mistakes_are_reported(pipeline, given, said):
    with pytest.raises(UserError) as error:
        pipeline(**{"num_samples": 1, **given})
    assert said in str(error.value)


def test_an_mdsa_checkpoint_makes_no_clips(tmp_path):
    with pytest.raises(CheckpointError, match="mdsa"):
        SoundingVideoPipeline.from_checkpoint(save_tiny_mdsa(str(tmp_path), tiny_config()))


def test_clips_are_saved_with_both_streams(pipeline, tmp_path):
    (clip,) = pipeline(1, label="rain", steps=2)
    path = str(tmp_path / "clip.mp4")
    clip.save(path)
    back = read_clip(path, fps=5, sample_rate=16_000, height=32, width=32)
    assert back.video.shape == clip.video.shape and back.audio.shape == clip.audio.shape


def test_pixels_survive_the_way_to_the_model_and_back():
    video = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16, 1).expand(1, 2, 16, 16, 3)
    assert torch.equal(unit_to_pixels(pixels_to_unit(video)), video)
