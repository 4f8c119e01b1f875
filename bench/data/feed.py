"""How many windows of 16 frames the feed gives in a second, for each kind of loader.

    python -m bench.data.feed [FILE ...]

Prepares segments of the files, or of generated textures, at 256x256 (JPEG, then raw) in a temporary folder.
Each loader gives batches of 8 for a few seconds, as in training; those prepared ahead are not counted. Rates
are per second and, in brackets, per core-second: a second of processor time of all processes that take part.

Two rates are given for comparison. Reading plainly: the shards are read from end to end, and counted as the
windows that their frames make without overlap. Decoding alone: the frames of the same windows are decoded
from bytes in memory. All files are in the system's page cache. The feed's own cache is off, because it would
hold all of this small data set. "With gains": sound is also made up to 6 dB louder or softer. Prints a
Markdown table and one JSON line.
"""

import argparse
import contextlib
import json
import os
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import torch

from bench.data.storage import make_segments, read_segments
from proav.config import Config
from proav.config.reading import load_config
from proav.data.feeds.feed import ClipFeed
from proav.data.prepare.finish import finish
from proav.data.prepare.source_decoder import segment_row
from proav.data.prepare.unit import WorkUnit, process_unit
from proav.data.sources.finding import SourceRow
from proav.data.store.frames import decode_frames
from proav.data.store.parquet import RowReader
from proav.data.store.shards import SegmentStore
from proav.media.container import Clip
from proav.media.melframes import MelFrames

BATCH = 8


