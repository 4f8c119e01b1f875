"""How well sound and picture of a segment fit in time: correlation of sound onsets with jerks of the picture.

It is a cheap measure for filtering, and right on average over many segments. For one segment without clear
events it says little. The other scores are in `segment_scores.py`.
Letters: T frames, Y and X rows and columns of cells, M mel bins, S mel columns in a frame, J = T * S mel
columns.
"""

import numpy as np

MAX_LAG_SECONDS = 0.5
"""Largest lag that is tested, on either side."""
ONSET_SECONDS = 0.02
"""An onset's strength is the rise of the mel over this time."""
EDGE_SECONDS = 0.03
"""Mel columns this near to the segment's ends include the silence beyond, so they give no onsets."""
JERKS_A_SECOND = 12.5
"""Above about this frame rate, the picture's second difference spans more frames, so that it shows events and
not noise."""
TREND_SECONDS = 1.0
"""The mean over this time on either side is subtracted, to remove slow changes."""
MIN_STEPS = 8
"""If both streams cover fewer frames than this, there is no correlation."""
MIN_SPREAD = 1e-4
"""If its standard deviation is below this, a stream has no events: the sound is steady, or the pictures are
still. The range of the mel is 2, and white is 1."""


def synchrony(
    luma_TYX: np.ndarray, mel_TMS: np.ndarray, *, fps: int, shot_starts: list[int]
) -> tuple[float, float]:
    """(correlation in [-1, 1], lag in seconds of the best correlation); NaN if undefined.

    A positive lag means that the sound is late.

    Sound: half-wave rectified difference between a mel column and the maximum of three neighbouring bins of
    an earlier column (SuperFlux: Böck and Widmer 2013), smoothed over three frames.
    Picture: |second difference| in time of every cell; the mean over the cells minus their median. So local
    motion counts, and shaking of the whole picture does not. Frames beside a cut are left out, since a cut is
    no event of the scene.

    luma_TYX: mean luma of cells, white is 1.
    mel_TMS: mel of the sound, in [-1, 1].
    fps: frames per second.
    shot_starts: frames at which a new shot begins, from `segment_scores.shot_starts`.
    """
    undefined = (float("nan"), float("nan"))
    frames, _, steps_a_frame = mel_TMS.shape
    apart = max(1, round(fps / JERKS_A_SECOND))
    if frames < 2 * apart + MIN_STEPS:
        return undefined
    jerks, used = _jerks(luma_TYX, apart, shot_starts)
    onsets = _onsets(mel_TMS, columns_a_second=fps * steps_a_frame, width=3 * apart * steps_a_frame)
    reach = max(5, round(TREND_SECONDS * fps))
    jerks = _without_trend(jerks, used, reach)
    onsets = _without_trend(onsets, np.isfinite(onsets), reach * steps_a_frame)

    max_lag = round(MAX_LAG_SECONDS * fps * steps_a_frame)
    lags = np.arange(-max_lag, max_lag + 1)
    places = (np.arange(frames) * steps_a_frame)[None] + lags[:, None]
    heard = onsets[np.clip(places, 0, len(onsets) - 1)]
    weight = (places >= 0) & (places < len(onsets)) & np.isfinite(heard) & used
    heard = np.where(weight, heard, 0.0)
    seen = np.where(weight, jerks, 0.0)
    count = np.maximum(weight.sum(axis=1), 1)
    mean_heard, mean_seen = heard.sum(axis=1) / count, seen.sum(axis=1) / count
    spread_heard = np.sqrt(np.maximum((heard**2).sum(axis=1) / count - mean_heard**2, 0))
    spread_seen = np.sqrt(np.maximum((seen**2).sum(axis=1) / count - mean_seen**2, 0))
    defined = (weight.sum(axis=1) >= MIN_STEPS) & (spread_heard > MIN_SPREAD) & (spread_seen > MIN_SPREAD)
    if not defined[max_lag]:
        return undefined
    covariance = (heard * seen).sum(axis=1) / count - mean_heard * mean_seen
    correlation = np.where(
        defined, covariance / np.maximum(spread_heard * spread_seen, MIN_SPREAD**2), -np.inf
    )
    return float(np.clip(correlation[max_lag], -1, 1)), float(
        lags[np.argmax(correlation)] / (fps * steps_a_frame)
    )


def _jerks(luma_TYX: np.ndarray, apart: int, shot_starts: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Jerks of the picture: (strength [T], whether it is defined [T])."""
    cells = luma_TYX.reshape(len(luma_TYX), -1)
    second = np.abs(cells[2 * apart :] - 2 * cells[apart:-apart] + cells[: -2 * apart])
    strength, used = np.zeros(len(cells)), np.zeros(len(cells), bool)
    # the median of a quarter of the cells is as good, and faster
    strength[apart:-apart] = np.maximum(second.mean(axis=1) - np.median(second[:, ::4], axis=1), 0)
    used[apart:-apart] = True
    for start in shot_starts:
        used[max(0, start - apart) : start + apart] = False
    return strength, used


def _onsets(mel_TMS: np.ndarray, *, columns_a_second: int, width: int) -> np.ndarray:
    """Onset strength at each mel column [J], smoothed by a Hann window of `width` columns.

    It is NaN near the ends, where the window covers too little sound.
    """
    mel_JM = np.ascontiguousarray(mel_TMS.astype(np.float32).transpose(0, 2, 1)).reshape(-1, mel_TMS.shape[1])
    gap = max(1, round(ONSET_SECONDS * columns_a_second))
    before = mel_JM[:-gap].copy()
    before[:, 1:] = np.maximum(before[:, 1:], mel_JM[:-gap, :-1])
    before[:, :-1] = np.maximum(before[:, :-1], mel_JM[:-gap, 1:])
    strength, known = np.zeros(len(mel_JM)), np.zeros(len(mel_JM))
    first, edge = gap // 2, int(np.ceil(EDGE_SECONDS * columns_a_second))
    # the strength belongs to the middle between the two compared columns
    strength[first : first + len(before)] = np.maximum(mel_JM[gap:] - before, 0).mean(axis=1)
    known[first + edge : first + len(before) - edge] = 1
    window = np.hanning(width + 2)[1:-1]
    share = np.convolve(known, window, mode="same")[: len(known)]
    smooth = np.convolve(strength * known, window, mode="same")[: len(known)]
    return np.where(share > window.sum() / 2, smooth / np.maximum(share, 1e-9), np.nan)


def _without_trend(values: np.ndarray, used: np.ndarray, reach: int) -> np.ndarray:
    """Values minus the mean of the used values within `reach` on either side."""
    sums = np.concatenate([[0.0], np.cumsum(np.where(used, values, 0.0))])
    counts = np.concatenate([[0], np.cumsum(used)])
    places = np.arange(len(values))
    low, high = np.maximum(places - reach, 0), np.minimum(places + reach + 1, len(values))
    return values - (sums[high] - sums[low]) / np.maximum(counts[high] - counts[low], 1)
