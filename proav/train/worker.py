"""One training worker from start to end: build, resume, loop, checkpoint. Plain torch.

This file holds what differs between the stages: the feed, the model, the step, and the description in a
checkpoint. `on_ray/launch.py` runs it on Ray.
"""

import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from proav import storage
from proav.config import Config, TrainConfig
from proav.data.feeds.feed import ClipFeed, Feed
from proav.data.feeds.latent_feed import LatentFeed
from proav.data.store.shards import manifest_hash, read_manifest
from proav.data.store.vectors import open_vectors
from proav.errors import CheckpointError, UserError
from proav.geometry import wide_tokens
from proav.latents.encode import differing_settings, masked_settings
from proav.models.mdsa import MDSA
from proav.models.stdit import STDiT
from proav.runs.checkpoint import Checkpoint, check_resumable, load_checkpoint, newest_good_checkpoint
from proav.runs.layout import RunFolder
from proav.runs.metrics_log import MetricsLog
from proav.runs.progress import Progress
from proav.runs.stages import find_stage
from proav.train.autoencoder_step import AutoencoderStep
from proav.train.checks import check_stages
from proav.train.ema import ExponentialMovingAverage
from proav.train.engines import make_engine
from proav.train.fitting import FirstWeights, fit_linear_planes, fit_on_worker_0
from proav.train.flow_map_step import FlowMapStep
from proav.train.generator_step import GeneratorStep
from proav.train.loop import Asked, LoopState, TrainingStep, run_loop
from proav.train.resume import load_training, on_worker_0, save_training
from proav.train.start import check_begun, check_starts, open_start, start_mdsa, start_stdit

ENCODE = "python ray_jobs/encode.py --config FILE, with the same run_dir"


@dataclass
class StagePlan:
    """What a stage trains on, and the description of its checkpoints."""

    feed: Feed
    build: Callable[[torch.device], tuple[nn.Module, TrainingStep]]
    labels: tuple[str, ...] = ()
    description: dict = field(default_factory=dict)
    """Latent statistics and the hashes of MDSA and teacher, as `save_checkpoint` takes them."""
    mdsa_weights: Callable[[], dict[str, Tensor]] | None = None
    """ST-DiT: the MDSA weights that each checkpoint carries."""
    fit: Callable[[nn.Module], FirstWeights] | None = None
    """Gives a new model fitted or trained weights; called on worker 0. None: its random ones are enough."""
    warning: str = ""
    """A line that is printed before training: settings that are allowed, but probably not intended."""


def train_settings(config: Config, stage: str) -> TrainConfig:
    """The training section of a stage. Raises UserError for a stage that is not trained here."""
    return find_stage(stage).settings(config)


def checkpoints_folder(config: Config, stage: str) -> str:
    return RunFolder(config).stage(stage).checkpoints


def plan_stage(config: Config, stage: str) -> StagePlan:
    """Opens what the stage needs.

    Raises UserError, with the command to type, if data, MDSA or latents are missing.
    """
    plans = {"mdsa": _plan_autoencoder, "stdit": _plan_generator, "distill": _plan_flow_map}
    return plans[stage](config)


def find_resume_point(
    config: Config, stage: str, plan: StagePlan, warn: Callable[[str], None]
) -> Checkpoint | None:
    """The newest whole checkpoint of a stage; None if the stage has not begun.

    plan: the stage's plan, to compare labels and latents with.
    warn: takes a line for each damaged checkpoint that is skipped.
    Raises CheckpointError if the checkpoint belongs to another run.
    """
    kind = find_stage(stage).kind
    checkpoint = newest_good_checkpoint(checkpoints_folder(config, stage), kind=kind, warn=warn)
    if checkpoint is not None:
        check_resumable(checkpoint, find_stage(stage).described(config), plan.labels)
        then, now = (train_settings(made_with, stage).optimizer for made_with in (checkpoint.config, config))
        if then != now:
            raise CheckpointError(
                f"{checkpoint.path} was trained with {stage}.train.optimizer={then}, {now} cannot resume it; "
                f"write {stage}.train.optimizer={then}, or choose another run_dir=DIR to start anew"
            )
        if stage != "distill":
            check_begun(checkpoint, config, stage)
        if checkpoint.teacher_hash != plan.description.get("teacher_hash"):
            raise CheckpointError(
                f"{checkpoint.path} was made from another ST-DiT than the one it would learn from now; name "
                f"that one (distill.teacher=PATH), delete {checkpoints_folder(config, stage)} to train anew, "
                "or choose another run_dir=DIR"
            )
        theirs = {
            "mdsa_hash": checkpoint.mdsa_hash,
            "latent_mean": checkpoint.latent_mean,
            "latent_std": checkpoint.latent_std,
        }
        if any(_as_tuples(plan.description.get(key)) != value for key, value in theirs.items()):
            raise CheckpointError(
                f"{checkpoint.path} was trained on other latents than those in {RunFolder(config).latents}; "
                f"delete {checkpoints_folder(config, stage)} to train anew, or choose another run_dir=DIR"
            )
    return checkpoint


