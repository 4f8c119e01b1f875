"""Can the seams of masked tasks be seen or heard, and does a model keep the frames that it is given?

    python -m bench.train.masked_tasks RUN [--clips 32] [--steps 20] [--windows 4]

RUN: a run whose ST-DiT was trained with i2av, continue and inpaint in `diffusion.task_weights`. Held-out
windows of its data are masked according to each task and generated again, in four ways:

    trained      the task, as `SoundingVideoPipeline` samples it
    cut in       the same, but given and generated frames are only put side by side
    true planes  the planes of the true clip instead of generated ones, joined likewise: what MDSA and the
                 joining add to the seams of true clips, without any error of the generator
    replacement  MM-Diffusion's zero-shot method, with the task `joint` of the same model: at each step the
                 known frames of the model's estimate of the clean clip are replaced by the given ones

A latent clip has no known part, because planes mix frames. So replacement uses the autoencoder: the estimate
of the clean planes is decoded, its known frames are replaced, and it is encoded again. The usual step
follows. The clips are joined like the trained ones.

    picture, loudness  the jump across a seam, divided by the jumps elsewhere in the same clips; 1: no seam
    given              PSNR of the given pictures as the model makes them, before they are replaced
    next               PSNR of the first generated picture next to a given one, against the true clip

A jump of the picture is the mean absolute difference of neighbouring frames. A jump of the loudness is the
difference of the levels, in dB, of neighbouring stretches of 20 ms. At the end, clips are continued by
--windows windows to measure the seams between generated windows. Means are over all clips. Prints a table and
a JSON line.
"""

import argparse
import dataclasses
import json
import time
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from proav.config import Config
from proav.config.reading import load_config
from proav.data.feeds.feed import evaluation_windows
from proav.data.store.shards import SegmentStore
from proav.diffusion.masks import AUDIO, VIDEO, continue_frames
from proav.diffusion.noise import noise_batch
from proav.diffusion.tasks import TASKS, fixed_mask
from proav.generation.finishing import finish_clips, given_streams, phase_seed
from proav.generation.joining import with_given_frames
from proav.generation.pipeline import SoundingVideoPipeline
from proav.generation.requests import SampleRequest
from proav.generation.sampling_settings import SamplingSettings
from proav.media.container import Clip
from proav.runs.layout import RunFolder

TASK_NAMES = ("i2av", "continue", "inpaint")
COLUMNS = ("picture", "loudness", "given", "next")
LOUDNESS_SECONDS = 0.02
SILENCE_RMS = 1e-3
"""Added to the root mean square before a level is computed (-60 dB), so that silence has no jumps."""
BATCH = 8


@torch.inference_mode()
def replacement(pipeline: SoundingVideoPipeline, requests: Sequence[SampleRequest], known_2T: Tensor):
    """Pictures and mel images like `sample_streams`, by zero-shot replacement with the task joint."""
    process, coder = pipeline.process, pipeline.coder
    given_video = torch.from_numpy(np.stack([request.given.video for request in requests]))
    given_mel = coder.mel_frames.encode(
        torch.from_numpy(np.stack([request.given.audio for request in requests]))
    )
    known_video, known_mel = known_2T[VIDEO][None, :, None, None, None], known_2T[AUDIO][None, :, None, None]
    conditions = pipeline.conditions("joint", requests)
    identities = [(request.seed, request.index) for request in requests]
    state = noise_batch(identities, coder.latents.stack_shape)
    for now, then in pairwise(process.times_of(requests[0].settings.steps)):
        velocity = pipeline.stdit(state, torch.full((len(requests), 2), now), conditions)
        clean, noise = process.estimates(state, velocity, now)
        video, mel = coder.decode(coder.denormalize(clean))
        mixed = torch.where(known_video, given_video, video), torch.where(known_mel, given_mel, mel)
        clean_share, noise_share = process.shares(then)
        state = clean_share * coder.normalize(coder.encode(*mixed)) + noise_share * noise
    return video, mel


