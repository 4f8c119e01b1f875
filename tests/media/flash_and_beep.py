"""Made films: a dark picture that flashes white and silence with beeps, each at a known time.

They can have any container and codec that PyAV writes.
"""

import os
from collections.abc import Callable, Sequence
from fractions import Fraction

import av
import numpy as np

os.environ.setdefault("SVT_LOG", "0")  # the AV1 encoder talks on stderr otherwise
FLASH_SECONDS = Fraction(1, 5)
BEEP_SECONDS = 0.06
HEIGHT, WIDTH = 64, 80
VIDEO_OPTIONS = {
    "libx264": {"preset": "veryfast", "g": "24", "bf": "2"},
    "libx265": {"preset": "ultrafast", "x265-params": "log-level=none:pools=none:frame-threads=1:bframes=2"},
    "libvpx": {"deadline": "realtime", "cpu-used": "8", "threads": "1"},
    "libvpx-vp9": {"deadline": "realtime", "cpu-used": "8", "threads": "1"},
    "libsvtav1": {"preset": "10", "svtav1-params": "lp=1"},
    "mpeg4": {"bf": "2"},
    "mpeg2video": {"bf": "2"},
}
AUDIO_OPTIONS = {"vorbis": {"strict": "-2"}}
INTERLACED = {"flags": "+ildct+ilme", "x264-params": "tff=1:log-level=none"}


def beep(sample_rate: int) -> np.ndarray:
    """A tone that rises from 400 to 3000 Hz, float32, amplitude 0.8.

    Its correlation with itself has one sharp peak.
    """
    time = np.arange(round(BEEP_SECONDS * sample_rate)) / sample_rate
    phase = 2 * np.pi * (400 * time + (3000 - 400) / (2 * BEEP_SECONDS) * time**2)
    return (0.8 * np.sin(phase) * np.hanning(len(time)) ** 0.25).astype(np.float32)


def regular(rate, seconds=2, first=0) -> list[Fraction]:
    """Times of pictures `1 / rate` apart, for `seconds` from `first` on."""
    return [
        Fraction(first) + Fraction(index) / Fraction(rate) for index in range(int(seconds * Fraction(rate)))
    ]


def is_white(time: Fraction, flashes: Sequence) -> bool:
    return any(flash <= time < flash + FLASH_SECONDS for flash in flashes)


def make_film(
    path, *, times: Sequence[Fraction], flashes: Sequence = (), beeps: Sequence = (),
    paint: Callable | None = None, tick: Fraction | None = None, video: str = "libx264",
    options: dict | None = None, bit_rate: int | None = None, size: tuple[int, int] = (HEIGHT, WIDTH),
    pixel_format: str = "yuv420p", sample_aspect: Fraction | None = None, rotation: int = 0,
    prepare: Callable = lambda frame: frame, audio: str | None = "aac", sound_from: float = 0.0,
    sound_to: float = 2.0, hole: tuple[float, float] = (0.0, 0.0), sample_rate: int = 48000,
    layout: str = "stereo", channel: int | None = None, shift: Fraction = Fraction(0),
    container_options: dict | None = None,
) -> str:  # fmt: skip
    """Writes the film and returns its path.

    times: of the pictures, in seconds.
    flashes, beeps: when they begin, in seconds.
    paint: from a time to RGB pixels, in place of the flashes.
    tick: unit of the pictures' time stamps, in seconds; by default the distance of the first two pictures.
    video, options, bit_rate: of the picture's encoder; bits per second.
    size: height and width in pixels.
    pixel_format, sample_aspect, rotation: of the stored pictures; degrees.
    prepare: a last step on each picture before it is encoded.
    audio: the sound's encoder; None writes no sound.
    sound_from, sound_to: when sound begins and ends, in seconds.
    hole: from when to when no sound is written, in seconds.
    sample_rate, layout: of the sound, in Hz and as FFmpeg names it.
    channel: the one that beeps; by default all.
    shift: added to all time stamps, in seconds.
    container_options: as FFmpeg names them.
    """
    height, width = size
    tick = tick or times[1] - times[0]
    with av.open(str(path), "w", options=container_options or {}) as container:
        pictures = container.add_stream(
            video,
            rate=1 / tick if tick > Fraction(1, 1000) else None,
            options=VIDEO_OPTIONS.get(video, {}) | (options or {}),
        )
        pictures.width, pictures.height, pictures.pix_fmt = width, height, pixel_format
        pictures.codec_context.time_base, pictures.codec_context.thread_count = tick, 1
        if bit_rate:
            pictures.bit_rate = bit_rate
        if sample_aspect:
            pictures.codec_context.sample_aspect_ratio = sample_aspect
        if rotation:
            pictures.set_display_rotation(rotation)
        sound = (
            container.add_stream(audio, rate=sample_rate, layout=layout, options=AUDIO_OPTIONS.get(audio, {}))
            if audio
            else None
        )
        packets = []
        for time in times:
            pixels = (
                np.full((height, width, 3), 235 if is_white(time, flashes) else 20, np.uint8)
                if paint is None
                else paint(time)
            )
            picture = av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(format=pixel_format)
            picture.pts, picture.time_base = round(time / tick), tick
            packets += pictures.encode(prepare(picture))
        packets += pictures.encode(None)
        if sound:
            packets += _encoded_sound(sound, beeps, sound_from, sound_to, hole, layout, channel)
        for packet in packets:
            packet.pts += round(shift / packet.time_base)
            packet.dts += round(shift / packet.time_base)
        for packet in sorted(packets, key=lambda packet: packet.dts * packet.time_base):
            container.mux(packet)
    return str(path)


