"""Files that batch generation is given, decoded as the streams that a task reads.

Not here: what users give from Python (`inputs.py`), uploads to the server (`proav/serve/orders`). Letters: T
frames, H and W rows and columns.
"""

import math
from collections.abc import Callable, Iterator

import numpy as np

from proav.config import Config
from proav.data.sources.finding import SourceRow
from proav.diffusion.tasks import TASKS, given_row
from proav.errors import MediaError
from proav.generation.inputs import fit_given, frames_needed
from proav.geometry import MODALITIES, ClipGeometry
from proav.media.container import Clip, read_clip, read_pictures, read_sound
from proav.media.cutting import MAX_SOUND_SHORTFALL
from proav.media.stills import read_picture


def streams_read(task: str) -> tuple[str, ...]:
    """Which of "video" and "audio" a task reads from what it is given; () if it is given nothing."""
    if TASKS[task].mask is not None:
        return MODALITIES
    return tuple(name for name, given in zip(MODALITIES, given_row(task), strict=True) if given)


class GivenDecoder:
    """Decodes files for the task `config.generate.task`. `isolation.IsolatedDecoder` runs it.

    config: of the model; it sets rates and sizes. `data.source_timeout_seconds` limits the time for a file.
    """

    def __init__(self, config: Config) -> None:
        task = config.generate.task
        self.config, self.streams = config, streams_read(task)
        self.needed = frames_needed(config, task)

    def rows(
        self, source: SourceRow, on_progress: Callable[[], None] | None = None
    ) -> Iterator[dict[str, np.ndarray]]:
        """One dict: "video", uint8 [T, H, W, 3], or "audio", float32 [samples], or both, as the task reads.

        Both begin at `start_seconds` and are as long as the task reads, mostly one clip. `end_seconds` is
        where a stream ends that is given for the whole clip. None: after one window; infinity: with the file.
        For a2v, time 0 is the beginning of the sound, and pictures are not read. If the sound ends at most
        0.1 s too early, silence follows. For v2a and i2av, time 0 is the beginning of the pictures, and sound
        is not read. A task that reads one picture also accepts an image, if `start_seconds` is 0.

        source: path, start_seconds and end_seconds are read.
        on_progress: called whenever the decoder gets further.
        Raises MediaError if the file does not hold these streams, and StorageUnavailable.
        """
        clip, data = self.config.clip, self.config.data
        watch = {"deadline_seconds": data.source_timeout_seconds, "on_progress": on_progress}
        size = {"height": clip.height, "width": clip.width, "fit": data.fit}
        frames: int | None = max(self.needed.values())
        if source.end_seconds is not None:
            seconds = source.end_seconds - source.start_seconds
            frames = None if math.isinf(seconds) else round(seconds * clip.fps)
        if self.needed == {"video": 1, "audio": 0} and not source.start_seconds:
            picture = read_picture(source.path, **size, **watch)
            yield {"video": picture[None], "audio": np.zeros(clip.sample_rate // clip.fps, np.float32)}
            return
        if self.streams == ("audio",):
            yield {"audio": self._sound(source, frames, watch)}
            return
        part = {"fps": clip.fps, "start_seconds": source.start_seconds, "num_frames": frames}
        if self.needed["audio"]:
            read = read_clip(source.path, sample_rate=clip.sample_rate, **part, **size, **watch)
            yield {"video": read.video, "audio": read.audio}
            return
        pictures = read_pictures(source.path, **part, **size, **watch)
        silence = np.zeros(len(pictures) * clip.sample_rate // clip.fps, np.float32)
        yield {"video": pictures} if self.streams == ("video",) else {"video": pictures, "audio": silence}

    def _sound(self, source: SourceRow, frames: int | None, watch: dict) -> np.ndarray:
        """Sound of so many frames; None: all whole frames of the file, at least one.

        Raises MediaError if there is too little, or none.
        """
        geometry, start = ClipGeometry.from_config(self.config), source.start_seconds
        rate, size = geometry.sample_rate, geometry.samples_per_frame
        most = math.inf if frames is None else start + frames / geometry.fps
        sound = read_sound(source.path, sample_rate=rate, max_seconds=most, **watch)[round(start * rate) :]
        if frames is None:
            frames = max(1, len(sound) // size)
        seconds, length = frames / geometry.fps, frames * size
        sound = sound[:length]
        if not len(sound) or length - len(sound) > MAX_SOUND_SHORTFALL * rate:
            raise MediaError(
                "too_short",
                f"{source.path} holds {len(sound) / rate:.2f} s of sound from {start:g} s on; expected the "
                f"{seconds:g} s of {'a' if source.end_seconds is None else 'the'} clip",
            )
        return np.pad(sound, (0, length - len(sound)))


def clip_of_streams(
    config: Config, task: str, streams: dict[str, np.ndarray], num_frames: int | None = None
) -> Clip | None:
    """`SampleRequest.given` of the streams that were read from a file; None if there are none.

    config: of the model.
    task: a name of TASKS.
    streams: of `GivenDecoder.rows`.
    num_frames: as in `fit_given`.
    """
    rates = {"fps": config.clip.fps, "sample_rate": config.clip.sample_rate}
    if len(streams) == 2:
        streams = {"clip": Clip(**streams, **rates)}
    elif "audio" in streams:
        streams = {"audio": streams["audio"], "sample_rate": config.clip.sample_rate}
    return fit_given(config, task, **streams, num_frames=num_frames)
