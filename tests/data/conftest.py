import pytest

from tests.synthetic_clips import prepare, write_clips
from tests.tiny import tiny_config

LENGTHS = {
    "rain/a.mp4": 4.5,
    "rain/b.mp4": 2.0,
    "speech/c.mp4": 6.2,
    "speech/d.mp4": 1.0,
    "speech/short.mp4": 0.4,
    "e.mp4": 3.0,
}


@pytest.fixture(scope="session")
def clips_dir(tmp_path_factory):
    """Five videos with the labels rain, speech and none, one that is too short, and one that is text."""
    root = tmp_path_factory.mktemp("sources") / "set"
    folder = write_clips(root, LENGTHS)
    (root / "rain" / "text.mp4").write_text("this is no video")
    return folder


@pytest.fixture(scope="session")
def run_config(clips_dir, tmp_path_factory):
    """A finished tiny data set: its configuration."""
    config = tiny_config(
        f"run_dir={tmp_path_factory.mktemp('run')}", f"data.sources=[{clips_dir}]", "data.frame_codec=raw"
    )
    prepare(config)
    return config


@pytest.fixture(scope="session")
def data_dir(run_config):
    return f"{run_config.run_folder}/data"
