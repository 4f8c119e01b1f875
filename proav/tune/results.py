"""Writes the results of a sweep: results.csv, results.json, best.yaml, metrics.jsonl; prints the table.

The rows are made by `rows.py`, the page and its figures by `sweep_page.py`.
"""

import csv
import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict

from proav import storage
from proav.config import Config, TuneConfig
from proav.config.reading import config_to_dict, config_to_yaml
from proav.tune.allowed import data_name
from proav.tune.axes import describe, num_combinations, point_words, short_names
from proav.tune.budgets import budgets_words
from proav.tune.importance import find_importance
from proav.tune.metrics import metric_words
from proav.tune.record import CRASHED, FAILED, RUNNING, TrialRecord, schedule_of, score
from proav.tune.repeats import Interval, budget_of, interval_words
from proav.tune.rows import Row, best_row, cost_front, front, make_rows, rivals_of, rungs_of
from proav.tune.space import config_at
from proav.tune.sweep_page import write_page
from proav.tune.sweep_yardsticks import yardstick_lines

PARTS = {"mdsa": ("name", "clip", "mel", "mdsa", "tune")}
PARTS["stdit"] = (*PARTS["mdsa"], "encode", "stdit", "diffusion", "generate", "evaluate")
"""Sections of the configuration that change results."""


def write_results(
    config: Config,
    records: dict[str, TrialRecord],
    *,
    data: dict,
    yardsticks: Sequence[dict] = (),
    quiet: bool = False,
    data_sets: dict[str, str] | None = None,
    data_folders: dict[str, str] | None = None,
) -> dict:
    """Writes <run_dir>/tune/{metrics.jsonl,results.csv,results.json,best.yaml,pareto.png,report.html};
    returns what results.json holds.

    A file whose text would not change is not written, and a missing one is made again. The page and its
    figure are made again if results.json or best.yaml changes, or if one of them is missing. The texts are
    written before the page, so that they are there whatever happens to it.

    config: the sweep's configuration.
    records: those of its trials, by id.
    data: the manifest of the prepared data.
    yardsticks: made by `sweep_yardsticks`, to be compared with the trials.
    quiet: whether to print nothing.
    data_sets: hashes of the prepared data, by the values of the axes that change data.
    data_folders: its folders, by the same values; None: all trials have the sweep's own data.
    """
    tune, folder = config.tune, storage.join(config.run_folder, "tune")
    rows = make_rows(config, records.values())
    best = best_row(rows)
    results = {
        "best": best.trial if best else None,
        "fronts": {f"{rung:.12g}": [row.trial for row in front(rows, rung)] for rung in rungs_of(rows)},
        "cost_fronts": {
            f"{rung:.12g}": [row.trial for row in cost_front(rows, rung)] for rung in rungs_of(rows)
        },
        "importance": asdict(find_importance(config.tune, rows)),
        "trials": [asdict(row) for row in rows],
        "yardsticks": list(yardsticks),
        "protocol": _protocol(config, rows, data, data_sets or {}),
    }
    texts = {"metrics.jsonl": metrics_lines(records.values(), tune), "results.csv": _csv(tune, rows)}
    if best:
        own_data = (data_folders or {"": config.data_folder})[data_name(tune, best.point)]
        texts["best.yaml"] = best_yaml(config, best, own_data)
    texts["results.json"] = json.dumps(results, indent=1)  # last: it marks the others as complete
    changed = {name: text for name, text in texts.items() if not _holds(storage.join(folder, name), text)}
    page = ["report.html", *(["pareto.png"] if results["fronts"] else [])]
    is_whole = all(storage.exists(storage.join(folder, name)) for name in page)
    is_stale = "best.yaml" in changed or "results.json" in changed
    if is_stale:  # if this is interrupted, a missing page says that it must be made
        storage.delete_file(storage.join(folder, "report.html"))
    for name, text in changed.items():
        storage.write_text(storage.join(folder, name), text)
    if is_stale or not is_whole:
        write_page(config, rows, results, folder)
    if not quiet:
        _tell(config, rows, best, yardsticks, folder)
    return results


