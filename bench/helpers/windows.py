"""Real clips of a run's prepared data, for benchmarks."""

from proav.config import Config
from proav.data.feeds.feed import evaluation_windows
from proav.data.store.shards import SegmentStore
from proav.media.container import Clip


def real_clips(config: Config, split: str, most: int, *, windows: int = 1) -> tuple[list[Clip], list[dict]]:
    """Clips of a split, evenly spread, and the row of the data's index for each.

    config: of the run.
    split: train or validation.
    most: the most clips.
    windows: length of a clip, in windows of the model.
    """
    store, frames = SegmentStore(config.data_folder), windows * config.clip.num_frames
    longer = config.model_copy(update={"clip": config.clip.model_copy(update={"num_frames": frames})})
    clips, rows = [], []
    for segment, start in evaluation_windows(store, longer, split=split, max_clips=most):
        window = store.window(segment, start, frames, want=("video", "audio"))
        clips.append(Clip(window["video"], window["audio"], config.clip.fps, config.clip.sample_rate))
        rows.append(store.rows[segment])
    return clips, rows
