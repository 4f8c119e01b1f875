"""Speed of `read_segments` against a minimal PyAV loop over the same files.

    python -m bench.data.decode [--fit pad] [--runs N] [FILE ...]

Both turn a whole file into 256 x 256 pictures at 10 fps with mono sound at 16 kHz, in one pass on one thread.
The plain loop trusts every time stamp and checks nothing. It ignores rotation, pixel aspect, gaps and damage.
Runs alternate in one process; the times are medians of processor time. Prints a table and one JSON line.
Without files: three generated clips of 640x360, 25 fps, 10 s, H.264 + AAC stereo at 44.1 kHz.
"""

import argparse
import json
import platform
import statistics
import tempfile
import time
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import VideoReformatter

from proav.errors import MediaError
from proav.media.container import read_segments
from proav.media.pictures import SCALING

FPS, SAMPLE_RATE, SIDE = 10, 16000, 256
SEGMENT_SECONDS = 10.0


def ours(path: str, fit: str) -> tuple[int, int]:
    """(frames, samples) of `read_segments`."""
    frames = samples = 0
    for _, clip in read_segments(
        path,
        fps=FPS,
        sample_rate=SAMPLE_RATE,
        height=SIDE,
        width=SIDE,
        fit=fit,
        segment_seconds=SEGMENT_SECONDS,
    ):
        frames, samples = frames + len(clip.video), samples + len(clip.audio)
    return frames, samples


def plain(path: str, fit: str) -> tuple[int, int]:
    """(frames, samples) of `plain_pass`."""
    video, sound = plain_pass(path, fit)
    return len(video), len(sound)


def plain_pass(path: str, fit: str) -> tuple[np.ndarray, np.ndarray]:
    """uint8 [T, H, W, 3] and float32 [samples] of one pass.

    Frame k is the picture shown at k / FPS seconds, cropped and scaled. The sound goes through one resampler.
    """
    pictures, sound = [], []
    resampler = av.AudioResampler(format="flt", layout="mono", rate=SAMPLE_RATE)
    reformatter, cropper = VideoReformatter(), None
    with av.open(path) as container:
        video, audio = container.streams.video[0], container.streams.audio[0]
        video.thread_type = audio.thread_type = "NONE"
        side = min(video.width, video.height)
        if fit == "crop":
            cropper = av.filter.Graph()
            source, crop, sink = (
                cropper.add_buffer(template=video),
                cropper.add("crop", f"{side}:{side}"),
                cropper.add("buffersink"),
            )
            cropper.link_nodes(source, crop, sink).configure()
            rows = columns = SIDE
        else:
            longest = max(video.width, video.height)
            rows, columns = round(SIDE * video.height / longest), round(SIDE * video.width / longest)
        start = float((video.start_time or 0) * video.time_base)
        shown = drawn = None
        for frame in container.decode(video, audio):
            if isinstance(frame, av.AudioFrame):
                sound += [piece.to_ndarray()[0] for piece in resampler.resample(frame)]
                continue
            while shown is not None and start + len(pictures) / FPS + 1e-6 < frame.time:
                if drawn is None:
                    if cropper:
                        cropper.vpush(shown)
                        shown = cropper.vpull()
                    drawn = reformatter.reformat(
                        shown, columns, rows, "rgb24", interpolation=SCALING, threads=1
                    ).to_ndarray()
                pictures.append(drawn)
            shown, drawn = frame, None
        sound += [piece.to_ndarray()[0] for piece in resampler.resample(None) if piece is not None]
    canvas = np.zeros((len(pictures), SIDE, SIDE, 3), np.uint8)
    top, left = (SIDE - rows) // 2, (SIDE - columns) // 2
    canvas[:, top : top + rows, left : left + columns] = np.stack(pictures)
    return canvas, np.concatenate(sound)


