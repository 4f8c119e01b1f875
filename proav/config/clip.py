"""Settings of what a clip is, how sound becomes mel images, and where clips come from."""

from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from proav.config.changes import Changes
from proav.config.section import LabelName, PositiveFloat, PositiveInt, Section, VectorName


def _as_names(value: object) -> object:
    """A single name becomes a list of one; None becomes an empty list."""
    return [] if value is None else [value] if isinstance(value, str) else value


def _each_once(labels: tuple[str, ...]) -> tuple[str, ...]:
    for label in labels:
        if labels.count(label) > 1:
            times = labels.count(label)
            raise ValueError(f"data.labels names {label!r} {times} times; expected each label once")
    return labels


VECTOR_FILES = (".parquet", ".pq", ".npy")
"""Endings of files in data.vectors; other values name functions."""

Names = Annotated[tuple[str, ...], BeforeValidator(_as_names)]


class ClipConfig(Section):
    """What one clip is: the window of picture and sound that the model sees and makes."""

    changes = ("data", "mdsa", "stdit")

    num_frames: Annotated[int, Field(ge=2)] = 16
    """Frames per clip, T."""
    fps: Annotated[int, Field(ge=1, le=240)] = 10
    """Frames per second; pictures are resampled to it by their time stamps."""
    height: Annotated[int, Field(ge=16)] = 256
    """Rows of a frame, H, in pixels."""
    width: Annotated[int, Field(ge=16)] = 256
    """Columns of a frame, W, in pixels."""
    sample_rate: Annotated[int, Field(ge=1000)] = 16000
    """Sound samples per second, mono, in Hz; a whole number of samples must fit in a frame."""


class MelConfig(Section):
    """How sound becomes mel images with the video's own T x H x W, and back."""

    changes = ("data", "mdsa", "stdit")

    num_bins: PositiveInt = 128
    """Mel bands, M; must divide clip.height."""
    n_fft: Annotated[int, Field(ge=16)] = 512
    """Samples in one Fourier window (Hann); short windows keep the onsets that synchronization needs."""
    hop: PositiveInt = 100
    """Samples between mel columns; a whole number of columns must fit in a frame and divide clip.width."""
    min_hz: Annotated[float, Field(ge=0)] = 0.0
    """Lower edge of the lowest band, Hz."""
    max_hz: PositiveFloat = 8000.0
    """Upper edge of the highest band, Hz; at most half of clip.sample_rate."""
    floor_log10: float = -5.0
    """log10 of the mel magnitude that becomes -1."""
    ceiling_log10: float = 1.0
    """log10 of the mel magnitude that becomes +1."""
    transform: Literal["whole", "segment"] = "whole"
    """whole: one Fourier transform over the whole sound; its columns are then cut into frames. segment: the
    sound of each frame is cut out and transformed alone.
    """
    griffin_lim_iterations: Annotated[PositiveInt, Changes("samples")] = 32
    """Rounds of fast Griffin-Lim when sound is made from mel images."""
    griffin_lim_magnitude: Annotated[Literal["multiplicative", "pseudo_inverse"], Changes("samples")] = (
        "multiplicative"
    )
    """Magnitudes of each round. multiplicative: those of the current sound, scaled to the mel.
    pseudo_inverse: fixed ones, from the mel's pseudo-inverse.
    """
    griffin_lim_momentum: Annotated[float, Field(ge=0, lt=1), Changes("samples")] = 0.95
    """Momentum of fast Griffin-Lim; 0 is the plain method."""


class DataConfig(Section):
    """Where clips come from and how they are stored."""

    changes = ("data",)

    sources: Annotated[tuple[str, ...], Changes("sources")] = ()
    """Folders, files or globs of videos with sound, local or remote."""
    layout: Annotated[Literal["label", "split/label", "aist"], Changes("sources")] = "label"
    """label: the first folder is the label. split/label: a folder train or test may be above it. aist: the
    label is part of the file name.
    """
    listing: Annotated[Names, Changes("sources")] = ()
    """Instead of sources: one or several tables of what to prepare; listing_format names their format."""
    listing_format: Annotated[
        Literal["auto", "table", "audioset", "vggsound", "aist"], Changes("sources")
    ] = "auto"
    """auto: recognized from the content. table: CSV or Parquet with a column path. audioset, vggsound: the
    CSV files of these data sets. aist: AIST++'s split files.
    """
    videos: Annotated[str | None, Changes("sources")] = None
    """Folder of a listing's videos; all folders below it are searched too. Paths in a table are relative to
    it. Empty: they are relative to the table's folder.
    """
    ontology: Annotated[str | None, Changes("sources")] = None
    """AudioSet's ontology.json or class_labels_indices.csv: the file that names its labels."""
    other_columns: Annotated[tuple[str, ...], Changes("sources")] = ()
    """Columns that a table may have besides proav's own; they are not used. Any other column is refused."""
    named_by_id: Literal["whole", "cut"] = "whole"
    """What a file <video id>.mp4 of AudioSet or VGGSound holds. whole: the whole video. cut: only the listed
    part. A file <id>_<start>.mp4 always holds only that part.
    """
    conflicts: Annotated[Literal["refuse", "first"], Changes("sources")] = "refuse"
    """What happens to rows of listings that overlap or put a video on both sides of the split. refuse: an
    error. first: the row that is listed first is kept; the others are left out and counted.
    """
    prepared: str | None = None
    """Folder with another run's prepared data, to be used here; empty: <run_dir>/data."""
    labels: Annotated[tuple[LabelName, ...], AfterValidator(_each_once)] = ()
    """Labels in the order of the label embedding; empty: all labels that preprocess finds, sorted."""
    vectors: Annotated[dict[VectorName, str], Changes("vectors")] = {}
    """Vectors to store of each segment, by name: {caption: package.module:function}, or a file (Parquet, npy)
    with a column id or source (docs/data.md). May change later; nothing is decoded or encoded anew.
    """
    segment_seconds: PositiveFloat = 10.0
    """A source is stored in segments of at most this length, in seconds; windows are drawn from them."""
    frame_codec: Literal["raw", "jpeg"] = "jpeg"
    """raw: uint8 pixels, for tiny sets. jpeg: one JPEG per frame, about a ninth of the bytes."""
    jpeg_quality: Annotated[int, Field(ge=50, le=100)] = 92
    """JPEG quality of stored frames."""
    fit: Literal["pad", "crop"] = "pad"
    """pad: the whole picture with black bars, as in the published tables. crop: the centre, no bars."""
    picture_track: Annotated[int, Field(ge=0)] | None = None
    """Picture track of every file, counted from 0 as in FFmpeg's 0:v:0; empty: the main picture track of a
    programme that has sound.
    """
    sound_track: Annotated[int, Field(ge=0)] | None = None
    """Sound track of every file, counted from 0 as in FFmpeg's 0:a:0; empty: the main sound track of the
    picture's programme, or the loudest one if the main one is silent.
    """
    validation_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of sources held out if the listing names no split; a source is never on both sides."""
    rows_per_shard: PositiveInt = 64
    """Segments in one Parquet file."""
    num_workers: Annotated[PositiveInt | None, Changes("machine")] = None
    """Decoding tasks at a time; empty: one for each CPU of the cluster."""
    stall_seconds: Annotated[PositiveFloat, Changes("machine")] = 60.0
    """Seconds without progress after which a decoder is ended. Its source is tried once more, then rejected
    with the reason `hang`.
    """
    source_timeout_seconds: Annotated[PositiveFloat | None, Changes("machine")] = None
    """Seconds of decoding after which a source is rejected with the reason `timeout`; empty: no limit."""
