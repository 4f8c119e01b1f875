"""Offline generation without a cluster: names of samples, which are done, and which are wanted."""

import json

import numpy as np
import pytest

from proav.data.store.shards import SegmentStore
from proav.errors import UserError
from proav.generation.batch import BatchSampler, read_samples, sample_path, wanted_rows, write_samples
from proav.generation.given import GivenWindows
from proav.generation.pipeline import SampleRequest
from proav.generation.sampling_settings import SamplingSettings
from proav.media.container import read_clip
from proav.runs.checkpoint import load_checkpoint
from tests.tiny import save_tiny_stdit, tiny_config
from tests.train.tiny_run import write_segments


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return load_checkpoint(save_tiny_stdit(str(tmp_path_factory.mktemp("checkpoints")), tiny_config()))


def test_paths():
    assert sample_path("samples", 1_234_567) == "samples/001234/001234567.mp4"


def test_labels_take_turns_or_are_all_the_named_one(checkpoint):
    assert [row["label"] for row in wanted_rows(tiny_config("generate.num_samples=5"), checkpoint)] == [
        "rain",
        "speech",
        "rain",
        "speech",
        "rain",
    ]
    assert {row["label"] for row in wanted_rows(tiny_config("generate.label=speech"), checkpoint)} == {
        "speech"
    }
    with pytest.raises(UserError, match="expected one of: rain, speech"):
        wanted_rows(tiny_config("generate.label=thunder"), checkpoint)


def test_files_are_the_same_however_they_are_batched(checkpoint, tmp_path):
    rows = wanted_rows(tiny_config(), checkpoint)
    for name, batches in (("together", [rows]), ("apart", [[row] for row in rows])):
        sampler = BatchSampler(checkpoint.path, str(tmp_path / name), SamplingSettings(steps=3))
        for batch in batches:
            sampler({"rows": json.dumps(batch)})
    for row in rows:
        a, b = (
            read_clip(str(tmp_path / name / row["path"]), fps=5, sample_rate=16_000, height=32, width=32)
            for name in ("together", "apart")
        )
        difference = abs(a.video.astype(int) - b.video.astype(int))
        # a rounded pixel may change its H.264 block a little
        assert difference.max() <= 48 and difference.mean() < 0.5
        # A rounding in loud noise can change AAC's decisions; another sample would differ by 0.5 and more
        assert abs(a.audio - b.audio).mean() < 0.05


@pytest.fixture(scope="module")
def masked_run(tmp_path_factory):
    """A run with two windows of each of six segments, and a checkpoint that makes clips by masked tasks."""
    folder = tmp_path_factory.mktemp("run")
    config = tiny_config(
        f"run_dir={folder}",
        "diffusion.task_weights={joint: 1, continue: 1, inpaint: 1}",
        "data.frame_codec=raw",
        "evaluate.split=train",
        "generate.num_samples=14",
    )
    write_segments(config)
    save_tiny_stdit(f"{folder}/stdit/checkpoints", config)
    return config, load_checkpoint(f"{folder}/stdit/checkpoints")


def test_tasks_that_are_given_something_take_windows_of_the_data_in_turn(masked_run):
    config, checkpoint = masked_run
    asked = config.model_copy(update={"generate": config.generate.model_copy(update={"task": "inpaint"})})
    rows, store = wanted_rows(asked, checkpoint), SegmentStore(config.data_folder)
    assert [row["given"]["start_frame"] for row in rows] == [0, 4] * 7
    assert rows[12]["given"] == rows[0]["given"] != rows[2]["given"]
    labels = dict(zip(store.column("id"), store.column("label"), strict=True))
    assert all(row["label"] == labels[row["given"]["segment_id"]] for row in rows)
    named = asked.model_copy(update={"generate": asked.generate.model_copy(update={"label": "speech"})})
    assert {row["label"] for row in wanted_rows(named, checkpoint)} == {"speech"}
    refused = config.model_copy(update={"generate": config.generate.model_copy(update={"task": "i2av"})})
    with pytest.raises(UserError, match="task='i2av': tiny was not trained for it"):
        wanted_rows(refused, checkpoint)


@pytest.mark.parametrize(("task", "frames"), [("a2v", 4), ("continue", 2), ("inpaint", 4)])
def test_a_window_is_given_as_it_is_stored(masked_run, task, frames):
    config, checkpoint = masked_run
    store = SegmentStore(config.data_folder)
    given = {"segment_id": store.column("id")[1], "start_frame": 4}
    request = GivenWindows(config.data_folder, checkpoint.config).given_to(
        SampleRequest(settings=SamplingSettings(task=task)), given
    )
    window = store.window(1, 4, frames)
    assert np.array_equal(request.given.audio, window["audio"])
    if task == "a2v":
        assert not request.given.video.any()
    else:
        assert np.array_equal(request.given.video, window["video"])
    assert (request.known is None) == (task != "inpaint")
    with pytest.raises(UserError, match="has no segment nowhere any more"):
        GivenWindows(config.data_folder, checkpoint.config).given_to(
            request, given | {"segment_id": "nowhere"}
        )


@pytest.mark.parametrize("task", ["v2a", "continue", "inpaint"])
def test_files_of_given_windows_hold_a_window_each(masked_run, tmp_path, task):
    config, checkpoint = masked_run
    words = {"task": task, "num_samples": 2, "steps": 1}
    asked = config.model_copy(update={"generate": config.generate.model_copy(update=words)})
    rows = wanted_rows(asked, checkpoint)
    settings = SamplingSettings.from_config(asked)
    sampler = BatchSampler(checkpoint.path, str(tmp_path), settings, config.data_folder)
    assert sampler({"rows": json.dumps(rows)}) == {"rows": json.dumps(rows), "error": ""}
    for row in rows:
        clip = read_clip(str(tmp_path / row["path"]), fps=5, sample_rate=16_000, height=32, width=32)
        assert clip.video.shape[0] == 4


def test_a_file_that_cannot_be_written_is_a_mistake_that_is_told(checkpoint, tmp_path):
    (tmp_path / "file").write_text("in the way")
    done = BatchSampler(checkpoint.path, str(tmp_path / "file"), SamplingSettings(steps=1))(
        {"rows": json.dumps(wanted_rows(tiny_config(), checkpoint)[:1])}
    )
    assert done["rows"] == "[]" and "cannot write" in done["error"]


def test_the_manifest_is_in_index_order(tmp_path):
    write_samples(str(tmp_path), {3: {"index": 3}, 1: {"index": 1}})
    assert [row["index"] for row in read_samples(str(tmp_path))] == [1, 3]
    assert read_samples(str(tmp_path / "absent")) == []
