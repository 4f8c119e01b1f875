"""Decodes one source into rows of the data set's tables. Mel images are made here, so this needs PyTorch.

Not here: how rows become files (`unit.py`), the process that protects a job from broken files
(`isolation.py`).
"""

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import torch

from proav.config import Config
from proav.data.prepare.unit import row_checksum
from proav.data.sources.finding import SourceRow, segment_id
from proav.data.store.frames import encode_frames
from proav.data.store.schema import FULL_SCALE
from proav.media.container import Clip, frames_in
from proav.media.melframes import MelFrames, one_torch_thread
from proav.media.segments import About, Lost, Request, Segment, read_parts
from proav.signals.segment_scores import segment_scores


class SourceDecoder:
    """Sources -> rows of the data set's tables, in this process.

    `isolation.IsolatedDecoder` does the same in a process of its own.
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        self.mel_frames = MelFrames(config)

    def rows(
        self, source: SourceRow, on_progress: Callable[[], None] | None = None
    ) -> Iterator[dict | Lost | About]:
        """The segments of one source as rows, in order of time.

        Among the rows come Lost (a span that cannot be used) and About (what is known of the source).

        source: what to decode.
        on_progress: called whenever the decoder makes progress, and while it waits for storage.

        Raises MediaError if the source, or the rest of it, cannot be used. Raises StorageUnavailable.
        """
        clip, data, offset = self.config.clip, self.config.data, source.file_start_seconds
        length = None if source.end_seconds is None else source.end_seconds - source.start_seconds
        request = Request(
            fps=clip.fps, sample_rate=clip.sample_rate, height=clip.height, width=clip.width, fit=data.fit,
            segment_frames=frames_in(data.segment_seconds, clip.fps),
            start_seconds=source.start_seconds - offset,
            max_frames=None if length is None else max(0, frames_in(length, clip.fps)),
            min_frames=clip.num_frames, deadline_seconds=data.source_timeout_seconds, on_progress=on_progress,
            picture_track=data.picture_track, sound_track=data.sound_track,
        )  # fmt: skip
        for part in read_parts(source.path, request):
            match part:
                case Segment():
                    segment = Clip(part.video, part.audio, clip.fps, clip.sample_rate)
                    start = offset + part.start_seconds
                    yield segment_row(
                        self.config, source, start, segment, self.mel_frames, cancelled=part.cancelled
                    )
                case Lost():
                    end = None if part.end_seconds is None else offset + part.end_seconds
                    yield replace(part, start_seconds=offset + part.start_seconds, end_seconds=end)
                case About():
                    yield replace(part, end_seconds=offset + part.end_seconds)


def segment_row(
    config: Config,
    source: SourceRow,
    start_seconds: float,
    clip: Clip,
    mel_frames: MelFrames,
    *,
    cancelled: bool = False,
) -> dict:
    """One row of SEGMENT_SCHEMA.

    The mel is made from the stored int16 sound, so that it can be reproduced from the row.

    config: the codec and quality of frames.
    source: where the segment comes from.
    start_seconds: where in the source it begins.
    clip: its pictures and sound.
    mel_frames: makes the mel.
    cancelled: whether the channels' sound cancels itself in the mix to mono.
    """
    audio = np.round(clip.audio * FULL_SCALE).astype(np.int16)
    sound = audio.astype(np.float32) / FULL_SCALE
    with one_torch_thread():  # the mel's last bits depend on the number of threads
        mel_TMS = mel_frames.encode(torch.from_numpy(sound)[None])[0].numpy().astype(np.float16)
    video, offsets = encode_frames(
        clip.video, codec=config.data.frame_codec, quality=config.data.jpeg_quality
    )
    assert len(mel_TMS) == len(clip.video), f"{len(mel_TMS)} mel frames beside {len(clip.video)} pictures"
    sound_bytes, mel_bytes = audio.tobytes(), mel_TMS.tobytes()
    return {
        "id": segment_id(source.key, start_seconds),
        "source": source.key,
        "source_id": source.id,
        "label": source.label,
        "labels": list(source.labels),
        "split": source.split,
        "start_seconds": start_seconds,
        "num_frames": len(clip.video),
        "fps": clip.fps,
        "sample_rate": clip.sample_rate,
        "has_audio": True,
        **segment_scores(
            clip.video,
            sound,
            fps=clip.fps,
            sample_rate=clip.sample_rate,
            mel_TMS=mel_TMS,
            cancelled=cancelled,
        ),
        "checksum": row_checksum(video, sound_bytes, mel_bytes),
        "video_codec": config.data.frame_codec,
        "video_shape": list(clip.video.shape),
        "video_dtype": "uint8",
        "audio_shape": list(audio.shape),
        "audio_dtype": "int16",
        "mel_shape": list(mel_TMS.shape),
        "mel_dtype": "float16",
        "frame_offsets": offsets,
        "video": video,
        "audio": sound_bytes,
        "mel": mel_bytes,
    }
