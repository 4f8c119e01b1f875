"""Clips shorter or longer than a window have the wanted length, and their pieces equal the whole clip."""

import tracemalloc

import numpy as np
import pytest

from proav.diffusion.masks import AUDIO, VIDEO
from proav.errors import UserError
from proav.generation.joining import joined, part_of
from proav.generation.long_clips import GrowingClip, of_length, wanted_frames, window_of
from proav.generation.pipeline import SampleRequest, SoundingVideoPipeline
from proav.generation.sampling_settings import SamplingSettings
from proav.media.container import Clip, encode_clip
from tests.generation.test_pipeline import close
from tests.tiny import save_tiny_stdit, tiny_config

FRAMES, KNOWN, SAMPLES = 4, 2, 3200
"""Frames of a window, those of them that the next window is given, and sound samples of a frame."""
WEIGHTS = "diffusion.task_weights={joint: 1, a2v: 1, v2a: 1, i2av: 2, continue: 2, inpaint: 2}"
CONFIG = tiny_config(WEIGHTS)


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    return SoundingVideoPipeline.from_checkpoint(
        save_tiny_stdit(str(tmp_path_factory.mktemp("checkpoints")), CONFIG)
    )


def made_up(frames: int, seed: int = 0) -> Clip:
    draw = np.random.default_rng(seed)
    video = draw.integers(0, 255, (frames, 32, 32, 3), np.uint8)
    return Clip(video, draw.uniform(-0.5, 0.5, frames * SAMPLES).astype(np.float32), 5, 16_000)


def same(a: Clip, b: Clip) -> bool:
    return np.array_equal(a.video, b.video) and np.array_equal(a.audio, b.audio)


@pytest.mark.parametrize(
    ("task", "there", "frames", "windows"),
    [("joint", 0, 1, 1), ("joint", 0, 4, 1), ("joint", 0, 5, 2), ("joint", 0, 6, 2), ("i2av", 4, 11, 5)]
    + [("a2v", 9, 9, 4), ("continue", 6, 7, 1), ("continue", 6, 9, 2), ("continue", 3, 100, 49)],
)
def test_as_many_windows_are_made_as_a_length_needs(task, there, frames, windows):
    request = SampleRequest(given=made_up(there) if there else None, settings=SamplingSettings(task=task))
    wanted = of_length(CONFIG, request, frames)
    assert (wanted.num_windows, wanted.num_frames) == (windows, frames)
    assert wanted_frames(CONFIG, frames / 5, 1) == frames
    if task != "continue":
        assert frames <= wanted_frames(CONFIG, None, windows)
        assert windows == 1 or wanted_frames(CONFIG, None, windows - 1) < frames


def test_windows_take_turns_with_what_a_long_clip_is_given():
    """Each window is given its part of the sound, and the end of the picture that is made so far."""
    sound, end = made_up(9), made_up(7, seed=1)
    request = SampleRequest(3, 5, "rain", sound, SamplingSettings(task="a2v"), num_windows=4)
    first, last = window_of(CONFIG, request), window_of(CONFIG, request, 3, end)
    assert first.settings.task == "a2v" and same(first.given, part_of(sound, 0, FRAMES))
    assert last.settings.task == "inpaint" and last.num_windows == 1 and last.seed != first.seed == 3
    assert last.known[AUDIO].all() and last.known[VIDEO].tolist() == [True, True, False, False]
    assert np.array_equal(last.given.video[:KNOWN], end.video[-KNOWN:])
    # frames 6, 7 and 8 of the sound; then the sound is mirrored
    assert np.array_equal(last.given.audio[: 3 * SAMPLES], sound.audio[6 * SAMPLES :])
    assert np.array_equal(last.given.audio[3 * SAMPLES :], sound.audio[8 * SAMPLES :][::-1])


@pytest.mark.parametrize("seconds", [0.4, 0.8, 1.8])
def test_a_clip_is_as_long_as_asked_and_begins_as_a_window(pipeline, seconds):
    (window,) = pipeline(label="rain", steps=2)
    (clip,) = pipeline(label="rain", steps=2, seconds=seconds)
    frames = round(seconds * 5)
    assert len(clip.video) == frames and len(clip.audio) == frames * SAMPLES
    count = min(frames, FRAMES)
    assert close(part_of(clip, 0, count), part_of(window, 0, count))


@pytest.mark.parametrize("task", ["a2v", "v2a"])
def test_a_given_stream_of_any_length_is_kept_and_what_is_made_looks_no_further(pipeline, task):
    given, other = made_up(9), made_up(9)
    for stream in (other.video, other.audio.reshape(9, -1)):
        stream[7:] = stream[7:][::-1] // 2
    clips = [pipeline(task=task, clip=clip, seconds=1.8, steps=2)[0] for clip in (given, other)]
    own, made = ("audio", "video") if task == "a2v" else ("video", "audio")
    assert all(
        np.array_equal(getattr(clip, own), getattr(clip_given, own))
        for clip, clip_given in zip(clips, (given, other), strict=True)
    )
    first, second = (getattr(clip, made).reshape(9, -1) for clip in clips)
    assert np.array_equal(first[:6], second[:6])  # made before frame 7 is given
    assert not np.array_equal(first[6:], second[6:])