def best_yaml(config: Config, best: Row, data_folder: str) -> str:
    """A whole configuration with the best point, for train.py.

    It has its own name, and its own folder beside the sweep's.

    data_folder: folder of the data that the best trial trained on.
    """
    parent, _, name = config.run_folder.rstrip("/").rpartition("/")
    chosen = config_at(config, best.point)
    data = chosen.data.model_copy(update={"prepared": data_folder})
    updates = {
        "name": f"{config.name}-best",
        "run_dir": storage.join(parent, f"{name}-best") if parent else f"{name}-best",
        "data": data,
    }
    head = [
        f"The best of the sweep {config.name} ({config.run_folder}/tune/results.json): trial {best.trial}, "
        f"{describe(best.point)}.",
        f"After {best.clips:,} clips: picture {best.psnr_db:.2f} dB PSNR, sound {best.mel_error_db:.2f} dB "
        "log-mel error.",
        "It trains the full length below from the beginning:  python ray_jobs/train.py --config THIS_FILE"
        + (" stage=mdsa" if config.tune.stage == "mdsa" else ""),
    ]
    if config.tune.metric != "score" or best.num_seeds > 1:
        judged_by = Interval(best.metric, best.metric_low, best.metric_high, best.num_seeds)
        head.insert(2, f"{config.tune.metric}: {interval_words(judged_by)} over {best.num_seeds} seeds.")
    return "".join(f"# {line}\n" for line in head) + config_to_yaml(chosen.model_copy(update=updates))


def metrics_lines(records: Iterable[TrialRecord], tune: TuneConfig) -> str:
    """metrics.jsonl: one JSON object for each measurement, by budget, then in the order in which trials
    began.
    """
    lines = [
        {"trial": record.id, "budget": budget_of(rung), **rung, "score": score(rung, tune)}
        for record in records
        for rung in record.rungs
    ]
    return "".join(json.dumps(line) + "\n" for line in sorted(lines, key=lambda line: line["budget"]))


def _holds(path: str, text: str) -> bool:
    return storage.exists(path) and storage.read_bytes(path) == text.encode()


def _csv(tune: TuneConfig, rows: list[Row]) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    plain = [name for name in Row.__dataclass_fields__ if name not in ("point", "rungs", "shown")]
    writer.writerow(["trial", *tune.axes, *plain[1:], *tune.show])
    for row in rows:
        writer.writerow(
            [
                row.trial,
                *(point_words(row.point, key) for key in tune.axes),
                *(getattr(row, name) for name in plain[1:]),
                *(row.shown[name].mean if name in row.shown else None for name in tune.show),
            ]
        )
    return buffer.getvalue()


def _protocol(config: Config, rows: list[Row], data: dict, data_sets: dict[str, str]) -> dict:
    tune, rungs = config.tune, [rung for row in rows for rung in row.rungs]
    scheduler = {
        "asha": "asynchronous successive halving: a trial continues after a rung if it is among the best "
        f"1/{tune.reduction_factor} of the trials that have reached the rung so far",
        "pbt": f"population-based training: at each rung {tune.exploit_fraction:g} of the trials take over "
        "weights and changed settings of as many of the best",
        "none": "every trial has the whole budget",
    }[tune.scheduler]
    total = num_combinations(tune)
    several = {name: found for name, found in data_sets.items() if name}
    return {
        "score": metric_words(tune),
        "measured_on": f"reconstructions of {max((rung['num_clips'] for rung in rungs), default=0)} clips "
        f"of the {config.evaluate.split} sources, "
        "moving-average weights: mean PSNR over all pixels of a clip, mean |log-mel difference| over its "
        "native mel grid",
        "rungs_clips": list(tune.rungs),
        "budget": budgets_words(tune),
        "seeds": f"{tune.repeats} a trial"
        + (", 95 % interval of their mean by Student's t" if tune.repeats > 1 else ""),
        "scheduler": scheduler,
        "search": f"{tune.search}, seed {tune.seed}, {len(rows)} of "
        f"{'infinitely many' if total is None else total} combinations",
        "schedule": schedule_of(tune),
        "data": {"hash": data["hash"], "splits": data["splits"]} | ({"sets": several} if several else {}),
        "flops_per_clip": ("a sample" if tune.stage == "stdit" else "encode and decode of both modalities")
        + ", a multiply-add is two; in closed form",
        "clips_per_second": f"in training steps, {tune.max_concurrent_trials or 'as many as fit'} trials at "
        "a time on the same machines",
        "devices": sorted({rung["device"] for rung in rungs}),
        "seed": config.seed,
        "configuration": {
            key: value for key, value in config_to_dict(config).items() if key in PARTS[tune.stage]
        },
    }


