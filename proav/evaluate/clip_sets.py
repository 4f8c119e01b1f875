"""Sets of clips to measure: files in a folder, prepared segments, a run's samples, MDSA's reconstructions.

A set lists its clips in a fixed order before it opens any, and loads them in groups. Its `identity` says what
it is made of; the names of stored measurements depend on it. Sets are small and can be sent to other
machines. Nothing here uses Ray; measure.py does.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from proav import storage
from proav.config import Config
from proav.data.feeds.feed import evaluation_windows
from proav.data.sources.folders import is_video
from proav.data.store.shards import SegmentStore, manifest_hash
from proav.errors import MediaError, UserError
from proav.evaluate.reconstruction import reconstruct
from proav.evaluate.yardsticks import YardstickPlan, load_yardsticks
from proav.generation.coder import LatentCoder, load_coder
from proav.generation.sampling_settings import changed_settings
from proav.media.container import Clip, probe_seconds, read_clip
from proav.media.torchaudio import resample
from proav.metrics.protocols import Protocol
from proav.runs.checkpoint import Checkpoint, load_checkpoint
from proav.runs.layout import RunFolder
from proav.text import one_form


@dataclass(frozen=True)
class View:
    """The size and the rates to which a protocol brings clips."""

    num_frames: int
    fps: int
    height: int
    width: int
    sample_rate: int
    fit: str

    @classmethod
    def of(cls, protocol: Protocol, config: Config) -> "View":
        clip = config.clip
        return cls(
            protocol.num_frames or clip.num_frames,
            protocol.fps or clip.fps,
            protocol.size or clip.height,
            protocol.size or clip.width,
            protocol.sample_rate or clip.sample_rate,
            config.data.fit,
        )

    @property
    def seconds(self) -> float:
        return self.num_frames / self.fps


@dataclass(frozen=True)
class Item:
    """One clip of a set, with its own id and the source that it was cut from.

    Clips of one source are not independent.
    """

    id: str
    source: str
    label: str
    place: tuple
    """What the set needs to load it."""


@dataclass(frozen=True)
class Loaded:
    """A clip as the protocol sees it, or the problem that prevents it.

    real: the original, for reconstructions.
    scores: what was measured while the clip was loaded.
    """

    clip: Clip | None
    problem: str = ""
    real: Clip | None = None
    scores: dict[str, float] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True)
class ClipSet:
    """Clips in a fixed order, and the function that loads them.

    load: `load(items)` returns one Loaded for each item.
    identity: a JSON object. Sets with equal identity and equal view hold the same clips.
    """

    name: str
    items: tuple[Item, ...]
    identity: dict[str, Any]
    view: View
    load: Callable[[Sequence[Item]], list[Loaded]]

    @property
    def num_sources(self) -> int:
        return len({item.source for item in self.items})


def files_below(name: str, folder: str, view: View, *, max_clips: int) -> ClipSet:
    """Non-overlapping windows of the videos below a folder, in order of name.

    Each file is a source. Its label is the first folder of its path below `folder`. Files that cannot be read
    stay items, so that they are counted. Raises UserError if there is no video.

    name: of the set.
    folder: a local or remote path.
    view: the size and rates of the protocol.
    max_clips: the most windows to take, evenly spread.
    """
    paths = [path for path in storage.list_files(folder) if is_video(path)]
    if not paths:
        raise UserError(
            f"{folder}: no videos there; expected a folder with mp4 files (or others that FFmpeg reads), "
            "or one that preprocess.py has filled"
        )
    start, items = len(storage.open_filesystem(folder)[1].rstrip("/")) + 1, []
    sizes = []
    for path in paths:
        inner = storage.open_filesystem(path)[1]
        relative = inner[start:]
        windows = max(1, int(probe_seconds(path) * view.fps + 0.5) // view.num_frames)
        label = one_form(relative.split("/")[0]) if "/" in relative else ""
        items += [
            Item(f"{relative}@{number}", relative, label, (path, number * view.seconds))
            for number in range(windows)
        ]
        sizes.append([relative, storage.file_info(path).size])
    items = _spread(items, max_clips)
    return ClipSet(
        name,
        tuple(items),
        {"kind": "files", "files": sizes, "clips": len(items)},
        view,
        functools.partial(_load_files, view),
    )


def segments_of(name: str, config: Config, view: View, *, split: str, max_clips: int) -> ClipSet:
    """Non-overlapping windows of the run's prepared segments of one split.

    name: of the set.
    config: of the run whose data is used.
    view: the size and rates of the protocol.
    split: of the prepared data.
    max_clips: the most windows to take, evenly spread.
    """
    store = SegmentStore(config.data_folder)
    items = _windows(store, config, view, split=split, max_clips=max_clips)
    identity = {
        "kind": "segments",
        "data": manifest_hash(store.manifest),
        "split": split,
        "clips": len(items),
    }
    return ClipSet(name, items, identity, view, functools.partial(_load_segments, config.data_folder, view))


def samples_of(name: str, config: Config, view: View, *, max_clips: int) -> ClipSet:
    """The run's generated samples, in order of their index; each is a source of its own.

    Samples that are left from another job, made with another task, checkpoint or settings than the first one,
    are left out, and a line says so. Raises UserError if there are no samples.

    name: of the set.
    config: of the run whose samples are used.
    view: the size and rates of the protocol.
    max_clips: the most samples to take, from the first on.
    """
    from proav.generation.batch import of_one_job, read_samples

    folder = RunFolder(config).samples
    every = read_samples(folder)
    if not every:
        raise UserError(
            f"no samples in {folder}; run: python ray_jobs/generate.py --config FILE, with the same run_dir"
        )
    rows, others = of_one_job(every)
    if others:
        said = "; ".join(f"{count}: {what}" for what, count in others.items())
        print(
            f"evaluate: OTHER SAMPLES: {len(every) - len(rows)} of {len(every)} samples in {folder} are from "
            f"another job, and are left out ({said}). To measure those, generate them in a run_dir of their "
            "own"
        )
    rows = rows[:max_clips]
    items = tuple(
        Item(
            f"{row['index']:09d}",
            f"{row['index']:09d}",
            row["label"] or "",
            (storage.join(folder, row["path"]), 0.0),
        )
        for row in rows
    )
    return ClipSet(name, items, {"kind": "samples", "rows": rows}, view, functools.partial(_load_files, view))


def reconstructions_of(
    name: str,
    config: Config,
    view: View,
    checkpoint: Checkpoint,
    *,
    split: str,
    max_clips: int,
    device: str,
    yardsticks: YardstickPlan,
) -> ClipSet:
    """MDSA's reconstructions of the windows of `segments_of`, each beside its original.

    name: of the set.
    config: of the run.
    view: the size and rates of the protocol.
    checkpoint: the trained MDSA.
    split: of the prepared data.
    max_clips: the most windows to take, evenly spread.
    device: where MDSA runs, "cpu" or "cuda".
    yardsticks: also measured on the same windows; their file must exist when the clips are loaded.
    """
    store = SegmentStore(config.data_folder)
    items = _windows(store, config, view, split=split, max_clips=max_clips)
    identity = {
        "kind": "reconstructions",
        "data": manifest_hash(store.manifest),
        "split": split,
        "clips": len(items),
        "mdsa": checkpoint.hash,
        "yardsticks": yardsticks.hash if yardsticks.available else None,
    }
    if changed := changed_settings(checkpoint.config, config):
        identity["settings"] = changed
    path = yardsticks.path if yardsticks.available else None
    coder_of = functools.partial(_coder, checkpoint.path, device, tuple(changed.items()))
    load = functools.partial(_load_reconstructions, config, coder_of, view, path)
    return ClipSet(name, items, identity, view, load)


def _spread(items: list[Item], count: int) -> list[Item]:
    """At most `count` of the n items, evenly spread: of m kept items, item i is number floor(i n / m)."""
    kept = min(count, len(items))
    return [items[number * len(items) // kept] for number in range(kept)]


def _windows(
    store: SegmentStore, config: Config, view: View, *, split: str, max_clips: int
) -> tuple[Item, ...]:
    """The items of `segments_of` and `reconstructions_of`, with their arguments."""
    frames = _stored_frames(config, view)
    cut = config.model_copy(update={"clip": config.clip.model_copy(update={"num_frames": frames})})
    chosen = evaluation_windows(store, cut, split=split, max_clips=max_clips)
    rows = {index: store.rows[index] for index in {index for index, _ in chosen}}
    return tuple(
        Item(
            f"{rows[index]['id']}@{start}",
            rows[index]["source_id"],
            store.label_text(index),
            (index, start, frames),
        )
        for index, start in chosen
    )


def _stored_frames(config: Config, view: View) -> int:
    """Frames of the prepared data in one window of the view.

    Raises UserError if the data's frame rate is no multiple of the view's.
    """
    if config.clip.fps % view.fps:
        raise UserError(
            f"the protocol uses {view.fps} frames a second, the data was prepared with "
            f"clip.fps={config.clip.fps}; expected a multiple of {view.fps}: choose another "
            f"evaluate.protocol, or prepare the data with clip.fps={view.fps}"
        )
    return view.num_frames * (config.clip.fps // view.fps)


def seen(clip: Clip, view: View) -> Clip:
    """The clip at the view's size and rates.

    Frame k is the picture shown at k / fps seconds. Pictures are resized with antialiasing. Sound is
    resampled.
    """
    step = clip.fps // view.fps
    video = clip.video[::step][: view.num_frames]
    if video.shape[1:3] != (view.height, view.width):
        pictures = torch.from_numpy(np.ascontiguousarray(video)).movedim(-1, 1)
        resized = F.interpolate(
            pictures, (view.height, view.width), mode="bilinear", antialias=True, align_corners=False
        )
        video = np.ascontiguousarray(resized.movedim(1, -1).numpy())
    audio = clip.audio
    if clip.sample_rate != view.sample_rate:
        audio = (
            resample(torch.from_numpy(audio)[None], clip.sample_rate, view.sample_rate)[0]
            .clamp(-1, 1)
            .numpy()
        )
    return Clip(video, audio[: round(len(video) * view.sample_rate / view.fps)], view.fps, view.sample_rate)


def _load_files(view: View, items: Sequence[Item]) -> list[Loaded]:
    return [_load_file(view, item) for item in items]


def _load_file(view: View, item: Item) -> Loaded:
    path, start_seconds = item.place
    try:
        clip = read_clip(
            path, fps=view.fps, sample_rate=view.sample_rate, height=view.height, width=view.width,
            fit=view.fit, start_seconds=start_seconds, num_frames=view.num_frames,
        )  # fmt: skip
    except MediaError as error:
        return Loaded(None, f"{error.reason}: {error}")
    return Loaded(clip)


@functools.lru_cache(maxsize=2)
def _store(data_folder: str) -> SegmentStore:
    return SegmentStore(data_folder)


def _load_segments(data_folder: str, view: View, items: Sequence[Item]) -> list[Loaded]:
    store = _store(data_folder)
    return [Loaded(seen(_stored_clip(store, item), view)) for item in items]


def _stored_clip(store: SegmentStore, item: Item) -> Clip:
    index, start, frames = item.place
    window, row = store.window(index, start, frames, want=("video", "audio")), store.rows[index]
    return Clip(window["video"], window["audio"], row["fps"], row["sample_rate"])


@functools.lru_cache(maxsize=1)
def _coder(checkpoint_path: str, device: str, settings: tuple[tuple[str, Any], ...]) -> LatentCoder:
    """settings: those of `changed_settings`, as pairs."""
    # the checkpoint was verified when the job began
    checkpoint = load_checkpoint(checkpoint_path, kind="mdsa", verify=False)
    return load_coder(checkpoint, device=device, settings=dict(settings))


def _load_reconstructions(
    config: Config,
    coder_of: Callable[[], LatentCoder],
    view: View,
    yardsticks_path: str | None,
    items: Sequence[Item],
) -> list[Loaded]:
    """The function `load` of `reconstructions_of`.

    config, view: as there.
    coder_of: gives MDSA with its latents, on its device.
    yardsticks_path: the file of the yardsticks; None: there are none.
    items: the clips to load.
    """
    coder, store = coder_of(), _store(config.data_folder)
    yardsticks = load_yardsticks(yardsticks_path) if yardsticks_path else None
    windows = [store.window(index, start, frames) for index, start, frames in (item.place for item in items)]
    seeds = [int(item.place[0]) << 20 | item.place[1] for item in items]
    made = reconstruct(coder, config, windows, seeds=seeds, yardsticks=yardsticks)
    clips = [
        Clip(window["video"], window["audio"], config.clip.fps, config.clip.sample_rate) for window in windows
    ]
    return [
        Loaded(
            seen(clip, view),
            real=seen(real, view),
            scores={name: float(values[number]) for name, values in made.scores.items()},
        )
        for number, (clip, real) in enumerate(zip(made.clips, clips, strict=True))
    ]
