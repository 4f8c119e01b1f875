"""Offline generation without a cluster: names of samples, which are done, and which are wanted."""

import json

import pytest

from proav.errors import UserError
from proav.generation.batch import BatchSampler, read_samples, sample_path, wanted_rows, write_samples
from proav.generation.sampling_settings import SamplingSettings
from proav.media.container import read_clip
from proav.runs.checkpoint import load_checkpoint
from tests.tiny import save_tiny_stdit, tiny_config


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