def _tell(config: Config, rows: list[Row], best: Row | None, yardsticks: Sequence[dict], folder: str) -> None:
    print(format_table(config.tune, rows))
    for what, psnr, error in yardstick_lines(yardsticks):
        values = ((psnr, "PSNR"), (error, "log-mel error"))
        reached = ", ".join(f"{value:.2f} dB {name}" for value, name in values if value is not None)
        print(f"tune: for comparison, {what}: {reached}")
    unfinished = [row for row in rows if row.status in (RUNNING, CRASHED)]
    if unfinished:
        print(
            f"tune: {len(unfinished)} of {len(rows)} trials did not end by themselves; the same command "
            "tries them again"
        )
    if best is None:
        return
    print(f"tune: best after {best.clips:,} clips: {describe(best.point)}")
    rivals = rivals_of(rows)
    if rivals:
        print(
            f"tune: seed by seed, {len(rivals)} others may be as good: "
            "the interval of their difference holds 0"
        )
    print(f"tune: train it: python ray_jobs/train.py --config {storage.join(folder, 'best.yaml')}")
    print(f"tune: {storage.join(folder, 'report.html')}")


def format_table(tune: TuneConfig, rows: list[Row]) -> str:
    """The trials as lines of text: measured values at the last rung, costs, and how each ended.

    * marks the front of the trials with the largest budget.
    """
    names = short_names(list(tune.axes))
    judged_by = tune.metric + (" +- 95 %" if tune.repeats > 1 else "")
    more = short_names(list(tune.show))
    measured = ["clips", "PSNR dB", "mel dB", judged_by]
    measured += (["from the best"] if tune.repeats > 1 else []) + list(more.values())
    measured += ["params M", "GFLOP", "clips/s", "GiB", "ended"]
    heads = ["trial", *(names[key] for key in tune.axes), *measured]
    lines = [heads]
    for row in rows:
        numbers = [
            _number(row.psnr_db, 2),
            _number(row.mel_error_db, 2),
            _metric(row),
            *([_difference(row)] if tune.repeats > 1 else []),
            *(interval_words(row.shown[name]) if name in row.shown else "-" for name in tune.show),
            _number(row.parameters / 1e6, 2),
            _number(row.flops_per_clip / 1e9, 2),
            _number(row.clips_per_second, 2),
            _number(row.peak_memory_gib, 2),
        ]
        ended = row.status + (f": {row.reason[:60]}" if row.status in (FAILED, CRASHED) else "")
        ended += f" (tried again {row.failures} times)" if row.failures else ""
        values = [point_words(row.point, key) for key in tune.axes]
        lines.append([row.trial + ("*" if row.pareto else ""), *values, f"{row.clips:,}", *numbers, ended])
    widths = [max(len(line[column]) for line in lines) for column in range(len(heads))]
    last_left = len(tune.axes)
    text = [
        "  ".join(
            cell.ljust(width) if place <= last_left or place == len(heads) - 1 else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(line, widths))
        )
        for line in lines
    ]
    return "\n".join(line.rstrip() for line in text)


def _metric(row: Row) -> str:
    if row.metric is None:
        return "-"
    return interval_words(Interval(row.metric, row.metric_low, row.metric_high, row.num_seeds))


def _difference(row: Row) -> str:
    if row.difference is None:
        return "-"
    return interval_words(Interval(row.difference, row.difference_low, row.difference_high, row.num_seeds))


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
