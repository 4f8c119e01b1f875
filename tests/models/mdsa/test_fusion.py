import torch
from einops import rearrange

from proav.models.mdsa.fusion import (
    BiBlockCrossAttention,
    GroupCrossAttention,
    MultiScaleTemporalAttention,
    SpatialAttention,
)

WIDTH, HEADS = 16, 2


def _touched(before, after):
    return (before != after).any(dim=-1)


def test_multi_scale_attention_with_uniform_attention_is_the_mean_over_time():
    module = MultiScaleTemporalAttention(WIDTH, HEADS, (1, 2, 4), share_scales=False)
    plane = torch.randn(2, 8, 3, WIDTH)
    for attention in module.attentions:
        attention.to_query.weight.data.zero_()
        torch.nn.init.eye_(attention.to_output.weight)
    module.fusion_KC.data.normal_()
    mean = module.norm(plane).mean(
        dim=1, keepdim=True
    )  # the mean of means of equal spans is the mean; interpolating a constant keeps it
    weights = module.fusion_KC.softmax(dim=0)
    expected = plane + sum(
        weight * attention.to_key_value(mean)[..., WIDTH:]
        for weight, attention in zip(weights, module.attentions)
    )
    torch.testing.assert_close(module(plane), expected)


def test_scale_k_sees_time_in_spans_of_k_frames(open_gates):
    module = open_gates(MultiScaleTemporalAttention(WIDTH, HEADS, (4,), share_scales=False))
    module.norm = torch.nn.Identity()  # the mean of normalized tokens is not the normalized mean
    plane = torch.randn(1, 8, 2, WIDTH)
    swapped = plane[:, [1, 0, 3, 2, 6, 7, 4, 5]]  # other frames within each span of 4, equal means
    torch.testing.assert_close(module(swapped) - swapped, module(plane) - plane)
    moved = plane[:, [0, 1, 2, 4, 3, 5, 6, 7]]  # across the border between spans
    assert not torch.allclose(module(moved) - moved, module(plane) - plane, atol=1e-3)


def test_every_scale_reaches_all_time_of_its_column_and_no_other_column(open_gates):
    for scale in (1, 2, 4):
        module = open_gates(MultiScaleTemporalAttention(WIDTH, HEADS, (scale,), share_scales=False))
        plane = torch.randn(1, 8, 3, WIDTH)
        changed = plane.clone()
        changed[:, 5, 1] += torch.randn(WIDTH)
        touched = _touched(module(plane), module(changed))[0]
        assert touched[:, 1].all() and not touched[:, [0, 2]].any()


