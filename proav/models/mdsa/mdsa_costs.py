"""MDSA's parameters, FLOPs and kept values, and those of its discriminators.

Not here: ST-DiT (`stdit_costs.py`), the costs of a whole run (`proav/costs.py`). Letters: T frames, N plane
side, C width, D latent channels, M mel bins, S mel columns in a frame.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

from proav.config import Config
from proav.geometry import PLANES, ClipGeometry, LatentGeometry, StreamGeometry, stream_geometries
from proav.models.cost_parts import (
    NUM_MODALITIES,
    Cost,
    Kept,
    attention_cost,
    hidden_cost,
    linear_cost,
    norm_cost,
    sum_of,
)


def mdsa_costs(config: Config) -> dict[str, Cost]:
    """The cost of each part of MDSA, both streams together: {"encode", "encode_lone", "decode"}.

    encode: both modalities together. encode_lone: each modality without the other. decode: both together.
    encode and decode hold all parameters.
    """
    mdsa, cells, lone, decoders = config.mdsa, _plane_cells(config), Cost(), Cost()
    for modality, stream in stream_geometries(config).items():
        depth, (linear_code, linear_images) = mdsa.channels(modality), _linear_path(config, modality)
        into = sum_of(*(linear_cost(mdsa.width, depth[name], size) for name, size in cells.items()))
        out_of = sum_of(*(linear_cost(depth[name], mdsa.width, size) for name, size in cells.items()))
        lone += sum_of(_stream_encoder(config, stream), _intra_modal(config), into, linear_code)
        decoders += sum_of(_stream_decoder(config, modality), out_of, linear_images)
    return {
        "encode": lone + _group_cross(config),
        "encode_lone": lone,
        "decode": decoders + _bi_block(config),
    }


def _stream_encoder(config: Config, geometry: StreamGeometry) -> Cost:
    """Patches, space-time transformer, and the collapse of each of the three axes, for one modality."""
    mdsa, frames, side = config.mdsa, geometry.num_frames, geometry.plane_size
    patch_values = geometry.channels * geometry.patch[0] * geometry.patch[1]
    return sum_of(
        linear_cost(patch_values, mdsa.width, frames * side**2),
        _space_time_transformer(config, mdsa.encoder_depth),
        _collapse(config, frames, side**2),
        _collapse(config, side, frames * side).times(2),
    )


def _stream_decoder(config: Config, modality: str) -> Cost:
    """Space-time transformer, patches and refiner of one modality."""
    mdsa, geometry = config.mdsa, stream_geometries(config)[modality]
    patch_values = geometry.channels * geometry.patch[0] * geometry.patch[1]
    cells = geometry.num_frames * geometry.plane_size**2
    expansion = linear_cost(mdsa.width, patch_values, cells, bias=False) + Cost(geometry.channels)
    return sum_of(_space_time_transformer(config, mdsa.decoder_depth), expansion, _refiner(config, modality))


def _space_time_transformer(config: Config, depth: int) -> Cost:
    mdsa, frames = config.mdsa, config.clip.num_frames
    width, inner, cells = mdsa.width, mdsa.num_heads * mdsa.head_width, mdsa.plane_size**2
    rows, hidden = frames * cells, mdsa.mlp_ratio * width
    time, space = (
        attention_cost(width, inner, frames, frames, cells),
        attention_cost(width, inner, cells, cells, frames),
    )
    mlp = hidden_cost(width, 2 * hidden, rows) + hidden_cost(hidden, width, rows)
    return sum_of(norm_cost(width).times(3), time, space, mlp).times(depth)


def _collapse(config: Config, length: int, sequences: int) -> Cost:
    """The token and its positions, then layers over length + 1 tokens; the last computes the token alone."""
    mdsa = config.mdsa
    width, inner, hidden = mdsa.width, mdsa.collapse_heads * (mdsa.width // 8), mdsa.collapse_mlp_width

    def layer(queries: int) -> Cost:
        rows = queries * sequences
        mlp = hidden_cost(width, hidden, rows) + hidden_cost(hidden, width, rows)
        return sum_of(
            norm_cost(width).times(2), attention_cost(width, inner, queries, length + 1, sequences), mlp
        )

    return sum_of(Cost((length + 2) * width), layer(length + 1).times(mdsa.collapse_depth - 1), layer(1))


def _plane_cells(config: Config) -> dict[str, int]:
    return {
        name: rows * columns
        for name, (rows, columns) in LatentGeometry.from_config(config).plane_shapes.items()
    }


def _intra_modal(config: Config) -> Cost:
    """MT-SelfAttn on WT and HT, SelfAttn on HW, of one modality."""
    mdsa, frames, side = config.mdsa, config.clip.num_frames, config.mdsa.plane_size
    width, total = mdsa.width, Cost()
    if mdsa.multi_scale.enabled:
        scales = mdsa.multi_scale.scales
        lengths = [frames // scale for scale in scales]
        attentions = [attention_cost(width, width, length, length, side) for length in lengths]
        if mdsa.multi_scale.share_scales:
            attention = replace(attentions[0], flops=sum(cost.flops for cost in attentions))
        else:
            attention = sum_of(*attentions)
        upsampling = Cost(
            0, sum(2 * frames * length * width * side for length, scale in zip(lengths, scales) if scale > 1)
        )
        fusion = Cost(len(scales) * width)
        total += sum_of(norm_cost(width), attention, upsampling, fusion).times(2 * mdsa.multi_scale.repeats)
    if mdsa.spatial.enabled:
        total += (norm_cost(width) + attention_cost(width, width, side**2, side**2)).times(
            mdsa.spatial.repeats
        )
    return total


def _group_cross(config: Config) -> Cost:
    """GCM-Attn: both directions on WT and HT; zero if it is switched off."""
    mdsa, group = config.mdsa, config.mdsa.group_cross
    if not group.enabled:
        return Cost()
    tokens = config.clip.num_frames // group.num_groups * mdsa.plane_size
    direction = norm_cost(mdsa.width) + attention_cost(
        mdsa.width, mdsa.width, tokens, tokens, group.num_groups
    )
    return direction.times(2 * 2 * group.repeats)


def _bi_block(config: Config) -> Cost:
    """Bi-Block CrossAttn: both directions, on HW or on all planes; zero if it is switched off."""
    mdsa, settings = config.mdsa, config.mdsa.bi_block
    if not settings.enabled:
        return Cost()
    cells = settings.block_size**2
    total = Cost()
    for plane, size in _plane_cells(config).items():
        if plane == "HW" or settings.apply_to == "all":
            blocks = size // cells
            keys = cells + (blocks - 1 if settings.global_tokens else 0)
            total += (
                norm_cost(mdsa.width) + attention_cost(mdsa.width, mdsa.width, cells, keys, blocks)
            ).times(2 * settings.repeats)
    return total


def _linear_path(config: Config, modality: str) -> tuple[Cost, Cost]:
    """(encoding, decoding) of one modality on the linear path; zero if it is switched off.

    Encoding also runs the decoder's maps, to subtract every plane but the last. With switched cells it
    subtracts the last plane too. All bases then run both ways, because the choice needs the result of each.
    """
    if not config.mdsa.linear_planes.enabled:
        return Cost(), Cost()
    maps, stream = _linear_maps(config, modality), stream_geometries(config)[modality]
    lapping, planes = _lapping(config, modality), list(maps)[:3]
    switched = planes[0] if "switched" in maps else None
    mean = Cost(stream.channels * stream.rows)
    there = [*planes, *([switched] if switched else [])]
    back = planes if switched else planes[:-1]
    taken_off = [maps[name] for name in maps if name in back or name == "switched"]
    flops = sum(cost.flops for cost in taken_off) + sum(lapping[name] for name in [*there, *back])
    return sum_of(*maps.values(), Cost(flops=flops)), sum_of(
        *maps.values(), mean, Cost(flops=sum(lapping.values()))
    )


def _linear_maps(config: Config, modality: str) -> dict[str, Cost]:
    """{plane: the map between its lapped images and its cells, one way}, in the order of subtraction.

    Switched cells add a last entry, "switched". A map has D V parameters in a hidden matrix and one gain. It
    costs 2 cells D V FLOPs. V is the number of values in a block.
    """
    mdsa, images = config.mdsa, _plane_images(config, modality)
    cells, depth, gain = _plane_cells(config), mdsa.channels(modality), Cost(1)
    values = {name: channels * p * q for name, (_, channels, _, _, p, q) in images.items()}
    first = next(iter(images))
    bases, switched = mdsa.linear_planes.switched(modality)
    depth[first] -= switched
    maps = {name: hidden_cost(values[name], depth[name], cells[name], bias=False) + gain for name in images}
    if switched:
        basis = hidden_cost(values[first], switched - 1, cells[first], bias=False) + gain
        maps["switched"] = basis.times(bases)
    return maps


def _lapping(config: Config, modality: str) -> dict[str, int]:
    """FLOPs of the filter across the borders of a clip's blocks, for each plane, one way.

    Along an axis with blocks of P pixels, a P x P matrix multiplies all pixels and P mirrored ones.
    """
    if not config.mdsa.linear_planes.overlap:
        return dict.fromkeys(PLANES, 0)
    flops = {}
    for name, (number, channels, rows, columns, p, q) in _plane_images(config, modality).items():
        down = 0 if p % 2 or p == 2 else (rows + p) * columns * p
        right = 0 if q % 2 or q == 2 else rows * (columns + q) * q
        flops[name] = 2 * number * channels * (down + right)
    return flops


def _plane_images(config: Config, modality: str) -> dict[str, tuple[int, int, int, int, int, int]]:
    """{plane: (images of a clip, their channels, rows, columns, rows of a block, columns of a block)}.

    The planes are in the order of subtraction.
    """
    stream = stream_geometries(config)[modality]
    channels, frames, rows, columns = stream.input_shape
    p, q = stream.patch
    whole = {"HW": (1, channels * frames, rows, columns, p, q)}
    if modality == "video":
        across, down = (channels * rows, 1, columns, 1, q), (channels * columns, 1, rows, 1, p)
        return whole | {"WT": (frames, *across), "HT": (frames, *down)}
    row = frames * columns
    return {"HT": (1, channels, rows, row, p, columns), "WT": (1, channels * rows, 1, row, 1, q)} | whole


def _refiner(config: Config, modality: str) -> Cost:
    """Convolutions of 3 x 3, of 3 frames for pictures, of 2 x 2 between resolutions; zero if switched off."""
    settings, levels = config.mdsa.refiner, _refiner_levels(config, modality)
    if not settings.enabled:
        return Cost()
    values = stream_geometries(config)[modality].channels * settings.patch**2
    (width, places), total = levels[0], Cost()
    total += linear_cost(9 * values, width, places) + linear_cost(9 * width, values, places)
    for index, (width, places) in enumerate(levels):
        across = linear_cost(3 * width, width, places) if modality == "video" else Cost()
        block = linear_cost(9 * width, width, places) + across
        total += block.times(2 if index < len(levels) - 1 else 1)
    for (width, _), (double, places) in zip(levels, levels[1:]):
        down, up = (
            linear_cost(4 * width, double, places),
            linear_cost(double, 4 * width, places, bias=False) + Cost(width),
        )
        total += down + up
    return total


def _refiner_levels(config: Config, modality: str) -> list[tuple[int, int]]:
    """(channels, places of a clip) at each resolution of a refiner."""
    settings, (_, frames, rows, columns) = (
        config.mdsa.refiner,
        stream_geometries(config)[modality].input_shape,
    )
    places = frames * rows * columns // settings.patch**2
    return [(settings.width * 2**level, places // 4**level) for level in range(settings.levels)]


def mdsa_kept(config: Config) -> Kept:
    """What MDSA keeps for the backward pass. Each of the two streams has these parts:

        a space-time block    3 C wide, 4 C + 12 I + 4 r C narrow values per cell of the volume
                              (I heads x head width, r the MLP's ratio),
        a collapse layer      2 C wide, 2 C + 4 I' + 2 M' narrow values per token
                              (I' its heads x head width, M' its MLP's width),
                              three at a time, each over n + 1 tokens,
        a refiner's block     5 narrow values per place and channel, 3 for sound,
        the linear path       two wide images.

    The numbers were fitted as in `stdit_kept`. Planes, discriminators and LPIPS are left out.
    """
    mdsa, frames = config.mdsa, config.clip.num_frames
    width, inner, cells = mdsa.width, mdsa.num_heads * mdsa.head_width, frames * mdsa.plane_size**2
    block = 3 * width * cells, (4 * width + 12 * inner + 4 * mdsa.mlp_ratio * width) * cells
    collapse_cells = sum(
        cells * (length + 1) // length for length in (frames, mdsa.plane_size, mdsa.plane_size)
    )
    collapse_inner = mdsa.collapse_heads * (width // 8)
    collapse = (
        2 * width * collapse_cells,
        (2 * width + 4 * collapse_inner + 2 * mdsa.collapse_mlp_width) * collapse_cells,
    )
    depth, streams = mdsa.encoder_depth + mdsa.decoder_depth, NUM_MODALITIES
    wide, narrow = (streams * (depth * block[i] + mdsa.collapse_depth * collapse[i]) for i in (0, 1))
    layer_inputs = streams * width * (depth * cells + mdsa.collapse_depth * collapse_cells)
    for modality, stream in stream_geometries(config).items():
        if mdsa.linear_planes.enabled:
            wide += 2 * math.prod(stream.input_shape)
        if mdsa.refiner.enabled:
            levels = [channels * places for channels, places in _refiner_levels(config, modality)]
            values = 2 * sum(levels) - levels[-1]
            narrow += (5 if modality == "video" else 3) * values
            layer_inputs += values
    return Kept(wide, narrow, layer_inputs, max(block, collapse, key=sum))


def discriminators_cost(config: Config) -> Cost:
    """All three discriminators: of one frame, of all frames, and of the M x (T S) spectrogram."""
    clip = ClipGeometry.from_config(config)
    frame = (clip.height, clip.width)
    spectrogram = (clip.mel_bins, clip.num_frames * clip.mel_steps)
    return sum_of(
        _judge(config, 3, frame), _judge(config, 3, (clip.num_frames, *frame)), _judge(config, 1, spectrogram)
    )


def _judge(config: Config, channels: int, sides: Sequence[int]) -> Cost:
    """One discriminator: kernel 4, stride 2 on axes of 8 cells or more, kernel 3, stride 1 on the others.

    Widths double up to 8 times the first.
    """
    loss, sides, total = config.mdsa.loss, list(sides), Cost()
    for index in range(loss.discriminator_layers + 1):
        out = loss.discriminator_width * min(2**index, 8)
        halve = [index < loss.discriminator_layers and side >= 8 for side in sides]
        sides = [side // 2 if half else side for side, half in zip(sides, halve)]
        kernel = math.prod(4 if half else 3 for half in halve)
        total += linear_cost(channels * kernel, out, math.prod(sides)) + (norm_cost(out) if index else Cost())
        channels = out
    return total + linear_cost(channels * 3 ** len(sides), 1, math.prod(sides))
