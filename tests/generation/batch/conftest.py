"""What tests of clips made from files of a listing share."""

import pytest

from proav.runs.checkpoint import load_checkpoint
from tests.generation.batch.listings import ALL_TASKS
from tests.synthetic_clips import make_clip
from tests.tiny import save_tiny_stdit, tiny_config


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """A model that makes clips by every task; some files have one of their own."""
    folder = str(tmp_path_factory.mktemp("checkpoints"))
    return load_checkpoint(save_tiny_stdit(folder, tiny_config(ALL_TASKS)))


@pytest.fixture(scope="session")
def file(tmp_path_factory):
    """The path of a clip of 2 s with sound."""
    path = str(tmp_path_factory.mktemp("inputs") / "clip.mp4")
    make_clip(1, seconds=2.0).save(path)
    return path
