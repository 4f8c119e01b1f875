"""Windows of prepared data as what the samples of a batch job are given.

Not here: what users give from Python (`inputs.py`). A row of the manifest names its window, so that a sample
is made again from the same one.
"""

import dataclasses

import pyarrow.compute as pc

from proav.config import Config
from proav.data.feeds.feed import evaluation_windows
from proav.data.store.shards import SegmentStore
from proav.diffusion.tasks import TASKS, check_trained, mask_of_window
from proav.errors import UserError
from proav.generation.inputs import fit_given, frames_needed
from proav.generation.pipeline import SampleRequest
from proav.media.container import Clip
from proav.runs.checkpoint import Checkpoint
from proav.text import find_label


def takes_given(task: str) -> bool:
    """Whether samples of this task are given something."""
    return TASKS[task].given is not None or TASKS[task].mask is not None


def given_rows(config: Config, checkpoint: Checkpoint) -> list[dict]:
    """{"label", "given": {"segment_id", "start_frame"}} of each sample, in the order of their indices.

    The windows are those on which the split `evaluate.split` is measured. If there are fewer than
    `generate.num_samples`, they take turns.

    config: of the run, whose data are used.
    checkpoint: of the model, whose clips must be like the data's. Other labels than its own are left out.
    Raises UserError if the model was not trained for the task, or if the data are missing or were prepared
    for other clips.
    """
    check_trained(config.generate.task, checkpoint.config)
    store, wanted = SegmentStore(config.data_folder), config.generate.num_samples
    windows = evaluation_windows(store, checkpoint.config, split=config.evaluate.split, max_clips=wanted)
    ids, labels = (store.index.column(name) for name in ("id", "label"))
    rows = []
    for segment, start in windows:
        place = find_label(labels[segment].as_py(), checkpoint.labels)
        label = None if place is None else checkpoint.labels[place]
        rows.append({"label": label, "given": {"segment_id": ids[segment].as_py(), "start_frame": start}})
    return [rows[index % len(rows)] for index in range(wanted)]


class GivenWindows:
    """Reads the windows that rows of a manifest name.

    data_folder: of prepared data.
    config: of the model.
    """

    def __init__(self, data_folder: str, config: Config) -> None:
        self.store, self.config = SegmentStore(data_folder), config

    def given_to(self, request: SampleRequest, given: dict) -> SampleRequest:
        """The request with the frames that its task reads of a window, and with their mask.

        The mask of a span is that which the window has in training. given: see `given_rows`.
        """
        task, segment, start = request.settings.task, given["segment_id"], given["start_frame"]
        index = pc.index(self.store.index.column("id"), segment).as_py()
        if index < 0:
            raise UserError(f"{self.store.data_dir} has no segment {segment} any more; run generate.py again")
        frames = max(frames_needed(self.config, task).values())
        window = self.store.window(index, start, frames, want=("video", "audio"))
        clip = Clip(window["video"], window["audio"], self.config.clip.fps, self.config.clip.sample_rate)
        asks = TASKS[task].asks_span
        known = mask_of_window(task, self.config, segment, 2 * start).numpy() if asks else None
        return dataclasses.replace(request, given=fit_given(self.config, task, clip=clip), known=known)
