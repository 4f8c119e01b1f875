"""What a configuration costs: parameters, FLOPs per clip, memory per worker; `--dry-run` prints it.

Sums what each model says of itself, in closed form, beside its modules (`proav/models/mdsa/mdsa_costs.py`,
`proav/models/stdit/stdit_costs.py`); no network is built. Not here: measured times (`bench/`). A multiply-add
counts as two FLOPs. Only matrix products, convolutions and attention are counted, as torch's FlopCounterMode
and most papers do; norms, activations, Griffin-Lim and the mux are left out. The DiT family prints
multiply-adds: double its numbers.
"""

from dataclasses import dataclass, fields

from proav.config import Config, TrainConfig
from proav.diffusion.solvers import find_solver, num_steps
from proav.geometry import ClipGeometry, LatentGeometry
from proav.models.cost_parts import Cost, Kept
from proav.models.mdsa.mdsa_costs import discriminators_cost, mdsa_costs, mdsa_kept
from proav.models.stdit.stdit_costs import stdit_cost, stdit_kept

BACKWARD_FACTOR = 3
"""Forward passes that a training step costs. The backward pass counts as two; recomputation adds one."""
JUDGEMENTS = 9
"""Forward passes of the discriminators that a training step with them costs.

MDSA's update takes 3: the real clip, its reconstruction, and half a backward pass (to the input alone). The
discriminators' update takes 6: forward and backward on both.
"""


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


def costs(config: Config, num_labels: int = 0) -> Costs:
    """The costs of `config`; num_labels: rows of the label table, without the null label."""
    mdsa, stdit, judges = mdsa_costs(config), stdit_cost(config, num_labels), discriminators_cost(config)
    whole_mdsa = mdsa["encode"] + mdsa["decode"]
    generate = config.generate
    objective = config.diffusion.objective
    calls = find_solver(generate.solver, objective).num_calls(num_steps(generate.steps, objective))
    evaluations = calls * (1 if generate.guidance_scale == 1 else 2)
    targets = 2 if config.distill.guidance_scale == 1 else 3

    def train_flops(forward: int, train: TrainConfig) -> int:
        return (BACKWARD_FACTOR + train.activation_checkpointing) * forward

    return Costs(
        config=config,
        num_labels=num_labels,
        mdsa_parameters=whole_mdsa.parameters,
        stdit_parameters=stdit.parameters,
        discriminators_parameters=judges.parameters,
        mdsa_encode_flops=mdsa["encode"].flops,
        mdsa_encode_lone_flops=mdsa["encode_lone"].flops,
        mdsa_decode_flops=mdsa["decode"].flops,
        stdit_forward_flops=stdit.flops,
        sample_evaluations=evaluations,
        sample_flops=evaluations * stdit.flops + mdsa["decode"].flops,
        mdsa_train_flops=train_flops(whole_mdsa.flops, config.mdsa.train),
        discriminators_train_flops=JUDGEMENTS * judges.flops,
        stdit_train_flops=train_flops(stdit.flops, config.stdit.train),
        distill_train_flops=train_flops(stdit.flops, config.distill.train) + targets * stdit.flops,
        distill_sample_flops=num_steps(None, "flow_map") * stdit.flops + mdsa["decode"].flops,
        mdsa_memory=memory_estimate(
            whole_mdsa, mdsa_kept(config), config.mdsa.train, discriminators=judges.parameters
        ),
        stdit_memory=memory_estimate(stdit, stdit_kept(config), config.stdit.train),
        distill_memory=memory_estimate(
            stdit, stdit_kept(config), config.distill.train, teacher=stdit.parameters
        ),
    )


def memory_estimate(
    cost: Cost, kept: Kept, train: TrainConfig, *, discriminators: int = 0, teacher: int = 0
) -> Memory:
    """Estimated bytes per worker, for P parameters on n workers (the fewest that the settings allow):

        weights 4 P (/ n at stage 3), gradients 4 P (/ n from stage 2),
        moments 8 P (4 for hidden matrices with Muon) and ZeRO's own fp32 weights 4 P (/ n from stage 1),
        EMA 4 P (/ n at stage 3), autocast's copies 2 P (bf16, fp16; / n at stage 3),
        activations of batch_size / accumulation_steps / n clips,
        discriminators, which are not sharded, 16 bytes a parameter; the teacher, nor it, 4.

    Weights stay fp32 under autocast. Left out: the framework (0.5 GiB and more), communication buffers,
    LPIPS, loaders, and what the discriminators keep of a clip.

    cost: of the model that is trained.
    kept: the values of one clip that its backward pass needs.
    train: the stage's settings: workers, engine, precision, batch.
    discriminators, teacher: their number of parameters; 0 without them.
    """
    workers = train.num_workers if isinstance(train.num_workers, int) else train.num_workers[0]
    stage, parameters = (0 if train.engine == "torch" else train.zero_stage), cost.parameters

    def share(num_bytes: int, from_stage: int) -> int:
        return -(-num_bytes // (workers if stage >= from_stage else 1))

    clips = train.batch_size // train.accumulation_steps // workers
    return Memory(
        weights=share(4 * parameters, 3),
        gradients=share(4 * parameters, 2),
        moments=share(8 * parameters - (4 * cost.hidden if train.optimizer == "muon" else 0), 1),
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
    guidance = "without guidance" if generate.guidance_scale == 1 else f"guidance {generate.guidance_scale:g}"
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
        f"{_flops(bill.distill_sample_flops)} ({num_steps(None, 'flow_map')} steps)",
        f"train       MDSA {_flops(bill.mdsa_train_flops)} a clip, {_flops(bill.discriminators_train_flops)} "
        f"more with discriminators; ST-DiT {_flops(bill.stdit_train_flops)} a clip, "
        f"as a flow map {_flops(bill.distill_train_flops)}",
    ]
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
