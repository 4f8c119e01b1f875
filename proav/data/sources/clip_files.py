"""Files of listed clips: a file's name says which part of which YouTube video it holds.

The folder of videos is listed once. All clips are looked up together, column by column; two million take
seconds. The listings themselves are read in `listings.py`.
"""

import re

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from proav import storage
from proav.data.sources.folders import PassedOver, found_table, is_video, normal_path, walk
from proav.errors import UserError

VIDEO_ID = re.compile(r"[A-Za-z0-9_-]{11}")
CLIP_FILE = (
    rf"(?:^|/)Y?(?P<id>{VIDEO_ID.pattern})(?:_0*(?P<start>\d+(?:\.\d+)?)(?:_\d+(?:\.\d+)?)?)?\.[A-Za-z0-9]+$"
)
"""<id>.mp4, Y<id>.mp4, <id>_<start>.mp4 and <id>_<start>_<end>.mp4. Times are in seconds, such as 30, 000030
or 30.000, or in milliseconds; they may be zero-padded.
"""

CLIP_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("start_seconds", pa.float64()),
        ("end_seconds", pa.float64()),
        ("labels", pa.list_(pa.string())),
        ("split", pa.string()),
    ]
)
"""A listed stretch of a YouTube video, before its file is looked for."""
MEDIA_SCHEMA = pa.schema([("relative", pa.string()), ("num_bytes", pa.int64())])


def list_videos(folder: str) -> pa.Table:
    """Every video below the folder as MEDIA_SCHEMA.

    Sorted, so that the choice among several files of a clip is always the same. Raises UserError if there is
    no such folder.
    """
    if not storage.is_folder(folder):
        raise UserError(
            f"data.videos={folder}: no such folder; expected the folder where the videos of data.listing are"
        )
    others = PassedOver()

    def files():
        for relative, num_bytes in walk(folder):
            if is_video(relative):
                yield relative, num_bytes
            else:
                others.add(relative)

    videos = found_table(files(), MEDIA_SCHEMA)
    return others.noted_in(videos.sort_by("relative").combine_chunks())


