"""How frames are best stored: bytes, fidelity, and the cost of writing and of reading random windows of 16.

    python -m bench.data.storage [FILE ...]

Every candidate is written by the data set's shard writer: each row is one segment of up to 10 s, with an
offset for each frame. The row reader reads it with its cache off. The files stay in the system's page cache,
because processor time is compared. Rates are for one core, in processor time, the best of three rounds. PSNR
is of RGB, peak 255, from the mean squared error over all pixels of all segments. Without files it uses
generated textured clips. Prints a Markdown table and one JSON line.
"""

import argparse
import fractions
import io
import json
import math
import os
import random
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import av
import numpy as np
import pyarrow as pa
from PIL import Image

from proav.data.store.frames import decode_frames, encode_frames
from proav.data.store.parquet import RowReader, ShardWriter
from proav.errors import MediaError
from proav.media.container import read_clip

FPS, SIZE, SEGMENT_FRAMES, WINDOW_FRAMES = 10, 256, 100, 16
SCHEMA = pa.schema(
    [("shape", pa.list_(pa.int32())), ("frame_offsets", pa.list_(pa.int64())), ("video", pa.large_binary())]
)


@dataclass(frozen=True)
class Candidate:
    """A way to encode frames as bytes with offsets, and to decode a window of them."""

    name: str
    encode: Callable[[np.ndarray], tuple[bytes, list[int]]]
    decode: Callable[..., np.ndarray]
    """(data, offsets, shape=, start=, count=) -> uint8 [count, H, W, 3]."""


def ours(name: str, codec: str, quality: int = 92) -> Candidate:
    """Frames stored as in proav's data sets."""
    return Candidate(
        name,
        lambda video: encode_frames(video, codec=codec, quality=quality),
        lambda data, offsets, **window: decode_frames(data, offsets, codec=codec, **window),
    )


def image_a_frame(name: str, **options) -> Candidate:
    """One image file for each frame, by Pillow. options: those of Pillow's writer."""

    def encode_one(frame: np.ndarray) -> bytes:
        buffer = io.BytesIO()
        Image.fromarray(frame).save(buffer, **options)
        return buffer.getvalue()

    return Candidate(
        name,
        lambda video: _joined([encode_one(frame) for frame in video]),
        # "jpeg" is right for all formats: Pillow recognizes the format by the bytes
        lambda data, offsets, **window: decode_frames(data, offsets, codec="jpeg", **window),
    )


def zstd(name: str) -> Candidate:
    """Raw pixels; each frame is compressed separately, without loss."""

    def decode(data, offsets, *, shape, start, count) -> np.ndarray:
        size = int(np.prod(shape[1:]))
        pieces = [
            pa.decompress(data[offsets[t] : offsets[t + 1]], decompressed_size=size, codec="zstd")
            for t in range(start, start + count)
        ]
        return np.stack([np.frombuffer(piece, np.uint8).reshape(shape[1:]) for piece in pieces])

    return Candidate(
        name,
        lambda video: _joined([pa.compress(frame.tobytes(), codec="zstd", asbytes=True) for frame in video]),
        decode,
    )


def stream(name: str, codec: str, pix_fmt: str, *, gop: int, options: dict[str, str]) -> Candidate:
    """Packets of one of FFmpeg's video codecs without B-frames, one for each frame.

    A window is decoded from the key frame before it.

    name: name of the candidate.
    codec, pix_fmt, options: those of FFmpeg.
    gop: frames from one key frame to the next.
    """

    def encode(video: np.ndarray) -> tuple[bytes, list[int]]:
        context = av.CodecContext.create(codec, "w")
        context.width, context.height, context.pix_fmt = video.shape[2], video.shape[1], pix_fmt
        context.time_base, context.thread_count, context.gop_size, context.options = (
            fractions.Fraction(1, FPS),
            1,
            gop,
            options,
        )
        packets = []
        for number, frame in enumerate(video):
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
            picture.pts = number
            packets += context.encode(picture)
        packets += context.encode(None)
        assert len(packets) == len(video), f"{name}: {len(packets)} packets of {len(video)} frames"
        return _joined([bytes(packet) for packet in packets])

    def decode(data, offsets, *, shape, start, count) -> np.ndarray:
        context = av.CodecContext.create("h264", "r")
        context.thread_count = 1
        first, pictures = start // gop * gop, []
        for number in range(first, start + count):
            pictures += context.decode(av.Packet(bytes(data[offsets[number] : offsets[number + 1]])))
        pictures += context.decode(None)
        return np.stack([picture.to_ndarray(format="rgb24") for picture in pictures[start - first :]])

    return Candidate(name, encode, decode if codec == "libx264" else ours("", "jpeg").decode)


