"""report.html and pareto.png of a sweep: fronts, trials, the effect of each value, and the best settings.

The page is one file that opens offline. It measures nothing: its numbers come from `rows.py`. Its layout is
that of the other reports (`proav/reports`).
"""

from collections.abc import Sequence
from statistics import mean

import yaml

from proav import storage
from proav.config import Config, TuneConfig
from proav.reports.kit.page import (
    Markup,
    build_page,
    counted,
    element,
    facts,
    metrics_card,
    number,
    table,
    warning,
)
from proav.runs.progress import duration
from proav.runs.stages import STAGES
from proav.tune.axes import (
    describe,
    num_combinations,
    point_words,
    settings_of,
    short_names,
    value_words,
)
from proav.tune.budgets import budget_words, budgets_words
from proav.tune.plots import cost_svg, importance_svg, parallel_svg
from proav.tune.record import CRASHED, FAILED, FINISHED, RUNNING, STOPPED
from proav.tune.repeats import Interval, interval_words
from proav.tune.rows import Row, best_row, cost_front, point_at, rivals_of, rungs_of
from proav.tune.sweep_figures import (
    SHAPES,
    flops_range,
    front_svg,
    fronts_png,
    legend,
    look_of,
    scores_svg,
    shown_axes,
)
from proav.tune.sweep_yardsticks import yardstick_lines

MAX_PANELS = 4
"""At most this many rungs are drawn: the last ones."""
MAX_VALUES = 16
"""At most this many values of an axis are listed."""
STOPPING = {"asha": "successive halving (ASHA)", "pbt": "population-based training", "none": "none"}
ENDED = {
    FINISHED: "had the whole budget",
    STOPPED: "stopped early",
    RUNNING: "cut off",
    FAILED: "failed",
    CRASHED: "crashed",
}


def write_page(config: Config, rows: list[Row], results: dict, folder: str) -> None:
    """Writes report.html and, if anything was measured, pareto.png.

    config: the sweep's configuration.
    rows: its trials.
    results: what results.json holds.
    folder: the folder for both files.
    """
    tune, rungs = config.tune, rungs_of(rows)
    axes = shown_axes(tune)
    if rungs:
        title = f"{config.name}: picture against sound, {counted(len(rows), 'trial')}"
        png = fronts_png(rows, rungs[-MAX_PANELS:], axes, unit=_unit(tune), title=title)
        storage.write_bytes(storage.join(folder, "pareto.png"), png)
    sections = [
        ("fronts", "Picture against sound", _fronts(tune, rows, rungs, axes)),
        ("costs", "What it costs", _costs(tune, rows, rungs)),
        ("trials", "Trials", [*_trials(tune, rows, axes), *_beside(results["yardsticks"])]),
        ("values", "What each axis did", _values(tune, rows, rungs, results["importance"])),
        ("best", "Best settings", _best(config, rows, folder)),
        ("protocol", "Protocol", _protocol(results["protocol"])),
    ]
    storage.write_text(
        storage.join(folder, "report.html"),
        build_page(f"{config.name}: sweep", _header(config, rows, results["protocol"]), sections),
    )


def _unit(tune: TuneConfig) -> str:
    return {"clips": "clips", "flops": "clips of FLOPs", "seconds": "s of training"}[tune.budget]


def _after(tune: TuneConfig, budget: float) -> str:
    return (
        f"after {number(budget)} {_unit(tune)}" if budget != 1 or tune.budget == "seconds" else "after 1 clip"
    )


