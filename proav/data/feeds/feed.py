"""(seed, position) -> batch: what every feed does, and windows of segments for MDSA.

Nothing here depends on a trainer. The order of the windows is in `order.py`, the augmentation in
`augment.py`, and loading by Ray actors in `remote_feed.py`. Stored latents for ST-DiT are in
`latent_feed.py`.

The global batch of step s is positions s * batch_size to (s + 1) * batch_size - 1. Each rank takes an equal
contiguous slice of it. So neither the world size, nor the number of worker processes, nor a resumed run
changes the batches.

Letters: b clips of this rank, T frames, H W rows and columns, M mel bins, S mel columns in a frame.
"""

import itertools
import multiprocessing
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Literal

import numpy as np
import torch

from proav.config import Config, FilterConfig
from proav.data.feeds.augment import Louder, PictureChanges, raised
from proav.data.feeds.order import EpochOrder, pitches, slot_starts
from proav.data.store.shards import SegmentStore
from proav.errors import UserError

PREFETCH_BATCHES = 2
"""Batches that each loading process or actor prepares ahead."""


class Feed(ABC):
    """Batches by step: what ClipFeed and LatentFeed share. Each has its own `at`, which makes one batch."""

    batch_size: int

    @abstractmethod
    def at(self, positions: np.ndarray) -> dict:
        """The clips at these positions as one batch."""

    def batch(self, step: int, *, rank: int = 0, world: int = 1) -> dict:
        """This rank's clips of the global batch of `step`.

        Raises UserError if batch_size is not a multiple of `world`.
        """
        return self.at(self.positions(step, rank=rank, world=world))

    def positions(self, step: int, *, rank: int = 0, world: int = 1) -> np.ndarray:
        """int64 [b]: the positions of this rank's clips."""
        if self.batch_size % world:
            raise UserError(
                f"a batch of {self.batch_size} clips does not split over {world} workers; "
                f"expected train.batch_size to be a multiple of {world}"
            )
        share = self.batch_size // world
        first = step * self.batch_size + rank * share
        return np.arange(first, first + share, dtype=np.int64)

    def iterate(
        self,
        start_step: int = 0,
        *,
        rank: int = 0,
        world: int = 1,
        loader_workers: int = 0,
        loader: Literal["processes", "actors"] = "processes",
        pin_memory: bool = False,
    ) -> Iterator[dict]:
        """Batches of start_step, start_step + 1, ... in order, without end.

        The batches do not depend on loader_workers and loader. Closing the iterator ends the workers.

        start_step: step of the first batch.
        rank: place of this training worker, 0 to world - 1.
        world: number of training workers.
        loader_workers: how many processes or actors prepare batches ahead. 0: this process prepares each
            batch when it is asked for.
        loader: what the loader workers are: processes on this machine, or Ray actors.
        pin_memory: whether tensors lie in page-locked memory.

        Raises UserError if batch_size is not a multiple of `world`. Raises RuntimeError if a loading process
        is killed, or if an actor and all its successors are killed.
        """
        # a batch size that does not divide is refused here, not in a worker process
        self.positions(start_step, rank=rank, world=world)
        if loader_workers == 0:
            return (self.batch(step, rank=rank, world=world) for step in itertools.count(start_step))
        if loader == "actors":
            from proav.data.feeds.remote_feed import actor_batches

            return actor_batches(
                self, start_step, rank=rank, world=world, num_actors=loader_workers, pin_memory=pin_memory
            )
        return self._from_processes(start_step, rank, world, loader_workers, pin_memory)

    def _from_processes(
        self, start_step: int, rank: int, world: int, loader_workers: int, pin_memory: bool
    ) -> Iterator[dict]:
        """Batches that worker processes prepare. The parameters are those of `iterate`."""
        loader = torch.utils.data.DataLoader(
            _Steps(self, rank, world),
            sampler=_CountFrom(start_step),
            batch_size=None,
            num_workers=loader_workers,
            prefetch_factor=PREFETCH_BATCHES,
            pin_memory=pin_memory,
            multiprocessing_context=_process_context(),
        )
        batches = iter(loader)
        while True:
            try:
                batch = next(batches)
            except RuntimeError as error:
                if "DataLoader worker" not in str(error):
                    raise
                raise RuntimeError(
                    f"a loading process was killed ({str(error).splitlines()[0]}); usually memory or "
                    "/dev/shm was full: write fewer train.loader_workers, or train.loader=actors, because "
                    "killed actors are replaced"
                ) from error
            if isinstance(batch, UserError):
                raise batch
            yield batch


