"""report.html and pareto.png of a sweep: fronts, trials, what each value did, and the best settings; one file that opens offline.

It shows what `rows.py` compares and measures nothing. The page's frame is that of the other reports (`proav/report_page`).
"""

from collections.abc import Sequence
from statistics import mean

from proav import storage
from proav.config import Config
from proav.reports.kit.page import (
    Markup,
    build_page,
    counted,
    duration,
    element,
    facts,
    metrics_card,
    number,
    table,
    warning,
)
from proav.tune.figures import SHAPES, flops_range, front_svg, fronts_png, legend, look_of, scores_svg
from proav.tune.record import CRASHED, FAILED, FINISHED, RUNNING, STOPPED
from proav.tune.rows import Row, best_row, rungs_of
from proav.tune.space import describe, num_combinations, short_names, value_words
from proav.tune.yardsticks import yardstick_lines

MAX_PANELS = 4
"""Rungs that are drawn: the last ones."""
ENDED = {
    FINISHED: "saw all clips",
    STOPPED: "stopped early",
    RUNNING: "cut off",
    FAILED: "failed",
    CRASHED: "crashed",
}


def write_page(config: Config, rows: list[Row], results: dict, folder: str) -> None:
    """Writes report.html and, where anything was measured, pareto.png into `folder`."""
    axes, rungs = config.tune.axes, rungs_of(rows)
    if rungs:
        title = f"{config.name}: picture against sound, {counted(len(rows), 'trial')}"
        storage.write_bytes(
            storage.join(folder, "pareto.png"), fronts_png(rows, rungs[-MAX_PANELS:], axes, title=title)
        )
    sections = [
        ("fronts", "Picture against sound", _fronts(rows, rungs, axes)),
        ("trials", "Trials", [*_trials(rows, axes), *_beside(results["yardsticks"])]),
        ("values", "What each value did", _values(rows, rungs, axes)),
        ("best", "Best settings", _best(rows, folder)),
        ("protocol", "Protocol", _protocol(results["protocol"])),
    ]
    storage.write_text(
        storage.join(folder, "report.html"),
        build_page(f"{config.name}: sweep", _header(config, rows, results["protocol"]), sections),
    )


