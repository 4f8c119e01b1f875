"""The metric of the made world against the known impacts and sounds.

    python -m bench.metrics.world_metric [--clips 50] [--write]

Makes a world of its own (examples/world), reads it back as training reads videos, and finds impacts in the
pictures and sounds in the audio. It compares these with truth.csv, for whole clips and for windows of 8
frames, and prints recall, precision and time offsets. Then it prints the scores themselves: of the true
clips, with sound that is 1, 2, 3 and 4 frames late, with another clip's sound, and with pictures of noise. It
ends with one JSON line; --write stores that as the scale that evaluation prints.
"""

import argparse
import csv
import json
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np

from proav import storage
from proav.media.container import Clip, read_clip
from proav.metrics.world import COUNTED_BY, MEDIANS, WORLD_SCORES, world_scores
from proav.metrics.world.onsets import find_sounds
from proav.metrics.world.world_scores import SCALE_PATH, WITH_SCALE, counted_span, match_times, see

FPS, SIZE, SAMPLE_RATE, FRAMES = 10, 64, 16_000, 8
TOLERANCE_SECONDS = 0.05
"""Half a frame: a detection matches a row of truth.csv if it is at most this far from it."""

SHOWN = (*WITH_SCALE, "followed")


def late(clips: list[Clip], number: int, frames: int) -> np.ndarray:
    """The clip's sound, this many frames late."""
    audio = clips[number].audio
    shift = frames * SAMPLE_RATE // FPS
    return np.concatenate([np.zeros(shift, np.float32), audio[: len(audio) - shift]])


SOUNDS: dict[str, Callable[[list[Clip], int], np.ndarray]] = {
    "true clips": lambda clips, number: clips[number].audio,
    "1 frame late": lambda clips, number: late(clips, number, 1),
    "2 frames late": lambda clips, number: late(clips, number, 2),
    "3 frames late": lambda clips, number: late(clips, number, 3),
    "4 frames late": lambda clips, number: late(clips, number, 4),
    "another clip's sound": lambda clips, number: clips[(number + 1) % len(clips)].audio,
}
"""{kind: function of (clips, number) that gives the sound}. The next clip always has another label."""


def read_world(folder: Path) -> tuple[list[Clip], list[str], list[list[dict]]]:
    """(clips, labels, rows of truth.csv for each clip), in order of the index."""
    with open(folder / "truth.csv") as file:
        rows = defaultdict(list)
        for row in csv.DictReader(file):
            rows[row["path"]].append(row)
    labels = {}
    for listing in ("clips.csv", "test.csv"):
        with open(folder / listing) as file:
            labels |= {row["path"]: row["labels"] for row in csv.DictReader(file)}
    paths = sorted(labels)
    size = {"fps": FPS, "sample_rate": SAMPLE_RATE, "height": SIZE, "width": SIZE}
    clips = [read_clip(str(folder / path), **size) for path in paths]
    return clips, [labels[path] for path in paths], [rows[path] for path in paths]


def detection(found: list[list[float]], truth: list[list[float]], spans: list[tuple[float, float]]) -> dict:
    """Recall, precision and offsets; only times within a clip's span are counted.

    found: times of the detections in each clip, in seconds.
    truth: true times in each clip.
    spans: (first, last) second of each clip.
    """
    counts, offsets = dict.fromkeys(("in_table", "found", "table_found", "found_true"), 0), []
    for times, true, (first, last) in zip(found, truth, spans, strict=True):
        pairs = match_times(true, times, tolerance=TOLERANCE_SECONDS)
        counts["in_table"] += sum(first <= time <= last for time in true)
        counts["found"] += sum(first <= time <= last for time in times)
        counts["table_found"] += sum(first <= true[row] <= last for row, _ in pairs)
        counts["found_true"] += sum(first <= times[column] <= last for _, column in pairs)
        offsets += [abs(true[row] - times[column]) for row, column in pairs]
    return {
        "recall": round(counts["table_found"] / max(counts["in_table"], 1), 4),
        "precision": round(counts["found_true"] / max(counts["found"], 1), 4),
        "median_offset_ms": round(1000 * float(np.median(offsets)), 3) if offsets else None,
        "in_table": counts["in_table"],
        "found": counts["found"],
    }


