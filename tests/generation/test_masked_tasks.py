"""First picture, continuation and inpainting, from prepared clips through training to samples."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from proav import storage
from proav.data.store.shards import SegmentStore, manifest_hash
from proav.diffusion.masks import VIDEO
from proav.errors import UserError
from proav.generation.pipeline import SampleRequest, SoundingVideoPipeline
from proav.generation.sampling_settings import SamplingSettings
from proav.latents.encode import ShardEncoder, masked_settings
from proav.latents.statistics import merge_statistics
from proav.media.container import Clip
from proav.runs.checkpoint import load_checkpoint
from proav.runs.layout import RunFolder
from proav.train.worker import train_worker
from tests.generation.test_pipeline import close
from tests.tiny import LABELS, save_tiny_mdsa, save_tiny_stdit, tiny_config
from tests.train.tiny_run import write_segments

FRAMES, SAMPLES = 4, 12_800
WEIGHTS = "diffusion.task_weights={joint: 1, a2v: 1, i2av: 2, continue: 2, inpaint: 2}"


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    return SoundingVideoPipeline.from_checkpoint(
        save_tiny_stdit(str(tmp_path_factory.mktemp("checkpoints")), tiny_config(WEIGHTS))
    )


@pytest.fixture(scope="module")
def clip():
    draw = np.random.default_rng(0)
    return Clip(
        draw.integers(0, 255, (6, 32, 32, 3), np.uint8),
        draw.uniform(-0.5, 0.5, 6 * 3200).astype(np.float32),
        fps=5,
        sample_rate=16_000,
    )


def test_a_clip_begins_with_the_given_picture_and_depends_on_it(pipeline, clip):
    (made,) = pipeline(task="i2av", image=clip.video[0], steps=2)
    assert np.array_equal(made.video[0], clip.video[0]) and made.video.shape == (FRAMES, 32, 32, 3)
    for same in ({"clip": clip}, {"video": clip.video}, {"image": torch.from_numpy(clip.video[0])}):
        assert close(pipeline(task="i2av", steps=2, **same)[0], made)
    (other,) = pipeline(task="i2av", image=255 - clip.video[0], steps=2)
    assert not np.array_equal(other.video[1:], made.video[1:]) and not np.array_equal(other.audio, made.audio)


@pytest.mark.parametrize("windows", [1, 2, 5])
def test_a_clip_goes_on_to_any_length_and_begins_as_it_was(pipeline, clip, windows):
    told = []
    (longer,) = pipeline(
        task="continue",
        clip=clip,
        num_windows=windows,
        steps=2,
        on_step=lambda done, total: told.append((done, total)),
    )
    assert longer.video.shape[0] == 6 + 2 * windows and len(longer.audio) == 3200 * (6 + 2 * windows)
    assert np.array_equal(longer.video[:6], clip.video) and np.array_equal(
        longer.audio[: 6 * 3200], clip.audio
    )
    assert told == [(done, 2 * windows) for done in range(1, 2 * windows + 1)]
    if windows > 1:  # what was made does not depend on what follows
        (shorter,) = pipeline(task="continue", clip=clip, num_windows=windows - 1, steps=2)
        assert close(shorter, Clip(longer.video[:-2], longer.audio[:-6400], 5, 16_000))


def test_a_continuation_reads_the_end_of_what_it_goes_on_from(pipeline, clip):
    (made,) = pipeline(task="continue", clip=clip, steps=2)
    start_differs = dataclasses.replace(clip, video=clip.video.copy())
    start_differs.video[:4] = 0
    end_differs = dataclasses.replace(clip, video=clip.video.copy())
    end_differs.video[5] = 0
    assert np.array_equal(pipeline(task="continue", clip=start_differs, steps=2)[0].video[6:], made.video[6:])
    assert not np.array_equal(
        pipeline(task="continue", clip=end_differs, steps=2)[0].video[6:], made.video[6:]
    )


@pytest.mark.parametrize(
    ("stream", "picture", "sound"),
    [("both", [1, 2], [1, 2]), ("video", [1, 2], []), ("audio", [], [1, 2])],
)
def test_a_span_is_made_anew_and_the_rest_is_kept(pipeline, clip, stream, picture, sound):
    (made,) = pipeline(task="inpaint", clip=clip, span=(0.25, 0.55), stream=stream, steps=2)
    changed = (made.video != clip.video[:FRAMES]).any((1, 2, 3))
    heard = (made.audio != clip.audio[:SAMPLES]).reshape(FRAMES, -1).any(1)
    assert np.flatnonzero(changed).tolist() == picture and np.flatnonzero(heard).tolist() == sound
    streams = {"audio": clip.audio, "sample_rate": 16_000, "video": clip.video}
    assert close(pipeline(task="inpaint", span=(0.2, 0.6), stream=stream, steps=2, **streams)[0], made)


def test_unlike_tasks_share_a_batch_and_equal_their_solo_runs(pipeline, clip):
    window = dataclasses.replace(clip, video=clip.video[:FRAMES], audio=clip.audio[:SAMPLES])
    known = np.ones((2, FRAMES), bool)
    known[VIDEO, 2:] = False
    requests = [
        SampleRequest(0, 0, "rain", settings=SamplingSettings(steps=3, guidance_scale=2.0)),
        SampleRequest(1, 1, None, window, SamplingSettings(task="i2av", steps=2)),
        SampleRequest(2, 2, "rain", clip, SamplingSettings(task="continue", steps=3), num_windows=2),
        SampleRequest(3, 3, "speech", window, SamplingSettings(task="inpaint", steps=3), known),
        SampleRequest(4, 4, "speech", window, SamplingSettings(task="a2v", steps=1)),
        SampleRequest(
            5, 5, "rain", clip, SamplingSettings(task="continue", steps=1, solver="heun", guidance_scale=3.0)
        ),
    ]
    told = []
    together = pipeline.sample(requests, on_step=lambda done, total: told.append((done, total)))
    assert told == [(done, 6) for done in range(1, 7)]  # 3 calls for each of two windows
    for made, request in zip(together, requests, strict=True):
        assert close(made, pipeline.sample([request])[0]), request.settings.task


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"task": "i2av"}, "takes image=..., video=... or clip=..., and nothing else; given: nothing"),
        ({"task": "i2av", "image": np.zeros((32, 32), np.uint8)}, "expected uint8 [T, H, W, 3]"),
        ({"task": "continue", "video": np.zeros((4, 32, 32, 3), np.uint8)}, "takes audio=... with video=..."),
        ({"task": "continue", "num_windows": 0, "clip": "clip"}, "num_windows=0: expected 1 or more"),
        (
            {"task": "inpaint", "num_windows": 2, "span": (0, 0.4), "clip": "clip"},
            "task='inpaint' makes clips of one window",
        ),
        ({"seconds": 2.0, "num_windows": 2}, "seconds=2 and num_windows=2: expected only one of them"),
        ({"seconds": 0.1}, "expected at least the 0.2 s of a frame"),
        ({"task": "continue", "clip": "clip", "seconds": 1.2}, "the given clip has 1.2 s already"),
        ({"task": "v2a", "clip": "clip", "seconds": 1.4}, "video of 6 frames: expected at least 7"),
        ({"task": "inpaint", "clip": "clip"}, "needs span=...: begin and end in seconds within the 0.8 s"),
        ({"task": "inpaint", "clip": "clip", "span": (0.5, 0.9)}, "span=(0.5, 0.9): expected begin and end"),
        (
            {"task": "inpaint", "clip": "clip", "span": (0.0, 0.8)},
            "span=(0.0, 0.8) leaves nothing of the clip; write a shorter one, or task='joint'",
        ),
        (
            {"task": "inpaint", "clip": "clip", "span": (0.0, 0.8), "stream": "video"},
            "span=(0.0, 0.8) leaves nothing of the picture; write a shorter one, or task='a2v'",
        ),
        (
            {"task": "inpaint", "clip": "clip", "span": (0.1, 0.7), "stream": "audio"},
            "span=(0.1, 0.7) leaves nothing of the sound; write a shorter one, or task='v2a'",
        ),
        (
            {"task": "inpaint", "clip": "clip", "span": (0.4, 0.40000001)},
            "span=(0.4, 0.40000001) touches no frame: frames last 0.2 s; expected a longer span",
        ),
        ({"task": "inpaint", "clip": "clip", "span": (0.4,)}, "span=(0.4,): expected begin and end"),
        ({"task": "inpaint", "clip": "clip", "span": 0.4}, "span=0.4: expected begin and end"),
        ({"task": "inpaint", "clip": "clip", "span": ("a", "b")}, "span=('a', 'b'): expected begin and end"),
        ({"stream": "nonsense"}, "stream='nonsense': expected one of 'video', 'audio', 'both'"),
        ({"task": "i2av", "clip": "clip", "stream": "mel"}, "stream='mel': expected one of"),
        ({"stream": "video"}, "stream='video' was given, but task='joint' takes none; leave it out, or"),
        ({"guidance_interval": (0.5,)}, "guidance_interval=(0.5,): expected two times in [0, 1]"),
        ({"guidance_interval": 0.5}, "guidance_interval=0.5: expected two times in [0, 1]"),
        (
            {"task": "inpaint", "clip": "clip", "span": (0, 0.4), "stream": "mel"},
            "stream='mel': expected one",
        ),
        (
            {"task": "i2av", "clip": "clip", "span": (0, 0.4)},
            "takes none; leave it out, or write task='inpaint'",
        ),
    ],
)
def test_mistakes_are_reported(pipeline, clip, given, said):
    with pytest.raises(UserError) as error:
        pipeline(**{"steps": 1, **given, **({"clip": clip} if "clip" in given else {})})
    assert said in str(error.value)


def test_a_clip_too_short_to_go_on_from_is_reported(pipeline, clip):
    short = Clip(clip.video[:1], clip.audio[:3200], 5, 16_000)
    with pytest.raises(UserError, match="video of 1 frames: expected at least 2"):
        pipeline(task="continue", clip=short, steps=1)


def test_a_model_without_masked_tasks_says_so(tmp_path, clip):
    pipeline = SoundingVideoPipeline.from_checkpoint(save_tiny_stdit(str(tmp_path), tiny_config()))
    with pytest.raises(UserError, match="tiny was not trained for it .* expected one of joint, a2v, v2a"):
        pipeline(task="i2av", image=clip.video[0], steps=1)


def encode_here(config) -> None:
    """Encodes all shards in this process, as `encode_latents` does with Ray."""
    store, run = SegmentStore(config.data_folder), RunFolder(config)
    checkpoint = load_checkpoint(run.mdsa.checkpoints, kind="mdsa")
    settings = {
        "mdsa_checkpoint": checkpoint.hash,
        "data": manifest_hash(store.manifest),
        **masked_settings(config),
    }
    encoder = ShardEncoder(config, checkpoint.path, settings)
    parts = [encoder({"shard": shard["name"]}) for shard in store.manifest["shards"]]
    channels = [config.mdsa.latent_channels] * 6
    sums = merge_statistics(parts, scale=config.diffusion.latent_scale, channels=channels)
    storage.write_text(run.latent_statistics, json.dumps({**settings, **sums, "labels": list(LABELS)}))


def test_from_prepared_clips_through_training_to_samples(tmp_path, clip):
    words = (f"run_dir={tmp_path}", "data.frame_codec=raw", "train.engine=torch")
    config = tiny_config(WEIGHTS, *words)
    write_segments(config)
    save_tiny_mdsa(f"{tmp_path}/mdsa/checkpoints", config)
    encode_here(config)
    train_worker(config, "stdit", device=torch.device("cpu"))
    pipeline = SoundingVideoPipeline.from_checkpoint(f"{tmp_path}/stdit/checkpoints")
    told = [
        embed.weight[:, own * patch**2 :].abs().sum()
        for embed, own, patch in zip(
            pipeline.stdit.embed, pipeline.stdit.channels, pipeline.stdit.patches, strict=True
        )
    ]
    assert all(weight.item() > 0 for weight in told)  # every plane has learned from what is given
    for given in (
        {"task": "i2av", "image": clip.video[0]},
        {"task": "continue", "clip": clip, "num_windows": 2},
        {"task": "inpaint", "clip": clip, "span": (0.2, 0.4)},
    ):
        assert np.isfinite(pipeline(steps=2, **given)[0].audio).all()

    more = tiny_config(WEIGHTS, *words, "diffusion.continue_frames=3")
    with pytest.raises(UserError, match=r"do not hold the masked clips .* encode.replace=true"):
        train_worker(more, "stdit", device=torch.device("cpu"))
