"""Can the seams of masked tasks be seen or heard, and does a model keep the frames that it is given?

    python -m bench.train.masked_tasks RUN [--stage distill] [--clips 32] [--steps 20] [--windows 4]

RUN: a run whose ST-DiT was trained with i2av, continue and inpaint in `diffusion.task_weights`. Held-out
windows of its data are masked according to each task. The first row measures them as they are, the others
what is generated again, in four ways:

    true clips   nothing is made: what the measure gives at the same places if there is no seam
    trained      the task, as `SoundingVideoPipeline` samples it
    cut in       the same, but given and generated frames are only put side by side
    true planes  the planes of the true clip instead of generated ones, joined likewise: what MDSA and the
                 joining add to the seams of true clips, without any error of the generator
    replacement  MM-Diffusion's zero-shot method, with the task `joint` of the same model: at each step the
                 known frames of the model's estimate of the clean clip are replaced by the given ones

A latent clip has no known part, because planes mix frames. So replacement uses the autoencoder: the estimate
of the clean planes is decoded, its known frames are replaced, and it is encoded again. The usual step
follows. The clips are joined like the trained ones. Only a flow has this row, so --stage distill has none.

    picture, loudness  the jump across a seam, divided by the jumps elsewhere in the same clips; 1: no seam
    P in made, L in made  the same, but divided by the jumps within made stretches alone. What is made may
                       jump more than what is given. Then even a perfect seam between them is above 1.
    given              PSNR of the given pictures as the model makes them, before they are replaced
    next               PSNR of the first generated picture next to a given one, against the true clip
    behind             the same for the sound: the mean error of the mel image, in dB, in the first 100 ms of
                       generated sound next to given sound

A jump of the picture is the mean absolute difference of neighbouring frames. A jump of the loudness is the
difference of the levels, in dB, of neighbouring stretches of 20 ms. At the end, clips are continued by
--windows windows to measure the seams between generated windows. The true clips of that part are windows of
twice the length.

Means are over all clips. Few clips have an impact just at a seam. So each ratio has a 95 % interval, by a
bootstrap over sources. With very few clips it may reach below 0. Prints a table and a JSON line.
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

from bench.helpers.windows import real_clips
from proav.config import Config
from proav.config.reading import load_config
from proav.diffusion.masks import AUDIO, VIDEO, continue_frames
from proav.diffusion.noise import noise_batch
from proav.diffusion.tasks import TASKS, fixed_mask
from proav.generation.finishing import finish_clips, given_streams, phase_seed
from proav.generation.joining import part_of, with_given_frames
from proav.generation.pipeline import SoundingVideoPipeline
from proav.generation.requests import SampleRequest
from proav.generation.sampling_settings import SamplingSettings
from proav.media.container import Clip
from proav.media.melframes import MelFrames
from proav.metrics.bootstrap import bootstrap_interval, source_groups
from proav.runs.layout import RunFolder

TASK_NAMES = ("i2av", "continue", "inpaint")
RATIOS = ("picture", "P in made", "loudness", "L in made")
COLUMNS = (*RATIOS, "given", "next", "behind")
WIDTHS = (22, 22, 22, 22, 8, 8, 8)
BEHIND_SECONDS = 0.1
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


def seam_ratios(
    clips: Sequence[Clip],
    picture_seams: Sequence[int],
    sound_seams: Sequence[int],
    *,
    made_2T: np.ndarray | None = None,
    sources: Sequence[str] = (),
) -> dict:
    """{name of RATIOS: mean jump at the seams, divided by the mean jump elsewhere}; None if there are none.

    clips: of one length.
    picture_seams, sound_seams: the first frame after each seam.
    made_2T: bool, the frames whose picture and sound are made; None: the ratios "in made" are left out.
    sources: of each clip; if they are given, NAME_interval is [low, high] of each ratio, or None if there
        are too few.
    """
    pictures, levels = (np.stack(values) for values in zip(*map(jumps, clips), strict=True))
    per_frame = round(1 / (clips[0].fps * LOUDNESS_SECONDS))
    at_picture = np.isin(np.arange(pictures.shape[1]), [seam - 1 for seam in picture_seams])
    at_level = np.isin(np.arange(levels.shape[1]), [seam * per_frame - 1 for seam in sound_seams])
    measured = {"picture": (pictures, at_picture, ~at_picture), "loudness": (levels, at_level, ~at_level)}
    if made_2T is not None:
        frames, steps = made_2T[VIDEO], np.repeat(made_2T[AUDIO], per_frame)
        measured["P in made"] = pictures, at_picture, ~at_picture & frames[1:] & frames[:-1]
        measured["L in made"] = levels, at_level, ~at_level & steps[1:] & steps[:-1]
    groups, found = source_groups(sources), {}
    for name, (values, at, elsewhere) in measured.items():
        if not (at.any() and elsewhere.any()):
            found[name] = None
            continue
        across, beside = values[:, at].mean(1), values[:, elsewhere].mean(1)

        def ratio(places: np.ndarray, across=across, beside=beside) -> float:
            return float(across[places].mean() / beside[places].mean())

        found[name] = ratio(np.arange(len(clips)))
        if groups:
            interval = bootstrap_interval(ratio, groups)
            found[f"{name}_interval"] = None if interval.reason else [interval.low, interval.high]
    return found


def behind_db(mel_frames: MelFrames, clips: Sequence[Clip], true: Sequence[Clip], known_T: Tensor) -> float:
    """Mean error of the mel image in made sound that is at most BEHIND_SECONDS from given sound, in dB.

    mel_frames: of the model.
    clips, true: of one shape.
    known_T: bool, the frames whose sound is given.
    """
    made_BTMS, true_BTMS = (
        mel_frames.encode(torch.from_numpy(np.stack([clip.audio for clip in some]))) for some in (clips, true)
    )
    settings, steps = mel_frames.settings, made_BTMS.shape[-1]
    known_J = known_T.repeat_interleave(steps).numpy()
    reach = round(BEHIND_SECONDS * clips[0].fps * steps)
    near_J = np.convolve(known_J, np.ones(2 * reach + 1), "same") > 0
    error_BTS = (made_BTMS - true_BTMS).abs().mean(2) * 10 * (settings.ceiling_log10 - settings.floor_log10)
    return float(error_BTS.flatten(1)[:, near_J & ~known_J].mean())


def borders(known_T: Tensor) -> list[int]:
    return ((known_T[1:] != known_T[:-1]).nonzero().flatten() + 1).tolist()


def psnr_db(made: np.ndarray, true: np.ndarray) -> float:
    """Mean over clips; made, true: uint8 [clips, frames, H, W, 3]."""
    error = ((made.astype(np.float64) - true) ** 2).mean((1, 2, 3, 4))
    return float((10 * np.log10(255**2 / np.maximum(error, 0.5))).mean())


def measure_task(
    pipeline: SoundingVideoPipeline,
    task: str,
    truth: Sequence[SampleRequest],
    sources: Sequence[str],
    steps: int,
) -> dict[str, dict]:
    """{way: numbers} of one task.

    pipeline: the model.
    task: name of the task.
    truth: requests whose given clips are whole windows.
    sources: of these windows.
    steps: sampling steps.
    """
    known_2T = mask_of(pipeline, task)
    settings = SamplingSettings(task=task, steps=steps)
    asks = TASKS[task].asks_span
    requests = [
        dataclasses.replace(one, settings=settings, known=known_2T.numpy() if asks else None) for one in truth
    ]
    ways = ("trained", "cut in", "true planes") + ("replacement",) * (pipeline.process.objective == "flow")
    made: dict[str, list[Clip]] = {name: [] for name in ways}
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
        of_ways = {"trained": video, "cut in": video, "true planes": coded[0]}
        if "replacement" in made:
            replaced = replacement(pipeline, some, known_2T)
            made["replacement"] += finish_clips(pipeline.config, pipeline.coder.mel_frames, some, *replaced)
            of_ways["replacement"] = replaced[0]
        for name, pictures in of_ways.items():
            raw[name] += list(pictures.numpy())
    seams = borders(known_2T[VIDEO]), borders(known_2T[AUDIO])
    beside = [seam if not known_2T[VIDEO][seam] else seam - 1 for seam in seams[0]]
    true_clips = [one.given for one in truth]
    true = np.stack([clip.video for clip in true_clips])
    compared = {"made_2T": ~known_2T.numpy(), "sources": sources}
    table = {"true clips": seam_ratios(true_clips, *seams, **compared)}
    for name, clips in made.items():
        own, joined = np.stack(raw[name]), np.stack([clip.video for clip in clips])
        table[name] = seam_ratios(clips, *seams, **compared) | {
            "given": psnr_db(own[:, known_2T[VIDEO]], true[:, known_2T[VIDEO]]),
            "next": psnr_db(joined[:, beside], true[:, beside]),
        }
        if seams[1]:
            heard = known_2T[AUDIO]
            table[name]["behind"] = behind_db(pipeline.coder.mel_frames, clips, true_clips, heard)
    return table


def mask_of(pipeline: SoundingVideoPipeline, task: str) -> Tensor:
    """The task's mask, bool [2, T]; for a task with a span, the middle half."""
    frames = pipeline.config.clip.num_frames
    if not TASKS[task].asks_span:
        return fixed_mask(task, pipeline.config)
    known_2T = torch.ones(2, frames, dtype=torch.bool)
    known_2T[:, frames // 4 : frames - frames // 4] = False
    return known_2T


def measure_length(
    pipeline: SoundingVideoPipeline,
    truth: Sequence[SampleRequest],
    sources: Sequence[str],
    steps: int,
    windows: int,
) -> dict[str, dict]:
    """Seams of clips that are continued: those to the given clip, and those between generated windows.

    pipeline: the model.
    truth: requests whose given clips are windows of twice the length. Their first halves are continued.
    sources: of these windows.
    steps: sampling steps.
    windows: generated windows of a clip.
    """
    frames, overlap = pipeline.config.clip.num_frames, continue_frames(pipeline.config)
    settings = SamplingSettings(task="continue", steps=steps)
    requests = [
        dataclasses.replace(one, settings=settings, num_windows=windows, given=part_of(one.given, 0, frames))
        for one in truth
    ]
    batches = [requests[first : first + BATCH] for first in range(0, len(requests), BATCH)]
    clips = [clip for some in batches for clip in pipeline.sample(some)]
    seams = [frames + window * (frames - overlap) for window in range(windows)]
    table = {}
    for name, some, places in (
        ("true clips", [one.given for one in truth], seams[:1]),
        ("to the given clip", clips, seams[:1]),
        ("between windows", clips, seams[1:]),
    ):
        made_2T = np.arange(len(some[0].video))[None].repeat(2, axis=0) >= frames
        table[name] = seam_ratios(some, places, places, made_2T=made_2T, sources=sources)
    return table


def held_out(config: Config, count: int, *, windows: int = 1) -> tuple[list[SampleRequest], list[str]]:
    """Requests whose given clips are held-out windows of the run, and the source of each.

    config: of the run.
    count: the most clips.
    windows: how many windows of the model a given clip is long.
    """
    clips, rows = real_clips(config, "validation", count, windows=windows)
    truth = [
        SampleRequest(0, index, row["label"], clip)
        for index, (clip, row) in enumerate(zip(clips, rows, strict=True))
    ]
    return truth, [row["source_id"] for row in rows]


def show(task: str, rows: dict[str, dict]) -> None:
    for way, values in rows.items():
        cells = []
        for name in COLUMNS:
            value, interval = values.get(name), values.get(f"{name}_interval")
            shown = "-" if value is None else f"{value:.2f}"
            cells.append(shown + (f" ({interval[0]:.2f} .. {interval[1]:.2f})" if interval else ""))
        print(
            f"{task:10}{way:18}"
            + "".join(f"{cell:>{width}}" for cell, width in zip(cells, WIDTHS, strict=True)),
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run")
    parser.add_argument("--stage", choices=["stdit", "distill"], default="stdit")
    parser.add_argument("--clips", type=int, default=32)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--windows", type=int, default=4)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    started = time.monotonic()
    config = load_config(f"{arguments.run}/config.yaml", [f"run_dir={arguments.run}"])
    pipeline = SoundingVideoPipeline.from_checkpoint(RunFolder(config).stage(arguments.stage).checkpoints)
    truth, sources = held_out(config, arguments.clips)
    print(f"{'':28}" + "".join(f"{name:>{width}}" for name, width in zip(COLUMNS, WIDTHS, strict=True)))
    table = {}
    for task in TASK_NAMES:
        table[task] = measure_task(pipeline, task, truth, sources, arguments.steps)
        show(task, table[task])
    twice = held_out(config, arguments.clips, windows=2)
    table["long"] = measure_length(pipeline, *twice, arguments.steps, arguments.windows)
    show("long", table["long"])
    print(f"{len(truth)} clips, {arguments.steps} steps, {time.monotonic() - started:.0f} s")
    print(json.dumps(table))


if __name__ == "__main__":
    main()