def jumps(clip: Clip) -> tuple[np.ndarray, np.ndarray]:
    """Jumps of the picture at frames 1 .. T - 1, and of the loudness at the ends of stretches of 20 ms."""
    picture = np.abs(np.diff(clip.video.astype(np.float64), axis=0)).mean((1, 2, 3))
    length = int(LOUDNESS_SECONDS * clip.sample_rate)
    stretches = clip.audio[: len(clip.audio) // length * length].reshape(-1, length).astype(np.float64)
    decibels = 20 * np.log10(np.sqrt((stretches**2).mean(1)) + SILENCE_RMS)
    return picture, np.abs(np.diff(decibels))


def seam_ratios(clips: Sequence[Clip], picture_seams: Sequence[int], sound_seams: Sequence[int]) -> dict:
    """Mean jump at the seams, divided by the mean jump elsewhere. seams: the first frame after each seam."""
    pictures, levels = (np.stack(values) for values in zip(*map(jumps, clips), strict=True))
    per_frame = round(1 / (clips[0].fps * LOUDNESS_SECONDS))
    found = {}
    for name, values, places in (
        ("picture", pictures, [seam - 1 for seam in picture_seams]),
        ("loudness", levels, [seam * per_frame - 1 for seam in sound_seams]),
    ):
        at = np.isin(np.arange(values.shape[1]), places)
        found[name] = float(values[:, at].mean() / values[:, ~at].mean()) if at.any() else None
    return found


def borders(known_T: Tensor) -> list[int]:
    return ((known_T[1:] != known_T[:-1]).nonzero().flatten() + 1).tolist()


def psnr_db(made: np.ndarray, true: np.ndarray) -> float:
    """Mean over clips; made, true: uint8 [clips, frames, H, W, 3]."""
    error = ((made.astype(np.float64) - true) ** 2).mean((1, 2, 3, 4))
    return float((10 * np.log10(255**2 / np.maximum(error, 0.5))).mean())


def measure_task(
    pipeline: SoundingVideoPipeline, task: str, truth: Sequence[SampleRequest], steps: int
) -> dict[str, dict]:
    """{way: numbers} of one task.

    pipeline: the model.
    task: name of the task.
    truth: requests whose given clips are whole windows.
    steps: sampling steps.
    """
    known_2T = mask_of(pipeline, task)
    settings = SamplingSettings(task=task, steps=steps)
    asks = TASKS[task].asks_span
    requests = [
        dataclasses.replace(one, settings=settings, known=known_2T.numpy() if asks else None) for one in truth
    ]
    made: dict[str, list[Clip]] = {"trained": [], "cut in": [], "true planes": [], "replacement": []}
    raw: dict[str, list[np.ndarray]] = {name: [] for name in made}
    for first in range(0, len(requests), BATCH):
        some = requests[first : first + BATCH]
        video, mel = pipeline.sample_streams(some)
        seeds = [phase_seed(request.seed, request.index) for request in some]
        plain = pipeline.coder.to_clips(video, mel, seeds=seeds)
        made["cut in"] += [
            with_given_frames(clip, one.given, known_2T.numpy())
            for clip, one in zip(plain, some, strict=True)
        ]
        made["trained"] += finish_clips(pipeline.config, pipeline.coder.mel_frames, some, video, mel)
        streams = given_streams(pipeline.coder.mel_frames, some)
        with torch.inference_mode():
            coded = pipeline.coder.decode(pipeline.coder.encode(*streams))
        made["true planes"] += finish_clips(pipeline.config, pipeline.coder.mel_frames, some, *coded)
        replaced = replacement(pipeline, some, known_2T)
        made["replacement"] += finish_clips(pipeline.config, pipeline.coder.mel_frames, some, *replaced)
        of_ways = {"trained": video, "cut in": video, "true planes": coded[0], "replacement": replaced[0]}
        for name, pictures in of_ways.items():
            raw[name] += list(pictures.numpy())
    seams = borders(known_2T[VIDEO]), borders(known_2T[AUDIO])
    beside = [seam if not known_2T[VIDEO][seam] else seam - 1 for seam in seams[0]]
    true = np.stack([one.given.video for one in truth])
    table = {"true clips": seam_ratios([one.given for one in truth], *seams)}
    for name, clips in made.items():
        own, joined = np.stack(raw[name]), np.stack([clip.video for clip in clips])
        table[name] = seam_ratios(clips, *seams) | {
            "given": psnr_db(own[:, known_2T[VIDEO]], true[:, known_2T[VIDEO]]),
            "next": psnr_db(joined[:, beside], true[:, beside]),
        }
    return table


def mask_of(pipeline: SoundingVideoPipeline, task: str) -> Tensor:
    """The task's mask, bool [2, T]; for a task with a span, the middle half."""
    frames = pipeline.config.clip.num_frames
    if not TASKS[task].asks_span:
        return fixed_mask(task, pipeline.config)
    known_2T = torch.ones(2, frames, dtype=torch.bool)
    known_2T[:, frames // 4 : frames - frames // 4] = False
    return known_2T


def measure_length(pipeline: SoundingVideoPipeline, truth: Sequence[SampleRequest], steps: int, windows: int):
    """Seams of clips that are continued: those to the given clip, and those between generated windows.

    pipeline: the model.
    truth: requests with the given clips.
    steps: sampling steps.
    windows: generated windows of a clip.
    """
    frames, overlap = pipeline.config.clip.num_frames, continue_frames(pipeline.config)
    settings = SamplingSettings(task="continue", steps=steps)
    requests = [dataclasses.replace(one, settings=settings, num_windows=windows) for one in truth]
    batches = [requests[first : first + BATCH] for first in range(0, len(requests), BATCH)]
    clips = [clip for some in batches for clip in pipeline.sample(some)]
    seams = [frames + window * (frames - overlap) for window in range(windows)]
    first, later = (seam_ratios(clips, some, some) for some in (seams[:1], seams[1:]))
    return {"to the given clip": first, "between windows": later}


def held_out(config: Config, pipeline: SoundingVideoPipeline, count: int) -> list[SampleRequest]:
    """Requests whose given clips are held-out windows of the run."""
    store, clip, truth = SegmentStore(config.data_folder), pipeline.config.clip, []
    windows = evaluation_windows(store, config, split="validation", max_clips=count)
    for index, (segment, start) in enumerate(windows):
        window = store.window(segment, start, clip.num_frames, want=("video", "audio"))
        given = Clip(window["video"], window["audio"], clip.fps, clip.sample_rate)
        truth.append(SampleRequest(0, index, store.rows[segment]["label"], given))
    return truth


def show(task: str, rows: dict[str, dict]) -> None:
    for way, values in rows.items():
        cells = (values.get(name) for name in COLUMNS)
        shown = "".join(f"{'-' if value is None else format(value, '.2f'):>10}" for value in cells)
        print(f"{task:10}{way:18}{shown}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run")
    parser.add_argument("--clips", type=int, default=32)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--windows", type=int, default=4)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    started = time.monotonic()
    config = load_config(f"{arguments.run}/config.yaml", [f"run_dir={arguments.run}"])
    pipeline = SoundingVideoPipeline.from_checkpoint(RunFolder(config).stdit.checkpoints)
    truth = held_out(config, pipeline, arguments.clips)
    print(f"{'':28}" + "".join(f"{name:>10}" for name in COLUMNS))
    table = {}
    for task in TASK_NAMES:
        table[task] = measure_task(pipeline, task, truth, arguments.steps)
        show(task, table[task])
    table["long"] = measure_length(pipeline, truth, arguments.steps, arguments.windows)
    show("long", table["long"])
    print(f"{len(truth)} clips, {arguments.steps} steps, {time.monotonic() - started:.0f} s")
    print(json.dumps(table))


if __name__ == "__main__":
    main()
