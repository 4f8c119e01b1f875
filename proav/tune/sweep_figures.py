"""Figures of a sweep: picture against sound at each rung, and scores over clips.

The page uses SVG; a PNG is for all other uses. Trials are `rows.Row`s. A marker's colour shows the value of
the sweep's first axis, its shape the value of the second, and its size the cost of a reconstruction.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator

from proav.config import TuneConfig
from proav.reports.kit.figures import CARD, LINE, MUTED, themed_svg
from proav.reports.kit.page import Markup
from proav.tune.axes import Point, short_names, value_words
from proav.tune.rows import Row, front, point_at

HUES = ("#c0551c", "#2b8a94", "#8661c1", "#5f8f2f", "#c04f80", "#8a7a3d")
"""All are about equally light, so that they are visible on a white and on a black page."""
SHAPES = {"o": "●", "s": "■", "^": "▲", "D": "◆", "v": "▼", "P": "✚"}
"""Matplotlib's markers, and the characters for them in text."""
SMALLEST, LARGEST = 30, 150
"""Areas of markers, in square points."""
LEAST_SPAN_DB = 0.2
"""Least span of an axis. Otherwise differences of thousandths of a dB would look large."""


@dataclass(frozen=True)
class Ink:
    """The colours of a figure other than HUES."""

    muted: str
    line: str
    paper: str


ON_PAGE = Ink(MUTED, LINE, CARD)
ON_WHITE = Ink("#66615b", "#e4e0da", "#ffffff")


def shown_axes(tune: TuneConfig) -> dict[str, Sequence]:
    """The axes with their values. A range has none, as its values have no colours."""
    return {key: axis.choices or () for key, axis in tune.space.items()}


def legend(axes: dict[str, Sequence]) -> list[tuple[str, str, str, str]]:
    """(key, value in words, hue or "", shape) of every value that has its own colour or shape.

    An axis with more values than there are colours or shapes has none.
    """
    entries = []
    for place, (key, values) in enumerate(list(axes.items())[:2]):
        if 0 < len(values) <= len(HUES):
            for number, value in enumerate(values):
                entries.append(
                    (
                        key,
                        value_words(value),
                        "" if place else HUES[number],
                        list(SHAPES)[number] if place else "o",
                    )
                )
    return entries


def look_of(point: Point, axes: dict[str, Sequence]) -> tuple[str, str]:
    """(hue, shape) of a point's marker. If the first axis does not exist in the point, the hue is "": muted.

    If the second one does not exist, the shape is a circle.
    """
    hue, shape = HUES[0], "o"
    for place, (key, values) in enumerate(list(axes.items())[:2]):
        if not 0 < len(values) <= len(HUES):
            continue
        number = list(values).index(point[key]) if key in point else None
        if place == 0:
            hue = "" if number is None else HUES[number]
        elif number is not None:
            shape = list(SHAPES)[number]
    return hue, shape


def front_svg(rows: list[Row], budget: float, axes: dict[str, Sequence], *, description: str) -> Markup:
    """Picture against sound of the trials measured at a rung, with their front."""
    figure = Figure(figsize=(3.6, 2.9))
    figure.patch.set_alpha(0)
    _draw_front(figure.add_axes((0.16, 0.16, 0.81, 0.8)), rows, budget, axes, ON_PAGE)
    return themed_svg(figure, description)


def scores_svg(
    rows: list[Row], axes: dict[str, Sequence], *, unit: str, metric: str, description: str
) -> Markup:
    """Each trial's metric over its budget, with intervals.

    rows: the trials.
    axes: the sweep's axes with their values.
    unit: of the budget.
    metric: name of the metric.
    description: text for readers who cannot see the figure.
    """
    figure = Figure(figsize=(3.6, 2.9))
    figure.patch.set_alpha(0)
    plot = styled(figure.add_axes((0.16, 0.16, 0.81, 0.8)), ON_PAGE)
    for row in reversed(rows):
        budgets, values = [rung["budget"] for rung in row.rungs], [rung["metric"] for rung in row.rungs]
        plot.plot(budgets, values, color=look_of(row.point, axes)[0] or MUTED, linewidth=1.4, alpha=0.85)
        for rung in row.rungs:
            hue, shape = look_of(point_at(row, rung), axes)
            hue = hue or MUTED
            if rung["metric_low"] is not None:
                ends = [rung["metric_low"], rung["metric_high"]]
                plot.plot([rung["budget"]] * 2, ends, color=hue, linewidth=0.9, alpha=0.5)
            plot.plot(rung["budget"], rung["metric"], color=hue, marker=shape, markersize=4, alpha=0.85)
    plot.set_xlim(left=0)
    plot.set_xlabel(unit, fontsize=7.5, color=MUTED, labelpad=2)
    plot.set_ylabel(metric, fontsize=7.5, color=MUTED, labelpad=3)
    return themed_svg(figure, description)


