"""Starts training workers on a Ray cluster: their number, their resources, and restarts after a loss.

Workers write checkpoints directly to <run_dir>/<stage>/checkpoints, which all nodes must reach. A restarted
group of workers, of any size, continues from the newest. Ray's own files of a run are in <run_dir>/.ray. The
work of a worker is in `proav/train/worker.py`.
"""

import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

import ray
import ray.train
import torch
from ray.actor import ActorHandle
from ray.train import FailureConfig, LoggingConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from proav import storage
from proav.config import Config, TrainConfig
from proav.errors import Stopped, UserError
from proav.on_ray.resources import largest_resources, wants_gpu
from proav.runs.checkpoint import list_checkpoints
from proav.runs.layout import RunFolder
from proav.stopping import StopRequest
from proav.storage.lease import Lease
from proav.train.loop import Asked, is_trained
from proav.train.on_ray.backend import WorkerBackendConfig
from proav.train.on_ray.mailbox import Mailbox
from proav.train.on_ray.turn import turn_to_start
from proav.train.on_ray.validation import Validation
from proav.train.stop_watch import StopWatch
from proav.train.worker import checkpoints_folder, find_resume_point, plan_stage, train_settings, train_worker

ENVIRONMENT = {
    # Each report waits this long for the controller; Ray's own value is 2 s.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "600",  # a minute is too short for nodes that pull an image
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",  # Ray would print every line of a worker twice
}
T = TypeVar("T")

POLL_SECONDS = 0.2
AGREE_SECONDS = 5.0
"""How long a worker with a UserError waits for the others to get the same error."""


def train_stage(config: Config, stage: str, *, callbacks: Sequence[ray.train.UserCallback] = ()) -> dict:
    """Trains one stage on the initialized Ray, from its newest checkpoint if there is one.

    A stage that has seen train.num_clips clips is left as it is.

    stage: mdsa, stdit or distill.
    callbacks: Ray Train callbacks, such as Ray Tune's.
    Returns {"stage", "clips", "step", "seconds", "metrics": last report, "checkpoint": path,
    "already_done": bool}.
    Raises UserError for missing data, MDSA or latents, unusable checkpoints, a loss that is not finite, and
    another job that trains the same stage of the same run. None of these is tried again. Raises Stopped if
    SIGTERM or SIGINT came to this process or to a worker; a checkpoint then has all finished steps.
    """
    folder = storage.make_folder(RunFolder(config).stage(stage).path)
    with Lease(folder, name="training") as lease:
        _tell_leftovers(folder)
        return _train_stage(config, stage, lease, callbacks)


def _train_stage(
    config: Config, stage: str, lease: Lease, callbacks: Sequence[ray.train.UserCallback]
) -> dict:
    """`train_stage` while `lease` is held."""
    train = train_settings(config, stage)
    plan = plan_stage(config, stage)
    checkpoint = find_resume_point(config, stage, plan, print)
    seconds = checkpoint.training["loop"]["seconds"] if checkpoint is not None else 0.0
    if checkpoint is not None and is_trained(train, clips=checkpoint.clips, seconds=seconds):
        limit = (
            f"of {train.num_clips:,} clips seen"
            if train.max_seconds is None
            else f"clips seen in {seconds:.1f} s"
        )
        print(f"{stage}: done already, {checkpoint.clips:,} {limit}; {checkpoint.path}")
        summary = {
            "stage": stage,
            "clips": checkpoint.clips,
            "step": checkpoint.step,
            "seconds": seconds,
            "metrics": {},
        }
        return {**summary, "checkpoint": checkpoint.path, "already_done": True}
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    with turn_to_start() if train.loader == "actors" else contextlib.nullcontext() as turn:
        return _run_workers(config, stage, train, lease, callbacks, turn)