class ClipFeed(Feed):
    """Windows of T frames out of the used segments of one split.

    A segment is used if no filter leaves it out. With filters.avoid_shot_cuts, each window lies in one shot.

    A stretch (`SegmentStore.stretches`) of F frames has floor(F / T) slots, so a long stretch has
    proportionally more of them. An epoch visits each of the n slots once, in a permutation from (seed,
    epoch). The window's start is drawn from (seed, epoch, slot), see `order.slot_starts`. Position p is place
    p % n in the permutation of epoch p // n.

    `at` and `batch` return:
        video: uint8 [b, T, H, W, 3].
        mel: float32 [b, T, M, S] in [-1, 1].
        label: int64 [b, K], places in `labels`, see `label_indices`.
        position, start_frame: int64 [b].
        flipped: bool [b].
        gain_db: float32 [b].
        segment_id, source_id: lists of str.
        audio: float32 [b, samples] in [-1, 1], only if with_audio.

    data_dir: the data set's folder.
    config: of the run; must agree with the data, see `check_fits`.
    split: train or validation.
    seed: of order and augmentation.
    batch_size: clips of all ranks together.
    flip, turned, colour: as in `PictureChanges`.
    gain_db: the sound is amplified by a gain uniform in [-gain_db, gain_db] dB, not beyond full scale; the
        mel is computed anew.
    pitch: the mel frames are raised by a number of bins, uniform over -pitch .. pitch.
    with_audio: whether batches hold audio too; not together with pitch.

    All augmentation is decided by (seed, position). Raises UserError if the split has no clip.
    """

    def __init__(
        self,
        data_dir: str,
        config: Config,
        *,
        split: str = "train",
        seed: int = 0,
        batch_size: int = 1,
        flip: bool = False,
        turned: bool = False,
        colour: float = 0.0,
        gain_db: float = 0.0,
        pitch: int = 0,
        with_audio: bool = False,
    ) -> None:
        assert not (pitch and with_audio), "pitch changes mel frames, not the waveform"
        self.pitch = pitch
        self.store, self.num_frames, self.split = SegmentStore(data_dir), config.clip.num_frames, split
        self.seed, self.batch_size, self.with_audio = seed, batch_size, with_audio
        check_fits(self.store, config)
        self.segments, self.first_frames, self.frames = self.store.stretches(
            split=split, num_frames=self.num_frames
        )
        if not len(self.segments):
            raise UserError(_no_clips(self.store, split, self.num_frames))
        self.slots_per_stretch = self.frames // self.num_frames
        self.first_slot = np.cumsum(self.slots_per_stretch) - self.slots_per_stretch
        self.labels_of_segments = self.store.label_indices()
        self.order = EpochOrder(seed, int(self.slots_per_stretch.sum()))
        self.pictures = PictureChanges(config, seed, flip=flip, turned=turned, colour=colour)
        self.louder = Louder(config, gain_db) if gain_db else None

    @classmethod
    def of_mdsa(cls, config: Config) -> "ClipFeed":
        """The clips that MDSA trains on, augmented as mdsa.train says.

        The first clips are also used to fit the linear planes.
        """
        train = config.mdsa.train
        return cls(
            config.data_folder, config, seed=config.seed, batch_size=train.batch_size,
            flip=train.augment_flip, turned=train.augment_turns, colour=train.augment_colour,
            gain_db=train.augment_gain_db, pitch=train.augment_pitch,
        )  # fmt: skip

    @property
    def num_slots(self) -> int:
        """Clips in an epoch."""
        return self.order.num_slots

    @property
    def labels(self) -> tuple[str, ...]:
        """The vocabulary, in the order of the label embedding."""
        return self.store.labels

    def windows(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(segment index in the store, start frame) of each position, int64 [b] each. No file is read."""
        epochs, slots = self.order.slots(positions)
        owners = np.searchsorted(self.first_slot, slots, side="right") - 1
        starts = slot_starts(
            self.seed,
            epochs,
            slots,
            ordinals=slots - self.first_slot[owners],
            counts=self.slots_per_stretch[owners],
            choices=self.frames[owners] - self.num_frames + 1,
        )
        return self.segments[owners], self.first_frames[owners] + starts

    def at(self, positions: np.ndarray) -> dict:
        indices, starts = self.windows(positions)
        want = ("video", "mel", "audio") if self.with_audio else ("video", "mel")
        windows = [
            self.store.window(index, start, self.num_frames, want=want)
            for index, start in zip(indices.tolist(), starts.tolist(), strict=True)
        ]
        decibels = np.zeros(len(positions), np.float32)
        if self.louder:
            decibels = self.louder.draw(
                self.seed, positions, self.store.index.column("peak").take(indices).to_numpy()
            )
            for window, index, start, gain in zip(
                windows, indices.tolist(), starts.tolist(), decibels.tolist(), strict=True
            ):
                window |= self.louder.sound(self.store, index, start, self.num_frames, gain)
        if self.pitch:
            bins = pitches(self.seed, positions, self.pitch).tolist()
            for window, up in zip(windows, bins, strict=True):
                window["mel"] = raised(window["mel"], up)
        batch = {
            "video": self.pictures([window["video"] for window in windows], positions),
            "mel": torch.from_numpy(np.stack([window["mel"] for window in windows]).astype(np.float32)),
            "label": torch.from_numpy(self.labels_of_segments[indices]),
            "position": torch.from_numpy(np.asarray(positions, np.int64)),
            "start_frame": torch.from_numpy(starts),
            "flipped": torch.from_numpy(self.pictures.mirrored(positions)),
            "gain_db": torch.from_numpy(decibels),
            "segment_id": self.store.index.column("id").take(indices).to_pylist(),
            "source_id": self.store.index.column("source_id").take(indices).to_pylist(),
        }
        if self.with_audio:
            batch["audio"] = torch.from_numpy(np.stack([window["audio"] for window in windows]))
        return batch


def evaluation_windows(
    store: SegmentStore, config: Config, *, split: str, max_clips: int
) -> list[tuple[int, int]]:
    """Windows of T frames for evaluation, in a fixed order, from the used segments; they do not overlap.

    Of the split's n windows m = min(n, max_clips) are taken, evenly spread: the numbers floor(i * n / m).

    store: the data set.
    config: of the run; must agree with the data, see `check_fits`.
    split: train or validation.
    max_clips: the most windows to take.

    Returns (segment index, start frame) of each. Raises UserError if the split has none.
    """
    check_fits(store, config)
    frames = config.clip.num_frames
    segments, first_frames, lengths = store.stretches(split=split, num_frames=frames)
    counts = lengths // frames
    total = int(counts.sum())
    if not total:
        raise UserError(_no_clips(store, split, frames))
    count = min(max_clips, total)
    numbers = np.arange(count) * total // count
    owners = np.searchsorted(np.cumsum(counts), numbers, side="right")
    ordinals = numbers - (np.cumsum(counts) - counts)[owners]
    return [
        (int(segments[owner]), int(first_frames[owner] + ordinal * frames))
        for owner, ordinal in zip(owners, ordinals, strict=True)
    ]


def evenly_spread(total: int, most: int) -> np.ndarray:
    """At most `most` of the numbers 0 .. total - 1, evenly spread from the first to the last."""
    return np.unique(np.linspace(0, total - 1, min(most, total)).round().astype(int))


def check_fits(store: SegmentStore, config: Config) -> None:
    """Raises UserError if the data set was prepared with other settings of clip, mel or filters."""
    for key, kept in store.manifest["settings"].items():
        section, name = key.split(".")
        # the storage format does not matter, and windows may have any length
        if section == "data" or key == "clip.num_frames":
            continue
        given = getattr(getattr(config, section), name)
        if given != kept:
            raise UserError(
                f"{store.data_dir} was prepared with {key}={kept}, the configuration says {given}; "
                f"write {key}={kept}, or prepare the data again in another run_dir=DIR"
            )
    given, kept = config.filters.model_dump(mode="json"), store.manifest["filters"]
    differing = [
        f"filters.{key}={kept[key]} there, {value} now" for key, value in given.items() if value != kept[key]
    ]
    # a configuration that names no filters takes the data as they are
    if config.filters != FilterConfig() and differing:
        raise UserError(
            f"{store.data_dir} was filtered otherwise ({', '.join(differing)}); run ray_jobs/preprocess.py "
            "with the same run_dir and these filters (it decodes nothing again), or remove the filters"
        )


def _no_clips(store: SegmentStore, split: str, num_frames: int) -> str:
    used, stored = len(store.indices(split=split)), int(np.count_nonzero(store.column("split") == split))
    return (
        f"{store.data_dir} has no clips to use in the split {split} ({stored} segments; the filters leave "
        f"{used} in use, none of them with {num_frames} frames or more in one piece); check "
        "data.validation_fraction, the listing's split column, clip.num_frames and filters"
    )


def _process_context() -> multiprocessing.context.BaseContext:
    """Workers are forked from a clean server process that has imported this module.

    A fork of this process could inherit locks that Arrow's or Ray's threads hold.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


class _Steps(torch.utils.data.Dataset):
    """step -> batch, for DataLoader. Worker processes receive the feed as file names and settings."""

    def __init__(self, feed: Feed, rank: int, world: int) -> None:
        self.feed, self.rank, self.world = feed, rank, world

    def __getitem__(self, step: int) -> dict | UserError:
        torch.set_num_threads(1)
        try:
            return self.feed.batch(step, rank=self.rank, world=self.world)
        except UserError as error:  # DataLoader would put a traceback into its message
            return error


class _CountFrom(torch.utils.data.Sampler):
    def __init__(self, first: int) -> None:
        self.first = first

    def __iter__(self) -> Iterator[int]:
        step = self.first
        while True:
            yield step
            step += 1
