"""ST-DiT: zero at initialization, positions shared by axis, attention between tokens, modulation by time."""

import pytest
import torch

from proav.config import Config
from proav.config.reading import config_from_dict
from proav.diffusion.conditions import Conditions
from proav.geometry import LatentGeometry
from proav.models.stdit.embeddings import AXES, axis_positions, sinusoids
from proav.models.stdit.tokens import TokenLayout, everywhere
from proav.models.stdit.transformer import Block, SelfAttention, STDiT

NUM_LABELS, BATCH = 3, 2
CUSTOM = {"size": "custom", "depth": 2, "width": 32, "num_heads": 4}
EVEN = TokenLayout((3,) * 6)
UNEVEN = TokenLayout((4, 1, 1, 2, 4, 2))
"""Tokens along the side of each plane."""


def small_config(*, uneven: bool = False, **stdit) -> Config:
    """uneven: tokens have three sizes, and one modality has more tokens than the other."""
    uneven_planes = {"plane_channels": {"video": (16, 4, 1), "audio": (1, 2, 1)}}
    mdsa = uneven_planes if uneven else {"latent_channels": 4}
    return config_from_dict({"mdsa": mdsa, "stdit": {**CUSTOM, **stdit}})


def trained_looking(model: STDiT) -> STDiT:
    """The model in float64 with every parameter away from zero, as after training."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model.double().eval()


def inputs(
    config: Config, seed: int = 1, dtype: torch.dtype = torch.float64
) -> tuple[torch.Tensor, torch.Tensor, Conditions]:
    generator = torch.Generator().manual_seed(seed)
    noisy = torch.randn(
        BATCH, *LatentGeometry.from_config(config).stack_shape, generator=generator, dtype=dtype
    )
    return (
        noisy,
        torch.tensor([[0.3, 0.7], [0.9, 0.0]], dtype=dtype),
        Conditions(torch.tensor([0, NUM_LABELS])),
    )


@pytest.mark.parametrize("uneven", [False, True])
@pytest.mark.parametrize("attention", ["divided", "full"])
def test_prediction_is_exactly_zero_at_initialization(attention, uneven):
    config = small_config(attention=attention, uneven=uneven)
    noisy, times, told = inputs(config, dtype=torch.float32)
    prediction = STDiT(config, NUM_LABELS)(noisy, times, told)
    assert prediction.shape == noisy.shape and prediction.count_nonzero() == 0


@torch.no_grad()
def test_a_prediction_of_a_token_lies_in_as_many_directions_as_the_model_is_wide():
    """Why tokens must not hold more numbers than that (`wide_tokens`).

    The last norm takes a direction, and what all predictions have in common adds one.
    """
    config = small_config(width=8, num_heads=2)
    model = trained_looking(STDiT(config, NUM_LABELS))
    noisy = torch.randn(100, 4, 6, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    times, told = torch.full((100, 2), 0.5).double(), Conditions(torch.zeros(100, dtype=torch.long))
    token = model(noisy, times, told)[:, :, 0, :2, :2].flatten(1)
    assert token.shape[1] == 16 and torch.linalg.matrix_rank(token, rtol=1e-5) == 8
    assert torch.linalg.matrix_rank(noisy[:, :, 0, :2, :2].flatten(1)) == 16


@pytest.mark.parametrize("attention", ["divided", "full"])
def test_a_block_is_the_identity_at_initialization(attention):
    block = Block(32, 4, 4, attention, UNEVEN)
    tokens = torch.randn(BATCH, sum(UNEVEN.counts), 32)
    assert torch.equal(block(tokens, torch.zeros(BATCH, 2, 6, 32)), tokens)


@pytest.mark.parametrize("uneven", [False, True])
@pytest.mark.parametrize("attention", ["divided", "full"])
def test_a_few_optimizer_steps_reach_every_parameter(attention, uneven):
    """Zero-initialized factors must not block a branch forever: step by step all gradients become nonzero."""
    config = small_config(attention=attention, uneven=uneven)
    model = STDiT(config, NUM_LABELS)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    noisy, times, told = inputs(config, dtype=torch.float32)
    for _ in range(4):
        optimizer.zero_grad()
        (model(noisy, times, told) - noisy.flip(0)).square().mean().backward()
        optimizer.step()
    untouched = [
        name
        for name, parameter in model.named_parameters()
        if parameter.grad is None or parameter.grad.count_nonzero() == 0
    ]
    assert untouched == []


@pytest.mark.parametrize("uneven", [False, True])
def test_columns_that_read_a_masked_clip_begin_at_zero(uneven):
    model = STDiT(small_config(uneven=uneven), NUM_LABELS)
    for embed, own, patch in zip(model.embed, model.channels, model.patches, strict=True):
        own_columns, told_columns = embed.weight.split([own * patch**2, (own + 1) * patch**2], dim=1)
        assert own_columns.count_nonzero() == own_columns.numel() and not told_columns.any()


def test_no_condition_is_a_condition_of_zeros():
    config = small_config()
    model = trained_looking(STDiT(config, NUM_LABELS))
    noisy, times, told = inputs(config)
    zeros = torch.zeros(BATCH, noisy.shape[1] + 1, *noisy.shape[2:], dtype=noisy.dtype)
    assert torch.equal(model(noisy, times, told), model(noisy, times, Conditions(told.labels_BK, zeros)))
    assert not torch.allclose(
        model(noisy, times, told), model(noisy, times, Conditions(told.labels_BK, zeros + 1))
    )


@pytest.mark.parametrize("uneven", [False, True])
@pytest.mark.parametrize("attention", ["divided", "full"])
def test_a_clip_does_not_depend_on_its_batch(attention, uneven):
    config = small_config(attention=attention, uneven=uneven)
    model = trained_looking(STDiT(config, NUM_LABELS))
    noisy, times, told = inputs(config)
    together = model(noisy, times, told)
    alone = torch.cat(
        [model(noisy[i : i + 1], times[i : i + 1], told.rows(slice(i, i + 1))) for i in range(BATCH)]
    )
    torch.testing.assert_close(together, alone, rtol=1e-6, atol=1e-6)  # the last map is float32


def test_labels_and_null_label_are_told_apart_and_a_model_may_have_none():
    config = small_config()
    model = trained_looking(STDiT(config, NUM_LABELS))
    noisy, times, _ = inputs(config)
    results = [
        model(noisy, times, Conditions(torch.full((BATCH,), label))) for label in range(NUM_LABELS + 1)
    ]
    assert all(not torch.allclose(a, b) for i, a in enumerate(results) for b in results[:i])
    unlabelled = STDiT(config, 0)
    assert (
        unlabelled.null_label == 0
        and unlabelled(noisy.float(), times.float(), Conditions(torch.zeros(BATCH, dtype=torch.long))).shape
        == noisy.shape
    )


@pytest.mark.parametrize("plane_channels", [[4, 4, 4], [4, 2, 1]])
def test_patches_go_back_to_their_places(plane_channels):
    """The output is the input's tokens, normalized, in their places.

    The first and last maps are identities here, and the blocks are as at initialization.
    """
    mdsa = {"plane_channels": {"video": plane_channels, "audio": plane_channels}}
    config = config_from_dict(
        {"mdsa": mdsa, "stdit": {"size": "custom", "depth": 1, "width": 48, "num_heads": 4}}
    )
    model = STDiT(config, 0).double()
    noisy, times, _ = inputs(config)
    with torch.no_grad():
        for embed, final in zip(model.embed, model.final, strict=True):
            values = final.out_features
            embed.weight.zero_()[:values, :values] = final.weight.zero_()[:, :values].copy_(torch.eye(values))
        for table in model.positions.parameters():
            table.zero_()
        model.positions.axes.zero_()
    prediction = model(noisy, times, Conditions(torch.zeros(BATCH, dtype=torch.long)))
    for plane, (channels, patch) in enumerate(zip(model.channels, model.patches, strict=True)):
        # LN gives (x - mean) / std over the width of the token; beyond its own values the token is zero
        tokens = noisy[:, :channels, plane].unfold(2, patch, patch).unfold(3, patch, patch)  # b c n m i j
        tokens = tokens.permute(0, 2, 3, 1, 4, 5).flatten(3)
        padded = torch.cat([tokens, tokens.new_zeros(*tokens.shape[:-1], 48 - tokens.shape[-1])], dim=-1)
        normed = (tokens - padded.mean(-1, keepdim=True)) / (
            padded.var(-1, unbiased=False, keepdim=True) + 1e-6
        ).sqrt()
        expected = (
            normed.unflatten(-1, (channels, patch, patch))
            .permute(0, 3, 1, 4, 2, 5)
            .flatten(4, 5)
            .flatten(2, 3)
        )
        torch.testing.assert_close(prediction[:, :channels, plane], expected, rtol=1e-6, atol=1e-6)


def test_axes_share_coordinates_between_planes():
    side, width = 5, 26
    share = 2 * (width // 6)
    hw, wt, ht = axis_positions(side, width).unflatten(1, (side, side))
    t, h, w = (slice(share * AXES.index(axis), share * (AXES.index(axis) + 1)) for axis in "THW")
    along = sinusoids(torch.arange(side), share // 2)
    for i in range(side):
        for j in range(side):
            (
                torch.testing.assert_close(wt[i, j, t], along[i]),
                torch.testing.assert_close(ht[i, j, t], along[i]),
            )
            (
                torch.testing.assert_close(hw[i, j, h], along[i]),
                torch.testing.assert_close(ht[i, j, h], along[j]),
            )
            (
                torch.testing.assert_close(hw[i, j, w], along[j]),
                torch.testing.assert_close(wt[i, j, w], along[j]),
            )
    assert hw[..., t].count_nonzero() == wt[..., h].count_nonzero() == ht[..., w].count_nonzero() == 0
    assert not torch.allclose(hw[1, 2], hw[2, 1])


def test_plain_positions_are_those_of_an_image_in_every_plane():
    plain, aware = (axis_positions(5, 26, kind=kind) for kind in ("plain", "axes"))
    assert all(torch.equal(plane, aware[0]) for plane in plain)
    of_model = STDiT(small_config(positions="plain"), 0).positions.axes.unflatten(0, (6, -1))
    assert all(torch.equal(plane, of_model[0]) for plane in of_model)


def test_larger_tokens_lie_at_the_centres_of_what_they_cover():
    share = 2 * (24 // 6)
    coarse = axis_positions(2, 24, spacing=(4.0, 4.0)).unflatten(1, (2, 2))
    coarse = coarse[0, ..., share : 2 * share]  # H of HW
    torch.testing.assert_close(coarse[:, 0], sinusoids(torch.tensor([1.5, 5.5]), share // 2))


def test_both_modalities_have_the_same_fixed_positions():
    first, second = STDiT(small_config(), 0).positions.axes.chunk(2)
    assert torch.equal(first, second)


def places(layout, plane, row, column):
    """(numbers of the six tokens that cover one place, one in each plane; the one of them in `plane`).

    layout: token counts and sides of the six planes
    plane: index of the plane
    row, column: the place, in tokens of the finest planes
    """
    starts = [sum(layout.counts[:i]) for i in range(6)]
    scales = [layout.finest // side for side in layout.sides]
    covering = [
        start + row // scale * side + column // scale
        for start, scale, side in zip(starts, scales, layout.sides)
    ]
    return covering, covering[plane]


@pytest.mark.parametrize("layout", [EVEN, UNEVEN])
def test_spatial_attention_stays_in_its_plane_and_temporal_at_its_place(layout):
    block = Block(32, 4, 4, "divided", layout).double()
    torch.nn.init.normal_(block.temporal.out.weight)
    tokens = torch.randn(1, sum(layout.counts), 32, dtype=torch.float64)
    for plane in (0, 2, 4):
        covering, touched = places(layout, plane, 1, 2)
        moved = tokens.clone()
        moved[0, touched] += 1
        spatial = (block.spatial(moved) - block.spatial(tokens)).abs().amax(-1)[0].split(layout.counts)
        assert all((part.min() > 0) if i == plane else (part.max() == 0) for i, part in enumerate(spatial))
        temporal = (block.temporal(moved) - block.temporal(tokens)).abs().amax(-1)[0]
        scale = layout.finest // layout.sides[plane]
        corner = 1 // scale * scale, 2 // scale * scale  # all places that the moved token covers
        met = {
            token
            for i in range(scale)
            for j in range(scale)
            for token in places(layout, plane, corner[0] + i, corner[1] + j)[0]
        }
        assert set(temporal.nonzero().flatten().tolist()) == met and set(covering) <= met


def test_full_attention_reaches_every_token():
    block = Block(32, 4, 4, "full", UNEVEN).double()
    tokens = torch.randn(1, sum(UNEVEN.counts), 32, dtype=torch.float64)
    moved = tokens.clone()
    moved[0, 2] += 1
    assert (block.joint(moved) - block.joint(tokens)).abs().amax(-1).min() > 0


def test_planes_of_one_size_in_several_runs_are_as_in_one():
    """Attention within and across planes against a loop over planes and places."""
    heads = torch.randn(3, 2, sum(UNEVEN.counts), 2, 8, dtype=torch.float64)
    parts = [part.split(UNEVEN.counts, dim=1) for part in heads]
    alone = torch.cat([everywhere(*plane) for plane in zip(*parts, strict=True)], dim=1)
    torch.testing.assert_close(UNEVEN.within_planes(*heads), alone)
    expected, times_met = torch.zeros_like(heads[0]), torch.zeros(sum(UNEVEN.counts), dtype=torch.float64)
    for row in range(UNEVEN.finest):
        for column in range(UNEVEN.finest):
            six, _ = places(UNEVEN, 0, row, column)
            expected[:, six] += everywhere(*heads[:, :, six])
            times_met[six] += 1
    torch.testing.assert_close(UNEVEN.across_planes(*heads), expected / times_met[:, None, None])


def test_attention_matches_its_formula():
    layer = SelfAttention(16, 2).double()
    with torch.no_grad():
        layer.query_norm.weight.uniform_(0.5, 2), layer.key_norm.weight.uniform_(0.5, 2)
    x = torch.randn(1, 5, 16, dtype=torch.float64)
    query, key, value = (part.unflatten(-1, (2, 8)) for part in layer.qkv(x)[0].chunk(3, dim=-1))

    def rms(heads, norm):
        return heads / (heads.square().mean(-1, keepdim=True) + 1e-6).sqrt() * norm.weight

    query, key = rms(query, layer.query_norm), rms(key, layer.key_norm)
    heads = [torch.softmax(query[:, h] @ key[:, h].T / 8**0.5, -1) @ value[:, h] for h in range(2)]
    torch.testing.assert_close(layer(x)[0], layer.out(torch.cat(heads, dim=-1)), rtol=1e-10, atol=1e-12)


def test_each_modality_knows_its_own_time_and_the_other_by_different_maps():
    conditioning = trained_looking(STDiT(small_config(), NUM_LABELS)).conditioning
    times, told = torch.tensor([[0.2, 0.6]], dtype=torch.float64), Conditions(torch.tensor([1]))
    video, audio = conditioning(times, told)[0]
    changed_video, changed_audio = conditioning(torch.tensor([[0.2, 0.5]], dtype=torch.float64), told)[0]
    assert not torch.allclose(video, changed_video) and not torch.allclose(audio, changed_audio)
    swapped = conditioning(times.flip(1), told)[0]
    assert not torch.allclose(
        swapped.flip(0), torch.stack([video, audio])
    )  # the modality row tells them apart
    conditioning.modality.data.zero_()
    torch.testing.assert_close(conditioning(times.flip(1), told)[0].flip(0), conditioning(times, told)[0])


@pytest.mark.parametrize("layout", [EVEN, UNEVEN])
def test_modulation_reaches_only_the_planes_of_its_modality(layout):
    block = Block(32, 4, 4, "divided", layout).double()
    tokens, modulation = (
        torch.randn(1, sum(layout.counts), 32, dtype=torch.float64),
        torch.randn(1, 2, 6, 32, dtype=torch.float64),
    )
    changed = modulation.clone()
    changed[0, 1] += 1  # the audio's
    video, audio = (
        (block(tokens, changed) - block(tokens, modulation)).abs().amax((0, 2)).split(layout.of_modalities)
    )
    assert video.max() == 0 and audio.min() > 0


@pytest.mark.parametrize("uneven", [False, True])
def test_recomputed_activations_give_the_same_gradients(uneven):
    config = small_config(uneven=uneven)
    noisy, times, told = inputs(config)
    model, gradients = trained_looking(STDiT(config, NUM_LABELS)), []
    for recompute in (False, True):
        model.zero_grad()
        model.activation_checkpointing = recompute
        model(noisy, times, told).square().mean().backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
    torch.testing.assert_close(gradients[0], gradients[1])


@pytest.mark.parametrize("uneven", [False, True])
@pytest.mark.parametrize("cast_weights", [False, True])
def test_bf16_by_autocast_and_by_weights_is_near_fp32(cast_weights, uneven):
    config = small_config(uneven=uneven)
    model = trained_looking(STDiT(config, NUM_LABELS)).float()
    noisy, times, told = inputs(config, dtype=torch.float32)
    exact = model(noisy, times, told)
    if cast_weights:
        coarse = model.bfloat16()(noisy, times, told)
    else:
        with torch.autocast("cpu", torch.bfloat16):
            coarse = model(noisy, times, told)
    assert coarse.dtype == torch.float32
    assert (coarse - exact).square().mean().sqrt() < 0.03 * exact.std()


UNEQUAL = {"plane_channels": {"video": [4, 2, 1], "audio": [1, 1, 3]}}


def test_channels_that_a_plane_does_not_have_are_neither_read_nor_predicted():
    config = config_from_dict({"mdsa": UNEQUAL, "stdit": CUSTOM})
    geometry = LatentGeometry.from_config(config)
    assert geometry.stack_shape == (4, 6, 16, 16) and geometry.channels == (4, 2, 1, 1, 1, 3)
    model, (noisy, times, told) = trained_looking(STDiT(config, NUM_LABELS)), inputs(config)
    own = torch.tensor(geometry.channel_mask).T[..., None, None].expand(geometry.stack_shape)
    prediction = model(noisy, times, told)
    assert not prediction[:, ~own].any() and (prediction[:, own] != 0).all()
    assert torch.equal(prediction, model(torch.where(own, noisy, 1e3), times, told))


def test_each_plane_has_maps_of_its_own():
    model = trained_looking(STDiT(small_config(), NUM_LABELS))
    noisy, times, told = inputs(small_config())
    before = model(noisy, times, told)
    with torch.no_grad():
        model.final[4].weight.zero_()
        model.final[4].bias.zero_()
    after = model(noisy, times, told)
    assert not after[:, :, 4].any()
    others = [plane for plane in range(6) if plane != 4]
    assert torch.equal(after[:, :, others], before[:, :, others])
