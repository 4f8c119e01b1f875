"""Writes picture and sound to an mp4 piece by piece, in bounded memory (PyAV).

Not here: `Clip`, and how clips are read (`container.py`). Letters: T frames, H and W rows and columns,
L sound samples.
"""

from collections import deque
from fractions import Fraction

import av
import numpy as np
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc, VideoReformatter

from proav.errors import MediaError
from proav.media.pictures import SCALING

AAC_RATES = (7350, 8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000, 64000, 88200, 96000)
"""Sample rates that AAC can hold, in Hz."""
PACKET_SAMPLES = 1024
"""Samples of an AAC packet."""


class Muxer:
    """Writes H.264 4:2:0 BT.709 with AAC to an open container.

    The bytes do not depend on how picture and sound are divided into calls of `add`. One thread encodes. Only
    the frames whose sound has not come yet are held.
    """

    def __init__(self, container, *, fps: int, sample_rate: int, height: int, width: int, crf: int) -> None:
        """container: of PyAV, open for writing.

        fps, sample_rate: frames and sound samples a second.
        height, width: of the frames, pixels.
        crf: x264's quality, 0 (lossless) .. 51.
        Raises MediaError("not_writable") if the format cannot hold the size or the sample rate.
        """
        if height % 2 or width % 2:
            raise MediaError(
                "not_writable",
                f"H.264 cannot hold frames of {height}x{width}; expected even rows and columns",
            )
        if sample_rate not in AAC_RATES:
            raise MediaError(
                "not_writable",
                f"AAC cannot hold sound at {sample_rate} Hz; "
                f"expected one of {', '.join(map(str, AAC_RATES))}",
            )
        self.fps, self.sample_rate, self._container = fps, sample_rate, container
        options = {
            "crf": str(crf),
            "preset": "fast",
            "g": str(2 * fps),
            "bf": "0",  # if x264 looks ahead over B-frames, it reads unset memory
            # With AVX-512, x264's macroblock tree now and then gives other bytes. A quantizer that does not
            # vary with the picture makes files of the same size.
            "mbtree": "0",
            "qcomp": "1",
        }
        self._video = container.add_stream("libx264", rate=fps, options=options)
        self._video.width, self._video.height, self._video.pix_fmt = width, height, "yuv420p"
        context = self._video.codec_context
        context.thread_count, context.time_base = 1, Fraction(1, fps)
        context.colorspace, context.color_range, context.color_primaries, context.color_trc = (
            1,
            ColorRange.MPEG,
            ColorPrimaries.BT709,
            ColorTrc.BT709,
        )
        self._audio = container.add_stream("aac", rate=sample_rate, layout="mono")
        self._audio.bit_rate = min(128_000, 6 * sample_rate)  # the limit is 6144 bits for 1024 samples
        self._reformatter = VideoReformatter()
        self._frames: deque[np.ndarray] = deque()
        self._sound = np.zeros(0, np.float32)
        self._next_frame = self._next_sample = 0

    def add(self, video_THWC: np.ndarray, audio_L: np.ndarray) -> None:
        """The next frames, uint8, with their sound, float32 in [-1, 1]."""
        self._frames.extend(video_THWC)
        self._sound = np.concatenate([self._sound, audio_L])
        while self._frames and self._next_sample + len(self._sound) >= self._sound_beside + PACKET_SAMPLES:
            self._encode_frame(self._sound_beside)

    def finish(self) -> None:
        """Writes what is held. The container is closed by its owner."""
        while self._frames:
            is_last = len(self._frames) == 1
            self._encode_frame(self._next_sample + len(self._sound) if is_last else self._sound_beside)
        self._container.mux(self._video.encode(None))
        self._container.mux(self._audio.encode(None))

    @property
    def _sound_beside(self) -> int:
        """The sound sample at which the next frame ends.

        After that frame, the sound packets that begin at this sample or before are written.
        """
        return (self._next_frame + 1) * self.sample_rate // self.fps

    def _encode_frame(self, last_start: int) -> None:
        """The next frame, then the packets of sound that begin at `last_start` or before."""
        picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(self._frames.popleft()), format="rgb24")
        picture = self._reformatter.reformat(
            picture,
            format="yuv420p",
            dst_colorspace=Colorspace.ITU709,
            dst_color_range=ColorRange.MPEG,
            interpolation=SCALING,
            threads=1,
        )
        picture.pts, picture.time_base = self._next_frame, Fraction(1, self.fps)
        self._container.mux(self._video.encode(picture))
        self._next_frame += 1
        while len(self._sound) and self._next_sample <= last_start:
            samples, self._sound = np.split(self._sound, [PACKET_SAMPLES])
            sound = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples[None]), "fltp", "mono")
            sound.sample_rate, sound.pts = self.sample_rate, self._next_sample
            sound.time_base = Fraction(1, self.sample_rate)
            self._container.mux(self._audio.encode(sound))
            self._next_sample += PACKET_SAMPLES