def _encoded_sound(stream, beeps, sound_from, sound_to, hole, layout, channel) -> list:
    rate, num_channels = stream.codec_context.sample_rate, av.AudioLayout(layout).nb_channels
    first = round(sound_from * rate)
    samples = np.zeros((round(sound_to * rate) - first, num_channels), np.float32)
    for time in beeps:
        start, tone = round(time * rate) - first, beep(rate)
        samples[
            start : start + len(tone), slice(None) if channel is None else slice(channel, channel + 1)
        ] = tone[:, None]
    resampler = av.AudioResampler(
        format=stream.codec_context.format,
        layout=layout,
        rate=rate,
        frame_size=stream.codec_context.frame_size or 1024,
    )
    frame = av.AudioFrame.from_ndarray(samples.reshape(1, -1), "flt", layout)
    frame.sample_rate, frame.pts, frame.time_base = rate, first, Fraction(1, rate)
    pieces = [
        piece
        for piece in [*resampler.resample(frame), *resampler.resample(None)]
        if not hole[0] <= piece.time < hole[1]
    ]
    return [packet for piece in [*pieces, None] for packet in stream.encode(piece)]


class FieldMarker:
    """For `prepare`: marks pictures as interlaced.

    order: "tff" (top field first) or "bff" (bottom field first).
    """

    def __init__(self, order: str = "tff") -> None:
        self._order, self._graph = order, None

    def __call__(self, frame: av.VideoFrame) -> av.VideoFrame:
        if self._graph is None:
            self._graph = av.filter.Graph()
            source = self._graph.add_buffer(
                width=frame.width, height=frame.height, format=frame.format.name, time_base=frame.time_base
            )
            self._graph.link_nodes(
                source, self._graph.add("setfield", self._order), self._graph.add("buffersink")
            ).configure()
        self._graph.vpush(frame)
        return self._graph.vpull()


def beep_times(audio: np.ndarray, sample_rate: int, count: int) -> list[float]:
    """When the `count` likeliest beeps begin, in seconds, in order."""
    tone = beep(sample_rate)
    likeness = np.abs(np.correlate(audio, tone, "valid"))
    found = []
    for _ in range(count):
        peak = int(likeness.argmax())
        found.append(peak / sample_rate)
        likeness[max(0, peak - len(tone)) : peak + len(tone)] = 0
    return sorted(found)


def white_frames(video: np.ndarray) -> list[int]:
    """Numbers of the frames [T, H, W, 3] whose centre is white."""
    height, width = video.shape[1:3]
    centre = video[:, height // 2 - 2 : height // 2 + 2, width // 2 - 2 : width // 2 + 2].mean(axis=(1, 2, 3))
    return np.flatnonzero(centre > 128).tolist()


def expected_white(
    times: Sequence[Fraction], flashes: Sequence, fps: int, count: int, start: Fraction
) -> list[int]:
    """The numbers k of the frames that should be white, among the first `count` of a clip.

    Frame k shows the last picture with a time stamp of at most start + k / fps. Before the first picture it
    shows the first. So a flash that begins at start + t first shows at k = ceil(t fps), and (k - 1/2) / fps
    is within half a frame interval of t.

    times: of the film's pictures, in seconds.
    flashes: when they begin, in seconds.
    fps: frames of the clip per second.
    count: how many frames the clip has.
    start: the film's time at which the clip begins, in seconds.
    """
    shown = [
        max((time for time in times if time <= start + Fraction(k, fps)), default=times[0])
        for k in range(count)
    ]
    return [k for k, time in enumerate(shown) if is_white(time, flashes)]
