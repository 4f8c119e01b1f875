"""Do the trained tasks a2v and v2a beat zero-shot methods of the same model?

    python -m bench.train.zero_shot RUN [--stage distill] [--clips 256] [--steps 20] [--weights 2 10]
        [--tasks v2a a2v] [--out FILE]

RUN: a run whose ST-DiT was trained with joint, a2v and v2a (`diffusion.task_weights`). Of held-out windows of
its data one modality is given, and the other is made, from the same noise in each of these ways. A flow map
(--stage distill) has no zero-shot rows:

    real         nothing is made
    unrelated    nothing is made either: each window has the other stream of another source's window, with the
                 same label if there is one. What pairs are worth that at most the label joins
    trained      the task, as `SoundingVideoPipeline` samples it
    trained, unrelated  the task, but with what is given of that other window: the same clips, in other places
    replacement  MM-Diffusion's zero-shot method (Ruan et al. 2023): the task joint; at each step the given
                 modality's planes are the given ones with the noise of that time
    gradient W   the same with guidance: the gradient, by the noisy planes, of the error on the given planes
                 is subtracted from the estimate z of the clean ones: z - W (1 - t) / 2 grad |given - z|^2
                 (reconstruction guidance, Ho et al. 2022). It costs a backward pass in each step
    joint        the task joint, which reads nothing of what is given

    synchrony    impact_synchrony, only for runs with `evaluate.protocol=world`
    chance       synchrony with the given modality of another window: the more sounds are made, the more
                 impacts they meet by chance
    distance     kernel distance of what is made to the real windows, in features of a fixed random network:
                 sKAD for sound, sKVD for pictures
    to truth     v2a: mean log-mel error to the true sound in dB; a2v: PSNR to the true pictures in dB
    motion       a2v: how much of the motion is where and when the true one is (`motion_agreement`), up to 1.
                 It needs no objects that can be followed. The rows "unrelated" have what chance gives
    seconds      processor seconds of sampling a clip, without the conversion from mel to sound

Prints a table of these, and one of leads: how much better than each row the trained task is, in synchrony,
closeness to the truth, and motion. Windows and noise are the same in all rows, so a lead is known more
precisely than the two numbers that it is the difference of.

Intervals are 95 %, by a bootstrap over sources. A row that is in FILE already is measured again only if
checkpoint, steps or number of windows differ.
"""

import argparse
import json
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bench.helpers.sounds import mel_errors_db
from bench.helpers.windows import real_clips
from bench.train.masked_tasks import psnr_db
from bench.train.world_claim import synchrony
from proav.config.reading import load_config
from proav.diffusion.modalities import spread_to_planes
from proav.diffusion.noise import noise_batch
from proav.diffusion.tasks import given_row
from proav.errors import UserError
from proav.generation.finishing import given_streams, phase_seed
from proav.generation.pipeline import SoundingVideoPipeline
from proav.generation.requests import SampleRequest
from proav.generation.sampling_settings import SamplingSettings
from proav.media.container import Clip
from proav.metrics.bootstrap import bootstrap_interval, source_groups
from proav.metrics.distances import kernel_distance
from proav.metrics.networks import load_network
from proav.metrics.world import world_scores
from proav.runs.layout import RunFolder

BATCH = 16
CELL = 8
"""Side of the squares in which motion is compared, in pixels."""
COMPARED = ("synchrony", "to truth", "motion")
"""Measures of which the lead of the trained task is told."""
UNRELATED = {"real": ("unrelated",), "trained": ("trained, unrelated",)}
"""Rows that are measured again with the clips of other windows, and the names of those rows."""
Streams = tuple[Tensor, Tensor]


def trained(pipeline: SoundingVideoPipeline, requests: Sequence[SampleRequest]) -> Streams:
    """Pictures and mel images by the requests' own task."""
    return pipeline.sample_streams(requests)