def _run_workers(
    config: Config,
    stage: str,
    train: TrainConfig,
    lease: Lease,
    callbacks: Sequence[ray.train.UserCallback],
    turn: ActorHandle | None,
) -> dict:
    """Starts the workers and waits for them; returns what `train_stage` returns.

    train: the training section of the stage.
    turn: the actor of `turn_to_start`, or None.
    The others are as in `_train_stage`.
    """
    use_gpu = wants_gpu(train.use_gpu)
    _tell_if_waiting(train, use_gpu)
    here = NodeAffinitySchedulingStrategy(
        ray.get_runtime_context().get_node_id(), soft=False
    )  # other nodes come and go
    mailbox = Mailbox.options(num_cpus=0, scheduling_strategy=here).remote(turn)
    trainer = TorchTrainer(
        _run_worker,
        train_loop_config={"config": config, "stage": stage, "mailbox": mailbox, "use_gpu": use_gpu},
        torch_config=WorkerBackendConfig(
            backend="nccl" if use_gpu else "gloo", stop_seconds=config.job.stop_seconds
        ),
        scaling_config=ScalingConfig(
            num_workers=train.num_workers,
            use_gpu=use_gpu,
            resources_per_worker={"CPU": train.cpus_per_worker} | ({"GPU": 1} if use_gpu else {}),
        ),
        run_config=_run_config(config, stage, train, callbacks),
    )
    with Validation(config, stage) if train.validate_every_clips else contextlib.nullcontext():
        summary = _fit(trainer, mailbox, lease)
        if summary.pop("stopped"):
            raise Stopped(_stopped_text(config, stage, summary))
        StopRequest.check()  # a signal may have come during the last step
    return {
        **summary,
        "checkpoint": list_checkpoints(checkpoints_folder(config, stage))[0][1],
        "already_done": False,
    }


def _fit(trainer: TorchTrainer, mailbox, lease: Lease) -> dict:
    """Runs the training and returns worker 0's summary. Raises the original UserError of a worker."""
    try:
        result = _wait(trainer.fit, mailbox, lease)
    except ray.train.TrainingFailedError:
        mistake = ray.get(mailbox.mistake.remote())
        if mistake is not None:
            raise mistake from None
        raise
    mistake = ray.get(mailbox.mistake.remote())
    if mistake is not None:
        raise mistake
    return result.return_value


def _wait(fit: Callable[[], T], mailbox, lease: Lease) -> T:
    """The result of fit(), while this thread watches for signals; a signal asks the workers to save and end.

    If this process listens to signals, fit runs in a thread of its own. In the main thread Ray Train would
    handle SIGINT and end its workers without a checkpoint.
    """
    with StopRequest.deferred() as request:
        if request is None:
            return fit()
        found: list = []

        def run() -> None:
            try:
                found.append((fit(), None))
            except BaseException as error:  # raised again below, in the thread that waits
                found.append((None, error))

        thread, told = threading.Thread(target=run, name="Ray Train", daemon=True), False
        thread.start()
        while thread.is_alive():
            thread.join(POLL_SECONDS)
            if request.asked.is_set() and not told:
                told = True
                if not ray.get(mailbox.stop.remote()):
                    raise request.stopped()  # the workers are still starting: there is nothing to save
            lease.check()
        result, error = found[0]
        if error is not None:
            raise error
        return result


def _stopped_text(config: Config, stage: str, summary: dict) -> str:
    request = StopRequest.current()
    by = request.name if request and request.name else "a signal to one of its workers"
    done = f"{summary['clips']:,} of {train_settings(config, stage).num_clips:,} clips are done"
    kept = "in the newest checkpoint: run the same command again to go on"
    return f"{stage}: stopped by {by}; {done} and {kept}"


def _tell_leftovers(folder: str) -> None:
    """Removes half-written files of a killed run, and says so. Only the holder of the lease may do it."""
    count = sum(storage.remove_leftovers(place) for place in (folder, storage.join(folder, "checkpoints")))
    if count:
        print(f"train: removed {count} half-written files or checkpoints of a run that was killed")


def _run_worker(settings: dict) -> dict | None:
    """The function of every worker; settings: train_loop_config of `_run_workers`."""
    config, stage, mailbox = settings["config"], settings["stage"], settings["mailbox"]
    if ray.get(mailbox.mistake.remote()) is not None:
        return None  # restarted after a UserError: another try would raise it again
    context = ray.train.get_context()
    device = _prepare_process(train_settings(config, stage), settings["use_gpu"])
    try:
        return train_worker(
            config, stage, device=device, rank=context.get_world_rank(), world=context.get_world_size(),
            report=_reporter(mailbox), asked=Asked(_PreemptionWatch(), _stop_watch(mailbox)),
        )  # fmt: skip
    except UserError as error:
        if _all_found(mailbox, context.get_world_rank(), context.get_world_size(), error):
            return None
        raise  # the others are still running and wait for this one: Ray has to end them
    finally:
        if StopRequest.current() is not None:
            StopRequest.current().finish()