def _header(config: Config, rows: list[Row], protocol: dict) -> list[Markup]:
    best, tune = best_row(rows), config.tune
    axes = ", ".join(short_names(list(tune.axes)).values())
    tallies = [(word, sum(row.status == status for row in rows)) for status, word in ENDED.items()]
    ended = ", ".join(f"{count} {word}" for word, count in tallies if count)
    sentences = [f"Of {counted(len(rows), 'trial')}: {ended}."]
    if best:
        equals = sum(row.budget == best.budget for row in rows)
        is_whole = tune.budget != "clips" and best.budget >= tune.rungs[-1]
        had = "the whole budget" if is_whole else budget_words(tune, best.budget)
        had += " of training" if tune.budget == "seconds" and not is_whole else ""
        judged_by = "" if tune.metric == "score" else f" {tune.metric} is {number(best.metric)}."
        sentences.append(
            f"Best {'score' if tune.metric == 'score' else tune.metric} of the {counted(equals, 'trial')} "
            f"that had {had}: {describe(best.point)}, "
            f"with {best.psnr_db:.2f} dB PSNR in the picture and {best.mel_error_db:.2f} dB log-mel error in "
            f"the sound.{judged_by}"
        )
        sentences.append(_chance(tune, rows))
    spent = sum(row.seconds or 0 for row in rows)
    total = num_combinations(tune)
    model = STAGES[tune.stage].model
    return [
        element("p", "proav sweep", class_="eyebrow"),
        element("h1", config.name),
        element(
            "p", f"{model} trained with different {axes}, compared by {protocol['score']}.", class_="lead"
        ),
        element("div", [element("p", text) for text in sentences], class_="statement"),
        facts(
            [
                (
                    "Points",
                    f"{len(rows)} of {'infinitely many' if total is None else total} combinations, "
                    f"{tune.search}",
                ),
                ("Compared at", budgets_words(tune)),
                ("Stopping", STOPPING[tune.scheduler]),
                ("Judged by", protocol["score"]),
                ("Seeds", str(tune.repeats)),
                (
                    "Training, all trials",
                    f"{duration(spent)} on {', '.join(protocol['devices'])}" if spent else None,
                ),
                ("Data", element("code", protocol["data"]["hash"])),
            ]
        ),
        [
            warning(f"Trial {row.trial} ({describe(row.point)}) {row.status}: {row.reason}")
            for row in rows
            if row.status in (FAILED, CRASHED)
        ],
    ]


def _chance(tune: TuneConfig, rows: list[Row]) -> str:
    """How far the order of the trials can be believed."""
    if tune.repeats == 1:
        return (
            "Each trial is one training run with one seed: small differences can be chance. Trials are "
            "compared only at equal budgets."
        )
    rivals = len(rivals_of(rows))
    decided = (
        f"For {counted(rivals, 'other trial')} the interval of that difference holds 0: chance may have "
        "chosen the best one."
        if rivals
        else "No other trial's interval of that difference holds 0."
    )
    return (
        f"Each trial is the mean of {tune.repeats} seeds, with the 95 % interval of that mean. "
        f"The difference from the best trial is taken seed by seed. {decided}"
    )


def _fronts(tune: TuneConfig, rows: list[Row], rungs: list[float], axes: dict[str, Sequence]) -> list[Markup]:
    if not rungs:
        return [element("p", "Nothing was measured.", class_="todo")]
    low, high = flops_range(rows)
    size = (
        f"A larger marker costs more: {low:.3g} to {high:.3g} GFLOP a {_made(tune)}. " if high > low else ""
    )
    note = (
        "Each panel shows the trials at one rung. Up and to the right is better. The dashed line is the "
        "Pareto front. " + size
    )
    if any("point" in rung for row in rows for rung in row.rungs):
        note += "Members of a population change their settings; a marker shows those of its measurement."
    cards = []
    for budget in rungs[-MAX_PANELS:]:
        at = [(row, rung) for row in rows for rung in row.rungs if rung["budget"] == budget]
        points = "; ".join(
            f"{describe(point_at(row, rung))}: {rung['psnr_db']:.2f} dB, {rung['mel_error_db']:.2f} dB"
            for row, rung in at
        )
        figure = front_svg(
            rows, budget, axes, description=f"PSNR against log-mel error {_after(tune, budget)}. {points}"
        )
        cards.append(_figure(figure, f"A{_after(tune, budget)[1:]}: {counted(len(at), 'trial')}"))
    if len(rungs) > 1:
        what = (
            f"{tune.metric.capitalize() if tune.metric == 'score' else tune.metric} of each trial over "
            f"{_unit(tune)}"
        )
        said = f"{what}; the trials table has the numbers"
        figure = scores_svg(rows, axes, unit=_unit(tune), metric=tune.metric, description=said)
        cards.append(_figure(figure, what))
    return [element("p", note, class_="note"), _legend(axes), element("div", cards, class_="grid")]


