"""Windows of prepared data that are given to the samples of a batch job.

A row of the manifest names its window. So if a sample is made again, it is given the same window. Not here:
files that a listing names (`given_files.py`), what users give from Python (`inputs.py`). Letters: T frames, H
and W rows and columns.
"""

import numpy as np
import pyarrow.compute as pc

from proav.config import Config
from proav.data.feeds.feed import evaluation_windows
from proav.data.store.shards import SegmentStore
from proav.diffusion.tasks import TASKS, mask_of_window
from proav.errors import UserError
from proav.generation.inputs import frames_needed
from proav.runs.checkpoint import Checkpoint
from proav.text import LABEL_SEPARATOR, find_labels


def given_rows(config: Config, checkpoint: Checkpoint) -> list[dict]:
    """{"label", "given": {"segment_id", "start_frame"}} of each sample, in the order of their indices.

    `generate.num_samples` windows, evenly spread over the split `evaluate.split`. If there are fewer, they
    take turns.

    config: of the run; its data are used.
    checkpoint: of the model. Labels that it does not know are left out.
    Raises UserError if the data are missing, or were prepared for other clips than the model's.
    """
    store, wanted = SegmentStore(config.data_folder), config.generate.num_samples
    windows = evaluation_windows(store, checkpoint.config, split=config.evaluate.split, max_clips=wanted)
    ids, rows = store.index.column("id"), []
    for segment, start in windows:
        places = find_labels(store.label_text(segment), checkpoint.labels)
        label = LABEL_SEPARATOR.join(checkpoint.labels[place] for place in places if place is not None)
        given = {"segment_id": ids[segment].as_py(), "start_frame": start}
        rows.append({"label": label or None, "given": given})
    return [rows[index % len(rows)] for index in range(wanted)]


class GivenWindows:
    """Reads the windows that rows of a manifest name.

    data_folder: of prepared data.
    config: of the model.
    task: a name of TASKS; it says how many frames of a window are read.
    """

    def __init__(self, data_folder: str, config: Config, task: str) -> None:
        self.store = SegmentStore(data_folder)
        self.frames = max(frames_needed(config, task).values())

    def streams(self, given: dict) -> dict[str, np.ndarray]:
        """The window's "video", uint8 [T, H, W, 3], and "audio", float32 [samples].

        given: see `given_rows`. Raises UserError if its segment is gone.
        """
        index = index_of(self.store, given["segment_id"])
        return self.store.window(index, given["start_frame"], self.frames, want=("video", "audio"))


def index_of(store: SegmentStore, segment_id: str) -> int:
    """The place of a segment in its store. Raises UserError if it is gone."""
    index = pc.index(store.index.column("id"), segment_id).as_py()
    if index < 0:
        raise UserError(f"{store.data_dir} has no segment {segment_id} any more; run generate.py again")
    return index


def known_of_window(config: Config, task: str, given: dict) -> np.ndarray | None:
    """The frames of a window that are given, bool [2, T], if a task asks for a span; None for other tasks.

    The window has the same span as in training. config: of the model. given: see `given_rows`.
    """
    if not TASKS[task].asks_span:
        return None
    return mask_of_window(task, config, given["segment_id"], given["start_frame"]).numpy()
