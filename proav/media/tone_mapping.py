"""Pictures of high dynamic range -> BT.709, which any screen can show.

The input is ITU-R BT.2100: PQ or HLG, BT.2020 primaries. Closed formulas, no state. The steps:
1. Codes -> light in nits (cd / m2).
2. The tone curve of ITU-R BT.2390 (EETF), from a peak of 1000 nits down to 203 nits. ITU-R BT.2408 makes
   these 203 nits the white of standard pictures.
3. BT.709 primaries (ITU-R BT.2087).
4. The inverse of ITU-R BT.1886's gamma.
Which pictures need this is decided in `pictures.py`. Letters: H and W rows and columns, C channels.
"""

from functools import cache

import numpy as np

PQ, HLG = 16, 18
"""Codes of the transfer characteristics in ITU-T H.273 (and in FFmpeg's AVColorTransferCharacteristic)."""
PEAK_NITS = 1000.0
"""Brighter light becomes white. The value is the same for all files, since metadata is often wrong. It is the
nominal peak of HLG and the commonest peak of PQ masters."""
WHITE_NITS = 203.0
GAMMA = 2.4
NUM_GAINS = 4096
PQ_M1, PQ_M2, PQ_C1, PQ_C2, PQ_C3 = (
    2610 / 16384,
    2523 / 32,
    3424 / 4096,
    2413 / 128,
    2392 / 128,
)  # SMPTE ST 2084
HLG_A, HLG_B, HLG_C = 0.17883277, 0.28466892, 0.55991073  # BT.2100
HLG_SYSTEM_GAMMA = 1.2  # BT.2100, at 1000 nits
BT2020_LUMINANCE = np.array([0.2627, 0.6780, 0.0593], np.float32)
BT2020_TO_BT709 = np.array(
    [[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]], np.float32
)


def to_standard_range(picture_HWC: np.ndarray, transfer: int) -> np.ndarray:
    """uint16 [H, W, 3] of PQ or HLG codes (full range, BT.2020) -> uint8 [H, W, 3], BT.709."""
    nits_HWC = _light(transfer)[picture_HWC]
    # HLG: the table gave scene light in [0, 1]; the display's light depends on the luminance (BT.2100's OOTF)
    if transfer == HLG:
        luminance_HW = nits_HWC @ BT2020_LUMINANCE
        nits_HWC *= PEAK_NITS * luminance_HW[..., None] ** (HLG_SYSTEM_GAMMA - 1)
    # one gain for all channels of a pixel keeps its hue
    brightest_HW = np.maximum(np.maximum(nits_HWC[..., 0], nits_HWC[..., 1]), nits_HWC[..., 2])
    shares_HW = np.sqrt(np.minimum(brightest_HW, PEAK_NITS) / PEAK_NITS)
    gain_HW = _gains()[np.round(shares_HW * (NUM_GAINS - 1)).astype(np.uint16)] * (
        PEAK_NITS / np.maximum(brightest_HW, PEAK_NITS)
    )
    linear_HWC = (nits_HWC * (gain_HW[..., None] / WHITE_NITS)) @ BT2020_TO_BT709.T
    return np.round(255 * linear_HWC.clip(0, 1) ** (1 / GAMMA)).astype(np.uint8)


def nits_from_pq(code: np.ndarray) -> np.ndarray:
    """SMPTE ST 2084: 10000 (max(E^(1/m2) - c1, 0) / (c2 - c3 E^(1/m2)))^(1/m1), E in [0, 1]."""
    power = np.asarray(code, np.float64) ** (1 / PQ_M2)
    return 10000 * (np.maximum(power - PQ_C1, 0) / (PQ_C2 - PQ_C3 * power)) ** (1 / PQ_M1)


def pq_from_nits(nits: np.ndarray) -> np.ndarray:
    """The inverse of `nits_from_pq`."""
    power = (np.asarray(nits, np.float64) / 10000) ** PQ_M1
    return ((PQ_C1 + PQ_C2 * power) / (1 + PQ_C3 * power)) ** PQ_M2


def scene_light_from_hlg(code: np.ndarray) -> np.ndarray:
    """BT.2100's inverse OETF: E^2 / 3 up to 1/2, (exp((E - c) / a) + b) / 12 above; E and light in [0, 1]."""
    code = np.asarray(code, np.float64)
    return np.where(code <= 0.5, code**2 / 3, (np.exp((code - HLG_C) / HLG_A) + HLG_B) / 12)


def tone_curve(nits: np.ndarray) -> np.ndarray:
    """BT.2390's EETF from black..PEAK_NITS to black..WHITE_NITS.

    It is the identity up to a knee, and a Hermite spline in PQ codes above it.
    """
    peak = pq_from_nits(PEAK_NITS)
    code, white = np.minimum(pq_from_nits(nits) / peak, 1.0), pq_from_nits(WHITE_NITS) / peak
    knee = 1.5 * white - 0.5
    t = np.maximum(code - knee, 0) / (1 - knee)
    spline = (
        (2 * t**3 - 3 * t**2 + 1) * knee + (t**3 - 2 * t**2 + t) * (1 - knee) + (3 * t**2 - 2 * t**3) * white
    )
    return nits_from_pq(np.where(code < knee, code, spline) * peak)


@cache
def _light(transfer: int) -> np.ndarray:
    """A table of all 65536 codes: nits for PQ, scene light for HLG."""
    codes = np.arange(65536) / 65535
    return (nits_from_pq(codes) if transfer == PQ else scene_light_from_hlg(codes)).astype(np.float32)


@cache
def _gains() -> np.ndarray:
    """tone_curve(nits) / nits, at equal steps of the square root of nits from 0 to PEAK_NITS."""
    nits = PEAK_NITS * (np.arange(NUM_GAINS) / (NUM_GAINS - 1)) ** 2
    nits[0] = nits[1]
    return (tone_curve(nits) / nits).astype(np.float32)