class MadeClips:
    """Stands in for the decoder: gives rows with the given pictures and random sound."""

    def __init__(self, config: Config, videos: list[np.ndarray]) -> None:
        self.config, self.videos, self.mel_frames = config, videos, MelFrames(config)

    def rows(self, source: SourceRow) -> Iterator[dict]:
        video, clip = self.videos[int(source.key) % len(self.videos)], self.config.clip
        sound = (
            np.random.default_rng(int(source.key))
            .normal(0, 0.1, len(video) * clip.sample_rate // clip.fps)
            .clip(-1, 1)
            .astype(np.float32)
        )
        yield segment_row(
            self.config, source, 0.0, Clip(video, sound, clip.fps, clip.sample_rate), self.mel_frames
        )


def prepare(folder: str, codec: str, num_segments: int, videos: list[np.ndarray]) -> Config:
    """Prepares a data set with frames of the given videos.

    folder: folder of the data set.
    codec: frame codec.
    num_segments: number of segments.
    videos: videos whose frames the segments take in turn.
    """
    config = load_config(None, [f"run_dir={folder}", f"data.frame_codec={codec}"])
    sources = tuple(
        SourceRow(f"{number}", f"{number}", f"{number}", split="train") for number in range(num_segments)
    )
    record = process_unit(config, config.data_folder, WorkUnit("000000", sources), MadeClips(config, videos))
    table = pa.table({"id": [source.id for source in sources], "label": [source.label for source in sources]})
    finish(config, config.data_folder, table, [record])
    return config


class Clock:
    """Wall seconds, and processor seconds of this process and all its descendants."""

    def __init__(self) -> None:
        self.begun, self.used = time.monotonic(), self._processor_seconds()

    def rates(self, count: float) -> tuple[float, float]:
        """`count` per second and per core-second."""
        used = sum(
            seconds - self.used.get(process, 0.0) for process, seconds in self._processor_seconds().items()
        )
        return count / (time.monotonic() - self.begun), count / used

    def _processor_seconds(self) -> dict[int, float]:
        found, mine = {}, psutil.Process()
        for process in [mine, *mine.children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess):  # the process has ended meanwhile
                found[process.pid] = sum(process.cpu_times()[:2])
        return found


def through_the_feed(feed: ClipFeed, seconds: float, **loading) -> tuple[float, float]:
    with contextlib.closing(feed.iterate(0, **loading)) as batches:
        for _ in range(2 * loading.get("loader_workers", 0) + 1):
            next(batches)  # batches that were prepared ahead
        clock, count, end = Clock(), 0, time.monotonic() + seconds
        while time.monotonic() < end:
            count += len(next(batches)["position"])
        return clock.rates(count)


def plainly(config: Config) -> tuple[float, float]:
    """Rates of a plain reader that reads all shards from end to end, three times.

    It counts the windows that the stored frames make without overlap.
    """
    frames = int(SegmentStore(config.data_folder).column("num_frames").sum())
    clock = Clock()
    for path in 3 * sorted(Path(config.data_folder, "segments").glob("*.parquet")):
        with path.open("rb", buffering=0) as file:
            while file.read(8 << 20):
                pass
    return clock.rates(3 * frames / config.clip.num_frames)


def decoding(feed: ClipFeed, config: Config, count: int = 48) -> tuple[float, float]:
    reader, frames = RowReader(str(Path(config.data_folder, "segments"))), config.clip.num_frames
    stored = []
    for index, start in zip(*(values.tolist() for values in feed.windows(np.arange(count))), strict=True):
        place = feed.store.rows[index]
        row = reader.read(place["shard"], place["row"], ("video", "frame_offsets"))
        stored.append(
            (
                row["video"],
                row["frame_offsets"],
                {"codec": place["video_codec"], "shape": place["video_shape"], "start": start},
            )
        )
    clock = Clock()
    for data, offsets, window in stored:
        decode_frames(data, offsets, count=frames, **window)
    return clock.rates(count)


def measure(config: Config, codec: str, seconds: float) -> dict:
    make = partial(ClipFeed, config.data_folder, config, batch_size=BATCH, flip=True)
    feed, louder = make(), make(gain_db=6)
    feed.store = louder.store = SegmentStore(config.data_folder, cache_bytes=1)
    found = {"in the training process": through_the_feed(feed, seconds)}
    for name, loader, count in (
        ("1 process", "processes", 1), ("2 processes", "processes", 2),
        ("1 actor", "actors", 1), ("2 actors", "actors", 2),
    ):  # fmt: skip
        found[name] = through_the_feed(feed, seconds, loader=loader, loader_workers=count)
    found["in the training process, with gains"] = through_the_feed(louder, seconds)
    found["decoding alone"] = decoding(feed, config)
    found["reading the bytes plainly"] = plainly(config)
    return {
        "codec": codec,
        "segment_bytes": feed.store.manifest["counts"]["bytes"] // len(feed.store),
        "windows": found,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "files", nargs="*", metavar="FILE", help="videos that give the frames, in place of generated textures"
    )
    parser.add_argument("--segments", type=int, default=12)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement")
    arguments = parser.parse_args()
    import ray

    torch.set_num_threads(1)
    ray.init(address="local", num_cpus=2, include_dashboard=False, logging_level="error", log_to_driver=False)
    videos = read_segments(arguments.files, 4) if arguments.files else make_segments(4)
    results = []
    for codec in ("jpeg", "raw"):
        with tempfile.TemporaryDirectory(prefix="proav-feed-") as folder:
            results.append(
                measure(prepare(folder, codec, arguments.segments, videos), codec, arguments.seconds)
            )
    ray.shutdown()
    print(
        "| windows a second | "
        + " | ".join(f"{row['codec']}, {row['segment_bytes'] / 1e6:.2f} MB a segment" for row in results)
        + " |"
    )
    print("|---|" + "---|" * len(results))
    for name in results[0]["windows"]:
        print(
            f"| {name} | "
            + " | ".join("{:,.0f} ({:,.0f})".format(*row["windows"][name]) for row in results)
            + " |"
        )
    print(json.dumps({"bench": "feed", "cpus": os.cpu_count(), "batch": BATCH, "rows": results}))


if __name__ == "__main__":
    main()
