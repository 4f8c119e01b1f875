import torch

from proav.models import layers
from proav.models.layers import (
    Attention,
    GatedMLP,
    Norm,
    SpaceTimeBlock,
    attend,
    grid_positions,
    linear_resize_matrix,
    rotary_angles,
    rotate,
)


def _scores(q_LK, k_LK, positions_LA):
    angles = rotary_angles(positions_LA, q_LK.shape[-1])
    return rotate(q_LK[None, None], angles)[0, 0] @ rotate(k_LK[None, None], angles)[0, 0].T


def test_rotary_scores_depend_on_relative_positions_only():
    q_LK, k_LK = torch.randn(2, 12, 16)
    positions_LA = grid_positions(3, 4, q_LK.device)
    here, elsewhere = (
        _scores(q_LK, k_LK, positions_LA),
        _scores(q_LK, k_LK, positions_LA + torch.tensor([5.0, -2.0])),
    )
    torch.testing.assert_close(here, elsewhere, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(here, _scores(q_LK, k_LK, positions_LA * 2), atol=1e-2)


def test_rotary_keeps_lengths_and_leaves_channels_beyond_its_pairs():
    x = torch.randn(2, 3, 5, 14)  # two axes take 2 x 3 pairs; two channels are left
    angles = rotary_angles(torch.rand(5, 2), 14)
    turned = rotate(x, angles)
    assert angles.shape == (5, 6)
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1))
    assert torch.equal(turned[..., 12:], x[..., 12:])


def test_rotary_by_hand():
    turned = rotate(torch.tensor([[[[1.0, 0.0]]]]), rotary_angles(torch.tensor([[torch.pi / 2]]), 2))
    torch.testing.assert_close(turned, torch.tensor([[[[0.0, 1.0]]]]), atol=1e-6, rtol=0)


def test_attention_with_zero_queries_is_the_mean_value():
    attention = Attention(8, 2, 4)
    attention.to_query.weight.data.zero_()
    x, context = torch.randn(3, 5, 8), torch.randn(3, 7, 8)
    value = attention.to_key_value(context)[..., 8:].mean(dim=1, keepdim=True).expand(3, 5, 8)
    torch.testing.assert_close(attention(x, context), attention.to_output(value))


def test_attention_is_the_softmax_formula_and_splits_large_batches(monkeypatch):
    q, k, v = torch.randn(3, 5, 2, 4, 8).unbind(0)
    expected = (q @ k.transpose(-1, -2) / 8**0.5).softmax(dim=-1) @ v
    torch.testing.assert_close(attend(q, k, v), expected)
    monkeypatch.setattr(layers, "MAX_ATTENTION_BATCH", 2)
    torch.testing.assert_close(attend(q, k, v), expected)


def test_gated_mlp_is_geglu():
    mlp, x = GatedMLP(6, 4), torch.randn(5, 6)
    hidden, gate = mlp.expand(x)[:, :24], mlp.expand(x)[:, 24:]
    torch.testing.assert_close(mlp(x), mlp.contract(hidden * torch.nn.functional.gelu(gate)))


def test_time_attention_stays_in_its_cell_and_space_attention_in_its_frame():
    block = SpaceTimeBlock(8, 2, 4, 2)
    x = torch.randn(1, 4, 3, 3, 8)
    changed = x.clone()
    changed[0, 1, 2, 0] += torch.randn(8)
    block.space_attention.to_output.weight.data.zero_()  # time only: one cell in all frames
    touched = (block(changed) != block(x)).any(dim=-1)[0]
    assert touched[:, 2, 0].all() and touched.sum() == 4
    block.space_attention.to_output.weight.data.normal_()
    block.time_attention.to_output.weight.data.zero_()  # space only: one frame, all cells
    touched = (block(changed) != block(x)).any(dim=-1)[0]
    assert touched[1].all() and touched.sum() == 9


def test_norm_has_float32_statistics():
    x = (1000 + torch.randn(4, 64)).bfloat16()
    norm = Norm(64).bfloat16()
    expected = torch.nn.functional.layer_norm(x.float(), (64,)).bfloat16()
    assert torch.equal(norm(x), expected) and norm(x).dtype == torch.bfloat16


def test_linear_resize_matrix_is_linear_interpolation():
    x = torch.randn(2, 3, 5, dtype=torch.float64)
    expected = torch.nn.functional.interpolate(x, size=12, mode="linear", align_corners=False)
    torch.testing.assert_close(x @ linear_resize_matrix(5, 12).T, expected)
    assert torch.equal(linear_resize_matrix(6, 6), torch.eye(6, dtype=torch.float64))