def _prepare_process(train: TrainConfig, use_gpu: bool) -> torch.device:
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if use_gpu else "cpu")
    for handler in logging.getLogger().handlers:
        handler.addFilter(_is_not_an_echo)
    device = ray.train.torch.get_device()
    if device.type == "cuda":
        torch.cuda.set_device(device)
        if train.precision != "fp32":
            torch.set_float32_matmul_precision("high")
    else:
        torch.set_num_threads(train.cpus_per_worker)
    return device


def _is_not_an_echo(record: logging.LogRecord) -> bool:
    """False for Ray Train's logs of whole reports: metrics.jsonl and the progress line have them."""
    return not str(record.msg).startswith("Reporting training result")


def _all_found(mailbox, rank: int, world: int, error: UserError) -> bool:
    """Posts a UserError; True if every worker has posted one, so that all can end quietly.

    mailbox: of the job.
    rank, world: this worker and the number of workers.
    error: this worker's error.
    """
    deadline = time.monotonic() + AGREE_SECONDS
    found = ray.get(mailbox.post.remote(rank, error))
    while found < world and time.monotonic() < deadline:
        time.sleep(0.05)
        found = ray.get(mailbox.count.remote())
    return found == world


def _reporter(mailbox) -> Callable:
    """ray.train.report; the first call also tells the mailbox that this worker has all its resources."""
    told = []

    def report(*arguments, **options) -> None:
        if not told:
            told.append(ray.get(mailbox.has_room.remote()))
        ray.train.report(*arguments, **options)

    return report


def _stop_watch(mailbox) -> StopWatch:
    return StopWatch(
        begin=lambda: ray.get(mailbox.begin.remote()), driver_asks=lambda: ray.get(mailbox.stopping.remote())
    )


class _PreemptionWatch:
    """True once if the cloud announces that it will remove a node: time for one more checkpoint."""

    def __init__(self) -> None:
        self.told = False

    def __call__(self) -> bool:
        if self.told or ray.train.get_preemption_info() is None:
            return False
        self.told = True
        return True


def _run_config(
    config: Config, stage: str, train: TrainConfig, callbacks: Sequence[ray.train.UserCallback]
) -> RunConfig:
    """Ray Train's settings of the run; arguments as in `_run_workers`."""
    filesystem, folder = storage.open_filesystem(RunFolder(config).of_ray)
    return RunConfig(
        name=stage,
        storage_path=folder,
        storage_filesystem=filesystem,  # with retries; Ray's own would fail at the first time-out
        failure_config=FailureConfig(max_failures=train.max_failures),
        callbacks=list(callbacks),
        logging_config=LoggingConfig(
            log_level="WARNING"
        ),  # at INFO every report is another line beside our progress
    )


def _tell_if_waiting(train: TrainConfig, use_gpu: bool) -> None:
    """Prints which resources are missing: Ray waits for them silently, and an autoscaler may add them."""
    least = train.num_workers if isinstance(train.num_workers, int) else train.num_workers[0]
    loading = train.loader_workers if train.loader == "actors" else 0
    wanted = {"CPU": least * (train.cpus_per_worker + loading)} | ({"GPU": least} if use_gpu else {})
    have, largest = ray.cluster_resources(), largest_resources()
    for kind, number in wanted.items():
        if have.get(kind, 0) < number:
            promise = (
                "its autoscaler can add them"
                if largest.get(kind, 0) >= number
                else "an autoscaler may add them; else add nodes, or stop this job and lower "
                "train.num_workers, train.cpus_per_worker or train.loader_workers"
            )
            print(
                f"train: {least} workers need {number:g} {kind}, "
                f"the cluster has {have.get(kind, 0):g}; waiting for more: {promise}"
            )
