"""Decodes one upload in a process of its own, with a bound on its memory and its time.

Bounds on pixels and rates are in `proav/media`. The bounds here hold for every container and codec, and all
memory comes back when the process ends. It imports neither PyTorch nor Ray, so that it starts in a third of a
second. Memory is bounded on Linux only. Letters: T frames, H and W rows and columns.
"""

import io
import json
import math
import os
import signal
import subprocess
import sys
from typing import Any

import numpy as np

from proav.errors import MediaError

START_SECONDS = 60.0
"""Added to the time for decoding, because a busy machine may take long to start a process."""


def decode_upload(
    data: bytes, call: dict[str, Any], *, deadline_seconds: float, max_bytes: int
) -> dict[str, np.ndarray]:
    """What a file holds: "audio", float32 [samples], or "video", uint8 [T, H, W, 3], or both.

    data: the file.
    call: {"read": what} and the arguments of the function that reads it: of `read_sound` for "sound", of
        `read_picture` for "picture" (a video of one frame), of `read_pictures` for "pictures", of `read_clip`
        for "clip", which has both streams.
    deadline_seconds: time that decoding may take.
    max_bytes: memory that decoding may take, beyond the process itself and the file.
    Raises MediaError as these functions do; also too_large for more memory, timeout, and crash.
    """
    path = os.pathsep.join(map(os.path.abspath, sys.path))  # Ray may have put proav anywhere
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    late = MediaError("timeout", f"the given file took longer than {deadline_seconds:g} s to decode")
    head = {"call": call, "deadline_seconds": deadline_seconds, "max_bytes": max_bytes}
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-m", "proav.serve.orders.upload_process"],
            input=json.dumps(head).encode() + b"\n" + data,
            capture_output=True,
            env=environment,
            timeout=START_SECONDS + deadline_seconds,
        )
    except subprocess.TimeoutExpired:
        raise late from None
    answer, _, values = done.stdout.partition(b"\n")
    if done.returncode == -signal.SIGXCPU:
        raise late
    if done.returncode < 0:
        raise MediaError("crash", "the given file ended the decoder; write it anew with another program")
    if done.returncode or not answer:
        raise RuntimeError(f"the decoding process failed:\n{done.stderr.decode(errors='replace')}")
    said = json.loads(answer)
    if "reason" in said:
        raise MediaError(said["reason"], said["message"])
    streams, place = {}, 0
    for name, dtype, shape in said["streams"]:
        count = math.prod(shape)
        streams[name] = np.frombuffer(values, dtype, count, place).reshape(shape).copy()
        place += streams[name].nbytes
    return streams


def _serve() -> None:
    """What the process does: reads one file, and writes one answer."""
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not get into the answer
    head = json.loads(sys.stdin.buffer.readline())
    data = sys.stdin.buffer.read()
    try:
        streams = _decode(data, head["call"], head["deadline_seconds"], head["max_bytes"])
        said = {"streams": [(name, array.dtype.str, array.shape) for name, array in streams.items()]}
    except MediaError as error:
        streams, said = {}, {"reason": error.reason, "message": str(error)}
    with out:
        out.write(json.dumps(said).encode() + b"\n")
        for array in streams.values():
            out.write(array.tobytes())


def _decode(
    data: bytes, call: dict[str, Any], deadline_seconds: float, max_bytes: int
) -> dict[str, np.ndarray]:
    """What `decode_upload` returns, decoded in this process; the same arguments and errors."""
    import av

    from proav.media.container import read_clip, read_pictures, read_sound
    from proav.media.stills import read_picture

    _bound(max_bytes, deadline_seconds)
    what, arguments = call["read"], {name: value for name, value in call.items() if name != "read"}
    file = io.BytesIO(data)
    av.logging.set_level(av.logging.ERROR)
    with av.logging.Capture() as logs:
        try:
            if what == "sound":
                return {"audio": read_sound(file, deadline_seconds=deadline_seconds, **arguments)}
            if what == "picture":
                return {"video": read_picture(file, deadline_seconds=deadline_seconds, **arguments)[None]}
            if what == "pictures":
                return {"video": read_pictures(file, deadline_seconds=deadline_seconds, **arguments)}
            clip = read_clip(file, deadline_seconds=deadline_seconds, **arguments)
            return {"video": clip.video, "audio": clip.audio}
        except (MediaError, MemoryError) as error:
            told = isinstance(error, MediaError) and error.reason in ("too_large", "bad_rate", "timeout")
            if isinstance(error, MemoryError) or (not told and _ran_out(logs)):
                needs = f"the given file needs more than the {max_bytes} bytes of memory that it may take"
                hint = "give smaller pictures, or a simpler format"
                raise MediaError("too_large", f"{needs}; {hint}") from error
            raise


def _ran_out(logs: list[tuple[int, str, str]]) -> bool:
    """Whether FFmpeg's log says that memory ran out.

    Most decoders then report an invalid picture, so their error does not show the cause.
    """
    words = "get_buffer() failed", "Cannot allocate memory"
    return any(word in message for _, _, message in logs for word in words)


def _bound(max_bytes: int, deadline_seconds: float) -> None:
    """Allows `max_bytes` of memory beyond the present use, and processor time up to the deadline.

    Both bounds hold even inside a decoder that hangs.
    """
    if sys.platform != "linux":
        return
    import resource

    with open("/proc/self/status") as status:
        held = next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmData:"))
    resource.setrlimit(resource.RLIMIT_DATA, (held + max_bytes,) * 2)
    used = resource.getrusage(resource.RUSAGE_SELF)
    seconds = math.ceil(used.ru_utime + used.ru_stime + deadline_seconds) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))


if __name__ == "__main__":
    _serve()