def _header(config: Config, rows: list[Row], protocol: dict) -> list[Markup]:
    best, tune = best_row(rows), config.tune
    axes = ", ".join(short_names(list(tune.axes)).values())
    tallies = [(word, sum(row.status == status for row in rows)) for status, word in ENDED.items()]
    ended = ", ".join(f"{count} {word}" for word, count in tallies if count)
    sentences = [f"Of {counted(len(rows), 'trial')}: {ended}."]
    if best:
        rivals = sum(row.clips == best.clips for row in rows)
        sentences.append(
            f"Best score of the {counted(rivals, 'trial')} that saw {counted(best.clips, 'clip')}: {describe(best.point)}, "
            f"with {best.psnr_db:.2f} dB PSNR in the picture and {best.mel_error_db:.2f} dB log-mel error in the sound."
        )
        sentences.append(
            "Each trial is one training run with one seed: small differences can be chance. Trials are compared only where they saw equally many clips."
        )
    spent = sum(row.seconds or 0 for row in rows)
    return [
        element("p", "proav sweep", class_="eyebrow"),
        element("h1", config.name),
        element(
            "p",
            f"MDSA trained with different {axes}, compared by what its reconstructions keep of picture and sound.",
            class_="lead",
        ),
        element("div", [element("p", text) for text in sentences], class_="statement"),
        facts(
            [
                ("Points", f"{len(rows)} of {num_combinations(tune)} combinations, {tune.search}"),
                ("Compared at", f"{', '.join(number(clips) for clips in tune.rungs)} clips"),
                ("Stopping", "successive halving (ASHA)" if tune.scheduler == "asha" else "none"),
                ("Score", protocol["score"]),
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


def _fronts(rows: list[Row], rungs: list[int], axes: dict[str, Sequence]) -> list[Markup]:
    if not rungs:
        return [element("p", "Nothing was measured.", class_="todo")]
    low, high = flops_range(rows)
    size = (
        f"A larger marker costs more: {low:.3g} to {high:.3g} GFLOP a reconstruction. " if high > low else ""
    )
    note = (
        "One panel a rung: trials at one number of clips. Up and to the right is better; those on the dashed front are beaten by none in both at once. "
        + size
    )
    cards = []
    for clips in rungs[-MAX_PANELS:]:
        at = [(row, rung) for row in rows for rung in row.rungs if rung["clips"] == clips]
        points = "; ".join(
            f"{describe(row.point)}: {rung['psnr_db']:.2f} dB, {rung['mel_error_db']:.2f} dB"
            for row, rung in at
        )
        figure = front_svg(
            rows, clips, axes, description=f"PSNR against log-mel error after {clips:,} clips. {points}"
        )
        cards.append(_figure(figure, f"After {counted(clips, 'clip')}: {counted(len(at), 'trial')}"))
    if len(rungs) > 1:
        figure = scores_svg(
            rows, axes, description="Score of each trial over clips; the trials table has the numbers"
        )
        cards.append(_figure(figure, "Score of each trial over clips"))
    return [element("p", note, class_="note"), _legend(axes), element("div", cards, class_="grid")]


def _figure(figure: Markup, caption: str) -> Markup:
    return element("figure", element("figcaption", caption), figure, class_="card figure")


def _legend(axes: dict[str, Sequence]) -> list[Markup]:
    """A line for each axis that has colours or shapes."""
    lines: dict[str, list[Markup]] = {}
    for key, value, hue, shape in legend(axes):
        mark = element(
            "span", f"{SHAPES[shape]} ", style=f"color: {hue}" if hue else None, aria_hidden="true"
        )
        lines.setdefault(key, []).append(element("li", mark, value))
    return [element("ul", element("li", key), items, class_="tags") for key, items in lines.items()]


def _trials(rows: list[Row], axes: dict[str, Sequence]) -> list[Markup]:
    names = short_names(list(axes))
    heads = [
        "Trial",
        *(names[key] for key in axes),
        "Clips",
        "PSNR dB",
        "log-mel error dB",
        "Score",
        "Parameters M",
        "GFLOP",
        "Clips/s",
        "GiB",
        "Ended",
    ]
    cells = []
    for row in rows:
        hue, shape = look_of(row, axes)
        mark = element("span", f"{SHAPES[shape]} ", style=f"color: {hue}", aria_hidden="true")
        values = [value_words(row.point[key]) for key in axes]
        numbers = (
            row.psnr_db,
            row.mel_error_db,
            row.score,
            row.parameters / 1e6,
            row.flops_per_clip / 1e9,
            row.clips_per_second,
            row.peak_memory_gib,
        )
        measured = ["–" if value is None else value for value in numbers]
        cells.append(
            [
                element("span", mark, row.trial, " ★" if row.pareto else None),
                *values,
                row.clips,
                *measured,
                ENDED[row.status],
            ]
        )
    note = (
        "Most clips first, then by score; measured at the last rung that a trial reached. ★: on the front of those that saw most clips. "
        "GFLOP: one reconstruction, in closed form. Clips/s and GiB: of training, as measured."
    )
    return [
        element("p", note, class_="note"),
        element("div", element("div", table(heads, cells, caption="Trials"), class_="text"), class_="card"),
    ]


def _beside(yardsticks: Sequence[dict]) -> list[Markup]:
    """What simple codes reach on the same clips; nothing where they were not measured."""
    if not yardsticks:
        return []
    lines = []
    for what, *values in yardstick_lines(yardsticks):
        lines.append([what, *("–" if value is None else value for value in values)])
    whole = table(["", "PSNR dB", "log-mel error dB"], lines, caption="Simple codes on the same clips")
    note = (
        "What simple codes reach on the same clips. Linear planes and cosine transform store as many numbers "
        "as MDSA and were fitted on the training split; the other two are the clip's own means."
    )
    return [
        element("h3", "Beside them", style="margin-top: 1.5rem"),
        element("p", note, class_="note"),
        element("div", element("div", whole, class_="text"), class_="card"),
    ]


def _values(rows: list[Row], rungs: list[int], axes: dict[str, Sequence]) -> list[Markup]:
    """Means over the trials that have a value, at the first rung, which all that did not fail have reached."""
    if not rungs:
        return [element("p", "Nothing was measured.", class_="todo")]
    first = rungs[0]
    cards = []
    for key, values in axes.items():
        lines = []
        for value in values:
            at = [
                rung
                for row in rows
                for rung in row.rungs
                if rung["clips"] == first and row.point[key] == value
            ]
            means = [
                mean(rung[name] for rung in at) if at else "–"
                for name in ("psnr_db", "mel_error_db", "score")
            ]
            lines.append([value_words(value), len(at), *means])
        whole = table(["Value", "Trials", "PSNR dB", "log-mel dB", "Score"], lines, caption=key)
        cards.append(
            element("div", element("div", element("h3", key), whole, class_="text"), class_="card metric")
        )
    note = f"Means over the trials with a value after {counted(first, 'clip')}, where all are compared, whatever their other values."
    return [element("p", note, class_="note"), element("div", cards, class_="pairs")]


def _best(rows: list[Row], folder: str) -> list[Markup]:
    best = best_row(rows)
    if best is None:
        return [element("p", "Nothing was measured.", class_="todo")]
    return [
        element(
            "p",
            "The highest score among the trials that saw most clips. The file below is a whole configuration; it trains the full length from the beginning.",
        ),
        element("pre", "\n".join(describe({key: value}) for key, value in best.point.items())),
        element("pre", f"python ray_jobs/train.py --config {storage.join(folder, 'best.yaml')}"),
    ]


def _protocol(protocol: dict) -> list[Markup]:
    shown = {key: value for key, value in protocol.items() if key not in ("configuration", "schedule")}
    return [element("div", metrics_card("How it was measured", shown, wide=True), class_="grid")]
