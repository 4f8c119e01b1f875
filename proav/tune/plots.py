"""More figures of a sweep, as SVG: the metric against the cost, trials as lines over all axes, importances.

Trials are `rows.Row`s. Their markers look as in `sweep_figures.py`.
"""

import math

from matplotlib.figure import Figure

from proav.config import TuneConfig
from proav.reports.kit.figures import LINE, MUTED, themed_svg
from proav.reports.kit.page import Markup
from proav.tune.axes import Point, short_names, value_words
from proav.tune.metrics import is_large_better
from proav.tune.rows import Row, cost_front, point_at
from proav.tune.sweep_figures import ON_PAGE, look_of, shown_axes, styled

PAGE_INCHES = (8.4, 3.4)
"""Width and height of a figure that is as wide as the page."""
MAX_LABELS = 8
"""If an axis lists more values than this, only the first and the last are written beside its line."""


def cost_svg(rows: list[Row], budget: float, tune: TuneConfig, *, description: str) -> Markup:
    """The metric against GFLOP a clip, for the trials measured at a rung.

    A vertical line is the interval of a trial. The dashed line joins the trials of the Pareto front.
    """
    figure = Figure(figsize=(3.6, 2.9))
    figure.patch.set_alpha(0)
    plot, axes = styled(figure.add_axes((0.17, 0.16, 0.8, 0.8)), ON_PAGE), shown_axes(tune)
    winners = cost_front(rows, budget)
    at = {row.trial: (row, rung) for row in rows for rung in row.rungs if rung["budget"] == budget}
    line = [(row.flops_per_clip / 1e9, at[row.trial][1]["metric"]) for row in winners]
    plot.plot(*zip(*line), color=MUTED, linewidth=0.9, linestyle=(0, (4, 3)), zorder=1)
    for row, rung in at.values():
        hue, shape = look_of(point_at(row, rung), axes)
        hue, kept, cost = hue or MUTED, row in winners, row.flops_per_clip / 1e9
        if rung["metric_low"] is not None:
            plot.plot(
                [cost, cost],
                [rung["metric_low"], rung["metric_high"]],
                color=hue,
                linewidth=1,
                alpha=0.6,
                zorder=2,
            )
        plot.scatter(
            cost,
            rung["metric"],
            s=45,
            color=hue,
            marker=shape,
            alpha=1 if kept else 0.5,
            edgecolors=MUTED if kept else "none",
            linewidths=1.1,
            zorder=3,
        )
    plot.margins(0.14, 0.16)
    if not is_large_better(tune):
        plot.invert_yaxis()
    what = "sample" if tune.stage == "stdit" else "reconstruction"
    plot.set_xlabel(f"GFLOP a {what}", fontsize=7.5, color=MUTED, labelpad=2)
    plot.set_ylabel(tune.metric, fontsize=7.5, color=MUTED, labelpad=3)
    plot.text(0.015, 0.98, "better ↖", transform=plot.transAxes, fontsize=7.5, color=MUTED, va="top")
    return themed_svg(figure, description)


def parallel_svg(rows: list[Row], budget: float, tune: TuneConfig, *, description: str) -> Markup:
    """One line for each trial through its values on all axes to its metric at a rung.

    It shows what good trials have in common. The figure is as wide as the page for any number of axes, so
    that its text keeps its size.
    """
    at = [(row, rung) for row in rows for rung in row.rungs if rung["budget"] == budget]
    names, axes = short_names(list(tune.axes)), shown_axes(tune)
    figure = Figure(figsize=PAGE_INCHES)
    figure.patch.set_alpha(0)
    plot = figure.add_axes((0.02, 0.02, 0.96, 0.96))
    plot.set_facecolor("none")
    plot.set_axis_off()
    metrics = [rung["metric"] for _, rung in at]
    low, high = min(metrics), max(metrics)
    for place, key in enumerate(tune.axes):
        _ruler(plot, place, names[key], _labels(tune, key))
    better = (low, high) if is_large_better(tune) else (high, low)
    _ruler(plot, len(tune.axes), tune.metric, [(0.0, f"{better[0]:.3g}"), (1.0, f"{better[1]:.3g}")])
    scores = sorted(rung["score"] for _, rung in at)
    for row, rung in at:
        rank = scores.index(rung["score"]) / max(1, len(scores) - 1)
        point = point_at(row, rung)
        heights = [_height(tune, key, point) for key in tune.axes]
        own = (rung["metric"] - better[0]) / (better[1] - better[0]) if high > low else 0.5
        places = [place for place, height in enumerate([*heights, own]) if height is not None]
        shown = [height for height in [*heights, own] if height is not None]
        hue, shape = look_of(point, axes)
        plot.plot(
            places,
            shown,
            color=hue or MUTED,
            alpha=0.2 + 0.75 * rank,
            linewidth=0.8 + 1.2 * rank,
            marker=shape,
            markersize=3,
        )
    plot.set_xlim(-0.3, len(tune.axes) + 0.5)
    plot.set_ylim(-0.08, 1.1)
    return themed_svg(figure, description)


def importance_svg(shares: dict[str, float], *, description: str) -> Markup:
    """One bar for each axis: its importance, from 0 to 1."""
    names = short_names(list(shares))
    figure = Figure(figsize=(3.6, 0.5 + 0.32 * len(shares)))
    figure.patch.set_alpha(0)
    plot = styled(
        figure.add_axes(
            (0.34, 0.36 / (0.5 + 0.32 * len(shares)), 0.62, 1 - 0.42 / (0.5 + 0.32 * len(shares)))
        ),
        ON_PAGE,
    )
    plot.barh(range(len(shares)), list(shares.values()), color=MUTED, height=0.6)
    plot.set_yticks(range(len(shares)), [names[key] for key in shares])
    plot.invert_yaxis()
    plot.set_xlim(0, 1)
    return themed_svg(figure, description)


def _ruler(plot, place: int, name: str, labels: list[tuple[float, str]]) -> None:
    plot.plot([place, place], [0, 1], color=LINE, linewidth=1, zorder=0)
    plot.text(place, 1.07, name, fontsize=8, color=MUTED, ha="center", va="bottom")
    for height, text in labels:
        plot.annotate(
            text, (place, height), (6, 0), textcoords="offset points", fontsize=7.5, color=MUTED, va="center"
        )


def _labels(tune: TuneConfig, key: str) -> list[tuple[float, str]]:
    axis = tune.space[key]
    if axis.choices is None:
        low, high = axis.uniform or axis.loguniform
        return [(0.0, f"{low:g}"), (1.0, f"{high:g}")]
    chosen = axis.choices if len(axis.choices) <= MAX_LABELS else (axis.choices[0], axis.choices[-1])
    return [(_height(tune, key, {key: value}), value_words(value)) for value in chosen]


def _height(tune: TuneConfig, key: str, point: Point) -> float | None:
    """The place of a point's value on an axis, from 0 to 1; None if the axis does not exist in the point."""
    if key not in point:
        return None
    axis, value = tune.space[key], point[key]
    if axis.choices is not None:
        return axis.choices.index(value) / max(1, len(axis.choices) - 1) if len(axis.choices) > 1 else 0.5
    low, high = axis.uniform or axis.loguniform
    return (value - low) / (high - low) if axis.uniform else math.log(value / low) / math.log(high / low)
