import pytest

from proav.evaluate.clip_sets import View
from proav.metrics.protocols import find_protocol
from tests.synthetic_clips import write_clips
from tests.tiny import tiny_config


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """Two folders of videos: real ones of 2 to 4 windows, and others; one file is no video."""
    root = tmp_path_factory.mktemp("folders")
    real = write_clips(
        root / "real",
        {
            f"{label}/{number}.mp4": 1.6 + 0.8 * (number % 3)
            for number in range(7)
            for label in ("rain", "speech")
        },
    )
    made = write_clips(root / "made", {f"{number:03d}.mp4": 0.8 for number in range(9)})
    (root / "made" / "broken.mp4").write_text("no video")
    return real, made


@pytest.fixture(scope="session")
def view():
    return View.of(find_protocol("small"), tiny_config())