def candidates() -> list[Candidate]:
    jpegs = [
        image_a_frame(f"JPEG {quality} {chroma}", format="JPEG", quality=quality, subsampling=chroma)
        for quality in (85, 92, 95)
        for chroma in ("4:2:0", "4:4:4")
        if (quality, chroma) != (92, "4:4:4")
    ]
    x264 = {"preset": "veryfast", "tune": "zerolatency", "bf": "0", "sc_threshold": "0"}
    return [
        ours("raw", "raw"),
        zstd("raw, zstd a frame"),
        ours("JPEG 92 4:4:4 (ours)", "jpeg"),
        *jpegs,
        image_a_frame(
            "JPEG 92 4:4:4, optimized Huffman", format="JPEG", quality=92, subsampling="4:4:4", optimize=True
        ),
        stream(
            "JPEG by FFmpeg, 4:4:4, q 2",
            "mjpeg",
            "yuvj444p",
            gop=1,
            options={"flags": "qscale", "global_quality": "236", "huffman": "default"},
        ),
        image_a_frame("WebP 90", format="WEBP", quality=90, method=0),
        image_a_frame("PNG", format="PNG", compress_level=1),
        *(
            stream(
                f"H.264 {chroma} crf {crf}, {gop_name}",
                "libx264",
                pix_fmt,
                gop=gop,
                options={**x264, "crf": crf},
            )
            for chroma, pix_fmt, crf in (("4:2:0", "yuv420p", "18"), ("4:4:4", "yuv444p", "14"))
            for gop, gop_name in ((1, "key frames only"), (8, "a key frame every 8"))
        ),
    ]


def measure(candidate: Candidate, segments: Sequence[np.ndarray], folder: str, *, num_windows: int) -> dict:
    """Bytes, PSNR and rates of one candidate.

    candidate: how frames are stored.
    segments: uint8 [T, H, W, 3] each.
    folder: folder for the shard.
    num_windows: random windows to read.
    """
    frames = sum(len(video) for video in segments)

    def write() -> int:
        with ShardWriter(os.path.join(folder, "segments.parquet"), SCHEMA) as writer:
            for video in segments:
                data, offsets = candidate.encode(video)
                writer.write({"shape": list(video.shape), "frame_offsets": offsets, "video": data})
        return writer.result["bytes"]

    def read(row: int, start: int, count: int) -> np.ndarray:
        stored = reader.read("segments.parquet", row, ("video", "frame_offsets"))
        return candidate.decode(
            stored["video"], stored["frame_offsets"], shape=segments[row].shape, start=start, count=count
        )

    written, size = _least_processor_seconds(write)
    reader, drawn = RowReader(folder, cache_bytes=1), random.Random(0)
    squares = 0.0
    for row, video in enumerate(segments):
        squares += (
            float(np.square(read(row, 0, len(video)).astype(np.float32) - video).mean(dtype=np.float64))
            * len(video)
            / frames
        )
    rows = [drawn.randrange(len(segments)) for _ in range(num_windows)]
    places = [(row, drawn.randrange(len(segments[row]) - WINDOW_FRAMES + 1), WINDOW_FRAMES) for row in rows]
    taken, _ = _least_processor_seconds(lambda: [read(*place) is None for place in places])
    return {
        "name": candidate.name,
        "segment_bytes": round(size / frames * SEGMENT_FRAMES),
        "psnr_db": round(10 * float(np.log10(255**2 / squares)), 2) if squares else None,
        "write_frames_per_core_second": round(frames / written),
        "read_windows_per_core_second": round(num_windows / taken, 1),
    }


