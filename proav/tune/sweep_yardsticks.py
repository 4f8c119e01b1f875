"""The yardsticks of a sweep: what simple codes reach with as many numbers as its trials store.

They are measured once for all trials with the same size of latents. `proav/evaluate` fits them. Trials with
the same size and seed share the fit.
"""

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from os.path import basename

from proav import storage
from proav.config import Config
from proav.errors import TOLD
from proav.evaluate.reconstruction import evaluate_yardsticks
from proav.evaluate.yardsticks import YardstickPlan, load_yardsticks, make_yardsticks, plan_yardsticks
from proav.reports.kit.tables import values_text
from proav.tune.allowed import data_axes
from proav.tune.record import TrialRecord
from proav.tune.space import config_at


def sweep_yardsticks(config: Config, records: Iterable[TrialRecord]) -> list[dict]:
    """A dict with means and the plan for each size of latents among the measured trials, smallest first.

    They are kept in <run_dir>/eval/yardsticks-<hash>.json beside the fitted codes, and read from there if
    present. There are none if data has no training split. Ray must be running.
    """
    import ray

    if data_axes(config.tune):
        return []  # trials are measured on different clips
    plans: dict[str, tuple[Config, YardstickPlan]] = {}
    for record in records:
        if record.rungs:  # a trial that failed at once may have a point that cannot be run
            resolved = config_at(config, record.point)
            plan = plan_yardsticks(resolved)
            if plan.available:
                plans[plan.hash] = resolved, plan
    measure = ray.remote(num_cpus=1, scheduling_strategy="DEFAULT")(_measure)
    try:
        found = ray.get([measure.remote(resolved, plan) for resolved, plan in plans.values()])
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, TOLD):  # the task's own words, not Ray's traceback around them
            raise error.cause from None
        raise
    return sorted(found, key=lambda each: (sum(each["values_per_stream"].values()), each["hash"]))


def _measure(config: Config, plan: YardstickPlan) -> dict:
    path = plan.path.removesuffix(".safetensors") + ".json"
    measured_on = {"split": config.evaluate.split, "max_clips": config.evaluate.max_clips}
    if storage.exists(path):
        kept = json.loads(storage.read_text(path))
        if kept["measured_on"] == measured_on:
            return kept
    make_yardsticks(config, plan)
    means = evaluate_yardsticks(config, load_yardsticks(plan.path))
    values = {**means, **plan.to_dict(), "measured_on": measured_on}
    storage.write_text(path, json.dumps(values, indent=1))
    return values


@contextmanager
def shared_fit(config: Config, shelf: str) -> Iterator[None]:
    """Inside, the run of `config` has the yardsticks of `shelf`; what it fits itself is added to `shelf`.

    config: a trial's, of one seed.
    shelf: the folder in which the sweep keeps fitted yardsticks. It need not exist.
    """
    plan = plan_yardsticks(config)
    kept = storage.join(shelf, basename(plan.path))
    if plan.is_due() and storage.exists(kept):
        storage.write_bytes(plan.path, storage.read_bytes(kept))
    yield
    if not storage.exists(kept) and storage.exists(plan.path):
        storage.write_bytes(kept, storage.read_bytes(plan.path))


def yardstick_lines(yardsticks: Iterable[dict]) -> list[tuple[str, float | None, float | None]]:
    """(name, PSNR, log-mel error) of each line that is compared with the trials; None: not of that stream."""
    yardsticks = list(yardsticks)
    lines = []
    for each in yardsticks:
        numbers = values_text(each["values_per_stream"])
        lines.append(
            (f"linear planes, {numbers}", each["psnr_linear_planes_db"], each["mel_error_linear_planes_db"])
        )
        lines.append((f"cosine transform, {numbers}", each["psnr_cosine_db"], each["mel_error_cosine_db"]))
    for each in yardsticks[:1]:  # a clip's own means do not depend on the size
        lines.append(("temporal mean picture", each["psnr_temporal_mean_db"], None))
        lines.append(("mean colour, mean mel", each["psnr_mean_colour_db"], each["mel_error_mean_mel_db"]))
    return lines
