"""Figures of the report pages as inline SVG: curves, bars, and strips of frames over their mel spectrogram.

matplotlib draws through its object interface, without pyplot. Colours become CSS variables, so that one
drawing serves light and dark pages. Text stays text; pictures are embedded at their own resolution. Letters:
T frames, H W rows and columns, C channels, M mel bins, S mel columns in a frame, L sound samples.
"""

import hashlib
import io
import math
import re
from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullFormatter

from proav.reports.kit.page import Markup, element, number

THEME = {
    "#010101": "var(--muted)",
    "#020202": "var(--line)",
    "#030303": "var(--series-1)",
    "#040404": "var(--series-2)",
    "#050505": "var(--card)",
}
"""Colours that no picture uses, and the CSS variables that replace them."""
MUTED, LINE, SERIES_1, SERIES_2, CARD = THEME
FREQUENCIES_HZ = (100, 250, 500, 1000, 2000, 4000, 8000, 12000, 16000)
STRIP_INCHES = 3.4
STRIP_LEFT, STRIP_RIGHT = 0.115, 0.985
"""Edges of the time axis as shares of a strip's width; the playhead over the strip uses them too."""


def themed_svg(figure: Figure, description: str) -> Markup:
    """The figure as an SVG element with `description` as its text alternative."""
    buffer = io.StringIO()
    settings = {
        "svg.fonttype": "none",
        "svg.hashsalt": hashlib.sha256(description.encode("utf-8")).hexdigest(),
        "svg.image_inline": True,
    }
    with matplotlib.rc_context(settings):
        FigureCanvasSVG(figure).print_svg(
            buffer, metadata={"Date": None, "Creator": None, "Format": None, "Type": None}
        )
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    for colour, variable in THEME.items():
        text = text.replace(colour, variable)
    text = re.sub(
        r'(<(?:g|image)\b[^>]*?) id="[^"]*"', r"\1", text
    )  # the ids repeat from figure to figure, and an id must be unique in a page
    text = re.sub(
        r"<defs>\s*<style.*?</defs>", "", text, count=1, flags=re.DOTALL
    )  # a style in an inline SVG would apply to the whole page
    head, body = text.split(">", 1)
    view = re.search(r'viewBox="[^"]*"', head).group()
    opening = str(element("svg", role="img", aria_label=description)).removesuffix("></svg>")
    return Markup(f'{opening} {view} xmlns:xlink="http://www.w3.org/1999/xlink">{body}')


def _new_axes(figure: Figure, box: tuple[float, float, float, float]):
    axes = figure.add_axes(box)
    axes.set_facecolor("none")
    axes.tick_params(colors=MUTED, labelsize=7.5, length=3, width=0.6, labelcolor=MUTED)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set(color=LINE, linewidth=0.8)
    return axes


