"""The columns of a data set's files: segments, their index, rejects, and accounts of the sources.

Bulky values are bytes with shape and dtype beside them. A row of `segments/*.parquet` is one segment. All but
its bulky columns are repeated in `units/*.parquet` (a file for each unit of work) and in index.parquet. In
the latter, the column `dropped` says which segments the filters leave out. A row of `sources/*.parquet` says
where the seconds of one planned stretch of a source went. Files are written and read in `parquet.py`.

Letters: T frames, H and W rows and columns, M mel bins, S mel columns in a frame.
"""

import pyarrow as pa

from proav.signals.segment_scores import SCORE_FIELDS

FORMAT = 3
"""Version of the manifest and of the columns below. A reader refuses other versions."""

FULL_SCALE = 32767.0
"""The int16 value of a sound sample of 1."""

SEGMENT_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("source", pa.string()),  # its key, see proav/data/sources/finding.py
        ("source_id", pa.string()),
        ("label", pa.string()),  # empty: none
        ("labels", pa.list_(pa.string())),  # all that were given
        ("split", pa.string()),
        ("start_seconds", pa.float64()),  # within the source
        ("num_frames", pa.int32()),
        ("fps", pa.int32()),
        ("sample_rate", pa.int32()),
        ("has_audio", pa.bool_()),
        *SCORE_FIELDS,
        ("checksum", pa.string()),  # 32 hexadecimal digits of SHA-256 over video, audio and mel
        ("video_codec", pa.string()),  # raw | jpeg
        ("video_shape", pa.list_(pa.int32())),  # [T, H, W, 3]
        ("video_dtype", pa.string()),
        ("audio_shape", pa.list_(pa.int32())),  # [samples]
        ("audio_dtype", pa.string()),
        ("mel_shape", pa.list_(pa.int32())),  # [T, M, S]
        ("mel_dtype", pa.string()),
        ("frame_offsets", pa.list_(pa.int64())),  # T + 1 places in `video`
        ("video", pa.large_binary()),
        ("audio", pa.large_binary()),  # int16
        ("mel", pa.large_binary()),  # float16 in [-1, 1], of the whole segment
    ]
)
BULKY_COLUMNS = ("frame_offsets", "video", "audio", "mel")
UNIT_SCHEMA = pa.schema(
    [
        ("shard", pa.string()),
        ("row", pa.int32()),
        *(field for field in SEGMENT_SCHEMA if field.name not in BULKY_COLUMNS),
    ]
)
INDEX_SCHEMA = UNIT_SCHEMA.append(pa.field("dropped", pa.string()))  # empty: used; else the filter's reason

REJECT_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("source", pa.string()),
        ("source_id", pa.string()),
        ("start_seconds", pa.float64()),
        ("end_seconds", pa.float64()),  # null: to the end of the source, which is unknown
        ("reason", pa.string()),
        ("message", pa.string()),
    ]
)
"""A rejected source, or a span of one. `id` is that of a segment that begins at start_seconds."""

ACCOUNT_SCHEMA = pa.schema(
    [
        ("source", pa.string()),
        ("source_id", pa.string()),
        ("start_seconds", pa.float64()),  # start of the stretch that was to be prepared
        ("end_seconds", pa.float64()),  # its end as listed, or else by the file's header or packets
        ("used_seconds", pa.float64()),  # in segments
        ("rejected_seconds", pa.float64()),
        ("picture_track", pa.int32()),  # place among the file's picture tracks, from 0; null: none chosen
        ("sound_track", pa.int32()),
        ("note", pa.string()),  # programmes and tracks that were not read
    ]
)
"""One row for each planned stretch of a source: where its seconds went."""

SEGMENT_COMPRESSION = {name: "zstd" if name in ("audio", "mel") else "none" for name in SEGMENT_SCHEMA.names}
"""Frames are JPEG already, or raw for speed. Metadata is too short to be worth compressing."""
