"""What a configuration costs: parameters, FLOPs per clip, memory per worker; `--dry-run` prints it.

The models are built on the meta device, where weights have shapes but no values. Parameters are counted
there, and each module says its own FLOPs (`flops`, beside its `forward`). A multiply-add counts as two FLOPs.
Only matrix products, convolutions and attention are counted, as torch's FlopCounterMode and most papers do.
Norms, activations, Griffin-Lim and the mux are left out. Papers of the DiT family count multiply-adds; double
their numbers to compare. Not here: measured times (`bench/`).
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from proav.config import Config, TrainConfig
from proav.config.changes import setting_values, settings_that_change
from proav.diffusion import make_process
from proav.diffusion.solvers import Question, find_solver, num_steps
from proav.geometry import ClipGeometry, LatentGeometry, wide_tokens
from proav.models.discriminators import AudioDiscriminator, VideoDiscriminators
from proav.models.kept import Kept, mdsa_kept, stdit_kept
from proav.models.layers import hidden_matrices
from proav.models.mdsa import MDSA
from proav.models.stdit import STDiT

BACKWARD_FACTOR = 3
"""Forward passes that a training step costs. The backward pass counts as two; recomputation adds one."""
JUDGEMENTS = 9
"""Forward passes of the discriminators that a training step with them costs.

MDSA's update takes 3: the real clip, its reconstruction, and half a backward pass (to the input alone). The
discriminators' update takes 6: forward and backward on both.
"""


@dataclass(frozen=True)
class Size:
    """Parameters of a model, and the FLOPs of its parts for one clip."""

    parameters: int
    hidden: int = 0
    """Parameters in hidden matrices, which Muon trains if it is chosen."""
    flops: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Memory:
    """Estimated bytes that training holds on one worker, by cause (see `memory_estimate`).

    moments: of the optimizer. master: ZeRO's own fp32 weights. casts: autocast's copies of weights.
    """

    weights: int
    gradients: int
    moments: int
    master: int
    ema: int
    casts: int
    activations: int
    discriminators: int = 0
    teacher: int = 0

    @property
    def total(self) -> int:
        return sum(getattr(self, field.name) for field in fields(self))


@dataclass(frozen=True)
class Costs:
    """The costs of a configuration. Parameters are counts; FLOPs are per clip; memory is bytes per worker."""

    config: Config
    num_labels: int
    mdsa_parameters: int
    stdit_parameters: int
    discriminators_parameters: int
    mdsa_encode_flops: int
    """Both modalities, joint planes."""
    mdsa_encode_lone_flops: int
    """Each modality without the other. `encode` makes these planes beside the joint ones."""
    mdsa_decode_flops: int
    stdit_forward_flops: int
    """One evaluation."""
    sample_evaluations: int
    """Calls of config.generate's solver, doubled with guidance."""
    sample_flops: int
    """All evaluations and one decoding."""
    mdsa_train_flops: int
    """Three times encode and decode, four times with recomputation; without LPIPS."""
    discriminators_train_flops: int
    """What a clip's step costs in addition once the discriminators have entered."""
    stdit_train_flops: int
    """Three times one evaluation, four times with recomputation."""
    distill_train_flops: int
    """As much as for ST-DiT, and two evaluations for the target, three with guidance."""
    distill_sample_flops: int
    """A clip of the flow map in its default number of steps, and one decoding."""
    mdsa_memory: Memory
    stdit_memory: Memory
    distill_memory: Memory


class _WithoutValues(TorchFunctionMode):
    """Weights made by torch.empty are put on the meta device, and normal draws are left out there.

    `torch.device("meta")` would move all arithmetic there, which imports torch's compiler: two seconds.
    """

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function is nn.init.normal_:
            return kwargs["tensor"]
        return function(*args, **kwargs | ({"device": "meta"} if function is torch.empty else {}))


_SIZES: dict[str, dict[str, Size]] = {}
"""Sizes of the models that this process has asked about: a sweep asks often about few of them."""