def zero_shot(
    pipeline: SoundingVideoPipeline,
    requests: Sequence[SampleRequest],
    *,
    weight: float = 0.0,
    reads: bool = True,
) -> Streams:
    """Pictures and mel images by the task joint of the same model.

    pipeline: the model, of a flow.
    requests: of one task with a given modality.
    weight: of the gradient; 0: replacement alone.
    reads: False: nothing of what is given is used.
    """
    process, coder, model = pipeline.process, pipeline.coder, pipeline.stdit
    with torch.no_grad():
        streams = given_streams(coder.mel_frames, requests)
        given = coder.normalize(coder.encode(*streams, lone=True))
        conditions = pipeline.conditions("joint", requests)
    held = spread_to_planes(torch.tensor([given_row(requests[0].settings.task)]))
    held = held if reads else torch.zeros_like(held)
    noise = noise_batch([(request.seed, request.index) for request in requests], coder.latents.stack_shape)
    state = noise
    for now, then in pairwise(process.times_of(requests[0].settings.steps)):
        clean_share, noise_share = process.shares(now)
        state = torch.where(held, clean_share * given + noise_share * noise, state)
        times = torch.full((len(requests), 2), now)
        with torch.set_grad_enabled(weight > 0):
            state = state.detach().requires_grad_(weight > 0)
            clean, found_noise = process.estimates(state, model(state, times, conditions), now)
            if weight > 0:
                error = (clean - given).square().mul(held).sum()
                (slope,) = torch.autograd.grad(error, state)
                clean = clean - weight * clean_share / 2 * slope
        clean_share, noise_share = process.shares(then)
        state = (clean_share * clean + noise_share * found_noise).detach()
    with torch.no_grad():
        return coder.decode(coder.denormalize(torch.where(held, given, state)))


