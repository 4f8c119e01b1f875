"""A span read from the middle of a file is what the whole file has there, however poor its index is."""

from fractions import Fraction

import numpy as np
import pytest

from proav.data.sources.folders import is_video
from proav.media.container import read_clip, read_segments
from tests.media.flash_and_beep import beep_times, make_film, regular, white_frames

SMALL = {"fps": 10, "sample_rate": 16000, "height": 16, "width": 16}
SECONDS = 8
FLASHES, BEEPS = (Fraction(48, 100), Fraction(4), Fraction(632, 100)), (0.48, 4.0, 6.3)
FILMS = {
    "rm": ("rm", "rv20", "ac3", (144, 176)),
    "rmvb": ("rm", "rv10", "ac3", (144, 176)),
    "vob": ("vob", "mpeg2video", "mp2", (64, 80)),
    "mpg": ("mpg", "mpeg1video", "ac3", (64, 80)),
    "3g2": ("3g2", "mpeg4", "aac", (64, 80)),
    "f4v": ("f4v", "libx264", "aac", (64, 80)),
    "divx": ("avi", "mpeg4", "libmp3lame", (64, 80)),
    "dv": ("dv", "dvvideo", "pcm_s16le", (576, 720)),
}


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    """A function from a file's ending to the path of a film, which it makes on the first call."""
    folder, made = tmp_path_factory.mktemp("films"), {}

    def film(ending: str) -> str:
        if ending not in made:
            written_as, video, audio, size = FILMS[ending]
            path = folder / f"{ending}.{written_as}"
            make_film(
                path, times=regular(25, SECONDS), flashes=FLASHES, beeps=BEEPS, sound_to=float(SECONDS),
                video=video, audio=audio, size=size,
            )  # fmt: skip
            made[ending] = str(path.rename(folder / f"film.{ending}"))
        return made[ending]

    return film


@pytest.mark.parametrize("ending", FILMS)
def test_a_span_is_what_the_whole_file_has_there(films, ending):
    path = films(ending)
    assert is_video(path)
    whole = read_clip(path, **SMALL)
    assert len(whole.video) == SECONDS * 10
    flashes = white_frames(whole.video)
    assert flashes == [5, 6, 40, 41, 64, 65]
    heard = np.array(beep_times(whole.audio, SMALL["sample_rate"], len(BEEPS)))
    assert np.abs(heard - BEEPS).max() < 0.03  # wide, since AVI states less exactly when its sound starts
    for start in range(2, 75, 6):
        clip = read_clip(path, **SMALL, start_seconds=start / 10)
        assert len(clip.video) == len(whole.video) - start
        seen = [start + frame for frame in white_frames(clip.video)]
        assert seen == [frame for frame in flashes if frame >= start]
        later = heard[heard > start / 10]
        if len(later):
            found = np.array(beep_times(clip.audio, SMALL["sample_rate"], len(later))) + start / 10
            assert np.abs(found - later).max() < 0.003


@pytest.mark.parametrize("ending", FILMS)
def test_a_listed_span_has_its_length(films, ending):
    span = {"start_seconds": 3.4, "end_seconds": 7.0}
    spans = read_segments(films(ending), **SMALL, **span, segment_seconds=2, min_frames=8)
    assert [(round(start, 6), len(clip.video)) for start, clip in spans] == [(3.4, 20), (5.4, 16)]