def make_clips(folder: str, count: int = 3) -> list[str]:
    """Generates clips of textured motion with sound.

    Blurred noise drifts under coloured squares that cross it. The sound is noise, a sweep and clicks.
    """
    paths = []
    for number in range(count):
        generator = np.random.default_rng(number)
        texture = generator.normal(0, 60, (800, 1200, 3))
        for axis in (0, 1):
            texture = sum(np.roll(texture, shift, axis) for shift in range(-2, 3)) / 2.2
        texture = (texture + 120).clip(0, 255).astype(np.uint8)
        time_axis = np.arange(441000) / 44100
        sound = 0.05 * generator.normal(size=441000) + 0.2 * np.sin(
            2 * np.pi * (200 * time_axis + 150 * time_axis**2)
        )
        sound[::22050] = 0.9
        paths.append(f"{folder}/made{number}.mp4")
        with av.open(paths[-1], "w") as container:
            video = container.add_stream("libx264", rate=25, options={"crf": "23", "preset": "medium"})
            video.width, video.height, video.pix_fmt = 640, 360, "yuv420p"
            audio = container.add_stream("aac", rate=44100, layout="stereo")
            for index in range(250):
                row, column = int(60 + 50 * np.sin(index / 20)), int(300 + 200 * np.cos(index / 31))
                pixels = texture[row : row + 360, column : column + 640].copy()
                for colour, speed in (((230, 40, 40), 5), ((40, 200, 60), 3), ((40, 60, 220), 7)):
                    x, y = index * speed % 560, (index * speed // 2 + 90 * number) % 280
                    pixels[y : y + 80, x : x + 80] = colour
                picture = av.VideoFrame.from_ndarray(pixels, format="rgb24")
                picture.pts, picture.time_base = index, Fraction(1, 25)
                container.mux(video.encode(picture))
            block = av.AudioFrame.from_ndarray(
                np.stack([sound, 0.8 * sound]).astype(np.float32).clip(-1, 1), "fltp", "stereo"
            )
            block.sample_rate, block.pts, block.time_base = 44100, 0, Fraction(1, 44100)
            container.mux([*audio.encode(block), *audio.encode(None), *video.encode(None)])
    return paths


def timed(function, path: str, fit: str) -> tuple[float, tuple[int, int]]:
    begun = time.process_time()
    counts = function(path, fit)
    return time.process_time() - begun, counts


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", nargs="*", metavar="FILE")
    parser.add_argument("--fit", choices=("crop", "pad"), default="crop")
    parser.add_argument("--runs", type=int, default=7)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="proav-bench-") as folder:
        files = arguments.files or make_clips(folder)
        print(
            f"{'file':32} {'seconds':>8} {'plain ms':>9} {'ours ms':>9} {'ratio':>6} {'frames/s':>9}   "
            f"(processor time, medians of {arguments.runs})"
        )
        seconds = frames = 0.0
        total = {"plain": 0.0, "ours": 0.0}
        for path in files:
            times = {"plain": [], "ours": []}
            try:
                for run in range(arguments.runs + 1):
                    for function in (plain, ours) if run % 2 else (ours, plain):
                        spent, counts = timed(function, path, arguments.fit)
                        if run:  # the first run of a process loads and compiles
                            times[function.__name__].append(spent)
                        if function is ours:
                            ours_frames = counts[0]
            except MediaError as error:
                print(f"left out {path}: {error}")
                continue
            medians = {name: statistics.median(values) for name, values in times.items()}
            print(
                f"{Path(path).name[:32]:32} {ours_frames / FPS:8.1f} {1000 * medians['plain']:9.1f} "
                f"{1000 * medians['ours']:9.1f} {medians['plain'] / medians['ours']:6.3f} "
                f"{ours_frames / medians['ours']:9.0f}"
            )
            seconds, frames = seconds + ours_frames / FPS, frames + ours_frames
            total = {name: total[name] + medians[name] for name in total}
    if not frames:
        raise SystemExit(
            "no file could be read; expected files with picture and sound, such as bench/data/decode.py "
            "examples/clips/*.mp4"
        )
    result = {
        "bench": "decode", "fit": arguments.fit, "files": len(files),
        "seconds": round(seconds, 1), "plain_seconds": round(total["plain"], 3),
        "ours_seconds": round(total["ours"], 3), "ours_over_plain": round(total["plain"] / total["ours"], 3),
        "times_real_time": round(seconds / total["ours"], 1),
        "ms_per_16_frames": round(1000 * 16 * total["ours"] / frames, 2),
        "av": av.__version__, "machine": platform.processor() or platform.machine(),
    }  # fmt: skip
    print(json.dumps(result))


if __name__ == "__main__":
    main()