def find_clips(clips: pa.Table, folder: str, videos: pa.Table, *, named_by_id: str) -> pa.Table:
    """The listed stretches of videos with their files, as FOUND_SCHEMA.

    A clip without a file has the path `folder`/<id>.mp4. If a file <id>.mp4 is there, but may hold another
    stretch, the path is `folder`/<id>_<start>.mp4, which is not there.

    clips: of CLIP_SCHEMA.
    folder: the folder of videos.
    videos: what is in it, of MEDIA_SCHEMA.
    named_by_id: what a file <id>.mp4 holds, see `DataConfig.named_by_id`.
    """
    ids, start = clips.column("id").combine_chunks(), clips.column("start_seconds").to_numpy()
    places, num_spare = _place_of_name(videos)
    seconds, milliseconds = _texts_of(start)
    cut = _look_up(pc.binary_join_element_wise(ids, seconds, "@"), places)
    cut = np.where(cut < 0, _look_up(pc.binary_join_element_wise(ids, milliseconds, "@"), places), cut)
    by_id = _look_up(ids, places)
    unclear = np.zeros(len(ids), bool)
    if named_by_id == "cut":  # if several stretches are listed, the name does not say which one was cut out
        codes = ids.dictionary_encode().indices.to_numpy()
        stretches = np.unique(codes.astype(np.int64) << 40 | np.round(start * 1000).astype(np.int64))
        unclear = (cut < 0) & (by_id >= 0) & (np.bincount(stretches >> 40)[codes] > 1)
        by_id[unclear] = -1
        if unclear.any():
            print(
                f"sources: {unclear.sum():,} clips NOT TAKEN: their file is named by the video's id alone, "
                "but several stretches of the video are listed; expected <id>_<start>.mp4"
            )
    place = np.where(cut >= 0, cut, by_id)
    is_found, is_cut = place >= 0, (cut >= 0) | unclear | ((by_id >= 0) & (named_by_id == "cut"))
    chosen = videos.take(pa.array(np.maximum(place, 0), mask=~is_found))
    # nothing is called <id>_<start>.mp4 where the file is unclear: `cut` would have found it
    stems = pc.if_else(pa.array(unclear), pc.binary_join_element_wise(ids, seconds, "_"), ids)
    relative = pc.if_else(
        pa.array(is_found),
        chosen.column("relative").combine_chunks(),
        pc.binary_join_element_wise(stems, "mp4", "."),
    )
    columns = {
        "key": pc.binary_join_element_wise("youtube", ids, "/"),
        "path": pc.binary_join_element_wise(normal_path(folder).rstrip("/"), relative, "/"),
        "labels": clips.column("labels"),
        "split": clips.column("split"),
        "start_seconds": clips.column("start_seconds"),
        "end_seconds": clips.column("end_seconds"),
        "file_start_seconds": pa.array(np.where(is_cut, start, 0.0)),
        "num_bytes": pc.fill_null(chosen.column("num_bytes"), 0),
        "group": pa.nulls(len(ids), pa.string()),
    }
    print(
        f"sources: {is_found.sum():,} of {len(ids):,} listed clips are in {folder} "
        f"({(is_found & is_cut).sum():,} cut, "
        f"{(is_found & ~is_cut).sum():,} in whole videos), {(~is_found).sum():,} are not"
        + (f"; {num_spare:,} files more hold a clip that another file holds already" if num_spare else "")
    )
    if not is_found.any():
        print(
            f"sources: NONE of the clips is there: expected files such as {ids[0]}_{int(start[0])}.mp4 or "
            f"{ids[0]}.mp4 below {folder}"
        )
    return pa.table(columns)


def _place_of_name(videos: pa.Table) -> tuple[pa.Array, int]:
    """The clip that each file holds, and the number of files that repeat the clip of an earlier file.

    A clip is "<id>@<start>" or "<id>". It is null if the name has no id, or if an earlier file holds
    the same clip.
    """
    names = pc.extract_regex(videos.column("relative").combine_chunks(), CLIP_FILE)
    ids, start = pc.struct_field(names, "id"), pc.struct_field(names, "start")
    start = pc.utf8_rtrim(pc.replace_substring_regex(start, r"(\.\d*?)0+$", r"\1"), ".")
    clip = pc.if_else(pc.equal(start, ""), ids, pc.binary_join_element_wise(ids, start, "@"))
    coded = clip.dictionary_encode()
    codes = coded.indices.fill_null(-1).to_numpy()
    seen, firsts = np.unique(codes, return_index=True)
    firsts = firsts[seen >= 0]
    is_first = np.zeros(len(codes), bool)
    is_first[firsts] = True
    return pc.if_else(pa.array(is_first), clip, pa.scalar(None, pa.string())), int(
        (codes >= 0).sum() - len(firsts)
    )


def _look_up(names: pa.Array, places: pa.Array) -> np.ndarray:
    """int64: where in `places` each name is; -1 if it is not there."""
    return (
        pc.fill_null(pc.index_in(names, value_set=places), -1).to_numpy(zero_copy_only=False).astype(np.int64)
    )


def _texts_of(start: np.ndarray) -> tuple[pa.Array, pa.Array]:
    """Start times as file names write them: in seconds (30, 2.5) and in milliseconds (30000, 2500)."""
    values, codes = np.unique(np.round(start * 1000).astype(np.int64), return_inverse=True)
    seconds = pa.array(
        [f"{value / 1000:.3f}".rstrip("0").rstrip(".") for value in values.tolist()], pa.string()
    )
    milliseconds = pa.array([str(value) for value in values.tolist()], pa.string())
    return seconds.take(pa.array(codes)), milliseconds.take(pa.array(codes))
