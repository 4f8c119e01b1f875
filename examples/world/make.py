"""Makes clips of a world with known impacts: python examples/world/make.py DIR --clips N --seed S

Writes DIR/clips/*.mp4, the listings DIR/clips.csv (train and validation) and DIR/test.csv, the table of
impacts DIR/truth.csv, and the settings DIR/world.json. A clip depends only on (seed, index). Running the same
command again changes nothing, and a run that was stopped is resumed.
"""

import argparse
import csv
import functools
import io
import json
import math
import os
import sys
import time
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NoReturn

from draw import draw_frames
from physics import Scene, label_of, make_scene
from sound import amplitude, make_sound

from proav import storage
from proav.errors import UserError
from proav.media.container import Clip
from proav.runs.progress import Progress, duration

FORMAT = 2
"""Version of the clips' files: raise it if scenes, pictures, sound or their coding change.

A folder of another version is refused, since a world that is resumed would mix both. 2: mp4 files without
x264's macroblock tree.
"""
SAMPLE_RATE = 16_000
SPLITS = ("train",) * 8 + ("validation", "test")
"""Splits of five clips each, in turn. So every split has all labels, and more clips do not change the splits
of
the first ones."""
COLUMNS = (
    "path", "split", "label", "time_seconds", "kind", "in_picture", "objects", "x", "y", "radii",
    "pitches_hz", "speed", "impulse", "amplitude",
)  # fmt: skip
"""Columns of truth.csv."""
LISTED = ("path", "labels", "split")
"""Columns of the listings."""
CHUNK = 8
"""Clips that a process takes at a time."""


def split_of(index: int) -> str:
    """The split of a clip: clips 0..4 of every fifty have the first of SPLITS, 5..9 the next, and so on."""
    return SPLITS[index // 5 % len(SPLITS)]


def clip_path(index: int) -> str:
    """A clip's path below the world's folder."""
    return f"clips/{index:06d}.mp4"


def listing_row(index: int) -> dict:
    """A clip's row in a listing. preprocess has no third split, so clips for tests have their own listing."""
    split = "train" if split_of(index) == "train" else "validation"
    return dict(zip(LISTED, (clip_path(index), label_of(index), split), strict=True))


def make_clip(scene: Scene, *, fps: int, size: int) -> Clip:
    """Picture and sound of a scene."""
    sound = make_sound(scene, sample_rate=SAMPLE_RATE)
    return Clip(draw_frames(scene, fps=fps, size=size), sound, fps, SAMPLE_RATE)


def truth_rows(scene: Scene) -> list[dict]:
    """A row for each sound of a clip, in order of time."""
    rows = []
    for event in scene.events:
        values = (
            clip_path(scene.index), split_of(scene.index), scene.material.name,
            f"{event.time:.9f}", event.kind, int(event.kind != "outside"),
            " ".join(map(str, event.bodies)), _number(event.x), _number(event.y),
            " ".join(map(_number, event.radii)), " ".join(map(_number, event.pitches)),
            _number(event.speed), _number(event.impulse), _number(amplitude(event.impulse)),
        )  # fmt: skip
        rows.append(dict(zip(COLUMNS, values, strict=True)))
    return rows


def write_clip(index: int, *, folder: str, seed: int, fps: int, size: int) -> list[dict]:
    """Writes a clip unless it exists; returns its rows of truth.csv."""
    scene = make_scene(seed, index)
    path = os.path.join(folder, clip_path(index))
    if not os.path.exists(path):
        make_clip(scene, fps=fps, size=size).save(path)
    return truth_rows(scene)


def main() -> None:
    arguments = _arguments()
    began, folder = time.monotonic(), arguments.folder
    settings = {name: getattr(arguments, name) for name in ("seed", "fps", "size")}
    record = {"format": FORMAT, **settings, "sample_rate": SAMPLE_RATE, "clips": arguments.clips}
    if _is_done(Path(folder), record):
        print(f"world: done already, {arguments.clips:,} clips in {folder}")
        return
    storage.write_text(os.path.join(folder, "world.json"), json.dumps(record | {"done": False}, indent=1))
    os.makedirs(os.path.join(folder, "clips"), exist_ok=True)
    indices = range(arguments.clips)
    progress, truth = Progress("world", arguments.clips, "clips"), []
    with ProcessPoolExecutor(arguments.processes) as pool:
        write = functools.partial(write_clip, folder=folder, **settings)
        for number, rows in enumerate(pool.map(write, indices, chunksize=CHUNK), start=1):
            truth += rows
            progress.update(number)
    progress.close()
    storage.remove_leftovers(os.path.join(folder, "clips"))
    for name, of_test in (("clips.csv", False), ("test.csv", True)):
        listed = (index for index in indices if (split_of(index) == "test") == of_test)
        storage.write_text(os.path.join(folder, name), _table(LISTED, map(listing_row, listed)))
    storage.write_text(os.path.join(folder, "truth.csv"), _table(COLUMNS, truth))
    storage.write_text(os.path.join(folder, "world.json"), json.dumps(record | {"done": True}, indent=1))
    spent = time.monotonic() - began
    print(f"world: {arguments.clips:,} clips with {len(truth):,} sounds in {folder}, {duration(spent)}")


def _is_done(folder: Path, record: dict) -> bool:
    """Whether the folder holds the complete world. Exits with a message if it holds another world."""
    if folder.exists() and not folder.is_dir():
        _refuse(f"{folder} is a file; expected a folder")
    if not folder.exists() or not any(folder.iterdir()):
        return False
    stated = folder / "world.json"
    if not stated.is_file():
        _refuse(f"{folder} holds other files; expected a new or empty folder, or a world that is not done")
    there = json.loads(stated.read_text())
    done = there.pop("done", False)
    if differing := [name for name in record if name != "clips" and there.get(name) != record[name]]:
        told = ", ".join(f"{name} {there.get(name)}, not {record[name]}" for name in differing)
        _refuse(f"{folder} holds a world of {told}; choose another folder, or delete that one")
    if there["clips"] > record["clips"]:  # some clips would not be in the listings
        fewer = f"{there['clips']:,} clips, more than --clips {record['clips']}"
        _refuse(f"{folder} holds {fewer}; choose another folder, or delete that one")
    whole = all((folder / clip_path(index)).is_file() for index in range(record["clips"]))
    return done and there == record and whole


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", metavar="DIR")
    parser.add_argument("--clips", type=int, default=2000, help="how many (default 2000)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--fps", type=int, default=10, help="frames a second (default 10)")
    parser.add_argument("--size", type=int, default=64, help="rows and columns of a frame (default 64)")
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="default: one for each CPU")
    arguments = parser.parse_args()
    if arguments.clips < 1 or arguments.seed < 0 or arguments.processes < 1:
        _refuse("--clips and --processes are at least 1, --seed at least 0")
    if arguments.size < 32 or arguments.size % 2:
        _refuse(f"--size {arguments.size}: expected an even number of at least 32")
    if arguments.fps < 5 or arguments.fps > 100 or SAMPLE_RATE % arguments.fps or 8 * arguments.fps % 5:
        _refuse(f"--fps {arguments.fps}: expected 5, 10, 20, 25, 40, 50, 80 or 100")
    return arguments


def _refuse(text: str) -> NoReturn:
    """Prints one line for a user's mistake and exits with status 2."""
    print(f"world: {text}", file=sys.stderr)
    raise SystemExit(2)


def _number(value: float) -> str:
    """A number as text; empty for NaN."""
    return "" if math.isnan(value) else f"{value:.9g}"


def _table(columns: tuple[str, ...], rows: Iterable[dict]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        _refuse(str(error))