def test_fusion_weights_choose_a_scale_per_channel(open_gates):
    both = open_gates(MultiScaleTemporalAttention(WIDTH, HEADS, (1, 4), share_scales=False))
    plane = torch.randn(2, 8, 3, WIDTH)
    both.fusion_KC.data[0], both.fusion_KC.data[1] = 100.0, -100.0
    fine = both(plane)
    both.fusion_KC.data.neg_()
    coarse = both(plane)
    both.fusion_KC.data[:, : WIDTH // 2].neg_()
    torch.testing.assert_close(
        both(plane), torch.cat([fine[..., : WIDTH // 2], coarse[..., WIDTH // 2 :]], dim=-1)
    )


def test_sharing_scales_shares_projections():
    apart = MultiScaleTemporalAttention(WIDTH, HEADS, (1, 2, 4), share_scales=False)
    shared = MultiScaleTemporalAttention(WIDTH, HEADS, (1, 2, 4), share_scales=True)
    assert len(apart.attentions) == 3 and len(shared.attentions) == 1
    assert shared(torch.randn(1, 8, 2, WIDTH)).shape == (1, 8, 2, WIDTH)


def test_modules_start_as_the_identity():
    plane, other = torch.randn(2, 1, 8, 8, WIDTH)
    assert torch.equal(SpatialAttention(WIDTH, HEADS)(plane), plane)
    assert torch.equal(MultiScaleTemporalAttention(WIDTH, HEADS, (1, 2), share_scales=False)(plane), plane)
    for module in (
        GroupCrossAttention(WIDTH, HEADS, 4),
        BiBlockCrossAttention(WIDTH, HEADS, 4, global_tokens=True),
    ):
        assert all(torch.equal(out, into) for out, into in zip(module(plane, other), (plane, other)))


def test_gates_open_in_the_first_step():
    module = GroupCrossAttention(WIDTH, HEADS, 2)
    plane, other = torch.randn(2, 1, 8, 8, WIDTH)
    video, audio = module(plane, other)
    (video.square().sum() + audio.square().sum()).backward()
    assert all(
        attention.to_output.weight.grad.abs().max() > 0 for attention in (module.to_video, module.to_audio)
    )


def test_group_attention_stays_in_its_temporal_group_in_both_directions(open_gates):
    module = open_gates(GroupCrossAttention(WIDTH, HEADS, 4))  # T=8: groups of two frames
    video, audio = torch.randn(2, 1, 8, 3, WIDTH)
    in_group = torch.zeros(8, 3, dtype=torch.bool)
    in_group[4:6] = True
    changed = audio.clone()
    changed[:, 5, 1] += torch.randn(WIDTH)
    (video_before, audio_before), (video_after, audio_after) = module(video, audio), module(video, changed)
    assert torch.equal(_touched(video_before, video_after)[0], in_group)
    assert _touched(audio_before, audio_after)[0].sum() == 1  # sound does not attend to itself here
    changed = video.clone()
    changed[:, 4, 0] += torch.randn(WIDTH)
    assert torch.equal(_touched(audio_before, module(changed, audio)[1])[0], in_group)


def test_both_directions_read_the_planes_before_the_update(open_gates):
    module = open_gates(GroupCrossAttention(WIDTH, HEADS, 2))
    video, audio = torch.randn(2, 1, 8, 3, WIDTH)
    off, on = torch.tensor([False]), torch.tensor([True])
    both = module(video, audio)
    assert torch.equal(both[0], module(video, audio, on, off)[0]) and torch.equal(
        both[1], module(video, audio, off, on)[1]
    )


def test_exchange_masks_act_per_clip(open_gates):
    for module in (
        open_gates(GroupCrossAttention(WIDTH, HEADS, 2)),
        open_gates(BiBlockCrossAttention(WIDTH, HEADS, 4, global_tokens=True)),
    ):
        video, audio = torch.randn(2, 3, 8, 8, WIDTH)
        to_video, to_audio = torch.tensor([True, False, True]), torch.tensor([False, True, True])
        full, masked = module(video, audio), module(video, audio, to_video, to_audio)
        assert torch.equal(masked[0], torch.where(to_video[:, None, None, None], full[0], video))
        assert torch.equal(masked[1], torch.where(to_audio[:, None, None, None], full[1], audio))


def _blocks(mask_RS, size=4):
    return rearrange(mask_RS, "(i p) (j q) -> (i j) (p q)", p=size, q=size)


def test_blocks_without_global_tokens_see_their_own_block_only(open_gates):
    module = open_gates(BiBlockCrossAttention(WIDTH, HEADS, 4, global_tokens=False))
    video, audio = torch.randn(2, 1, 8, 8, WIDTH)
    changed = audio.clone()
    changed[:, 2, 5] += torch.randn(WIDTH)  # block 1 of 2 x 2
    touched = _blocks(_touched(module(video, audio)[0], module(video, changed)[0])[0])
    assert touched[1].all() and not touched[[0, 2, 3]].any()
    changed = video.clone()
    changed[:, 6, 1] += torch.randn(WIDTH)  # block 2
    touched = _blocks(_touched(module(video, audio)[1], module(changed, audio)[1])[0])
    assert touched[2].all() and not touched[[0, 1, 3]].any()


def test_global_tokens_show_other_blocks_through_their_mean_only(open_gates):
    module = open_gates(BiBlockCrossAttention(WIDTH, HEADS, 4, global_tokens=True))
    video, audio = torch.randn(2, 1, 8, 8, WIDTH)
    before = module(video, audio)[0][0]
    kept_mean, new_mean = audio.clone(), audio.clone()
    step = torch.randn(WIDTH)
    kept_mean[:, 2, 5] += step
    kept_mean[:, 3, 6] -= step
    new_mean[:, 2, 5] += step
    difference = (module(video, kept_mean)[0][0] - before).abs().amax(dim=-1)
    assert _blocks(difference)[1].min() > 1e-4 and _blocks(difference)[[0, 2, 3]].max() < 1e-5
    difference = (module(video, new_mean)[0][0] - before).abs().amax(dim=-1)
    assert _blocks(difference).amin() > 1e-6


def test_a_block_attends_to_its_cells_and_the_other_means_by_hand():
    module = BiBlockCrossAttention(WIDTH, HEADS, 4, global_tokens=True)
    module.to_video.to_query.weight.data.zero_()  # uniform over 16 cells and 3 means
    torch.nn.init.eye_(module.to_video.to_output.weight)
    video, audio = torch.randn(2, 1, 8, 8, WIDTH)
    tiles = rearrange(audio, "1 (i p) (j q) c -> (i j) (p q) c", p=4, q=4)
    others = tiles.mean(dim=1)[[0, 1, 3]]  # all but block 2: rows 4-7, columns 0-3
    context = module.norm_audio(torch.cat([tiles[2], others]))
    expected = video[:, 4:, :4] + module.to_video.to_key_value(context)[:, WIDTH:].mean(dim=0)
    torch.testing.assert_close(module(video, audio)[0][:, 4:, :4], expected)