def _least_processor_seconds(work: Callable) -> tuple[float, Any]:
    """(least processor seconds of three rounds, last result); other work on the machine only adds to them."""
    least = math.inf
    for _ in range(3):
        begun = time.process_time()
        result = work()
        least = min(least, time.process_time() - begun)
    return least, result


def read_segments(files: Sequence[str], max_segments: int) -> list[np.ndarray]:
    """The first 10 s of each file that holds a window, at 256x256 and 10 fps, without black bars."""
    segments = []
    for file in files:
        try:
            video = read_clip(file, fps=FPS, sample_rate=16000, height=SIZE, width=SIZE, fit="crop").video[
                :SEGMENT_FRAMES
            ]
        except MediaError as error:
            print(f"left out {file}: {error}")
            continue
        if len(video) >= WINDOW_FRAMES:
            segments.append(np.ascontiguousarray(video))
        if len(segments) == max_segments:
            break
    if not segments:
        raise SystemExit(
            f"none of the {len(files)} files holds {WINDOW_FRAMES} frames; give others, or none at all"
        )
    return segments


def make_segments(count: int) -> list[np.ndarray]:
    """Moving textures with a falling spectrum, like that of natural pictures, and a little camera noise.

    Each texture has its own pace.
    """
    segments = []
    for seed in range(count):
        draw = np.random.default_rng(seed)
        rows, columns = np.meshgrid(np.fft.fftfreq(2 * SIZE), np.fft.fftfreq(2 * SIZE), indexing="ij")
        spectrum = (
            draw.normal(size=(3, 2 * SIZE, 2 * SIZE)) / np.maximum(np.hypot(rows, columns), 1 / SIZE) ** 1.3
        )
        texture = np.fft.ifft2(
            spectrum * np.exp(2j * np.pi * draw.random((1, 2 * SIZE, 2 * SIZE)))
        ).real.transpose(1, 2, 0)
        texture = 128 + 45 * (texture - texture.mean()) / texture.std()
        steps = draw.integers(-3, 4, 2)
        frames = [
            np.roll(texture, tuple(steps * t), (0, 1))[:SIZE, :SIZE] + draw.normal(0, 1.5, (SIZE, SIZE, 3))
            for t in range(SEGMENT_FRAMES)
        ]
        segments.append(np.clip(np.round(frames), 0, 255).astype(np.uint8))
    return segments


def _joined(pieces: list[bytes]) -> tuple[bytes, list[int]]:
    return b"".join(pieces), np.cumsum([0, *map(len, pieces)]).tolist()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", nargs="*", metavar="FILE")
    parser.add_argument("--segments", type=int, default=12, help="segments used at most")
    parser.add_argument("--windows", type=int, default=24, help="random windows read of each candidate")
    arguments = parser.parse_args()
    segments = (
        read_segments(arguments.files, arguments.segments)
        if arguments.files
        else make_segments(min(arguments.segments, 6))
    )
    results = []
    with tempfile.TemporaryDirectory(prefix="proav-storage-") as folder:
        # a first measurement is not counted: it includes work that a process does only once
        measure(candidates()[0], segments[:2], folder, num_windows=2)
    for candidate in candidates():
        with tempfile.TemporaryDirectory(prefix="proav-storage-") as folder:
            results.append(measure(candidate, segments, folder, num_windows=arguments.windows))
    raw = results[0]["segment_bytes"]
    print(
        "| frames as | MB a 10 s segment | of raw | PSNR, dB | written, frames a core-second "
        "| read, windows of 16 a core-second |"
    )
    print("|---|---|---|---|---|---|")
    for row in results:
        fidelity = "exact" if row["psnr_db"] is None else f"{row['psnr_db']:.1f}"
        print(
            f"| {row['name']} | {row['segment_bytes'] / 1e6:.2f} | 1/{raw / row['segment_bytes']:.1f} "
            f"| {fidelity} | {row['write_frames_per_core_second']:,} "
            f"| {row['read_windows_per_core_second']:.0f} |"
        )
    clips = {"files": len(arguments.files)} if arguments.files else {"made": len(segments)}
    print(
        json.dumps(
            {
                "bench": "storage",
                **clips,
                "segments": len(segments),
                "frames": sum(map(len, segments)),
                "rows": results,
            }
        )
    )


if __name__ == "__main__":
    main()