def train_worker(
    config: Config,
    stage: str,
    *,
    device: torch.device,
    rank: int = 0,
    world: int = 1,
    report: Callable[[dict], None] = lambda line: None,
    asked: Asked = Asked(),
) -> dict:
    """Trains until train.num_clips clips are seen, from the newest checkpoint if there is one.

    With several workers torch.distributed must be set up before.

    stage: mdsa, stdit or distill.
    device: this worker's.
    rank, world: this worker and the number of workers.
    report: called with each line of metrics.jsonl, on every worker.
    asked: requests from outside the loop.
    Returns {"stage", "clips", "step", "seconds", "metrics": last report, "stopped": bool}; stopped means that
    a request ended the training.
    Raises UserError (CheckpointError, NonFiniteError and others).
    """
    train = train_settings(config, stage)
    # to stderr, since Ray Train would show printed lines twice
    say = (lambda text: sys.stderr.write(text + "\n")) if rank == 0 else (lambda text: None)
    plan = plan_stage(config, stage)
    if plan.warning:
        say(plan.warning)
    found = on_worker_0(lambda: _path_of(find_resume_point(config, stage, plan, say)))
    checkpoint = load_checkpoint(found, kind=find_stage(stage).kind, verify=False) if found else None
    torch.manual_seed(config.seed)
    model, step, init_hash = _build(
        plan, train, checkpoint, device=device, say=lambda text: say(f"{stage}: {text}")
    )
    engine = make_engine(
        model,
        train,
        device=device,
        micro_batch=train.batch_size // world // train.accumulation_steps,
        log=say,
    )
    average = ExponentialMovingAverage(
        engine.shards(), half_life_clips=train.ema_half_life_clips, ramp_up=train.ema_ramp_up
    )
    state = load_training(checkpoint, engine, average, step) if checkpoint is not None else LoopState()
    for line in _opening_lines(config, stage, _describe(model, engine, device, world), checkpoint):
        say(line)
    reporter = _Reporter(config, stage, state, report) if rank == 0 else None
    carried = {"mdsa": plan.mdsa_weights()} if rank == 0 and plan.mdsa_weights else {}

    def save(current: LoopState) -> None:
        save_training(
            checkpoints_folder(config, stage), engine, average, step, current,
            kind=find_stage(stage).kind, config=find_stage(stage).described(config), labels=plan.labels,
            keep=train.keep_checkpoints, tensors=carried, init_hash=init_hash,
            **plan.description,
        )  # fmt: skip
        if reporter:
            reporter.log.flush()

    # not state.step: the batch size may have changed, and no position may occur twice
    first_step = -(-state.clips // train.batch_size)
    batches = plan.feed.iterate(
        first_step,
        rank=rank,
        world=world,
        loader=train.loader,
        loader_workers=train.loader_workers,
        pin_memory=device.type == "cuda",
    )
    with contextlib.closing(batches):  # ends the loading processes or actors
        finished = run_loop(
            step, batches, engine, average, state,
            report=reporter.write if reporter else report, save=save, asked=asked, say=say,
        )  # fmt: skip
    if reporter:
        reporter.progress.close()
    summary = {"stage": stage, "clips": state.clips, "step": state.step, "seconds": state.seconds}
    return summary | {"metrics": reporter.last if reporter else {}, "stopped": not finished}


def _build(
    plan: StagePlan,
    train: TrainConfig,
    checkpoint: Checkpoint | None,
    *,
    device: torch.device,
    say: Callable[[str], None],
) -> tuple[nn.Module, TrainingStep, str | None]:
    """(model, the stage's step, hash of the checkpoint that the model began from, if it did).

    The model has the weights of the checkpoint, or its first ones if there is none.

    plan: of the stage.
    train: the stage's training section.
    checkpoint: the one to resume from; None: training begins.
    device: this worker's.
    say: takes a line about the first weights.
    """
    model, step = plan.build(device)
    model.activation_checkpointing = train.activation_checkpointing
    if checkpoint is not None:
        model.load_state_dict(checkpoint.weights("model"))
        return model, step, checkpoint.init_hash
    if plan.fit is None:
        return model, step, None
    first = fit_on_worker_0(model, plan.fit, device)
    say(first.line)
    return model, step, first.init_hash


def _opening_lines(
    config: Config, stage: str, description: str, checkpoint: Checkpoint | None
) -> Iterator[str]:
    """The lines that are printed before the first step.

    config, stage: of the training.
    description: of the model and the machine.
    checkpoint: the one to resume from; None: training begins.
    """
    whence = f"continuing from {checkpoint.path}" if checkpoint else "from the beginning"
    yield f"{stage}: {description}, {whence}"
    if stage != "mdsa" and (warning := wide_tokens(config)):
        yield f"{stage}: {warning}"
    if checkpoint is not None and stage == "mdsa" and checkpoint.config.filters != config.filters:
        yield (
            f"{stage}: the filters DIFFER from those of {checkpoint.path}: "
            "from here on clips are drawn from the segments that are in use now"
        )


class _Reporter:
    """Writes worker 0's lines to metrics.jsonl and the terminal, and passes them to `report`.

    state: the state of training.
    report: called with each line.
    """

    def __init__(self, config: Config, stage: str, state: LoopState, report: Callable[[dict], None]) -> None:
        self.log = MetricsLog(RunFolder(config).stage(stage).path, resume_clips=state.clips)
        self.progress = Progress(
            f"train {stage}", train_settings(config, stage).num_clips, "clips", start=state.clips
        )
        self.report, self.last = report, {}

    def write(self, line: dict) -> None:
        self.last = line
        self.log.write(line)
        self.progress.update(line["clips"], f"loss {line['loss']:.4f}")
        self.report(line)


def _plan_autoencoder(config: Config) -> StagePlan:
    feed = ClipFeed.of_mdsa(config)
    alone_clips, num_clips = config.mdsa.alone_clips, config.mdsa.train.num_clips
    warning = ""
    if alone_clips >= num_clips:
        warning = (
            f"mdsa: the network stays untrained: mdsa.linear_planes.alone_clips={alone_clips}, but "
            f"training ends at mdsa.train.num_clips={num_clips}; to train it, write fewer alone_clips"
        )
    return StagePlan(
        feed=feed,
        build=lambda device: (MDSA(config), AutoencoderStep(config, device=device)),
        fit=_first_weights(config, feed),
        warning=warning,
    )


def _first_weights(config: Config, feed: ClipFeed) -> Callable[[nn.Module], FirstWeights] | None:
    """What gives a new MDSA its first weights; None if random ones are enough."""
    linear = config.mdsa.linear_planes
    if config.mdsa.init_from:
        check_starts(config, "mdsa")
        return lambda model: start_mdsa(model, open_start(config, "mdsa"))
    return (lambda model: fit_linear_planes(model, feed, linear.fit_clips)) if linear.enabled else None


def _plan_generator(config: Config) -> StagePlan:
    check_stages(config, "stdit")
    plan = _plan_on_latents(
        config,
        config.stdit.train,
        lambda device, data: (STDiT(config, data["num_labels"]), GeneratorStep(config, **data)),
    )
    if not config.stdit.init_from:
        return plan
    check_starts(config, "stdit")

    def start(model: nn.Module) -> FirstWeights:
        mdsa = load_checkpoint(RunFolder(config).mdsa.checkpoints, kind="mdsa", verify=False)
        return start_stdit(model, open_start(config, "stdit"), plan.labels, mdsa)

    return replace(plan, fit=start)


def _plan_flow_map(config: Config) -> StagePlan:
    teacher = load_checkpoint(config.distill.teacher or RunFolder(config).stdit.checkpoints, kind="stdit")
    if teacher.config.diffusion.objective != "flow":
        raise UserError(
            f"{teacher.path} has diffusion.objective={teacher.config.diffusion.objective}; a flow map is "
            "made from an ST-DiT with diffusion.objective=flow: write distill.teacher=PATH"
        )

    def build(device: torch.device, data: dict) -> tuple[nn.Module, TrainingStep]:
        student, flow = (STDiT(config, data["num_labels"]) for _ in range(2))
        for model in (student, flow):
            model.load_state_dict(teacher.weights("ema"))
        return student, FlowMapStep(config, teacher=flow.to(device), **data)

    plan = _plan_on_latents(config, config.distill.train, build)
    check_resumable(teacher, config.model_copy(update={"seed": teacher.config.seed}), plan.labels)
    if teacher.mdsa_hash != plan.description["mdsa_hash"]:
        raise UserError(
            f"{teacher.path} was trained on the latents of another MDSA checkpoint than those in "
            f"{RunFolder(config).latents}; name an ST-DiT of these: distill.teacher=PATH"
        )
    return replace(plan, description=plan.description | {"teacher_hash": teacher.hash})


def _plan_on_latents(
    config: Config,
    train: TrainConfig,
    build: Callable[[torch.device, dict], tuple[nn.Module, TrainingStep]],
) -> StagePlan:
    """The plan of a stage that trains on stored latents.

    config: of the run.
    train: the stage's training section.
    build: makes model and step on a device, from the step's data: number of labels and latent statistics.
    """
    run = RunFolder(config)
    folder = run.latents
    try:
        stats = json.loads(storage.read_text(run.latent_statistics))
    except FileNotFoundError:
        raise UserError(
            f"no latents in {folder} (no stats.json): ST-DiT trains on the planes of a trained MDSA; "
            f"run: {ENCODE}"
        ) from None
    labels = tuple(stats["labels"]) if config.stdit.labels else ()
    mdsa = load_checkpoint(
        run.mdsa.checkpoints, kind="mdsa", verify=False
    )  # each file is verified when it is read
    if mdsa.hash != stats["mdsa_checkpoint"]:
        raise UserError(
            f"the latents in {folder} were made by another MDSA checkpoint than {mdsa.path}; "
            f"run: {ENCODE} and encode.replace=true"
        )
    if (
        storage.exists(run.data_manifest)
        and manifest_hash(read_manifest(config.data_folder)) != stats["data"]
    ):
        raise UserError(
            f"the latents in {folder} were made of other data than {config.data_folder} now holds "
            f"(were its filters changed?); run: {ENCODE} and encode.replace=true, "
            "or preprocess with the earlier filters"
        )
    wanted = masked_settings(config)
    if differing_settings(stats, wanted):
        raise UserError(
            f"the latents in {folder} do not hold the masked clips that diffusion.task_weights and "
            f"diffusion.continue_frames ask for ({wanted}); run: {ENCODE} and encode.replace=true"
        )
    feed = LatentFeed(
        folder,
        labels=labels,
        split="train",
        seed=config.seed,
        batch_size=train.batch_size,
        masked_for=config,
        vectors=open_vectors(config.data_folder, config.stdit.vector_shapes),
    )
    statistics = {"latent_mean": stats["mean"], "latent_std": stats["std"]}
    return StagePlan(
        feed=feed,
        build=lambda device: build(device, {"num_labels": len(labels), **statistics}),
        labels=labels,
        description={**statistics, "mdsa_hash": mdsa.hash},
        mdsa_weights=lambda: mdsa.weights("ema"),
    )


def _describe(model: nn.Module, engine, device: torch.device, world: int) -> str:
    """Model, engine, precision and workers in a few words, for the first line of training."""
    train = engine.train
    count = sum(getattr(parameter, "ds_numel", parameter.numel()) for parameter in model.parameters())
    engine_name = (
        f"DeepSpeed ZeRO-{train.zero_stage}" if type(engine).__name__ == "DeepSpeedEngine" else "torch"
    )
    return (
        f"{count / 1e6:.3g} M parameters, {engine_name}, "
        f"{train.precision} on {world} x {device.type} (process {os.getpid()})"
    )


def _as_tuples(value):
    return tuple(map(_as_tuples, value)) if isinstance(value, list | tuple) else value


def _path_of(checkpoint: Checkpoint | None) -> str | None:
    return checkpoint.path if checkpoint is not None else None
