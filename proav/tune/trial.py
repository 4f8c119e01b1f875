"""One trial: train to a rung, measure, write it down, report; then the next rung. Ray Tune decides between rungs whether it goes on.

Every rung is a Ray Train run that goes on from the trial's own checkpoint and has ended before the report: a trial that is stopped leaves
no workers and no placement group behind. It runs in a process of its own; what takes CPUs or GPUs are the workers and tasks that it starts.
"""

import math
import traceback
from typing import Protocol

import ray

from proav import storage
from proav.config import Config
from proav.errors import Stopped, UserError
from proav.evaluate.reconstruction import evaluate_reconstruction
from proav.on_ray.resources import device_of, wants_gpu
from proav.runs.metrics_log import read_metrics
from proav.train.on_ray.launch import train_stage
from proav.tune.record import CRASHED, DONE, FAILED, read_record, write_record
from proav.tune.space import Trial


class Report(Protocol):
    def __call__(self, rung: dict, *, passed: bool) -> None:
        """Tells of a rung; returns only where the trial is to go on. passed: it went on from there before."""


def run_trial(trial: Trial, *, rungs: tuple[int, ...], report: Report) -> None:
    """Reports each rung, measured now or found in the record; a failure goes into the record with its reason.

    A user's mistake ends the trial, not the sweep; anything else is raised again once it is written down.
    """
    try:
        _climb(trial, rungs, report)
    except UserError as error:
        _end(trial, FAILED, str(error))
    except Stopped as stopped:  # a signal to one of its workers; Ray Tune expects an Exception
        _end(trial, CRASHED, str(stopped))
        raise RuntimeError(str(stopped)) from None
    except Exception as error:  # whatever it is, the table has to show it; Ray Tune gets it as well
        storage.write_text(storage.join(trial.config.run_folder, "error.txt"), traceback.format_exc())
        _end(trial, CRASHED, f"{type(error).__name__}: {' '.join(str(error).split())}"[:300])
        raise


def _climb(trial: Trial, rungs: tuple[int, ...], report: Report) -> None:
    """From rung to rung. Nothing is trained for a trial that is done; what it measured is reported, for others to be compared with."""
    record, reported = read_record(trial.config.run_folder), 0
    assert record is not None, "the sweep writes the record before it starts a trial"
    for clips in rungs:
        rung = record.rung(clips)
        if rung is None:
            if record.status in DONE:
                return
            rung = measure(trial.config, clips)
            record = record.replace(rungs=[*record.rungs, rung])
            write_record(trial, record)
        if (
            rung["clips"] <= reported
        ):  # measured under another schedule, beyond more than one rung of this one
            continue
        report(rung, passed=record.status in DONE or rung["clips"] <= record.passed)
        reported = rung["clips"]
        if record.status not in DONE and reported > record.passed:
            record = record.replace(passed=reported)
            write_record(trial, record)


def measure(config: Config, clips: int) -> dict:
    """Trains MDSA until it has seen `clips` clips, then reconstructs the validation clips: one rung, without its score."""
    train = config.mdsa.train.model_copy(update={"num_clips": clips})
    summary = train_stage(
        config.model_copy(update={"mdsa": config.mdsa.model_copy(update={"train": train})}), "mdsa"
    )
    reconstruction = _reconstruct(config, summary["checkpoint"])
    if not all(map(math.isfinite, (reconstruction["psnr_db"], reconstruction["mel_error_db"]))):
        raise UserError(
            f"the reconstructions after {summary['clips']:,} clips are not finite; lower mdsa.train.learning_rate"
        )
    lines = [
        line
        for line in read_metrics(storage.join(config.run_folder, "mdsa"))
        if line["clips"] <= summary["clips"]
    ]
    return {
        "clips": summary["clips"],
        "step": summary["step"],
        "loss": lines[-1]["loss"],
        **{key: value for key, value in reconstruction.items() if key != "protocol"},
        "seconds": summary["seconds"],
        "clips_per_second": summary["clips"] / summary["seconds"],
        "peak_memory_gib": max(line["peak_memory_gib"] for line in lines),
        "device": lines[-1]["device"],
    }


def _reconstruct(config: Config, checkpoint: str) -> dict:
    """In a task of its own, which may need a GPU. DEFAULT: the trial's placement group, which Ray would use, holds no CPU."""
    use_gpu = wants_gpu(config.evaluate.use_gpu)
    task = ray.remote(num_cpus=1, num_gpus=int(use_gpu), scheduling_strategy="DEFAULT")(
        evaluate_reconstruction
    )
    try:
        return ray.get(task.remote(config, checkpoint, device=device_of(use_gpu)))
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, UserError):  # the task's own words, not Ray's traceback around them
            raise error.cause from None
        raise


def _end(trial: Trial, status: str, reason: str) -> None:
    record = read_record(trial.config.run_folder)
    write_record(trial, record.replace(status=status, reason=reason))