def motion_agreement(made: np.ndarray, truth: np.ndarray) -> float:
    """Correlation, over frames and cells, of the motion of two clips, in [-1, 1]; 0 if one stands still.

    Motion is the mean absolute difference to the pixel's median over time, over a cell of CELL x CELL pixels.
    So a still background counts for nothing, whatever its colour.

    made, truth: uint8 [T, H, W, 3] of one size, at least CELL high and wide.
    """
    moving = []
    for video in (made, truth):
        levels = video.astype(np.float64)
        difference = np.abs(levels - np.median(levels, axis=0)).mean(-1)
        frames, high, wide = (difference.shape[0], *(side // CELL for side in difference.shape[1:]))
        cells = difference[:, : high * CELL, : wide * CELL].reshape(frames, high, CELL, wide, CELL)
        moving.append(cells.mean((2, 4)).ravel())
    first, second = (motion - motion.mean() for motion in moving)
    size = np.sqrt((first**2).sum() * (second**2).sum())
    return float((first * second).sum() / size) if size > 0 else 0.0


class Measure:
    """Measures what was made for some windows.

    pipeline: the model.
    task: a2v or v2a.
    truth: the windows.
    rows: of the data's index, for each window.
    is_world: whether the windows show the made world.
    """

    def __init__(
        self,
        pipeline: SoundingVideoPipeline,
        task: str,
        truth: Sequence[Clip],
        rows: Sequence[dict],
        *,
        is_world: bool,
    ) -> None:
        self.pipeline, self.task, self.truth, self.is_world = pipeline, task, truth, is_world
        self.labels, self.sources = [row["label"] for row in rows], [row["source_id"] for row in rows]
        self.network = load_network("surrogate-audio" if task == "v2a" else "surrogate-video")
        self.real = self._features(truth)
        self.groups = source_groups(self.sources)
        self.reference: dict[str, Callable[[np.ndarray], float]] = {}

    def __call__(self, made: Sequence[Clip], *, is_reference: bool = False) -> dict:
        """The numbers of `made`, a clip for each window.

        is_reference: from the next call on, the numbers include the lead of these clips.
        """
        found, measures = {}, self._measures(made)
        for name, measure in measures.items():
            found |= self._with_interval(name, measure)
            if name in COMPARED and (reference := self.reference.get(name)):
                sign = -1 if self.task == "v2a" and name == "to truth" else 1  # there it is an error

                def lead(places: np.ndarray, first=reference, second=measure, sign=sign) -> float:
                    return sign * (first(places) - second(places))

                found |= self._with_interval(f"{name}, lead", lead)
        if is_reference:
            self.reference = measures
        return found

    def _with_interval(self, name: str, measure: Callable[[np.ndarray], float]) -> dict:
        interval = bootstrap_interval(measure, self.groups)
        ends = None if interval.reason else [interval.low, interval.high]
        return {name: measure(np.arange(len(self.sources))), f"{name}_interval": ends}

    def _measures(self, made: Sequence[Clip]) -> dict[str, Callable[[np.ndarray], float]]:
        """{name: the number of the windows at some places}."""
        features = self._features(made)

        def distance(places: np.ndarray) -> float:
            names = [np.asarray(self.sources)[places]] * 2
            return kernel_distance(features[places], self.real[places], sources=names)

        measures: dict[str, Callable] = {"distance": distance}
        closeness = self._to_truth(made)
        measures["to truth"] = lambda places: float(closeness[places].mean())
        if self.task == "a2v":
            motion = np.array(
                [motion_agreement(one.video, own.video) for one, own in zip(made, self.truth, strict=True)]
            )
            measures["motion"] = lambda places: float(motion[places].mean())
        if self.is_world:
            for name, shift in (("synchrony", 0), ("chance", len(made) // 2)):
                scores = self._scores(made, [*self.truth[shift:], *self.truth[:shift]])
                measures[name] = lambda places, scores=scores: synchrony(scores, places)
        return measures

    def _scores(self, made: Sequence[Clip], given: Sequence[Clip]) -> list[dict]:
        """The world's scores of what was made beside what is given, for each window."""
        scores = []
        for own, other, label in zip(made, given, self.labels, strict=True):
            video, sound = (own.video, other.audio) if self.task == "a2v" else (other.video, own.audio)
            scores.append(world_scores(video, sound, fps=own.fps, sample_rate=own.sample_rate, label=label))
        return scores

    def _features(self, clips: Sequence[Clip]) -> np.ndarray:
        streams = np.stack([clip.audio if self.task == "v2a" else clip.video for clip in clips])
        parts = [self.network(part).mean(1) for part in torch.from_numpy(streams).split(BATCH)]
        return torch.cat(parts).float().numpy()

    def _to_truth(self, made: Sequence[Clip]) -> np.ndarray:
        if self.task == "a2v":
            return np.array(
                [psnr_db(one.video[None], own.video[None]) for one, own in zip(made, self.truth, strict=True)]
            )
        sounds = (np.stack([clip.audio for clip in clips]) for clips in (made, self.truth))
        return mel_errors_db(self.pipeline.coder.mel_frames, *sounds)


def make(
    pipeline: SoundingVideoPipeline, requests: Sequence[SampleRequest], way: Callable
) -> tuple[list[Clip], dict]:
    """(clips, {"seconds": processor seconds of sampling one of them})."""
    made, spent = [], 0.0
    for first in range(0, len(requests), BATCH):
        some = requests[first : first + BATCH]
        began = time.process_time()
        streams = way(pipeline, some)
        spent += time.process_time() - began
        seeds = [phase_seed(request.seed, request.index) for request in some]
        made += pipeline.coder.to_clips(*streams, seeds=seeds)
    return made, {"seconds": spent / len(requests)}


def unrelated_places(labels: Sequence[str], sources: Sequence[str]) -> list[int]:
    """For each window the place of one of another source: of its label, if there is any.

    The search begins half the list away and wraps around. Raises UserError if there is no other source.
    """
    count = len(labels)
    if len(set(sources)) < 2:
        raise UserError(
            f"the {count} held-out windows are of one source, and unrelated pairs need two or more: raise "
            "--clips, or prepare more sources"
        )
    found = []
    for place, (label, source) in enumerate(zip(labels, sources, strict=True)):
        away = [(place + count // 2 + step) % count for step in range(count)]
        apart = [other for other in away if sources[other] != source]
        found.append(next((other for other in apart if labels[other] == label), apart[0]))
    return found


def show(rows: dict[str, dict]) -> None:
    columns = {"synchrony": 3, "chance": 3, "distance": 4, "to truth": 2, "motion": 3, "seconds": 3}
    _table("", rows, columns)
    leads = {f"{measure}, lead": columns[measure] for measure in COMPARED}
    print()
    _table("lead of trained over", {name: row for name, row in rows.items() if leads.keys() & row}, leads)


def _table(title: str, rows: dict[str, dict], columns: dict[str, int]) -> None:
    """columns: {measure: its decimal places}."""
    print(f"{title:26}" + "".join(f"{name:>26}" for name in columns))
    for name, row in rows.items():
        cells = []
        for measure, digits in columns.items():
            interval = row.get(f"{measure}_interval")
            shown = f"{row[measure]:.{digits}f}" if measure in row else "-"
            is_known = interval and np.isfinite(interval).all()  # a draw may hold no impact
            ends = f" ({interval[0]:.{digits}f} .. {interval[1]:.{digits}f})" if is_known else ""
            cells.append(f"{shown + ends:>26}")
        print(f"{name:26}" + "".join(cells))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run")
    parser.add_argument("--stage", choices=["stdit", "distill"], default="stdit")
    parser.add_argument("--clips", type=int, default=256)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--weights", type=float, nargs="*", default=[2.0, 10.0])
    parser.add_argument("--tasks", nargs="+", choices=["v2a", "a2v"], default=["v2a", "a2v"])
    parser.add_argument("--out", type=Path, default=Path("runs/zero_shot.json"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    config = load_config(f"{arguments.run}/config.yaml", [f"run_dir={arguments.run}"])
    pipeline = SoundingVideoPipeline.from_checkpoint(RunFolder(config).stage(arguments.stage).checkpoints)
    truth, index = real_clips(config, "validation", arguments.clips)
    is_world = config.evaluate.protocol == "world"
    rows = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
    of = {"windows": len(truth), "steps": arguments.steps, "checkpoint": pipeline.checkpoint_hash}
    others = unrelated_places([row["label"] for row in index], [row["source_id"] for row in index])
    ways = {
        "real": None,
        "trained": trained,
        "replacement": zero_shot,
        **{f"gradient {w:g}": lambda *given, w=w: zero_shot(*given, weight=w) for w in arguments.weights},
        "joint": lambda *given: zero_shot(*given, reads=False),
    }
    if pipeline.process.objective != "flow":
        ways = {"real": None, "trained": trained}
    for task in arguments.tasks:
        settings = SamplingSettings(task=task, steps=arguments.steps).filled(pipeline.process)
        requests = [
            SampleRequest(0, place, row["label"], clip, settings)
            for place, (clip, row) in enumerate(zip(truth, index, strict=True))
        ]
        names = {way: [f"{task}, {name}" for name in (way, *UNRELATED.get(way, ()))] for way in ways}
        missing = [
            way for way in ways if not all(rows.get(name, {}).items() >= of.items() for name in names[way])
        ]
        if not missing:
            continue
        measure = Measure(pipeline, task, truth, index, is_world=is_world)
        for way in dict.fromkeys(("trained", *missing)):  # the others are compared with it
            clips, spent = (truth, {}) if ways[way] is None else make(pipeline, requests, ways[way])
            rows[names[way][0]] = measure(clips, is_reference=way == "trained") | of | spent
            for name in names[way][1:]:
                rows[name] = measure([clips[place] for place in others]) | of | spent
            arguments.out.parent.mkdir(parents=True, exist_ok=True)
            arguments.out.write_text(json.dumps(rows, indent=1))
    show({name: row for name, row in rows.items() if row.items() >= of.items()})


if __name__ == "__main__":
    main()
