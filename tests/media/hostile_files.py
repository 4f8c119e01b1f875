"""Files that would cost a decoder much: headers that lie about the size of pictures or the rate of sound.

Also films whose sound no decoder can read.
"""

import io
import wave

import av
import numpy as np

START_CODE = b"\x00\x00\x00\x01"


def wav(seconds: float, *, rate: int = 16_000, channels: int = 1, stated_rate: int | None = None) -> bytes:
    """A WAV file: a tone as 16-bit PCM.

    seconds: how long it lasts.
    rate: the true sample rate in Hz.
    channels: how many, all alike.
    stated_rate: the rate in Hz that the header states; None for the true one.
    """
    tone = (8000 * np.sin(np.arange(int(seconds * rate)) / 10)).astype("<i2")
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(np.repeat(tone, channels).tobytes())
    data = bytearray(buffer.getvalue())
    if stated_rate is not None:
        data[24:28] = stated_rate.to_bytes(4, "little")
        data[28:32] = min(2 * channels * stated_rate, 2**32 - 1).to_bytes(4, "little")
    return bytes(data)


def h264(*, num_frames: int, width: int = 64, height: int = 64, file_format: str = "h264") -> bytes:
    """A baseline H.264 stream in which every frame is a key frame.

    num_frames: how many, at 5 per second.
    width, height: in pixels.
    file_format: FFmpeg's name of the container; "h264" is the bare stream.
    """
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=file_format) as container:
        options = {"preset": "ultrafast", "profile": "baseline", "g": "1", "bf": "0"}
        options["x264-params"] = "repeat-headers=1:slices=1"
        stream = container.add_stream("libx264", rate=5, options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for index in range(num_frames):
            picture = np.full((height, width, 3), 40 * index % 256, np.uint8)
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return buffer.getvalue()


def with_damaged_sound(film: bytes) -> bytes:
    """An mp4 or Matroska film whose sound packets have their place and size, but random bytes."""
    draw, buffer = np.random.default_rng(0), io.BytesIO()
    with av.open(io.BytesIO(film)) as source, av.open(buffer, "w", format="matroska") as target:
        streams = {stream.index: target.add_stream_from_template(stream) for stream in source.streams}
        for packet in source.demux():
            if not packet.size:
                continue
            copy = packet
            if packet.stream.type == "audio":
                copy = av.Packet(draw.bytes(packet.size))
                copy.pts, copy.dts, copy.duration = packet.pts, packet.dts, packet.duration
                copy.time_base = packet.time_base
            copy.stream = streams[packet.stream_index]
            target.mux(copy)
    return buffer.getvalue()


def ffv1(*, num_frames: int, width: int, height: int, pixel_format: str) -> bytes:
    """A Matroska file with black pictures in a lossless codec, which allows many bytes a pixel.

    num_frames: how many, at 5 per second.
    width, height: in pixels.
    pixel_format: FFmpeg's name of the format.
    """
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="matroska") as container:
        stream = container.add_stream("ffv1", rate=5)
        stream.width, stream.height, stream.pix_fmt = width, height, pixel_format
        frame = av.VideoFrame(width, height, pixel_format)
        for plane in frame.planes:
            plane.update(bytes(plane.buffer_size))
        for index in range(num_frames):
            frame.pts = index
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return buffer.getvalue()


def switching_h264(*, width: int, height: int, num_before: int = 2, num_after: int = 20) -> bytes:
    """An H.264 stream of 64x64 whose headers say width x height from frame `num_before` on.

    It has less than two kilobytes, whatever the size.

    width, height: what the later headers say, in pixels.
    num_before, num_after: frames before and after the switch.
    """
    small = h264(num_frames=num_before + num_after)
    units = [START_CODE + unit.rstrip(b"\x00") for unit in small.split(START_CODE[1:])[1:]]
    parts, num_headers = [], 0
    for unit in units:
        if unit[4] & 31 == 7:  # a sequence parameter set, one before each key frame
            num_headers += 1
            parts.append(unit if num_headers <= num_before else START_CODE + _sequence_header(width, height))
        else:
            parts.append(unit)
    return b"".join(parts)


def _sequence_header(width: int, height: int) -> bytes:
    """A sequence parameter set of the baseline profile (ITU-T H.264, 7.3.2.1.1), 16 reference frames."""

    def number(value: int) -> str:  # ue(v), the standard's Exp-Golomb code
        bits = f"{value + 1:b}"
        return "0" * (len(bits) - 1) + bits

    identity, frame_number_bits, order_type, references = number(0), number(0), number(2), number(16)
    size = number(width // 16 - 1) + number(height // 16 - 1)
    bits = identity + frame_number_bits + order_type + references + "0" + size + "1" + "1" + "0" + "0" + "1"
    bits += "0" * (-len(bits) % 8)
    payload = bytes([0x67, 66, 0, 62]) + int(bits, 2).to_bytes(len(bits) // 8, "big")
    assert b"\x00\x00" not in payload[4:], "would need emulation prevention"
    return payload