def model_sizes(config: Config, num_labels: int = 0) -> dict[str, Size]:
    """The sizes of "mdsa", "stdit" and "discriminators"; num_labels as in `costs`.

    Models are built only once for configurations that agree in all settings that shape them. The state of
    torch's random generator is not changed.
    """
    values = setting_values(config)
    shaping = settings_that_change("mdsa", "stdit", "discriminators")
    key = json.dumps([num_labels, *(values[name] for name in shaping)])
    if key not in _SIZES:
        with _WithoutValues(), torch.random.fork_rng(devices=[]):
            mdsa, stdit = MDSA(config), STDiT(config, num_labels)
            judges = nn.ModuleList([VideoDiscriminators(config), AudioDiscriminator(config)])
        _SIZES[key] = {
            "mdsa": _size(mdsa, mdsa.flops()),
            "stdit": _size(stdit, {"forward": stdit.flops()}),
            "discriminators": _size(judges, {"judge": sum(judge.flops() for judge in judges)}),
        }
    return _SIZES[key]


def _size(model: nn.Module, flops: Mapping[str, int]) -> Size:
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return Size(parameters, sum(model.get_parameter(name).numel() for name in hidden_matrices(model)), flops)


def _evaluations(config: Config) -> int:
    """Evaluations of ST-DiT for a sample of the task joint: one for each call of the solver, and one more
    where guidance acts."""
    settings, process = config.generate, make_process(config)
    steps = num_steps(settings.steps, process.objective)
    nothing = torch.zeros(())
    solution = find_solver(settings.solver, process.objective).solve(
        process, nothing, process.times_of(steps, settings.schedule_shift), lambda step: nothing
    )
    told = config.stdit.labels or config.stdit.vector_shapes  # without either, guidance has nothing to act on
    guided = bool(told) and settings.guidance_scales != (1, 1)
    (low, high), evaluations = settings.guidance_interval, 0
    try:
        question = next(solution)
        while True:
            asked = Question(*question)
            guides = guided and asked.next_time is None and low <= asked.time <= high
            evaluations += 1 + guides
            question = solution.send(nothing)
    except StopIteration:
        return evaluations


def costs(config: Config, num_labels: int = 0) -> Costs:
    """The costs of `config`; num_labels: rows of the label table, without the null label."""
    sizes = model_sizes(config, num_labels)
    mdsa, stdit, judges = sizes["mdsa"], sizes["stdit"], sizes["discriminators"]
    reconstruction, evaluation = mdsa.flops["encode"] + mdsa.flops["decode"], stdit.flops["forward"]
    evaluations = _evaluations(config)
    targets = 2 if config.distill.guidance_scales == (1, 1) else 3

    def train_flops(forward: int, train: TrainConfig) -> int:
        return (BACKWARD_FACTOR + train.activation_checkpointing) * forward

    return Costs(
        config=config,
        num_labels=num_labels,
        mdsa_parameters=mdsa.parameters,
        stdit_parameters=stdit.parameters,
        discriminators_parameters=judges.parameters,
        mdsa_encode_flops=mdsa.flops["encode"],
        mdsa_encode_lone_flops=mdsa.flops["encode_lone"],
        mdsa_decode_flops=mdsa.flops["decode"],
        stdit_forward_flops=evaluation,
        sample_evaluations=evaluations,
        sample_flops=evaluations * evaluation + mdsa.flops["decode"],
        mdsa_train_flops=train_flops(reconstruction, config.mdsa.train),
        discriminators_train_flops=JUDGEMENTS * judges.flops["judge"],
        stdit_train_flops=train_flops(evaluation, config.stdit.train),
        distill_train_flops=train_flops(evaluation, config.distill.train) + targets * evaluation,
        distill_sample_flops=num_steps(None, "flow_map") * evaluation + mdsa.flops["decode"],
        mdsa_memory=memory_estimate(
            mdsa, mdsa_kept(config), config.mdsa.train, discriminators=judges.parameters
        ),
        stdit_memory=memory_estimate(stdit, stdit_kept(config), config.stdit.train),
        distill_memory=memory_estimate(
            stdit, stdit_kept(config), config.distill.train, teacher=stdit.parameters
        ),
    )