def measure(clips: list[Clip], labels: list[str], truth: list[list[dict]], frames: int) -> dict:
    """All numbers for the non-overlapping windows of a size.

    clips, labels, truth: as `read_world` returns them.
    frames: frames of a window.
    """
    windows = [
        (number, first)
        for number, clip in enumerate(clips)
        for first in range(0, len(clip.video) - frames + 1, frames)
    ]
    seconds, per_frame = frames / FPS, SAMPLE_RATE // FPS

    def picture(number: int, first: int) -> np.ndarray:
        return clips[number].video[first : first + frames]

    def cut(audio: np.ndarray, first: int) -> np.ndarray:
        return audio[first * per_frame : (first + frames) * per_frame]

    def times(number: int, first: int, kinds: Callable[[dict], bool]) -> list[float]:
        all_times = (float(row["time_seconds"]) - first / FPS for row in truth[number] if kinds(row))
        return [time for time in all_times if 0 <= time <= seconds]

    seen = [[impact.time for impact in see(picture(*window), fps=FPS)[0]] for window in windows]
    heard = [
        [sound.time for sound in find_sounds(cut(clips[number].audio, first), sample_rate=SAMPLE_RATE)]
        for number, first in windows
    ]
    span, edge = counted_span(frames, FPS), TOLERANCE_SECONDS / 2
    in_picture = [times(*window, lambda row: row["in_picture"] == "1") for window in windows]
    all_sounds = [times(*window, lambda row: True) for window in windows]
    found = {
        "impacts": detection(seen, in_picture, [span] * len(windows)),
        "sounds": detection(heard, all_sounds, [(edge, seconds - edge)] * len(windows)),
        "scores": {},
        "num_clips": len(windows),
    }
    noise = np.random.default_rng(0)
    kinds = {
        kind: [(picture(n, first), cut(sound_of(clips, n), first)) for n, first in windows]
        for kind, sound_of in SOUNDS.items()
    }
    kinds["pictures of noise"] = [
        (noise.integers(0, 256, video.shape).astype(np.uint8), audio) for video, audio in kinds["true clips"]
    ]
    for kind, pairs in kinds.items():
        scores = [
            world_scores(video, audio, fps=FPS, sample_rate=SAMPLE_RATE, label=labels[number])
            for (video, audio), (number, _) in zip(pairs, windows, strict=True)
        ]
        found["scores"][kind] = over_clips(scores)
    return found


def over_clips(scores: list[dict[str, float]]) -> dict[str, float | None]:
    """Shares over all impacts and sounds, means and medians over clips, as in proav/evaluate/numbers.py."""
    found = {}
    for name in WORLD_SCORES:
        values = np.array([score[name] for score in scores])
        used = np.isfinite(values)
        counted_by = COUNTED_BY.get(name)
        weights = None if counted_by is None else np.array([score[counted_by] for score in scores])
        if not used.any():
            found[name] = None
        elif name in MEDIANS:
            found[name] = round(float(np.median(values[used])), 2)
        else:
            weights = None if weights is None else weights[used]
            found[name] = round(float(np.average(values[used], weights=weights)), 4)
    return found


def show(title: str, found: dict) -> None:
    print(f"\n{title}, {found['num_clips']} of them")
    for what in ("impacts", "sounds"):
        row = found[what]
        print(
            f"  {what:8} recall {row['recall']:.3f}  precision {row['precision']:.3f}  "
            f"median offset {row['median_offset_ms']:.2f} ms  ({row['in_table']} in the table)"
        )
    print(f"  {'':22}" + "".join(f"  {name}" for name in SHOWN))
    for kind, row in found["scores"].items():
        cells = ("-" if row[name] is None else f"{row[name]:.3f}" for name in SHOWN)
        print(
            f"  {kind:22}"
            + "".join(f"  {cell:>{len(name)}}" for cell, name in zip(cells, SHOWN, strict=True))
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clips", type=int, default=50)
    parser.add_argument("--seed", type=int, default=11)
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    if arguments.clips < 10:
        raise SystemExit(f"world_metric: --clips {arguments.clips}; expected at least 10")
    with tempfile.TemporaryDirectory(prefix="proav-bench-") as folder:
        script = Path(__file__).parents[2] / "examples" / "world" / "make.py"
        words = [folder, "--clips", str(arguments.clips), "--seed", str(arguments.seed), "--processes", "1"]
        began = time.monotonic()
        subprocess.run([sys.executable, str(script), *words], check=True)
        made = time.monotonic() - began
        clips, labels, truth = read_world(Path(folder))
    began = time.monotonic()
    whole, windows = (measure(clips, labels, truth, frames) for frames in (len(clips[0].video), FRAMES))
    spent = time.monotonic() - began
    show("whole clips of 1.6 s", whole)
    show("windows of 0.8 s, 8 frames of 64x64", windows)
    print(f"\n{arguments.clips} clips made in {made:.1f} s on one core, measured in {spent:.1f} s")
    result = {
        "bench": "world_metric", "clips": arguments.clips, "seed": arguments.seed,
        "fps": FPS, "size": SIZE, "frames": FRAMES, "whole": whole, "windows": windows,
    }  # fmt: skip
    print(json.dumps(result))
    if arguments.write:
        storage.write_text(str(SCALE_PATH), json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