@pytest.mark.parametrize("task", ["a2v", "v2a"])
def test_guidance_of_a_given_stream_has_no_effect_in_any_window(pipeline, task):
    def clip_by(given, made):
        video, audio = (given, made) if task == "v2a" else (made, given)
        scales = {"guidance_scale": video, "audio_guidance_scale": audio}
        return pipeline(task=task, label="rain", clip=made_up(9), seconds=1.8, steps=2, **scales)[0]

    clip = clip_by(given=1.0, made=2.0)
    assert same(clip, clip_by(given=6.0, made=2.0)) and not same(clip, clip_by(given=1.0, made=1.0))


@pytest.mark.parametrize(("task", "scales"), [("v2a", (1, 3)), ("a2v", (3, 1)), ("joint", (3, 3))])
def test_a_later_window_keeps_the_guidance_of_what_it_makes(task, scales):
    settings = SamplingSettings(task=task, guidance_scale=3.0, guidance_interval=(0.1, 0.8))
    request = SampleRequest(given=made_up(9), settings=settings, num_windows=2)
    later = window_of(CONFIG, request, 1, made_up(4)).settings
    assert later.guidance_scales == scales and later.guidance_interval == (0.1, 0.8)


@pytest.mark.parametrize("task", ["joint", "i2av", "continue", "v2a"])
def test_pieces_are_the_clip_bit_for_bit_and_so_is_the_file(pipeline, task, tmp_path):
    given = None if task == "joint" else made_up(9 if task == "v2a" else 5)
    request = of_length(CONFIG, SampleRequest(given=given, settings=SamplingSettings(task=task, steps=2)), 9)
    told = []
    pieces = list(pipeline.stream(request, on_step=lambda done, total: told.append((done, total))))
    (whole,) = pipeline.sample([request])
    assert len(pieces) == request.num_windows + (task == "continue") > 2
    assert same(joined(pieces), whole) and len(whole.video) == 9
    assert told == [(done + 1, 2 * request.num_windows) for done in range(2 * request.num_windows)]
    pipeline.save(str(tmp_path / "clip.mp4"), request)
    assert (tmp_path / "clip.mp4").read_bytes() == encode_clip(whole)


def test_long_clips_of_unlike_lengths_share_a_batch(pipeline):
    requests = [
        of_length(CONFIG, SampleRequest(0, 0, settings=SamplingSettings(steps=2)), 7),
        SampleRequest(1, 1, settings=SamplingSettings(steps=3)),
        of_length(
            CONFIG, SampleRequest(2, 2, given=made_up(6), settings=SamplingSettings(task="v2a", steps=1)), 6
        ),
    ]
    for made, request in zip(pipeline.sample(requests), requests, strict=True):
        assert close(made, pipeline.sample([request])[0])


def test_a_growing_clip_holds_what_the_next_window_is_given():
    """Three hundred windows are made, and memory does not grow with them."""
    growing, size = GrowingClip(CONFIG, SampleRequest(num_windows=300)), made_up(FRAMES).video.nbytes
    tracemalloc.start()
    for _ in range(300):
        growing.window()
        growing.add(made_up(FRAMES))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 40 * size


def test_a_model_without_the_task_of_later_windows_says_so(tmp_path):
    pipeline = SoundingVideoPipeline.from_checkpoint(save_tiny_stdit(str(tmp_path), tiny_config()))
    with pytest.raises(UserError, match="num_windows=3: .* by the task 'continue'. .* not trained for it"):
        pipeline(seconds=1.6, steps=1)
    assert len(pipeline(seconds=0.6, steps=1)[0].video) == 3


@pytest.mark.parametrize(("frames", "windows", "wanted"), [(3, 1, None), (5, 2, None), (9, 5, 11)])
def test_a_given_stream_that_ends_before_the_clip_is_reported(pipeline, frames, windows, wanted):
    asked = {"settings": SamplingSettings(task="v2a", steps=1), "num_windows": windows, "num_frames": wanted}
    needed = wanted or wanted_frames(CONFIG, None, windows)
    said = rf"the given clip has {frames} frames \({frames / 5:g} s\), the clip to make has {needed} "
    with pytest.raises(UserError, match=said):
        pipeline.sample([SampleRequest(given=made_up(frames), **asked)])
    enough = SampleRequest(given=made_up(needed), **asked)
    assert len(pipeline.sample([enough])[0].video) == needed
