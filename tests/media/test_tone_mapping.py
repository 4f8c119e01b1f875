"""High dynamic range to BT.709: published values, a grey ramp of known nits, and colours.

Pictures of standard range stay as they are.
"""

from fractions import Fraction

import av
import numpy as np
import pytest

from proav.media.container import read_pictures
from proav.media.pictures import Canvas
from proav.media.tone_mapping import (
    BT2020_TO_BT709,
    HLG,
    PQ,
    nits_from_pq,
    pq_from_nits,
    scene_light_from_hlg,
    to_standard_range,
    tone_curve,
)

KNEE_NITS = 87
"""The tone curve does not change light below this."""


def standard_code(nits) -> np.ndarray:
    """The code of `nits` by BT.1886, on a screen whose white is 203 nits."""
    return 255 * (np.asarray(nits) / 203) ** (1 / 2.4)


def hlg_from_nits(nits: float) -> float:
    """The HLG code of grey light: BT.2100's inverse OOTF, then its OETF."""
    light = (nits / 1000) ** (1 / 1.2)
    return (
        float(np.sqrt(3 * light))
        if light <= 1 / 12
        else float(0.17883277 * np.log(12 * light - 0.28466892) + 0.55991073)
    )


def grey_frame(code: float, *, transfer: int, size=(32, 48), matrix=9) -> av.VideoFrame:
    """A 10-bit picture of one grey in limited range.

    code: the grey, in [0, 1].
    transfer, matrix: FFmpeg's numbers of the transfer function and the colour space.
    size: height and width in pixels.
    """
    height, width = size
    planes = np.full((height * 3 // 2, width), 512, np.uint16)
    planes[:height] = round(64 + 876 * code)
    frame = av.VideoFrame.from_ndarray(planes, format="yuv420p10le")
    frame.colorspace, frame.color_range, frame.color_trc, frame.color_primaries = matrix, 1, transfer, 9
    return frame


def test_pq_and_hlg_at_the_values_that_are_published():
    """SMPTE ST 2084, BT.2100, BT.2408: 58 % of PQ and 75 % of HLG are the reference white of 203 nits."""
    np.testing.assert_allclose(nits_from_pq([0, 1]), [0, 10000], atol=1e-9)
    np.testing.assert_allclose(pq_from_nits([100, 203, 1000]), [0.508078, 0.580689, 0.751827], atol=1e-6)
    np.testing.assert_allclose(
        pq_from_nits(nits_from_pq(np.linspace(0, 1, 50))), np.linspace(0, 1, 50), atol=1e-6
    )
    np.testing.assert_allclose(scene_light_from_hlg([0, 0.5, 1]), [0, 1 / 12, 1], atol=1e-6)
    assert abs(1000 * float(scene_light_from_hlg(0.75)) ** 1.2 - 203) < 0.5


def test_the_tone_curve():
    """It is the identity up to the knee, has no step or bend there and rises. The peak becomes white."""
    nits = np.linspace(0.1, 1000, 4000)
    curve = tone_curve(nits)
    np.testing.assert_allclose(curve[nits < KNEE_NITS], nits[nits < KNEE_NITS], rtol=1e-9)
    slopes = np.diff(curve) / np.diff(nits)
    assert (slopes > 0).all() and np.abs(np.diff(slopes)).max() < 0.01
    np.testing.assert_allclose(tone_curve(np.array([1000.0, 4000.0])), 203, rtol=1e-6)


@pytest.mark.parametrize(("transfer", "code_of"), [(PQ, pq_from_nits), (HLG, hlg_from_nits)])
@pytest.mark.parametrize("fit", ["pad", "crop"])
def test_a_grey_ramp_of_known_nits(transfer, code_of, fit):
    canvas = Canvas(height=32, width=32, fit=fit)
    last = -1.0
    for nits in (0.0, 0.5, 2.0, 5.0, 10.0, 26.0, 50.0, 85.0, 120.0, 203.0, 400.0, 1000.0):
        picture = canvas.draw(grey_frame(float(code_of(nits)), transfer=transfer))[12:20].astype(int)
        assert np.ptp(picture) <= 1
        # a 10-bit code stands for a range of light; 3 % allows for it
        step = (
            float(standard_code(tone_curve(nits * 1.03)) - standard_code(tone_curve(nits))) if nits else 1.0
        )
        assert abs(picture.mean() - (standard_code(tone_curve(nits)) if nits else 0)) <= 1 + step
        assert picture.mean() > last
        last = picture.mean()


def test_colours_inside_bt709_keep_their_light():
    linear_709 = np.array([[60, 0, 0], [0, 60, 0], [0, 0, 60], [60, 30, 5], [20, 40, 60]], np.float64)
    linear_2020 = linear_709 @ np.linalg.inv(BT2020_TO_BT709.astype(np.float64)).T
    codes = np.round(65535 * pq_from_nits(np.maximum(linear_2020, 0))).astype(np.uint16)
    assert np.abs(to_standard_range(codes[None], PQ)[0] - standard_code(linear_709)).max() <= 3


def test_what_is_brighter_than_the_peak_is_white_and_keeps_its_hue():
    codes = np.round(
        65535
        * pq_from_nits(np.array([[[4000.0, 4000.0, 4000.0], [9000.0, 900.0, 900.0], [900.0, 90.0, 90.0]]]))
    ).astype(np.uint16)
    white, brightest, bright = to_standard_range(codes, PQ)[0].astype(int)
    assert (white == 255).all() and brightest[0] == 255 and np.abs(brightest - bright).max() <= 4


@pytest.mark.parametrize("transfer", [1, 2, 6, 14])
def test_standard_range_is_untouched(transfer):
    """The transfers are BT.709, unspecified, BT.601, and BT.2020 without high dynamic range."""
    frame = grey_frame(0.4, transfer=transfer, matrix=1)
    assert (
        np.abs(Canvas(height=32, width=32, fit="crop").draw(frame).astype(int) - round(0.4 * 255)).max() <= 1
    )


def test_files_carry_the_transfer(tmp_path):
    path = str(tmp_path / "film.mkv")
    with av.open(path, "w") as container:
        video = container.add_stream(
            "libx265",
            rate=10,
            options={"x265-params": "log-level=none:pools=none", "preset": "ultrafast", "crf": "10"},
        )
        video.width, video.height, video.pix_fmt = 96, 64, "yuv420p10le"
        context = video.codec_context
        context.colorspace, context.color_range, context.color_trc, context.color_primaries = 9, 1, PQ, 9
        for index in range(10):
            frame = grey_frame(float(pq_from_nits(50)), transfer=PQ, size=(64, 96))
            frame.pts, frame.time_base = index, Fraction(1, 10)
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
    video = read_pictures(path, fps=10, height=64, width=96)
    assert np.abs(video[5].astype(int) - standard_code(50)).max() <= 2