def fronts_png(
    rows: list[Row], rungs: Sequence[int], axes: dict[str, Sequence], *, unit: str, title: str
) -> bytes:
    """All rungs side by side, with a legend, as the bytes of a PNG file.

    rows: the trials.
    rungs: budgets, one for each panel.
    axes: the sweep's axes with their values.
    unit: of the budgets.
    title: text above the panels.
    """
    figure = Figure(figsize=(max(5.2, 3.9 * len(rungs)), 4.2), dpi=160, facecolor="white")
    FigureCanvasAgg(figure)
    grid = figure.subplots(1, len(rungs), squeeze=False)[0]
    for plot, budget in zip(grid, rungs, strict=True):
        _draw_front(plot, rows, budget, axes, ON_WHITE)
        seen = sum(any(rung["budget"] == budget for rung in row.rungs) for row in rows)
        plot.set_title(f"after {budget:,g} {unit}: {seen} trials", fontsize=9, color="#1d1b19", loc="left")
    names = short_names(list(axes))
    handles = [
        Line2D([], [], marker=shape, linestyle="", color=hue or ON_WHITE.muted, label=f"{names[key]} {value}")
        for key, value, hue, shape in legend(axes)
    ]
    if handles:
        figure.legend(
            handles=handles,
            loc="lower center",
            ncols=min(len(handles), 3 * len(rungs)),
            fontsize=8,
            frameon=False,
        )
    figure.suptitle(title, fontsize=10.5, x=0.01, ha="left", color="#1d1b19")
    figure.tight_layout(rect=(0, 0.12, 1, 0.98))
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def flops_range(rows: list[Row]) -> tuple[float, float]:
    """Smallest and largest GFLOP of a reconstruction: the costs that the smallest and largest marker show."""
    flops = [row.flops_per_clip / 1e9 for row in rows]
    return min(flops), max(flops)


def _draw_front(plot, rows: list[Row], budget: float, axes: dict[str, Sequence], ink: Ink) -> None:
    styled(plot, ink)
    low, high = flops_range(rows)
    winners = front(rows, budget)
    at = [(row, rung) for row in rows for rung in row.rungs if rung["budget"] == budget]
    line = sorted((rung["psnr_db"], rung["mel_error_db"]) for row, rung in at if row in winners)
    plot.plot(*zip(*line), color=ink.muted, linewidth=0.9, linestyle=(0, (4, 3)), zorder=1)
    for row, rung in at:
        share = (row.flops_per_clip / 1e9 - low) / (high - low) if high > low else 0.5
        hue, shape = look_of(point_at(row, rung), axes)
        area, best = SMALLEST + (LARGEST - SMALLEST) * share, row in winners
        plot.scatter(
            rung["psnr_db"],
            rung["mel_error_db"],
            s=area,
            color=hue or ink.muted,
            marker=shape,
            alpha=1 if best else 0.5,
            edgecolors=ink.muted if best else "none",
            linewidths=1.1,
            zorder=3 if best else 2,
        )
    plot.margins(0.14, 0.16)
    for low_edge, high_edge, set_limits in (
        (*plot.get_xlim(), plot.set_xlim),
        (*plot.get_ylim(), plot.set_ylim),
    ):
        missing = max(0.0, LEAST_SPAN_DB - (high_edge - low_edge))
        set_limits(low_edge - missing / 2, high_edge + missing / 2)
    plot.invert_yaxis()
    plot.set_xlabel("picture: PSNR, dB", fontsize=7.5, color=ink.muted, labelpad=2)
    plot.set_ylabel("sound: log-mel error, dB (less is better)", fontsize=7.5, color=ink.muted, labelpad=3)
    plot.text(
        0.985, 0.98, "better ↗", transform=plot.transAxes, fontsize=7.5, color=ink.muted, ha="right", va="top"
    )


def styled(plot, ink: Ink):
    plot.set_facecolor("none")
    plot.tick_params(colors=ink.muted, labelsize=7.5, length=3, width=0.6, labelcolor=ink.muted)
    for side, spine in plot.spines.items():
        spine.set(visible=side in ("left", "bottom"), color=ink.line, linewidth=0.8)
    for axis in (plot.xaxis, plot.yaxis):
        axis.set_major_locator(MaxNLocator(5))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
    plot.grid(color=ink.line, linewidth=0.6)
    plot.set_axisbelow(True)
    return plot