def _costs(tune: TuneConfig, rows: list[Row], rungs: list[float]) -> list[Markup]:
    """The metric against the cost at the last rung, and each trial as a line over all axes."""
    if not rungs:
        return [element("p", "Nothing was measured.", class_="todo")]
    last, widest = (
        rungs[-1],
        max(rungs, key=lambda rung: sum(rung in [one["budget"] for one in row.rungs] for row in rows)),
    )
    note = (
        "Each trial on the dashed front is better than every cheaper one. Below, each line is a trial, from "
        f"its settings to its metric {_after(tune, widest)}. "
        "Better trials have stronger lines. A line skips an axis that does not exist in its trial."
    )
    front_text = "; ".join(
        f"{describe(row.point)}: {row.flops_per_clip / 1e9:.3g} GFLOP" for row in cost_front(rows, last)
    )
    cost = cost_svg(rows, last, tune, description=f"{tune.metric} against GFLOP; on the front: {front_text}")
    lines = parallel_svg(
        rows, widest, tune, description="Settings of each trial as a line; the trials table has them"
    )
    cards = [
        _figure(cost, f"{tune.metric} against GFLOP a {_made(tune)}, {_after(tune, last)}"),
        _figure(lines, "Settings and metric of each trial", wide=True),
    ]
    return [element("p", note, class_="note"), element("div", cards, class_="grid")]


def _made(tune: TuneConfig) -> str:
    return "sample" if tune.stage == "stdit" else "reconstruction"


def _figure(figure: Markup, caption: str, *, wide: bool = False) -> Markup:
    """A figure with its caption. wide: whether it is as wide as the page, in a row of its own."""
    return element(
        "figure", element("figcaption", caption), figure, class_="card figure wide" if wide else "card figure"
    )


def _legend(axes: dict[str, Sequence]) -> list[Markup]:
    """A line for each axis that has colours or shapes."""
    lines: dict[str, list[Markup]] = {}
    for key, value, hue, shape in legend(axes):
        mark = element(
            "span", f"{SHAPES[shape]} ", style=f"color: {hue}" if hue else None, aria_hidden="true"
        )
        lines.setdefault(key, []).append(element("li", mark, value))
    return [element("ul", element("li", key), items, class_="tags") for key, items in lines.items()]


def _trials(tune: TuneConfig, rows: list[Row], axes: dict[str, Sequence]) -> list[Markup]:
    names = short_names(list(axes))
    measured_heads = [
        "Clips",
        "PSNR dB",
        "log-mel error dB",
        "Score" if tune.metric == "score" else tune.metric,
        "Parameters M",
        "GFLOP",
        "Training TFLOP",
        "Clips/s",
        "GiB",
        "Ended",
    ]
    if tune.repeats > 1:
        measured_heads[4:4] = ["95 % interval", "From the best"]
    costs_from = measured_heads.index("Parameters M")
    measured_heads[costs_from:costs_from] = short_names(list(tune.show)).values()
    cells = []
    for row in rows:
        hue, shape = look_of(row.point, axes)
        mark = element(
            "span", f"{SHAPES[shape]} ", style=f"color: {hue}" if hue else None, aria_hidden="true"
        )
        values = [point_words(row.point, key) for key in axes]
        numbers = [row.psnr_db, row.mel_error_db, row.metric]
        if tune.repeats > 1:
            known = row.metric_low is not None
            numbers.append(
                f"{row.metric_low:.4g} to {row.metric_high:.4g}"
                if known
                else f"of {counted(row.num_seeds, 'seed')}"
            )
            found = Interval(row.difference, row.difference_low, row.difference_high, row.num_seeds)
            numbers.append(None if row.difference is None else interval_words(found, digits=4))
        numbers += [
            interval_words(row.shown[name], digits=4) if name in row.shown else None for name in tune.show
        ]
        training = None if row.train_flops is None else row.train_flops / 1e12
        numbers += [
            row.parameters / 1e6,
            row.flops_per_clip / 1e9,
            training,
            row.clips_per_second,
            row.peak_memory_gib,
        ]
        measured = ["–" if value is None else value for value in numbers]
        again = f", tried again {row.failures} times" if row.failures else ""
        cells.append(
            [
                element("span", mark, row.trial, " ★" if row.pareto else None),
                *values,
                row.clips,
                *measured,
                ENDED[row.status] + again,
            ]
        )
    note = (
        "Ordered by budget, then from best to worst. Each trial is measured at the last rung that it "
        "reached. ★: on the front of picture and sound. "
        f"GFLOP: one {_made(tune)}, training: one seed so far; both in closed form. Clips/s and GiB: of "
        "training, as measured."
    )
    whole = table(["Trial", *(names[key] for key in axes), *measured_heads], cells, caption="Trials")
    return [
        element("p", note, class_="note"),
        element("div", element("div", whole, class_="text"), class_="card"),
    ]