def memory_estimate(
    model: Size, kept: Kept, train: TrainConfig, *, discriminators: int = 0, teacher: int = 0
) -> Memory:
    """Estimated bytes per worker, for P parameters on n workers (the fewest that the settings allow):

        weights 4 P (/ n at stage 3), gradients 4 P (/ n from stage 2),
        moments 8 P (4 for hidden matrices with Muon) and ZeRO's own fp32 weights 4 P (/ n from stage 1),
        EMA 4 P (/ n at stage 3), autocast's copies 2 P (bf16, fp16; / n at stage 3),
        activations of batch_size / accumulation_steps / n clips,
        discriminators 16 bytes a parameter and the teacher 4; both are not sharded.

    Weights stay fp32 under autocast. Left out: the framework (0.5 GiB and more), communication buffers,
    LPIPS, loaders, and what the discriminators keep of a clip.

    model: what is trained.
    kept: the values of one clip that its backward pass needs.
    train: the stage's settings: workers, engine, precision, batch.
    discriminators, teacher: their number of parameters; 0 without them.
    """
    workers = train.num_workers if isinstance(train.num_workers, int) else train.num_workers[0]
    stage, parameters = (0 if train.engine == "torch" else train.zero_stage), model.parameters

    def share(num_bytes: int, from_stage: int) -> int:
        return -(-num_bytes // (workers if stage >= from_stage else 1))

    clips = train.batch_size // train.accumulation_steps // workers
    return Memory(
        weights=share(4 * parameters, 3),
        gradients=share(4 * parameters, 2),
        moments=share(8 * parameters - (4 * model.hidden if train.optimizer == "muon" else 0), 1),
        master=share(4 * parameters, 1) if stage > 0 else 0,
        ema=share(4 * parameters, 3),
        casts=0 if train.precision == "fp32" else share(2 * parameters, 3),
        activations=clips * kept.num_bytes(train.precision, recompute=train.activation_checkpointing),
        discriminators=16 * discriminators,
        teacher=4 * teacher,
    )


def format_costs(bill: Costs) -> str:
    """The lines that `--dry-run` prints."""
    config = bill.config
    latents, generate = LatentGeometry.from_config(config), config.generate
    steps = num_steps(generate.steps, config.diffusion.objective)
    video, audio = generate.guidance_scales
    guidance = f"guidance {video:g}" if video == audio else f"guidance {video:g}, of sound {audio:g}"
    guidance = "without guidance" if video == audio == 1 else guidance
    lines = [
        f"clip        {config.clip.num_frames} frames, {ClipGeometry.from_config(config).seconds:g} s; "
        f"latents {' x '.join(map(str, latents.stack_shape))}, {latents.num_tokens} tokens",
        f"parameters  MDSA {_millions(bill.mdsa_parameters)}, its discriminators "
        f"{_millions(bill.discriminators_parameters)}, "
        f"ST-DiT {_millions(bill.stdit_parameters)} with {bill.num_labels} labels",
        f"FLOPs/clip  (a multiply-add is 2) MDSA encode {_flops(bill.mdsa_encode_flops)}, "
        f"decode {_flops(bill.mdsa_decode_flops)}; ST-DiT {_flops(bill.stdit_forward_flops)} an evaluation",
        f"sample      {_flops(bill.sample_flops)}: {bill.sample_evaluations} evaluations "
        f"({steps} steps, {guidance}) and one decoding; by a flow map "
        f"{_flops(bill.distill_sample_flops)} ({num_steps(None, 'flow_map')} steps)"
        + ("; each window of a longer clip takes as much" if generate.seconds else ""),
        f"train       MDSA {_flops(bill.mdsa_train_flops)} a clip, {_flops(bill.discriminators_train_flops)} "
        f"more with discriminators; ST-DiT {_flops(bill.stdit_train_flops)} a clip, "
        f"as a flow map {_flops(bill.distill_train_flops)}",
    ]
    if warning := wide_tokens(config):
        lines.append(warning)
    for name, memory, train in (
        ("MDSA", bill.mdsa_memory, config.mdsa.train),
        ("ST-DiT", bill.stdit_memory, config.stdit.train),
        ("flow map", bill.distill_memory, config.distill.train),
    ):
        parts = ", ".join(
            f"{field.name} {_bytes(getattr(memory, field.name))}"
            for field in fields(memory)
            if getattr(memory, field.name)
        )
        engine = "torch engine" if train.engine == "torch" else f"ZeRO {train.zero_stage}"
        total = _bytes(memory.total)
        lines.append(f"memory      {name}, about {total} a worker ({engine}, {train.precision}): {parts}")
    return "\n".join(lines)


def _millions(count: int) -> str:
    return f"{count / 1e6:.2f} M"


def _flops(count: int) -> str:
    return f"{count / 1e12:.3f} TFLOP" if count >= 1e11 else f"{count / 1e9:.2f} GFLOP"


def _bytes(count: int) -> str:
    return f"{count / 2**30:.2f} GiB" if count >= 2**29 else f"{count / 2**20:.0f} MiB"