def curve(
    clips: Sequence[float],
    values: Sequence[float],
    *,
    description: str,
    series: int = 1,
    from_zero: bool = False,
) -> Markup:
    """One quantity over the clips trained.

    The axis is logarithmic if all values are positive and span more than a factor of 20. Long runs are cut
    into 400 stretches. The mean of each is drawn on a band from its least to its greatest value.

    clips, values: the points, in order of clips.
    description: text alternative.
    series: 1 or 2, the colour of the theme.
    from_zero: the axis of values starts at 0 and is linear.
    """
    clips, values = np.asarray(clips, dtype=float), np.asarray(values, dtype=float)
    least, most = values.min(), values.max()  # of the band too
    figure = Figure(figsize=(3.6, 2.1))
    figure.patch.set_alpha(0)
    axes = _new_axes(figure, (0.15, 0.19, 0.82, 0.75))
    colour = SERIES_1 if series == 1 else SERIES_2
    if len(values) > 400:
        stretches = np.array_split(np.arange(len(values)), 400)
        low, high = ([extreme(values[part]) for part in stretches] for extreme in (np.min, np.max))
        clips, values = (
            np.array([clips[part].mean() for part in stretches]),
            np.array([values[part].mean() for part in stretches]),
        )
        axes.fill_between(clips, low, high, color=colour, alpha=0.2, linewidth=0)
    axes.plot(
        clips,
        values,
        color=colour,
        linewidth=1.6,
        solid_joinstyle="round",
        marker="o" if len(values) < 12 else None,
        markersize=3,
    )
    if from_zero:
        axes.set_ylim(0, 1.15 * max(most, 1e-9))
    elif least > 0 and most / least > 20:
        axes.set_yscale("log")
        axes.yaxis.set_minor_formatter(NullFormatter())
    if axes.get_yscale() == "linear":
        axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _short(value)))
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _short(value)))
    axes.grid(axis="y", color=LINE, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.set_xlabel("clips", fontsize=7.5, color=MUTED, labelpad=2)
    return themed_svg(figure, description)


def histogram(
    values: Sequence[float], *, unit: str, description: str, edges: Sequence[float] | None = None
) -> Markup:
    """The number of values in each bin.

    values: the values to count.
    unit: label of the axis.
    description: text alternative.
    edges: edges of the bins; None: up to 24 bins from the least to the greatest value.
    """
    figure = Figure(figsize=(3.6, 2.1))
    figure.patch.set_alpha(0)
    axes = _new_axes(figure, (0.15, 0.19, 0.82, 0.75))
    axes.xaxis.set_major_locator(MaxNLocator(6))
    bins = min(24, max(6, int(math.sqrt(len(values))))) if edges is None else edges
    axes.hist(np.asarray(values, dtype=float), bins=bins, color=SERIES_2, rwidth=0.9)
    axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.grid(axis="y", color=LINE, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.set_xlabel(unit, fontsize=7.5, color=MUTED, labelpad=2)
    return themed_svg(figure, description)


def clip_strip(
    video_THWC: np.ndarray,
    mel_TMS: np.ndarray,
    waveform_L: np.ndarray | None,
    *,
    fps: int,
    min_hz: float,
    max_hz: float,
    description: str,
    title: str,
) -> Markup:
    """Frames, mel spectrogram and, if given, waveform of a clip over one time axis.

    The axis is in seconds, with one tick per frame. At most 8 frames are shown in a row, each at its time.

    video_THWC: uint8.
    mel_TMS: in [-1, 1]; bands are evenly spaced on the Slaney mel scale.
    waveform_L: in [-1, 1], or None.
    fps: frames per second.
    min_hz, max_hz: edges of the mel scale, Hz.
    description: text alternative.
    title: shown over the strip if two clips are side by side.
    """
    num_frames, rows, columns, _ = video_THWC.shape
    seconds = num_frames / fps
    every = math.ceil(num_frames / 8)
    width = STRIP_RIGHT - STRIP_LEFT
    frame_inches = STRIP_INCHES * width * every / num_frames * rows / columns
    wave_inches = 0.45 if waveform_L is not None else 0.0
    mel_inches, foot, gap = 1.25, 0.26, 0.05
    height = frame_inches + gap + mel_inches + (gap + wave_inches if wave_inches else 0) + foot
    figure = Figure(figsize=(STRIP_INCHES, height))
    figure.patch.set_alpha(0)

    axes = figure.add_axes((STRIP_LEFT, 1 - frame_inches / height, width, frame_inches / height))
    _draw_frames(axes, video_THWC, every)

    bottom = (foot + wave_inches + (gap if wave_inches else 0)) / height
    axes = _new_axes(figure, (STRIP_LEFT, bottom, width, mel_inches / height))
    _draw_mel(axes, mel_TMS, seconds, min_hz, max_hz)
    for start in np.arange(1, num_frames) / fps:
        axes.axvline(start, color="white", alpha=0.18, linewidth=0.5)

    if waveform_L is not None:
        axes.tick_params(labelbottom=False)
        axes = _new_axes(figure, (STRIP_LEFT, foot / height, width, wave_inches / height))
        _draw_waveform(axes, waveform_L, seconds)
    axes.set_xlim(0, seconds)
    axes.xaxis.set_minor_locator(FixedLocator(np.arange(num_frames + 1) / fps))
    axes.tick_params(axis="x", which="minor", length=2, width=0.5, color=MUTED)
    times = [time for time in MaxNLocator(5).tick_values(0, seconds) if 0 <= time <= seconds + 1e-6]
    labels = axes.set_xticks(times, [f"{time:.3g} s" for time in times]) and axes.get_xticklabels()
    for label, time in zip(labels, times, strict=True):
        label.set_horizontalalignment("left" if time == 0 else "right" if time > 0.95 * seconds else "center")
    strip = themed_svg(figure, description)
    line = element("span", class_="playhead", style=f"top: 0; bottom: {100 * foot / height:.2f}%")
    places = {"data_left": STRIP_LEFT, "data_width": f"{width:.4f}", "data_seconds": f"{seconds:.6g}"}
    return element("div", strip, line, class_="strip", data_title=title, **places)


def _draw_frames(axes, video_THWC: np.ndarray, every: int) -> None:
    """Each `every`-th frame, from its own time to that of the next one shown."""
    num_frames = len(video_THWC)
    for first, frame in zip(range(0, num_frames, every), video_THWC[::every], strict=True):
        axes.imshow(
            _at_most(frame, 96),
            aspect="auto",
            interpolation="none",
            extent=(first, min(first + every, num_frames), 0, 1),
        )
        axes.axvline(first, color=CARD, linewidth=2 if first else 0)
    axes.set_xlim(0, num_frames)
    axes.axis("off")


def _draw_mel(axes, mel_TMS: np.ndarray, seconds: float, min_hz: float, max_hz: float) -> None:
    """The mel image over its time, with as many labels of frequencies as there is room for."""
    bins = mel_TMS.shape[1]
    image_ML = mel_TMS.transpose(1, 0, 2).reshape(bins, -1)
    axes.imshow(
        image_ML,
        aspect="auto",
        origin="lower",
        extent=(0, seconds, -0.5, bins - 0.5),
        cmap="magma",
        vmin=-1,
        vmax=1,
        interpolation="none",
    )
    ticks = [(hz, _mel_row(hz, bins, min_hz, max_hz)) for hz in FREQUENCIES_HZ]
    ticks = [(hz, row) for hz, row in ticks if -0.5 <= row <= bins - 0.5]
    ticks = [
        tick
        for tick, above in zip(ticks, [*ticks[1:], (0, math.inf)], strict=True)
        if above[1] - tick[1] > 0.09 * bins
    ]  # room for each label
    axes.set_yticks(
        [row for _, row in ticks], [f"{hz / 1000:g}k" if hz >= 1000 else str(hz) for hz, _ in ticks]
    )
    axes.text(-0.125, 1.0, "Hz", transform=axes.transAxes, fontsize=7, color=MUTED, va="top")


def _draw_waveform(axes, waveform_L: np.ndarray, seconds: float) -> None:
    """Least and greatest samples of 240 stretches."""
    parts = np.array_split(waveform_L, 240)
    times = (np.arange(240) + 0.5) / 240 * seconds
    axes.fill_between(
        times,
        [part.min() for part in parts],
        [part.max() for part in parts],
        color=SERIES_2,
        linewidth=0.5,
    )
    axes.set(ylim=(-1, 1), yticks=[])


def _mel_row(hz: float, bins: int, min_hz: float, max_hz: float) -> float:
    """Row of the band whose centre is at `hz`; the row need not be whole.

    Centres are spaced evenly on the mel scale, one step inside both edges.

    hz, min_hz, max_hz: Hz; the last two are the edges.
    bins: number of bands.
    """
    low, high = _slaney_mel(min_hz), _slaney_mel(max_hz)
    return (_slaney_mel(hz) - low) / (high - low) * (bins + 1) - 1


def _slaney_mel(hz: float) -> float:
    """The mel scale of Slaney's Auditory Toolbox.

    Linear below 1 kHz, with 3/200 mel per Hz; above, 27 steps for each factor of 6.4.
    """
    return hz * 3 / 200 if hz < 1000 else 15 + 27 * math.log(hz / 1000) / math.log(6.4)


def _at_most(frame_HWC: np.ndarray, rows: int) -> np.ndarray:
    """The frame, reduced to at most `rows` rows by block means: a strip needs no more."""
    factor = math.ceil(frame_HWC.shape[0] / rows)
    height, width = (size // factor * factor for size in frame_HWC.shape[:2])
    blocks = frame_HWC[:height, :width].reshape(height // factor, factor, width // factor, factor, 3)
    return blocks.mean(axis=(1, 3)).round().astype(np.uint8)


def _short(value: float) -> str:
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{letter}"
    return number(value) if abs(value) >= 1e-3 or value == 0 else f"{value:.0e}"