def _beside(yardsticks: Sequence[dict]) -> list[Markup]:
    """What simple codes reach on the same clips; nothing if they were not measured."""
    if not yardsticks:
        return []
    lines = []
    for what, *values in yardstick_lines(yardsticks):
        lines.append([what, *("–" if value is None else value for value in values)])
    whole = table(["", "PSNR dB", "log-mel error dB"], lines, caption="Simple codes on the same clips")
    note = (
        "Linear planes and cosine transform store as many numbers "
        "as MDSA and were fitted on the training split; the other two are the clip's own means."
    )
    return [
        element("h3", "Beside them", style="margin-top: 1.5rem"),
        element("p", note, class_="note"),
        element("div", element("div", whole, class_="text"), class_="card"),
    ]


def _values(tune: TuneConfig, rows: list[Row], rungs: list[float], importance: dict) -> list[Markup]:
    """At the first rung: the importance of each axis, and the mean over the trials with each value."""
    if not rungs:
        return [element("p", "Nothing was measured.", class_="todo")]
    first, cards = rungs[0], []
    for key, values in shown_axes(tune).items():
        lines = []
        for value in values if 0 < len(values) <= MAX_VALUES else ():
            at = [
                rung
                for row in rows
                for rung in row.rungs
                if rung["budget"] == first and (key, value) in point_at(row, rung).items()
            ]
            means = [
                mean(rung[name] for rung in at) if at else "–"
                for name in ("psnr_db", "mel_error_db", "metric")
            ]
            lines.append([value_words(value), len(at), *means])
        if lines:
            judged_by = "Score" if tune.metric == "score" else tune.metric
            whole = table(["Value", "Trials", "PSNR dB", "log-mel dB", judged_by], lines, caption=key)
            cards.append(
                element("div", element("div", element("h3", key), whole, class_="text"), class_="card metric")
            )
    note = f"Means over all trials with a value, {_after(tune, first)}, where all trials are compared."
    return [
        *_importance(tune, importance),
        element("p", note, class_="note"),
        element("div", cards, class_="pairs"),
    ]


def _importance(tune: TuneConfig, importance: dict) -> list[Markup]:
    if importance["absent"]:
        return [element("p", f"No importance: {importance['absent']}.", class_="note")]
    shares = importance["shares"]
    words = "; ".join(f"{key} {share:.0%}" for key, share in shares.items())
    note = (
        f"Importance {_after(tune, importance['budget'])}, of {counted(importance['num_trials'], 'trial')}. "
        f"{importance['method']}."
    )
    figure = _figure(importance_svg(shares, description=f"Importance: {words}"), "Importance of each axis")
    return [element("p", note, class_="note"), element("div", [figure], class_="grid")]


def _best(config: Config, rows: list[Row], folder: str) -> list[Markup]:
    best = best_row(rows)
    if best is None:
        return [element("p", "Nothing was measured.", class_="todo")]
    nested: dict = {}
    for key, value in settings_of(config.tune, best.point).items():
        *sections, name = key.split(".")
        section = nested
        for part in sections:
            section = section.setdefault(part, {})
        section[name] = value
    stage = " stage=mdsa" if config.tune.stage == "mdsa" else ""
    return [
        element(
            "p",
            "The best of the trials with the largest budget, as YAML. The file below is a whole "
            "configuration. It trains the full length from the beginning.",
        ),
        element("pre", yaml.safe_dump(nested, sort_keys=False, default_flow_style=None, width=100).rstrip()),
        element("pre", f"python ray_jobs/train.py --config {storage.join(folder, 'best.yaml')}{stage}"),
    ]


def _protocol(protocol: dict) -> list[Markup]:
    shown = {key: value for key, value in protocol.items() if key not in ("configuration", "schedule")}
    return [element("div", metrics_card("How it was measured", shown, wide=True), class_="grid")]
