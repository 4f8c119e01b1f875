"""Trains one seed of a trial up to one rung and measures it, by reconstructions or by a whole evaluation.

With tune.stage=stdit a trial's folder has the parts of a run: MDSA, latents, ST-DiT, samples, eval. If no
axis changes MDSA, the trial begins with copies of the sweep's own MDSA and latents. Ray must be running.
"""

import math

import ray

from proav import storage
from proav.config import Config
from proav.errors import TOLD, UserError
from proav.evaluate.reconstruction import evaluate_reconstruction
from proav.on_ray.resources import device_of, wants_gpu
from proav.runs.metrics_log import read_metrics
from proav.train.on_ray.launch import train_stage
from proav.tune.budgets import with_length
from proav.tune.metrics import BRIEF, is_evaluated, needs_of, not_finite, numbers_of, value_of
from proav.tune.repeats import repeat_config
from proav.tune.space import Trial
from proav.tune.sweep_yardsticks import shared_fit


def measure(trial: Trial, *, repeat: int, clips: int | None, seconds: float | None) -> dict:
    """Trains one seed of a trial until it has seen `clips` clips, or for `seconds`, and measures it.

    Raises NonFiniteError if the loss or the metric is not finite, and UserError for a user's mistake or if
    the metric cannot be measured.
    """
    config, stage = repeat_config(trial.config, repeat), trial.tune.stage
    if stage == "stdit":
        _provide_latents(trial, config)
    summary = train_stage(with_length(config, stage, clips=clips, seconds=seconds), stage)
    if is_evaluated(trial.tune):
        with shared_fit(config, trial.yardsticks_in):
            measured = _evaluate(config, stage, trial.tune.metric)
    else:
        measured = _reconstruct(config, summary["checkpoint"])
    lines = read_metrics(storage.join(config.run_folder, stage))
    lines = [line for line in lines if line["clips"] <= summary["clips"]]
    measured = {
        "seed": config.seed,
        "clips": summary["clips"],
        "step": summary["step"],
        "loss": lines[-1]["loss"],
        **measured,
        "seconds": summary["seconds"],
        "clips_per_second": summary["clips"] / summary["seconds"],
        "peak_memory_gib": max(line["peak_memory_gib"] for line in lines),
        "device": lines[-1]["device"],
    }
    if not math.isfinite(value_of(measured, trial.tune)):
        raise not_finite(measured, trial.tune)
    return measured


def make_shared(config: Config) -> None:
    """Makes the MDSA and the latents that all trials share, in the sweep's own run, unless they exist."""
    train_stage(config, "mdsa")
    _aside(_encode, config)


def _provide_latents(trial: Trial, config: Config) -> None:
    """Puts MDSA and latents into the trial's folder: copies of the sweep's, or the trial's own."""
    if trial.mdsa_from is None:
        train_stage(config, "mdsa")
        _aside(_encode, config)
        return
    for part in ("mdsa/checkpoints", "latents"):
        copy_folder(storage.join(trial.mdsa_from, part), storage.join(config.run_folder, part))


def copy_folder(source: str, target: str) -> None:
    """Copies all files below `source`, unless all of them are in `target` already.

    On a local disk, `target` exists complete or not at all. Remote files come one by one: a copy that was
    interrupted lacks some of them, and is made again.
    """
    names = _names_below(source)
    if set(names) <= set(_names_below(target)):
        return
    with storage.write_folder(target) as folder:
        for name in names:
            storage.write_bytes(storage.join(folder, name), storage.read_bytes(storage.join(source, name)))


def _names_below(folder: str) -> list[str]:
    start = folder.rstrip("/") + "/"
    return [path.rsplit(start, 1)[-1] for path in storage.list_files(folder)]


def _evaluate(config: Config, stage: str, metric: str) -> dict:
    """A run's whole evaluation, including generated clips if there is a generator.

    Raises UserError if the metric could not be measured.
    """
    metrics = _aside(_generate_and_evaluate if stage == "stdit" else _evaluate_alone, config)
    numbers = numbers_of(metrics)
    if needs := needs_of(metrics, metric):
        raise UserError(f"tune.metric={metric} was not measured: it needs {needs}")
    means = {name: numbers[f"reconstruction.{name}"] for name in BRIEF}
    return {**means, "num_clips": metrics["reconstruction"]["num_clips"], "numbers": numbers}


def _encode(config: Config) -> None:
    from proav.latents.encode import encode_latents

    encode_latents(config, replace_unused=True)


def _generate_and_evaluate(config: Config) -> dict:
    from proav.generation.batch import generate

    # by the ST-DiT that was trained, and with only as many processes as the trial has reserved
    own = config.generate.model_copy(update={"stage": "stdit", "num_writers": 0})
    generate(config.model_copy(update={"generate": own}))
    return _evaluate_alone(config)


def _evaluate_alone(config: Config) -> dict:
    from proav.evaluate.job import evaluate

    few = config.evaluate.model_copy(
        update={"num_workers": config.evaluate.num_workers or 1, "compare_with": None}
    )
    return evaluate(config.model_copy(update={"evaluate": few}))


def _reconstruct(config: Config, checkpoint: str) -> dict:
    use_gpu = wants_gpu(config.evaluate.use_gpu)
    values = _aside(
        evaluate_reconstruction,
        config,
        checkpoint,
        device=device_of(use_gpu),
        num_cpus=1,
        num_gpus=int(use_gpu),
    )
    return {key: value for key, value in values.items() if key != "protocol"}


def _aside(work, *arguments, num_cpus: float = 0, num_gpus: int = 0, **options):
    """Runs `work` in a task of its own.

    A task that starts Ray Data takes no CPU itself, since its actors take them. The scheduling strategy is
    DEFAULT, because the trial's placement group, which Ray would use otherwise, holds no CPU.
    """
    task = ray.remote(num_cpus=num_cpus, num_gpus=num_gpus, scheduling_strategy="DEFAULT")(work)
    try:
        return ray.get(task.remote(*arguments, **options))
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, TOLD):  # the task's own words, not Ray's traceback around them
            raise error.cause from None
        raise
