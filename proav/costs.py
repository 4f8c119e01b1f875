"""What a configuration costs, by closed form: parameters, FLOPs per clip, memory per worker; nothing is built or run.

Not here: measured times (`bench/`). A multiply-add is two FLOPs; only matrix products and attention are counted (norms, activations, tanh,
Griffin-Lim and the mux are left out), as torch's FlopCounterMode does and most papers do (the DiT family prints multiply-adds: double theirs).
Letters: T frames, N plane side, C and d widths, D latent channels, P=6 planes, L tokens of a plane.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

from proav.config import Config, TrainConfig
from proav.geometry import MODALITIES, PLANE_NAMES, PLANES_PER_MODALITY, ClipGeometry, LatentGeometry, StreamGeometry, stream_geometries

NUM_MODALITIES = len(MODALITIES)
TIME_WAVES = 256
"""Sines and cosines that ST-DiT embeds a time with."""
BACKWARD_FACTOR = 3
"""A training step on a clip is counted as three forward passes, the backward being two; recomputation adds one more (convention)."""
JUDGEMENTS = 9
"""Forward passes that a step with discriminators costs: for MDSA one on the real clip, and one on its reconstruction with half a backward pass
(to the input alone), 3; for the discriminators forward and backward on both, 6."""


@dataclass(frozen=True)
class Cost:
    """Parameters of a part, FLOPs of using it on one clip. Sums are parts side by side; times(n) is n parts with weights of their own."""

    parameters: int = 0
    flops: int = 0
    hidden: int = 0
    """Parameters in hidden matrices, which Muon trains if it is chosen."""

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.parameters + other.parameters, self.flops + other.flops, self.hidden + other.hidden)

    def times(self, count: int) -> "Cost":
        return Cost(count * self.parameters, count * self.flops, count * self.hidden)


def _linear(inputs: int, outputs: int, rows: int, *, bias: bool = True) -> Cost:
    """Parameters inputs * outputs (+ outputs), FLOPs 2 rows inputs outputs."""
    return Cost(inputs * outputs + bias * outputs, 2 * rows * inputs * outputs)


def _hidden(inputs: int, outputs: int, rows: int, *, bias: bool = True) -> Cost:
    """A linear map of a transformer block: its matrix is hidden."""
    return _linear(inputs, outputs, rows, bias=bias) + Cost(hidden=inputs * outputs)


def _total(*parts: Cost) -> Cost:
    return sum(parts, Cost())


# ST-DiT


def _self_attention(width: int, num_heads: int, length: int, sequences: int) -> Cost:
    """Four maps of width^2, two norms of a head's width, and 4 length^2 width per sequence for the logits and the mix."""
    rows = length * sequences
    norms = Cost(2 * (width // num_heads))
    maps = _hidden(width, 3 * width, rows) + _hidden(width, width, rows)
    return _total(maps, norms, Cost(0, 4 * sequences * length**2 * width))


def stdit_cost(config: Config, num_labels: int = 0) -> Cost:
    """ST-DiT and one evaluation of it: the divided form costs about 32 d^2 FLOPs per token and layer, the full form 24 d^2."""
    depth, width, heads = config.stdit.shape
    geometry = LatentGeometry.from_config(config)
    planes, per_plane, tokens = len(PLANE_NAMES), geometry.tokens_per_plane, geometry.num_tokens
    cells = geometry.token_patch**2
    hidden = config.stdit.mlp_ratio * width
    if config.stdit.attention == "divided":
        attention = _self_attention(width, heads, per_plane, planes) + _self_attention(width, heads, planes, per_plane)
    else:
        attention = _self_attention(width, heads, tokens, 1)
    block = _total(Cost(6 * width), attention, _hidden(width, hidden, tokens), _hidden(hidden, width, tokens))
    time = _linear(TIME_WAVES, width, NUM_MODALITIES) + _linear(width, width, NUM_MODALITIES)
    tables = Cost((PLANES_PER_MODALITY + NUM_MODALITIES + planes) * width + NUM_MODALITIES * width + (num_labels + 1) * width)
    return _total(
        _plane_linear((2 * geometry.stack_channels + 1) * cells, width, per_plane),
        tables,
        time.times(2),  # the own time's map and the other's
        _linear(width, 6 * width, NUM_MODALITIES),
        block.times(depth),
        _linear(width, 2 * width, NUM_MODALITIES),
        _plane_linear(width, geometry.stack_channels * cells, per_plane),
    )


def _plane_linear(inputs: int, outputs: int, tokens_per_plane: int) -> Cost:
    """A linear map a plane, with weights of its own."""
    return _linear(inputs, outputs, tokens_per_plane).times(len(PLANE_NAMES))


# MDSA


def _attention(width: int, inner: int, queries: int, keys: int, sequences: int = 1) -> Cost:
    """Maps to queries, keys and values (no bias) and back, and 4 queries keys inner per sequence."""
    to_queries = _hidden(width, inner, queries * sequences, bias=False)
    to_keys_and_values = _hidden(width, 2 * inner, keys * sequences, bias=False)
    back = _hidden(inner, width, queries * sequences)
    return _total(to_queries, to_keys_and_values, back, Cost(0, 4 * sequences * queries * keys * inner))


def _norm(width: int) -> Cost:
    return Cost(2 * width)


def _space_time_transformer(config: Config, depth: int) -> Cost:
    mdsa, frames = config.mdsa, config.clip.num_frames
    width, inner, cells = mdsa.width, mdsa.num_heads * mdsa.head_width, mdsa.plane_size**2
    rows, hidden = frames * cells, mdsa.mlp_ratio * width
    time, space = _attention(width, inner, frames, frames, cells), _attention(width, inner, cells, cells, frames)
    mlp = _hidden(width, 2 * hidden, rows) + _hidden(hidden, width, rows)
    return _total(_norm(width).times(3), time, space, mlp).times(depth)


def _collapse(config: Config, length: int, sequences: int) -> Cost:
    """The token and its positions, then layers over length + 1 tokens; the last layer computes the token alone."""
    mdsa = config.mdsa
    width, inner, hidden = mdsa.width, mdsa.collapse_heads * (mdsa.width // 8), mdsa.collapse_mlp_width

    def layer(queries: int) -> Cost:
        rows = queries * sequences
        mlp = _hidden(width, hidden, rows) + _hidden(hidden, width, rows)
        return _total(_norm(width).times(2), _attention(width, inner, queries, length + 1, sequences), mlp)

    return _total(Cost((length + 2) * width), layer(length + 1).times(mdsa.collapse_depth - 1), layer(1))


def _stream_encoder(config: Config, geometry: StreamGeometry) -> Cost:
    """Patches, space-time transformer, and the collapse of each of the three axes."""
    mdsa, frames, side = config.mdsa, geometry.num_frames, geometry.plane_size
    patch_values = geometry.channels * geometry.patch[0] * geometry.patch[1]
    return _total(
        _linear(patch_values, mdsa.width, frames * side**2),
        _space_time_transformer(config, mdsa.encoder_depth),
        _collapse(config, frames, side**2),
        _collapse(config, side, frames * side).times(2),
    )


def _stream_decoder(config: Config, geometry: StreamGeometry) -> Cost:
    mdsa = config.mdsa
    patch_values = geometry.channels * geometry.patch[0] * geometry.patch[1]
    expansion = _linear(mdsa.width, patch_values, geometry.num_frames * geometry.plane_size**2, bias=False) + Cost(geometry.channels)
    return _space_time_transformer(config, mdsa.decoder_depth) + expansion


def _plane_cells(config: Config) -> dict[str, int]:
    return {name: rows * columns for name, (rows, columns) in LatentGeometry.from_config(config).plane_shapes.items()}


def _intra_modal(config: Config) -> Cost:
    """MT-SelfAttn on WT and HT, SelfAttn on HW, of one modality."""
    mdsa, frames, side = config.mdsa, config.clip.num_frames, config.mdsa.plane_size
    width, total = mdsa.width, Cost()
    if mdsa.multi_scale.enabled:
        scales = mdsa.multi_scale.scales
        lengths = [frames // scale for scale in scales]
        attentions = [_attention(width, width, length, length, side) for length in lengths]
        if mdsa.multi_scale.share_scales:
            attention = replace(attentions[0], flops=sum(cost.flops for cost in attentions))
        else:
            attention = _total(*attentions)
        upsampling = Cost(0, sum(2 * frames * length * width * side for length, scale in zip(lengths, scales) if scale > 1))
        fusion = Cost(len(scales) * width)
        total += _total(_norm(width), attention, upsampling, fusion).times(2 * mdsa.multi_scale.repeats)
    if mdsa.spatial.enabled:
        total += (_norm(width) + _attention(width, width, side**2, side**2)).times(mdsa.spatial.repeats)
    return total


def _group_cross(config: Config) -> Cost:
    """GCM-Attn: both directions on WT and HT; zero where it is switched off."""
    mdsa, group = config.mdsa, config.mdsa.group_cross
    if not group.enabled:
        return Cost()
    tokens = config.clip.num_frames // group.num_groups * mdsa.plane_size
    direction = _norm(mdsa.width) + _attention(mdsa.width, mdsa.width, tokens, tokens, group.num_groups)
    return direction.times(2 * 2 * group.repeats)


def _bi_block(config: Config) -> Cost:
    """Bi-Block CrossAttn: both directions, on HW or on all planes; zero where it is switched off."""
    mdsa, settings = config.mdsa, config.mdsa.bi_block
    if not settings.enabled:
        return Cost()
    cells = settings.block_size**2
    total = Cost()
    for plane, size in _plane_cells(config).items():
        if plane == "HW" or settings.apply_to == "all":
            blocks = size // cells
            keys = cells + (blocks - 1 if settings.global_tokens else 0)
            total += (_norm(mdsa.width) + _attention(mdsa.width, mdsa.width, cells, keys, blocks)).times(2 * settings.repeats)
    return total


def mdsa_costs(config: Config) -> dict[str, Cost]:
    """MDSA by part, both streams: {"encode", "encode_lone", "decode"}; its parameters are those of encode and decode together.

    encode: both modalities, joint; encode_lone: each without the other; decode: both, joint.
    """
    mdsa, streams = config.mdsa, stream_geometries(config)
    cells = _plane_cells(config).values()
    into = _total(*(_linear(mdsa.width, mdsa.latent_channels, size) for size in cells))
    out_of = _total(*(_linear(mdsa.latent_channels, mdsa.width, size) for size in cells))
    lone = _total(*(_stream_encoder(config, stream) + _intra_modal(config) + into for stream in streams.values()))
    decoders = _total(*(_stream_decoder(config, stream) + out_of for stream in streams.values()))
    return {"encode": lone + _group_cross(config), "encode_lone": lone, "decode": decoders + _bi_block(config)}


# Discriminators


def _judge(config: Config, channels: int, sides: Sequence[int]) -> Cost:
    """Convolutions of kernel 4 and stride 2 on the axes of 8 cells or more, 3 and 1 on the others; widths double up to 8 times the first."""
    loss, sides, total = config.mdsa.loss, list(sides), Cost()
    for index in range(loss.discriminator_layers + 1):
        out = loss.discriminator_width * min(2**index, 8)
        halve = [index < loss.discriminator_layers and side >= 8 for side in sides]
        sides = [side // 2 if half else side for side, half in zip(sides, halve)]
        kernel = math.prod(4 if half else 3 for half in halve)
        total += _linear(channels * kernel, out, math.prod(sides)) + (_norm(out) if index else Cost())
        channels = out
    return total + _linear(channels * 3 ** len(sides), 1, math.prod(sides))


def discriminators_cost(config: Config) -> Cost:
    """All three judges, and one judgement of a clip by each: one frame, the frames together, the spectrogram of M x T S."""
    clip = ClipGeometry.from_config(config)
    frame = (clip.height, clip.width)
    spectrogram = (clip.mel_bins, clip.num_frames * clip.mel_steps)
    return _total(_judge(config, 3, frame), _judge(config, 3, (clip.num_frames, *frame)), _judge(config, 1, spectrogram))


# Whole runs


@dataclass(frozen=True)
class Memory:
    """Bytes that training holds on one worker, by cause; an estimate (see `memory_estimate`)."""

    weights: int
    gradients: int
    moments: int
    master: int
    ema: int
    casts: int
    activations: int
    discriminators: int = 0

    @property
    def total(self) -> int:
        return sum(getattr(self, field.name) for field in fields(self))


@dataclass(frozen=True)
class Costs:
    """A configuration's bill. Parameters are counts; FLOPs are per clip; memory is bytes per worker."""

    config: Config
    num_labels: int
    mdsa_parameters: int
    stdit_parameters: int
    discriminators_parameters: int
    mdsa_encode_flops: int
    """Both modalities, joint planes."""
    mdsa_encode_lone_flops: int
    """Each modality without the other, which `encode` makes beside the joint planes."""
    mdsa_decode_flops: int
    stdit_forward_flops: int
    """One evaluation."""
    sample_evaluations: int
    """Steps of config.generate, twice with guidance."""
    sample_flops: int
    """All evaluations and one decoding."""
    mdsa_train_flops: int
    """Three times encode and decode; LPIPS left out."""
    discriminators_train_flops: int
    """What a clip's step costs on top once the discriminators have entered."""
    stdit_train_flops: int
    """Three times one evaluation."""
    mdsa_memory: Memory
    stdit_memory: Memory


def costs(config: Config, num_labels: int = 0) -> Costs:
    """The bill of `config`; num_labels: rows of the label table beside the null label."""
    mdsa, stdit, judges = mdsa_costs(config), stdit_cost(config, num_labels), discriminators_cost(config)
    whole_mdsa = mdsa["encode"] + mdsa["decode"]
    evaluations = config.generate.steps * (1 if config.generate.guidance_scale == 1 else 2)

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
        mdsa_memory=memory_estimate(
            whole_mdsa, mdsa_kept(config), config.mdsa.train, discriminators=judges.parameters
        ),
        stdit_memory=memory_estimate(stdit, stdit_kept(config), config.stdit.train),
    )


@dataclass(frozen=True)
class Kept:
    """Values of one clip that autograd keeps for the backward pass: in fp32 whatever the precision, and in the precision's own bytes.

    layer_inputs: what recomputation keeps instead; largest_layer: (wide, narrow) of the one layer that is then rebuilt at a time.
    """

    wide: int
    narrow: int
    layer_inputs: int
    largest_layer: tuple[int, int]

    def num_bytes(self, precision: str, *, recompute: bool) -> int:
        wide, narrow = self.largest_layer if recompute else (self.wide, self.narrow)
        return 4 * (wide + recompute * self.layer_inputs) + (4 if precision == "fp32" else 2) * narrow


def stdit_kept(config: Config) -> Kept:
    """Per token, layer and width: 8 a + 2 wide and 4 a + 3 + 2 r narrow values, a attentions of a block (2 divided, 1 full), r the MLP's ratio.

    The coefficients were fitted to what saved_tensors_hooks saw; the rest (embedding, modulation) is left out, a few percent.
    """
    depth, width, _ = config.stdit.shape
    attentions = 2 if config.stdit.attention == "divided" else 1
    unit = LatentGeometry.from_config(config).num_tokens * width
    layer = unit * (8 * attentions + 2), unit * (4 * attentions + 3 + 2 * config.stdit.mlp_ratio)
    return Kept(depth * layer[0], depth * layer[1], depth * unit, layer)


def mdsa_kept(config: Config) -> Kept:
    """Both streams. Per cell of the volume: a space-time block keeps 3 C wide, 4 C + 12 I + 4 r C narrow values (I heads x head width, r the MLP's
    ratio); a collapse layer, three at a time over n + 1 tokens, 2 C wide and 2 C + 4 I' + 2 M narrow (M its MLP's width).

    Fitted like `stdit_kept`; planes, discriminators and LPIPS are left out.
    """
    mdsa, frames = config.mdsa, config.clip.num_frames
    width, inner, cells = mdsa.width, mdsa.num_heads * mdsa.head_width, frames * mdsa.plane_size**2
    block = 3 * width * cells, (4 * width + 12 * inner + 4 * mdsa.mlp_ratio * width) * cells
    collapse_cells = sum(cells * (length + 1) // length for length in (frames, mdsa.plane_size, mdsa.plane_size))
    collapse_inner = mdsa.collapse_heads * (width // 8)
    collapse = 2 * width * collapse_cells, (2 * width + 4 * collapse_inner + 2 * mdsa.collapse_mlp_width) * collapse_cells
    depth, streams = mdsa.encoder_depth + mdsa.decoder_depth, NUM_MODALITIES
    wide, narrow = (streams * (depth * block[i] + mdsa.collapse_depth * collapse[i]) for i in (0, 1))
    layer_inputs = streams * width * (depth * cells + mdsa.collapse_depth * collapse_cells)
    return Kept(wide, narrow, layer_inputs, max(block, collapse, key=sum))


def memory_estimate(cost: Cost, kept: Kept, train: TrainConfig, *, discriminators: int = 0) -> Memory:
    """Bytes per worker, for P parameters on n workers (the fewest that the settings allow):

        weights 4 P (/ n at stage 3), gradients 4 P (/ n from stage 2),
        moments 8 P (4 for hidden matrices with Muon) and ZeRO's own fp32 weights 4 P (/ n from stage 1),
        EMA 4 P (/ n at stage 3), autocast's copies 2 P (bf16, fp16), activations of batch_size / accumulation_steps / n clips,
        discriminators, which are not sharded, 16 bytes a parameter.

    Weights stay fp32 under autocast. Left out: the framework (0.5 GiB and more), communication buffers, LPIPS, loaders, and what the
    discriminators keep of a clip.
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
    )


def format_costs(bill: Costs) -> str:
    """Lines for people: what `--dry-run` prints."""
    config = bill.config
    latents, generate = LatentGeometry.from_config(config), config.generate
    guidance = "without guidance" if generate.guidance_scale == 1 else f"guidance {generate.guidance_scale:g}"
    lines = [
        f"clip        {config.clip.num_frames} frames, {ClipGeometry.from_config(config).seconds:g} s; "
        f"latents {' x '.join(map(str, latents.stack_shape))}, {latents.num_tokens} tokens",
        f"parameters  MDSA {_millions(bill.mdsa_parameters)}, its discriminators {_millions(bill.discriminators_parameters)}, "
        f"ST-DiT {_millions(bill.stdit_parameters)} with {bill.num_labels} labels",
        f"FLOPs/clip  (a multiply-add is 2) MDSA encode {_flops(bill.mdsa_encode_flops)}, decode {_flops(bill.mdsa_decode_flops)}; "
        f"ST-DiT {_flops(bill.stdit_forward_flops)} an evaluation",
        f"sample      {_flops(bill.sample_flops)}: {bill.sample_evaluations} evaluations ({generate.steps} steps, {guidance}) and one decoding",
        f"train       MDSA {_flops(bill.mdsa_train_flops)} a clip, {_flops(bill.discriminators_train_flops)} more with discriminators; "
        f"ST-DiT {_flops(bill.stdit_train_flops)} a clip",
    ]
    for name, memory, train in (("MDSA", bill.mdsa_memory, config.mdsa.train), ("ST-DiT", bill.stdit_memory, config.stdit.train)):
        parts = ", ".join(f"{field.name} {_bytes(getattr(memory, field.name))}" for field in fields(memory) if getattr(memory, field.name))
        engine = "torch engine" if train.engine == "torch" else f"ZeRO {train.zero_stage}"
        lines.append(f"memory      {name}, about {_bytes(memory.total)} a worker ({engine}, {train.precision}): {parts}")
    return "\n".join(lines)


def _millions(count: int) -> str:
    return f"{count / 1e6:.2f} M"


def _flops(count: int) -> str:
    return f"{count / 1e12:.3f} TFLOP" if count >= 1e11 else f"{count / 1e9:.2f} GFLOP"


def _bytes(count: int) -> str:
    return f"{count / 2**30:.2f} GiB" if count >= 2**29 else f"{count / 2**20:.0f} MiB"
